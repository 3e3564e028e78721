"""Roles, links, images and footnotes inside a paragraph of MyST, turned into what plain Markdown can show.

Inline code, formulas and HTML are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from normlib.book.notebooks.blocks import MystError
from normlib.book.notebooks.labels import Book
from normlib.book.notebooks.references import TITLED, References
from normlib.errors import NormlibError

TOKEN = re.compile(
    r"""
      (?P<escape>\\.)
    | \{(?P<role>[A-Za-z][\w:+.-]*)\}(?P<ticks>`+)(?!`)(?P<content>.+?)(?<!`)(?P=ticks)(?!`)
    | (?P<code>(?<!`)(?P<run>`+)(?!`).+?(?<!`)(?P=run)(?!`))
    | (?P<math>\$\$.+?\$\$ | \$(?![\s$])(?:\\.|[^\\$])+?(?<!\s)\$(?!\d))
    | (?P<comment><!--.*?-->)
    | <(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):[^\s<>]*>
    | (?P<html></?[A-Za-z][^<>]*>)
    | \[\^(?P<footnote>[^\]\s]+)\](?P<definition>:[ ]*)?
    | (?P<substitution>\{\{.*?\}\})
    | (?P<link>!?\[)
    """,
    re.VERBOSE | re.DOTALL,
)
DESTINATION = re.compile(r"""\(\s*(?P<to><[^<>\n]*>|(?:[^\s()]|\([^\s()]*\))*)(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)""")
BRACKETS = re.compile(r"\\.|(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)|\$[^$\s][^$]*\$|[\[\]]", re.DOTALL)
ATTRIBUTES = re.compile(r"\{\s*[#.\w][^{}`]*\}(?!`)")
HTML_LINK = re.compile(r"""\b(?:src|href)\s*=\s*["']?(?!["']|https?:|mailto:|data:|\#)""", re.IGNORECASE)
CITATIONS = {"cite": "parenthetical", "cite:p": "parenthetical", "cite:t": "textual", "cite:author": "authors", "cite:year": "year"}
REFERENCES = ("ref", "numref", "eq", "prf:ref")
CODE = ("code", "kbd", "file", "py:func", "py:class", "py:meth", "py:mod", "py:attr")
SIMPLE: dict[str, Callable[[str], str]] = {
    "abbr": str,
    "math": lambda content: f"${content}$",
    "sub": lambda content: f"<sub>{content}</sub>",
    "sup": lambda content: f"<sup>{content}</sup>",
    "term": lambda content: match["text"] if (match := TITLED.fullmatch(content)) else content,
}


@dataclass
class Inline:
    """Converts the paragraphs of one page, and remembers what they cite.

    Attributes:
        book: what references resolve to.
        path: the page.
        cited: the keys of the works cited so far.
        footnotes: their numbers, in the order of appearance.
    """

    book: Book
    path: Path
    cited: list[str] = field(default_factory=list)
    footnotes: dict[str, int] = field(default_factory=dict)

    @property
    def references(self) -> References:
        """What resolves labels, pages and files."""
        return References(self.book, self.path)

    def convert(self, text: str, line: int) -> str:
        """Convert a paragraph that begins at a line of the file.

        Raises:
            MystError: a role, link, label, citation or image that a notebook cannot show.
        """
        out = ""
        at = 0
        while match := TOKEN.search(text, at):
            out += text[at : match.start()]
            here = line + text.count("\n", 0, match.start())
            try:
                done, at = self._link(match, text, out, here) if match["link"] else (self._token(match, out), match.end())
                if (match["code"] or match["link"]) and (attributes := ATTRIBUTES.match(text, at)):
                    raise NormlibError(f"the attributes {attributes[0]} are not in the subset; leave them out")
            except MystError:
                raise
            except NormlibError as error:
                raise MystError(self.path, here, str(error)) from error
            out += done
        return out + text[at:]

    def _token(self, match: re.Match[str], before: str) -> str:
        whole = match[0]
        if match["role"]:
            return self._role(match["role"], " ".join(match["content"].split()), before)
        if match["footnote"]:
            number = self.footnotes.setdefault(match["footnote"], len(self.footnotes) + 1)
            return f"<sup>{number}</sup>" + " " * bool(match["definition"])
        if match["substitution"]:
            raise NormlibError(f"the substitution {whole} is not in the subset; write the text itself")
        if match["scheme"] and match["scheme"].lower() not in ("http", "https", "mailto"):
            raise NormlibError(f"the link {whole} is not in the subset; write [text](#label) or [text](page.md)")
        if match["html"] and HTML_LINK.search(whole):
            raise NormlibError(f"the HTML {whole} leads to a relative address; write the absolute one")
        if match["math"]:
            return " ".join(whole.split("\n"))
        return "" if match["comment"] else whole

    def _role(self, name: str, content: str, before: str) -> str:
        if name in CITATIONS:
            keys = [key.strip() for key in content.split(",")]
            written = getattr(self.book.bibliography, CITATIONS[name])(keys)
            self.cited += keys
            return str(written)
        if name in REFERENCES:
            return self.references.role(content, before)
        if name == "doc":
            return self.references.page(content)
        if name in SIMPLE:
            return SIMPLE[name](content)
        if name in CODE:
            return f"`{content.removeprefix('~')}`"
        if name.startswith("bdg-link-"):
            match = TITLED.fullmatch(content)
            return f"[**{match['text']}**]({match['target']})" if match else f"<{content}>"
        if name.startswith("bdg-"):
            return f"**{content}**"
        known = sorted([*CITATIONS, *REFERENCES, *SIMPLE, *CODE, "doc", "bdg-*"])
        raise NormlibError(f"the role {{{name}}}`{content}` is not in the subset that a notebook can show: {', '.join(known)}")

    def _link(self, match: re.Match[str], text: str, before: str, line: int) -> tuple[str, int]:
        """Convert a link or an image; return it and where the text goes on. A bracket that begins neither stays."""
        close = _closing_bracket(text, match.end())
        destination = DESTINATION.match(text, close + 1) if close >= 0 else None
        if not destination:
            return match[0], match.end()
        to, inner = destination["to"].strip("<>"), text[match.end() : close]
        if match[0] == "![":
            return self.references.image(inner, to), destination.end()
        return self.references.link(self.convert(inner, line), to, before), destination.end()


def _closing_bracket(text: str, at: int) -> int:
    """Find the bracket that closes the one before `at`, past code, formulas and nested brackets; return -1 if there is none."""
    depth = 1
    for match in BRACKETS.finditer(text, at):
        depth += {"[": 1, "]": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return -1
