"""Where the references of a chapter lead, once they stand in a notebook: to pages, files and images at absolute addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from normlib.book.notebooks.labels import Book, Target
from normlib.errors import NormlibError

TITLED = re.compile(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>", re.DOTALL)
ABSOLUTE = re.compile(r"(?:https?|mailto):")
NUMBER = re.compile(r"%s|\{(?:number|name)\}")
SENTENCE = re.compile(r"(?:\A|\n)[\s>*+#|\d.-]*\Z|(?<!al)[.!?][)\"”*]*\s+\Z")


@dataclass(frozen=True)
class References:
    """Resolves what one page refers to.

    Attributes:
        book: the pages, labels and works there are.
        path: the page that refers.
    """

    book: Book
    path: Path

    def role(self, content: str, before: str) -> str:
        """Resolve `label` or `text <label>`; what Sphinx would number is said in words.

        Args:
            content: what stands between the backticks.
            before: the text before it, to tell whether a sentence begins here.

        Raises:
            NormlibError: nothing has this label, or only a text can say what it is.
        """
        match = TITLED.fullmatch(content)
        label, text = (match["target"], match["text"]) if match else (content, "")
        return self._linked(self.find(label), "" if NUMBER.search(text) else text, before, f"<{label}>")

    def page(self, content: str) -> str:
        """Resolve `page` or `text <page>`, written without the suffix, from here or, with a slash first, from the root."""
        match = TITLED.fullmatch(content)
        name = (match["target"] if match else content) + ".md"
        docname = self._docname(self._root() / name[1:] if name.startswith("/") else self.path.parent / name)
        return f"[{match['text'] if match else self.book.titles[docname]}]({self.book.site.page_url(docname)})"

    def link(self, text: str, to: str, before: str) -> str:
        """Resolve `[text](to)`, where `to` is an address, a label, a page, or a file of the repository.

        Raises:
            NormlibError: there is no such place.
        """
        if ABSOLUTE.match(to):
            return f"[{text or to}]({to})"
        name, _, anchor = unquote(to).partition("#")
        if not name:
            return self._linked(self.find(anchor), text, before, f"[]({to})")
        file = self.path.parent / name
        if file.suffix != ".md" or file.resolve().parent != self.book.folder.resolve():
            return f"[{text or f'`{file.name}`'}]({self.book.site.code_url(self._in_repository(to), self.book.ref)})"
        docname = self._docname(file)
        if not anchor:
            return f"[{text or self.book.titles[docname]}]({self.book.site.page_url(docname)})"
        found = self.find(anchor, docname)
        if found.docname != docname:
            raise NormlibError(f"the label {anchor!r} of the link ({to}) is on the page {found.docname}; write (#{anchor})")
        return self._linked(found, text, before, f"[]({to})")

    def image(self, alt: str, to: str) -> str:
        """Return an image by its absolute address.

        Raises:
            NormlibError: it has no alt text, or the repository lacks the file.
        """
        if not alt.strip():
            raise NormlibError(f"the image ({to}) has no alt text; say what is drawn")
        where = to if ABSOLUTE.match(to) else self.book.site.raw_url(self._in_repository(to), self.book.ref)
        return f"![{alt}]({where})"

    def find(self, label: str, docname: str | None = None) -> Target:
        """Look up a label, or a heading of the page `docname`, by default of this one.

        Raises:
            NormlibError: there is none.
        """
        found = self.book.find(label, docname or self.book.docname(self.path))
        if not found:
            raise NormlibError(
                f"nothing has the label {label!r}; labels come from (label)= lines, :label: options, and show('…') cells"
            )
        return found

    def _linked(self, target: Target, text: str, before: str, construct: str) -> str:
        words = text or target.words
        if not words:
            raise NormlibError(f"the reference {construct} leads to a place without a title; give it a text")
        if not text and SENTENCE.search(before):
            words = words[0].upper() + words[1:]
        return f"[{words}]({self.book.url(target)})"

    def _docname(self, file: Path) -> str:
        name = self.book.docname(file)
        if file.resolve().parent != self.book.folder.resolve() or name not in self.book.pages:
            raise NormlibError(f"there is no page {file.name}; pages: {', '.join(Path(p).name + '.md' for p in self.book.pages)}")
        return name

    def _root(self) -> Path:
        return self.book.folder.parent

    def _in_repository(self, to: str) -> str:
        file, root = (self.path.parent / unquote(to)).resolve(), self._root().resolve()
        if not file.exists() or root not in file.parents:
            raise NormlibError(f"the link ({to}) leads to no page of the book and to no file of the repository")
        return file.relative_to(root).as_posix()
