"""Writes the notebook beside each chapter: what Colab opens, without outputs and without any markup that Colab cannot show.

python -m normlib.book.notebooks            writes those that changed
python -m normlib.book.notebooks --check    only names those that would change
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import yaml

from normlib.book.notebooks.blocks import Block, MystError
from normlib.book.notebooks.citations import Bibliography
from normlib.book.notebooks.colab import metadata, setup
from normlib.book.notebooks.inline import Inline
from normlib.book.notebooks.labels import FRONT_MATTER, Book
from normlib.book.notebooks.leftovers import leftovers
from normlib.book.notebooks.markdown import Converter
from normlib.book.site import Site
from normlib.errors import NormlibError
from normlib.lab.code.provenance import checkout

CHAPTERS = "chapters"
BIBLIOGRAPHY = "references.bib"


def export(chapter: Path, site: Site, bibliography: Path, ref: str | None = None) -> nbformat.NotebookNode:
    """Make the notebook of a chapter.

    Args:
        chapter: a MyST Markdown notebook; its labels are looked up among all pages of its folder.
        site: the addresses of the book.
        bibliography: the BibTeX file.
        ref: the commit, tag or branch that the notebook installs and links to; by default the branch of the site.

    Returns:
        A valid notebook without outputs; the same for the same files.

    Raises:
        MystError: the chapter holds something that Colab cannot show; the message names file, line and construct.
        NormlibError: the bibliography is missing, or a citation is not in it.
    """
    return _export(chapter, Book.read(chapter.parent, site, Bibliography.read(bibliography), ref))


def write_all(root: Path, ref: str | None = None) -> list[Path]:
    """Write the notebook of every chapter, and return the files that changed."""
    changed = []
    for path, text in _generated(root, ref).items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


def check_all(root: Path, ref: str | None = None) -> list[str]:
    """Name every notebook that is missing, differs from its chapter, or has none."""
    expected = _generated(root, ref)
    problems = [f"{path.relative_to(root)} is missing" for path in expected if not path.is_file()]
    problems += [
        f"{path.relative_to(root)} differs from what its chapter gives"
        for path, text in expected.items()
        if path.is_file() and path.read_text(encoding="utf-8") != text
    ]
    orphans = sorted(set((root / CHAPTERS).glob("*.ipynb")) - set(expected))
    return problems + [f"{path.relative_to(root)} belongs to no chapter; remove it" for path in orphans]


def _generated(root: Path, ref: str | None) -> dict[Path, str]:
    book = Book.read(root / CHAPTERS, Site.read(root), Bibliography.read(root / BIBLIOGRAPHY), ref)
    chapters = [path for path in sorted((root / CHAPTERS).glob("*.md")) if is_notebook(path, book)]
    return {path.with_suffix(".ipynb"): nbformat.writes(_export(path, book)) + "\n" for path in chapters}


def is_notebook(path: Path, book: Book) -> bool:
    """Tell whether a page is a notebook.

    Raises:
        MystError: it has code cells, or half of the front matter of a notebook, so it would not run.
    """
    front = front_matter(path)
    marks = [front.get("file_format") == "mystnb" or "jupytext" in front, "kernelspec" in front]
    code = next((block for block in book.pages[book.docname(path)] if block.name == "code-cell"), None)
    if all(marks):
        return True
    if any(marks) or code:
        line = code.line if code else 1
        raise MystError(
            path, line, "a page with code needs both 'file_format: mystnb' and 'kernelspec' in its front matter, or it does not run"
        )
    return False


def front_matter(path: Path) -> dict[str, Any]:
    """Read the YAML at the head of a page; it is empty if there is none.

    Raises:
        MystError: it is not valid.
    """
    match = FRONT_MATTER.match(path.read_text(encoding="utf-8"))
    try:
        found = yaml.safe_load(match["yaml"]) or {} if match else {}
    except yaml.YAMLError as error:
        raise MystError(path, 1, f"the front matter is not valid YAML: {error}") from error
    if not isinstance(found, dict):
        raise MystError(path, 1, f"the front matter is {type(found).__name__}, expected 'key: value' lines")
    return found


def _export(chapter: Path, book: Book) -> nbformat.NotebookNode:
    if not is_notebook(chapter, book):
        raise MystError(chapter, 1, "this page is not a notebook; give it 'file_format: mystnb' and a 'kernelspec'")
    front = front_matter(chapter)
    cells = [
        _banner(chapter, book, front),
        nbformat.v4.new_code_cell(setup(book.site.install_requirement(book.ref))),
    ]
    cells += _cells(chapter, book)
    _name_cells(cells)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata(front))
    notebook.nbformat_minor = 5
    for cell in cells:
        if cell.cell_type == "markdown" and (found := leftovers(cell.source)):
            raise MystError(chapter, 1, f"the notebook would show raw markup: {'; '.join(found)}")
    nbformat.validate(notebook)
    return notebook


def _banner(chapter: Path, book: Book, front: dict[str, Any]) -> nbformat.NotebookNode:
    docname = book.docname(chapter)
    title = Inline(book, chapter).convert(book.titles[docname], 1)
    return nbformat.v4.new_markdown_cell(
        f"# {title}\n\nThis notebook is generated from [the page of the same name]({book.site.page_url(docname)}) of "
        f"*{book.site.title}*. Read the web page for numbered figures, recorded results and verdicts; run this notebook to "
        "measure them yourself. Run the next cell first."
    )


def _cells(chapter: Path, book: Book) -> list[nbformat.NotebookNode]:
    page = Inline(book, chapter)
    converter = Converter(page)
    cells: list[nbformat.NotebookNode] = []
    prose: list[Block] = []

    def close() -> None:
        if text := converter.convert(prose):
            cells.append(nbformat.v4.new_markdown_cell(text))
        prose.clear()

    titled = False
    for block in book.pages[book.docname(chapter)]:
        if block.name == "code-cell":
            close()
            cells.append(_code_cell(chapter, block))
        elif block.kind == "break":
            close()
        elif block.kind == "heading" and block.level == 1 and not titled:
            titled = True  # the banner carries it
        else:
            prose.append(block)
    close()
    if page.cited:
        cells.append(nbformat.v4.new_markdown_cell("## References\n\n" + book.bibliography.listed(page.cited)))
    return cells


def _code_cell(chapter: Path, block: Block) -> nbformat.NotebookNode:
    if "load" in block.options:
        raise MystError(
            chapter, block.line, "the option 'load' of {code-cell} reads a file that Colab lacks; write the code itself"
        )
    tags = block.options.get("tags", [])
    try:
        tags = yaml.safe_load(tags) if isinstance(tags, str) else tags
    except yaml.YAMLError:
        tags = None
    if not isinstance(tags, list):
        raise MystError(
            chapter, block.line, f"the tags of {{code-cell}} are {block.options['tags']!r}, expected a list such as [hide-input]"
        )
    return nbformat.v4.new_code_cell("\n".join(block.body).strip("\n"), metadata={"tags": tags} if tags else {})


def _name_cells(cells: list[nbformat.NotebookNode]) -> None:
    """Name each cell by its content, so that an edit renames one cell and not all that follow."""
    seen: Counter[str] = Counter()
    for cell in cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        cell.id = digest + (f"-{seen[digest]}" if seen[digest] else "")
        seen[digest] += 1


def main(arguments: list[str] | None = None) -> int:
    """Write or check the notebooks of the checkout; return 1 if the check finds a problem."""
    parser = argparse.ArgumentParser(prog="python -m normlib.book.notebooks", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a notebook differs from its chapter")
    parser.add_argument("--ref", help="the tag or commit to install and link to (default: the branch in _config.yml)")
    parser.add_argument("--root", type=Path, help="the folder of _config.yml (default: this checkout)")
    chosen = parser.parse_args(arguments)
    root = chosen.root or checkout()
    try:
        if root is None:
            raise NormlibError("the chapters are in the repository, and this is an installed package; run from a checkout")
        if chosen.check:
            problems = check_all(root, chosen.ref)
            print(
                "\n".join([*problems, "Run: python -m normlib.book.notebooks"])
                if problems
                else "The notebooks match their chapters."
            )
            return bool(problems)
        print("\n".join(f"wrote {path.relative_to(root)}" for path in write_all(root, chosen.ref)) or "Nothing changed.")
    except NormlibError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
