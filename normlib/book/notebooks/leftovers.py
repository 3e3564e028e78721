"""The last look at a generated notebook: what would show as markup, seen by a parser of plain Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

RAW = (
    ("directive", re.compile(r":{3,}|`{3,}\{")),
    ("target", re.compile(r"^\([^()\s]+\)=", re.MULTILINE)),
    ("substitution", re.compile(r"\{\{.*?\}\}")),
    ("footnote", re.compile(r"\[\^[^\]\s]+\]")),
    ("cell break", re.compile(r"^\+\+\+", re.MULTILINE)),
)
ROLE = re.compile(r"\{[A-Za-z][\w:+.-]*\}\Z")
ABSOLUTE = re.compile(r"(?:https?|mailto):")


def leftovers(markdown: str) -> list[str]:
    """List what plain Markdown does not show as meant: raw directives, roles and targets, and relative links.

    Inline code, formulas and fenced code may hold such text.

    Example:
        >>> leftovers("See {cite:t}`ioffe2015` and `{note}`, [here](page.md).")
        ['the role {cite:t}`ioffe2015`', "the relative address 'page.md'"]
    """
    parser = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, allow_labels=False)
    return [problem for token in parser.parse(markdown) for problem in _problems(token)]


def _problems(token: Token) -> Iterator[str]:
    if token.type == "fence" and token.info.lstrip().startswith("{"):
        yield f"the directive {token.info.strip()}"
    before = ""
    for child in token.children or []:
        role = ROLE.search(before)
        if child.type == "code_inline" and role:
            yield f"the role {role[0]}`{child.content}`"
        address = child.attrGet("href") or child.attrGet("src")
        if address is not None and not ABSOLUTE.match(str(address)):
            yield f"the relative address {str(address)!r}"
        if child.type == "text":
            yield from (f"the {kind} {match[0]}" for kind, pattern in RAW for match in pattern.finditer(child.content))
        before = child.content if child.type == "text" else ""
