"""A reader for the MyST Markdown of the chapters: it splits a page into blocks and keeps the line of each.

It knows fences, math, targets, comments, quotes and cell breaks, and takes everything else for paragraphs. It does not
look inside paragraphs; `normlib.book.notebooks.inline` does.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from normlib.book.notebooks.blocks import Block, Kind, MystError

FENCE = re.compile(r"(?P<indent>\s*)(?P<marks>(?P<mark>[`~:])(?P=mark){2,})\s*(?P<info>.*?)\s*")
INFO = re.compile(r"\{(?P<name>[^{}\s]+)\}\s*(?P<argument>.*)")
HEADING = re.compile(r"(?P<marks>#{1,6})\s+(?P<text>.*?)\s*#*\s*")
TARGET = re.compile(r"\s*\((?P<label>[^()\s]+)\)=\s*")
MATH = re.compile(r"(?P<indent>\s*)\$\$(?P<rest>.*)")
MATH_END = re.compile(r"(?P<tex>.*?)\$\$\s*(?:\((?P<label>[^()\s]+)\))?\s*")
AMSMATH = re.compile(r"(?P<indent>\s*)\\begin\{(?P<name>[a-z]+\*?)\}.*")
LIST_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])\s")
STRAY = re.compile(r"(?:`{3,}|:{3,})\{[^}]*\}|^\s*\[[^\]^]+\]:(?=\s)|^\s*:(?=\s+\S)")
OPTION = re.compile(r":(?P<key>[\w-]+):\s*(?P<value>.*)")


def parse(lines: Sequence[str], path: Path, first: int = 1) -> list[Block]:
    """Split lines into blocks.

    Args:
        lines: without line ends.
        path: the file, for error messages.
        first: the number of the first line in the file.

    Raises:
        MystError: a fence, a formula or a comment is not closed, or a construct stands where it has no meaning.
    """
    return _Reader(lines, path, first).read()


class _Reader:
    def __init__(self, lines: Sequence[str], path: Path, first: int) -> None:
        self.lines, self.path, self.first = lines, path, first
        self.at = 0
        self.paragraph: list[str] = []
        self.in_list = False
        self.found: list[Block] = []

    def read(self) -> list[Block]:
        steps = (self._indented, self._fence, self._math, self._amsmath, self._comment, self._quote, self._single)
        while self.at < len(self.lines):
            if not any(step() for step in steps):
                self._paragraph_line()
        self._flush()
        return self.found

    def _error(self, problem: str, at: int | None = None) -> MystError:
        return MystError(self.path, self.first + (self.at if at is None else at), problem)

    def _add(self, kind: Kind, at: int, **parts: Any) -> None:
        self._flush(upto=at)
        self.found.append(Block(kind, self.first + at, **parts))

    def _flush(self, upto: int | None = None) -> None:
        if self.paragraph:
            begin = (self.at if upto is None else upto) - len(self.paragraph)
            self.found.append(Block("text", self.first + begin, text="\n".join(self.paragraph)))
            self.paragraph = []

    def _paragraph_line(self) -> None:
        line = self.lines[self.at]
        if not line.strip():
            self._flush()
        else:
            if stray := STRAY.search(line):
                raise self._error(f"{stray[0].strip()!r} cannot stand there; directives begin a line, links stand inline")
            if not self.paragraph and not line.startswith((" ", "\t")):
                self.in_list = False
            self.in_list = self.in_list or bool(LIST_ITEM.match(line))
            self.paragraph.append(line.rstrip() + "  " * line.endswith("  "))
        self.at += 1

    def _indented(self) -> bool:
        """Take a block of code that is marked by four spaces."""
        begin = self.at
        if self.paragraph or self.in_list or not self.lines[begin].startswith("    ") or not self.lines[begin].strip():
            return False
        while self.at < len(self.lines) and (self.lines[self.at].startswith("    ") or not self.lines[self.at].strip()):
            self.at += 1
        self._add("verbatim", begin, text="\n".join(self.lines[begin : self.at]).rstrip())
        return True

    def _fence(self) -> bool:
        begin, match = self.at, FENCE.fullmatch(self.lines[self.at])
        if not match or (match["mark"] == "`" and "`" in match["info"]):
            return False
        info = INFO.fullmatch(match["info"])
        if match["mark"] == ":" and not info:
            raise self._error(f"{match['marks']!r} opens no directive and closes none")
        end = re.compile(rf"\s*{match['mark']}{{{len(match['marks'])},}}\s*")
        self.at += 1
        while self.at < len(self.lines) and not end.fullmatch(self.lines[self.at]):
            self.at += 1
        if self.at == len(self.lines):
            raise self._error(f"the fence {self.lines[begin].strip()!r} is not closed", begin)
        self.at += 1
        if info:
            body = [_dedent(line, match["indent"]) for line in self.lines[begin + 1 : self.at - 1]]
            self._directive(begin, match["indent"], info["name"], info["argument"], body)
        else:
            self._add("verbatim", begin, text="\n".join(self.lines[begin : self.at]))
        return True

    def _directive(self, begin: int, indent: str, name: str, argument: str, body: list[str]) -> None:
        options, used = self._options(begin + 1, body)
        while used < len(body) and not body[used].strip() and name != "code-cell":
            used += 1
        self._add(
            "directive", begin, indent=indent, name=name, argument=argument, options=options, body=tuple(body[used:]),
            body_line=self.first + begin + 1 + used,
        )  # fmt: skip

    def _options(self, at: int, body: list[str]) -> tuple[dict[str, Any], int]:
        """Read the options at the head of a directive, `:key: value` or YAML between dashes; return how many lines they take."""
        if body and body[0].strip() == "---":
            end = next((i for i, line in enumerate(body[1:], 1) if line.strip() == "---"), None)
            if end is None:
                raise self._error("the options that begin with '---' do not end with '---'", at)
            return self._yaml("\n".join(body[1:end]), at), end + 1
        options: dict[str, Any] = {}
        used = 0
        while used < len(body) and (match := OPTION.fullmatch(body[used].rstrip())):
            options[match["key"]] = match["value"]
            used += 1
        return options, used

    def _yaml(self, text: str, at: int) -> dict[str, Any]:
        try:
            found = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise self._error(f"the options are not valid YAML: {error}", at) from error
        if not isinstance(found, dict):
            raise self._error(f"the options are {type(found).__name__}, expected 'key: value' lines", at)
        return found

    def _math(self) -> bool:
        begin, match = self.at, MATH.fullmatch(self.lines[self.at])
        if not match:
            return False
        tex, rest = [], match["rest"]
        while not (end := MATH_END.fullmatch(rest)):
            tex.append(rest)
            self.at += 1
            if self.at == len(self.lines) or not self.lines[self.at].strip():
                raise self._error("the formula that begins with '$$' is not closed before the next blank line", begin)
            rest = self.lines[self.at]
        self.at += 1
        options = {"label": end["label"]} if end["label"] else {}
        self._add("math", begin, indent=match["indent"], text=_strip_block([*tex, end["tex"]]), options=options)
        return True

    def _amsmath(self) -> bool:
        begin, match = self.at, AMSMATH.fullmatch(self.lines[self.at])
        if not match:
            return False
        end = f"\\end{{{match['name']}}}"
        while not self.lines[self.at].rstrip().endswith(end):
            self.at += 1
            if self.at == len(self.lines):
                raise self._error(f"\\begin{{{match['name']}}} has no {end}", begin)
        self.at += 1
        self._add("math", begin, indent=match["indent"], text=_strip_block(list(self.lines[begin : self.at])))
        return True

    def _comment(self) -> bool:
        line = self.lines[self.at].strip()
        if line.startswith("%"):
            self._flush()
        elif line.startswith("<!--"):
            self._flush()
            begin = self.at
            while "-->" not in self.lines[self.at]:
                self.at += 1
                if self.at == len(self.lines):
                    raise self._error("the comment '<!--' is not closed", begin)
        else:
            return False
        self.at += 1
        return True

    def _quote(self) -> bool:
        begin = self.at
        while self.at < len(self.lines) and self.lines[self.at].startswith(">"):
            self.at += 1
        if self.at == begin:
            return False
        body = tuple(line[1:].removeprefix(" ") for line in self.lines[begin : self.at])
        self._add("quote", begin, body=body, body_line=self.first + begin)
        return True

    def _single(self) -> bool:
        """Take what fills one line: headings, targets, cell breaks."""
        line = self.lines[self.at]
        if match := HEADING.fullmatch(line):
            self._add("heading", self.at, text=match["text"], level=len(match["marks"]))
            self.in_list = False
        elif match := TARGET.fullmatch(line):
            self._add("target", self.at, text=match["label"])
        elif re.fullmatch(r"\+\+\+.*", line):
            self._add("break", self.at)
        else:
            return False
        self.at += 1
        return True


def _dedent(line: str, indent: str) -> str:
    return line[len(indent) :] if line.startswith(indent) else line.lstrip()


def _strip_block(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(line.rstrip() for line in lines)).strip()
