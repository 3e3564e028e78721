"""A small book, built by the real machinery from a copy of the package: what is read, run and drawn anew after which edit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRONT = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n"
REFERENCES = "\n```{bibliography}\n:filter: docname in docnames\n```\n"


def cell(view: str) -> str:
    return f'```{{code-cell}} python\nfrom normlib import {view}\n\n{view}(["lecun1998.rates"])\n```\n'


SHOWN = '```{code-cell} python\nfrom normlib import show\n\nshow("lecun1998.rates")\n```\n'
PAGES = {
    "index": "# Home\n\nTwo pages.\n\n" + cell("scoreboard"),
    "one": "# One\n\nSee {cite:t}`lecun1998`.\n\n" + SHOWN + REFERENCES,
    "two": "# Two\n\n```{code-cell} python\nprint(40 + 2)\n```\n",
    "claims": "# Claims\n\n" + cell("claims_table") + REFERENCES,
    "figures": "# Figures\n\n" + cell("figures_table") + REFERENCES,
}


class Book:
    """A checkout with a few pages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(ROOT / "normlib", root / "normlib", ignore=shutil.ignore_patterns("__pycache__", "_records"))
        for name in ("pyproject.toml", "_config.yml", "references.bib"):
            shutil.copy(ROOT / name, root / name)
        (root / "_toc.yml").write_text(
            "format: jb-book\nroot: index\nchapters:\n- file: one\n- file: two\n- file: claims\n- file: figures\n"
        )
        (root / "results").mkdir()
        for name, text in PAGES.items():
            (root / f"{name}.md").write_text(FRONT + text)
        config = (root / "_config.yml").read_text().replace('  - "*.md"\n', "")
        (root / "_config.yml").write_text(config)
        subprocess.run(["git", "init", "-q", str(root)], check=True)

    def build(self) -> tuple[int, str]:
        environment = {**os.environ, "PYTHONPATH": str(self.root), "NO_COLOR": "1"}
        environment.pop("NORMLIB_RESULTS", None)
        command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-n", "-W", "--keep-going"]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def executed(self, log: str) -> set[str]:
        return set(re.findall(r"/(\w+)\.md: Executed notebook", log))

    def html(self, page: str) -> str:
        return (self.root / "_build" / "html" / f"{page}.html").read_text()

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    book = Book(tmp_path_factory.mktemp("book"))
    code, log = book.build()
    assert code == 0, log[-3000:]
    assert book.executed(log) >= {"one", "two", "claims", "figures", "index"}
    return book


@pytest.mark.slow
def test_a_figure_has_number_caption_alt_text_and_links(book: Book) -> None:
    html = book.html("one")
    figure = re.search(r'<figure class="study.*?</figure>', html, re.DOTALL)
    assert figure and 'id="fig-lecun1998-rates"' in figure[0]
    assert "Fig. 1" in figure[0]
    alts = re.findall(r'<img[^>]*alt="([^"]*)"', figure[0])
    assert len(alts) == 2 and all(len(alt) > 20 and not alt.endswith(".svg") for alt in alts)
    links = dict(re.findall(r'href="([^"]+)">(code|record|Colab|permalink)</a>', figure[0]))
    assert set(links.values()) == {"code", "record", "Colab", "permalink"}
    assert links["figures.html#fig-lecun1998-rates"] == "permalink" and 'id="fig-lecun1998-rates"' in book.html("figures")
    record = next(target for target, label in links.items() if label == "record")
    assert (book.root / "_build" / "html" / record).is_file()
    assert 'href="claims.html#claim-lecun1998-rates-limit"' in html


@pytest.mark.slow
def test_nothing_runs_without_a_change(book: Book) -> None:
    code, log = book.build()
    assert code == 0 and book.executed(log) == set()


@pytest.mark.slow
def test_prose_is_read_anew_without_running_it(book: Book) -> None:
    book.edit("one.md", "See ", "Look at ")
    code, log = book.build()
    assert code == 0 and book.executed(log) == set()
    assert "Look at" in book.html("one")


@pytest.mark.slow
def test_an_edited_drawing_reruns_the_pages_that_name_it_and_no_other(book: Book) -> None:
    book.edit("normlib/studies/origins/lecun1998.py", 'xlabel="learning rate"', 'xlabel="rate of learning"')
    code, log = book.build()
    assert code == 0 and book.executed(log) == {"one", "claims", "figures", "index"}
    drawn = {
        page: set(re.findall(r"fig-lecun1998-rates-\w+-(?:light|dark)-\w+\.svg", book.html(page))) for page in ("one", "figures")
    }
    assert drawn["one"] == drawn["figures"] and len(drawn["one"]) == 2, "the thumbnail is the drawing of the chapter"
    records = (book.root / "results" / "lecun1998.rates" / "quick.jsonl").read_text().splitlines()
    assert len(records) == 2, "a drawing is no part of a trial: nothing is measured again"


@pytest.mark.slow
def test_a_figure_that_moves_keeps_its_address_and_a_study_on_no_page_fails_the_build(book: Book) -> None:
    assert 'href="one.html#fig-lecun1998-rates"' in book.html("figures")
    book.edit("one.md", SHOWN, "")
    code, log = book.build()
    assert code != 0 and 'add show("lecun1998.rates") to a chapter' in log
    book.edit("two.md", "# Two\n", "# Two\n\n" + SHOWN)
    assert book.build()[0] == 0
    for page in ("figures", "claims"):
        assert 'href="two.html#fig-lecun1998-rates"' in book.html(page) and "one.html#fig" not in book.html(page)
    assert 'id="fig-lecun1998-rates"' in book.html("figures")


@pytest.mark.slow
def test_a_failing_cell_fails_every_build(book: Book) -> None:
    book.edit("two.md", "print(40 + 2)", "raise RuntimeError('no')")
    assert book.build()[0] != 0
    assert book.build()[0] != 0
    book.edit("two.md", "raise RuntimeError('no')", "print(40 + 2)")


@pytest.mark.slow
def test_an_image_without_alt_text_fails_the_build(book: Book) -> None:
    (book.root / "logo.svg").write_text((ROOT / "normlib/book/pages/static/logo.svg").read_text())
    book.edit("two.md", "# Two\n", "# Two\n\n![](logo.svg)\n")
    code, log = book.build()
    assert code != 0 and "alt text" in log
    book.edit("two.md", "# Two\n\n![](logo.svg)\n", "# Two\n")
