"""Turns the MyST of a chapter into Markdown that any notebook viewer shows: no directive, role or label is left.

What it knows is what the book may use. Anything else raises an error with its file and line, so nothing slips through raw.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from typing import ClassVar

from normlib.book.notebooks.blocks import Block, MystError
from normlib.book.notebooks.formulas import display
from normlib.book.notebooks.inline import Inline
from normlib.book.notebooks.myst import parse
from normlib.errors import NormlibError

ADMONITIONS = ("note", "tip", "hint", "important", "warning", "caution", "danger", "attention", "seealso")
TITLED = ("admonition", "dropdown", "margin", "sidebar")
DROPPED = ("bibliography", "tableofcontents", "toctree", "contents", "index", "exercise-end", "solution-end")
TRANSPARENT = ("tab-set", "div")
KINDS = "theorem lemma corollary proposition definition property remark example algorithm conjecture observation assumption"
PROOFS = tuple(f"prf:{kind}" for kind in KINDS.split())
DISPLAY = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.MULTILINE | re.DOTALL)


class Converter:
    """Converts the blocks of one page.

    Args:
        page: converts what stands inside its paragraphs.
    """

    def __init__(self, page: Inline) -> None:
        self.page = page
        self.docname = page.book.docname(page.path)

    def convert(self, blocks: Sequence[Block]) -> str:
        """Return the blocks as plain Markdown.

        Raises:
            MystError: a construct is not among those that a notebook can show.
        """
        parts: list[tuple[Block, str]] = []
        for block in blocks:
            if block.name == "bibliography" and parts and parts[-1][0].kind == "heading":
                parts.pop()  # the works cited come at the end, under a heading of their own
            text = textwrap.indent(self._block(block), block.indent)
            if text.strip():
                parts.append((block, text))
        return "\n\n".join(text for _, text in parts)

    def _block(self, block: Block) -> str:
        if block.kind == "text":
            return self.page.convert(block.text, block.line)
        if block.kind == "heading":
            return "#" * block.level + " " + self.page.convert(block.text, block.line)
        if block.kind == "verbatim":
            return block.text
        if block.kind == "math":
            return self._math(block, block.text)
        if block.kind == "quote":
            return quote(self._body(block))
        if block.kind == "directive":
            return self._directive(block)
        if block.kind == "break":
            raise self._error(block, "a cell break '+++' inside another block; it stands between paragraphs of the page")
        return ""

    def _directive(self, block: Block) -> str:
        name = block.name
        if name in DROPPED:
            return ""
        if name in TRANSPARENT:
            return self._body(block)
        if name in ADMONITIONS:
            opening = self.page.convert(block.argument, block.line)
            return quote(_paragraphs(f"**{'See also' if name == 'seealso' else name.capitalize()}**", opening, self._body(block)))
        if name in PROOFS:
            return quote(_paragraphs(self._numbered(block, name.removeprefix("prf:").capitalize()), self._body(block)))
        if name not in self.HANDLERS:
            hint = " Code cells stand at the top level; use solution-start and solution-end around them." * (name == "code-cell")
            known = ", ".join(sorted({*DROPPED, *TRANSPARENT, *ADMONITIONS, *PROOFS, *self.HANDLERS}))
            raise self._error(block, f"the directive {{{name}}} is not in the subset that a notebook can show: {known}.{hint}")
        return self.HANDLERS[name](self, block)

    def _body(self, block: Block) -> str:
        return self.convert(parse(block.body, self.page.path, block.body_line))

    def _error(self, block: Block, problem: str) -> MystError:
        return MystError(self.page.path, block.line, problem)

    def _title(self, block: Block) -> str:
        if not block.argument:
            raise self._error(block, f"the directive {{{block.name}}} has no title; write it after the name")
        return f"**{self.page.convert(block.argument, block.line)}**"

    def _number(self, block: Block) -> int:
        return self.page.book.numbers[self.docname, block.line]

    def _numbered(self, block: Block, kind: str) -> str:
        title = f" ({self.page.convert(block.argument, block.line)})" if block.argument else ""
        return f"**{kind} {self._number(block)}{title}**"

    def _titled(self, block: Block) -> str:
        title = "" if block.name == "margin" and not block.argument else self._title(block)
        return quote(_paragraphs(title, self._body(block)))

    def _tab(self, block: Block) -> str:
        return _paragraphs(self._title(block), self._body(block))

    def _exercise(self, block: Block) -> str:
        return quote(_paragraphs(self._numbered(block, "Exercise"), self._body(block)))

    def _proof(self, block: Block) -> str:
        return quote(_paragraphs("**Proof**", self.page.convert(block.argument, block.line), self._body(block)))

    def _exercise_start(self, block: Block) -> str:
        return _paragraphs(self._numbered(block, "Exercise"), self._body(block))

    def _solved(self, block: Block) -> str:
        try:
            words = self.page.references.find(block.argument).words
        except NormlibError as error:
            raise self._error(block, f"the {{{block.name}}} names its exercise by label: {error}") from error
        return f"Solution to {words}"

    def _solution(self, block: Block) -> str:
        return f"<details>\n<summary>{self._solved(block)}</summary>\n\n{self._body(block)}\n\n</details>"

    def _solution_start(self, block: Block) -> str:
        return _paragraphs(f"**{self._solved(block)}**", self._body(block))

    def _math_directive(self, block: Block) -> str:
        return self._math(block, "\n".join(filter(None, [block.argument, *block.body])))

    def _math(self, block: Block, tex: str) -> str:
        try:
            return display(tex, self._number(block) if block.label else None)
        except NormlibError as error:
            raise self._error(block, str(error)) from error

    def _figure(self, block: Block) -> str:
        try:
            image = self.page.references.image(str(block.options.get("alt", "")), block.argument)
        except NormlibError as error:
            raise self._error(block, f"the directive {{{block.name}}}: {error}") from error
        return _paragraphs(image, self._body(block))

    def _table(self, block: Block) -> str:
        return _paragraphs(self._title(block) if block.argument else "", self._body(block))

    def _code(self, block: Block) -> str:
        ticks = max([2, *(len(run) for run in re.findall(r"`{3,}", "\n".join(block.body)))]) + 1
        return "\n".join(["`" * ticks + block.argument, *block.body, "`" * ticks])

    def _glossary(self, block: Block) -> str:
        entries: list[str] = []
        for number, line in enumerate(block.body, block.body_line):
            if not line.strip():
                continue
            if line.startswith((" ", ":")):
                if not entries:
                    raise self._error(block, "the {glossary} begins with a definition; the term stands on the line above")
                begins = line.startswith(":")
                entries[-1] += (": " if begins else " ") + self.page.convert(line.lstrip(": "), number)
            else:
                entries.append(f"**{self.page.convert(line.strip(), number)}**")
        return "\n\n".join(entries)

    HANDLERS: ClassVar[dict[str, Callable[[Converter, Block], str]]] = {
        **dict.fromkeys(TITLED, _titled),
        "tab-item": _tab,
        "prf:proof": _proof,
        "exercise": _exercise,
        "exercise-start": _exercise_start,
        "solution": _solution,
        "solution-start": _solution_start,
        "math": _math_directive,
        "figure": _figure,
        "image": _figure,
        "table": _table,
        "code": _code,
        "code-block": _code,
        "glossary": _glossary,
    }


def quote(text: str) -> str:
    """Make a block quote; formulas go on one line, because viewers take the marks of a quote for a part of them."""
    text = DISPLAY.sub(lambda match: "$$" + " ".join(match[1].split("\n")) + "$$", text)
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
