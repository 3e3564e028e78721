"""What the pages of the book call their parts: titles, labels, anchors, and the numbers of exercises, theorems and equations.

A notebook stands alone, so a reference from it leads to the web page, and says in words what Sphinx would number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from normlib.book.notebooks.blocks import Block, MystError
from normlib.book.notebooks.citations import Bibliography
from normlib.book.notebooks.myst import parse
from normlib.book.site import Site

FRONT_MATTER = re.compile(r"\A---\n(?P<yaml>.*?\n)---[ \t]*(?:\n|\Z)", re.DOTALL)
SHOWN = re.compile(r"\bshow\(\s*[\"'](?P<study>[\w.-]+)[\"']")
OPAQUE = ("code-cell", "code-block", "code", "math", "image", "glossary")
NUMBERED = {"exercise": "exercise", "exercise-start": "exercise", "math": "equation"}
UNNUMBERED = ("prf:proof", "prf:ref")
CLAIM = re.compile(r"claim-[\w-]+")
CLAIMS_PAGE = "claims"


@dataclass(frozen=True)
class Target:
    """A place that can be referred to: the page it is on, its anchor there, and words that stand for it."""

    docname: str
    anchor: str
    words: str


@dataclass
class Book:
    """All pages of a folder of chapters, and what their references resolve to.

    Attributes:
        folder: the folder of the chapters; the repository is its parent.
        site: the addresses of the book.
        bibliography: the works it cites.
        ref: the commit, tag or branch that links to code and images name.
        pages: the blocks of each page by its docname, "chapters/1-origins".
        titles: the first heading of each page.
        labels: every label.
        slugs: the headings by docname and the anchor that MyST derives from their text.
        numbers: the numbers of exercises, theorems and equations by docname and line.
    """

    folder: Path
    site: Site
    bibliography: Bibliography
    ref: str
    pages: dict[str, list[Block]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    labels: dict[str, Target] = field(default_factory=dict)
    slugs: dict[tuple[str, str], Target] = field(default_factory=dict)
    numbers: dict[tuple[str, int], int] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, site: Site, bibliography: Bibliography, ref: str | None = None) -> Book:
        """Read every `.md` page of a folder.

        Raises:
            MystError: a page cannot be read, or two places have the same label.
        """
        book = cls(folder, site, bibliography, ref or site.branch)
        paths = sorted(folder.glob("*.md"))
        for path in paths:
            body, first = body_of(path.read_text(encoding="utf-8"))
            book.pages[book.docname(path)] = parse(body.split("\n"), path, first)
        for path in paths:
            _Indexer(book, path).index()
        return book

    def docname(self, path: Path) -> str:
        """Return the name that Sphinx gives to a page."""
        return f"{self.folder.name}/{path.stem}"

    def find(self, label: str, docname: str | None = None) -> Target | None:
        """Look up a label, or, within the page `docname`, the anchor of a heading."""
        if docname and (found := self.slugs.get((docname, label))):
            return found
        if found := self.labels.get(label) or self.labels.get(html_id(label)):
            return found
        claims = f"{self.folder.name}/{CLAIMS_PAGE}"
        if CLAIM.fullmatch(label) and claims in self.pages:  # these anchors are made when the page of claims runs
            return Target(claims, label, "the ledger's entry")
        return None

    def url(self, target: Target) -> str:
        """Return the web address of a place."""
        return self.site.page_url(target.docname) + (f"#{target.anchor}" if target.anchor else "")


class _Indexer:
    def __init__(self, book: Book, path: Path) -> None:
        self.book, self.path = book, path
        self.docname = book.docname(path)
        self.counts: Counter[str] = Counter()
        self.headings: Counter[str] = Counter()

    def index(self) -> None:
        self._walk(self.book.pages[self.docname])
        self.book.titles.setdefault(self.docname, self.path.stem)

    def _walk(self, blocks: Sequence[Block]) -> None:
        pending: list[Block] = []
        for block in blocks:
            if block.kind == "target":
                pending.append(block)
                continue
            words = self._words(block)
            for target in pending:
                self._add(target, target.text, words)
            if block.label and words:
                self._add(block, block.label, words)
            pending = []
            self._descend(block)
        for target in pending:
            raise MystError(self.path, target.line, f"the target ({target.text})= has nothing after it to refer to")

    def _descend(self, block: Block) -> None:
        if block.name == "code-cell":
            self._figures(block)
        elif block.body and block.name not in OPAQUE:
            self._walk(parse(block.body, self.path, block.body_line))

    def _words(self, block: Block) -> str:
        """Say what stands for a block in a sentence, or nothing if only its page does."""
        if block.kind == "heading":
            return self._heading(block)
        kind = NUMBERED.get(block.name, "")
        if block.kind == "math":
            kind = "equation" if block.label else ""
        elif block.name.startswith("prf:") and block.name not in UNNUMBERED:
            kind = block.name.removeprefix("prf:")
        if kind == "equation" and not block.label:
            return ""
        if kind:
            self.counts[kind] += 1
            self.book.numbers[self.docname, block.line] = self.counts[kind]
            return f"({self.counts[kind]})" if kind == "equation" else f"{kind} {self.counts[kind]}"
        if block.name in ("figure", "table"):
            return f"the {block.name} “{block.argument}”" if block.name == "table" and block.argument else f"the {block.name}"
        return block.argument if block.name in ("admonition", "dropdown") else ""

    def _heading(self, block: Block) -> str:
        words = re.sub(r"\{[\w:-]+\}`([^`]*)`", r"\1", block.text)
        if block.level == 1:
            self.book.titles.setdefault(self.docname, words)
        name = slug(words)
        self.headings[name] += 1
        anchor = name if self.headings[name] == 1 else f"{name}-{self.headings[name] - 1}"
        self.book.slugs[self.docname, anchor] = Target(self.docname, anchor, words)
        return words

    def _figures(self, cell: Block) -> None:
        figure = cell.options.get("mystnb", {}).get("figure", {}) if isinstance(cell.options.get("mystnb"), dict) else {}
        if figure.get("name"):
            self._add(cell, str(figure["name"]), "the figure")
        for match in SHOWN.finditer("\n".join(cell.body)):
            label = figure_label(match["study"])
            self.book.labels.setdefault(label, Target(self.docname, label, f"the figure of {match['study']}"))

    def _add(self, block: Block, label: str, words: str) -> None:
        if before := self.book.labels.get(label):
            raise MystError(self.path, block.line, f"the label {label!r} is taken, on the page {before.docname}; labels are unique")
        anchor = html_id(label)
        self.book.labels[label] = Target(self.docname, f"equation-{anchor}" if re.fullmatch(r"\(\d+\)", words) else anchor, words)


def body_of(text: str) -> tuple[str, int]:
    """Return a page without its front matter, and the number of its first line."""
    match = FRONT_MATTER.match(text)
    return (text[match.end() :], text[: match.end()].count("\n") + 1) if match else (text, 1)


def figure_label(study: str) -> str:
    """Return the label of the figure that `show(study)` makes."""
    return "fig-" + study.replace(".", "-").replace("_", "-")


def html_id(label: str) -> str:
    """Return the anchor that docutils makes of a label."""
    return re.sub(r"^[-\d]+|-+$", "", re.sub(r"[^a-z0-9]+", "-", label.lower()))


def slug(heading: str) -> str:
    """Return the anchor that MyST derives from a heading, as GitHub does."""
    return re.sub(r"[^\w\u4e00-\u9fff\- ]", "", heading.strip().lower()).replace(" ", "-")
