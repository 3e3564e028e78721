"""What a notebook shows outside a build of the book: plain Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from normlib import claims_table, figures_table, scoreboard
from normlib.book.display import IN_BOOK
from normlib.book.payload import StudyPage, costs, study_page
from normlib.errors import UnknownNameError
from normlib.lab import Store, run
from normlib.lab.reading.results import best_records
from normlib.studies import get_study

STUDY = get_study("lecun1998.rates")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("NORMLIB_RESULTS", str(tmp_path))
    monkeypatch.delenv(IN_BOOK, raising=False)
    run(STUDY, "quick", store=Store.default())
    return Store.default()


def test_the_list_of_figures_names_title_cost_and_command(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    figures_table([STUDY.id])
    head, rule, row = capsys.readouterr().out.strip().splitlines()
    assert head.count("|") == rule.count("|") == row.replace("\\|", "").count("|") == 6
    assert STUDY.id in row and STUDY.title in row and "quick under 1 s" in row
    assert f"`normlib run {STUDY.id} --preset " in row


def test_the_scoreboard_and_the_list_of_claims_hold_each_claim_once(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    claims_table([STUDY.id])
    assert capsys.readouterr().out.count("\n- **") + 1 == len(STUDY.claims)
    scoreboard([STUDY.id])
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in capsys.readouterr().out.strip().splitlines()[2:]]
    assert rows[0][0] == str(len(STUDY.claims))
    columns = list(zip(*rows, strict=True))
    assert all(int(first) == sum(map(int, rest)) for first, *rest in columns), "the sources add up to the whole"


def test_a_book_is_left_a_note_of_what_is_wanted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(IN_BOOK, "1")
    figures_table()
    assert capsys.readouterr().out == "the figures of the book\n"
    with pytest.raises(UnknownNameError, match=r"lecun1998\.rates"):
        claims_table(["lecun1998.rate"])


def test_costs_and_places_of_code_survive_the_way_through_a_notebook(store: Store) -> None:
    page = study_page(best_records(STUDY, store, "quick"), None, store)
    assert {cost.preset for cost in page.costs} >= {"quick"} and page.costs == costs(STUDY, store)
    assert StudyPage.from_json(page.to_json()) == page
    for claim in page.claims:
        assert claim.code
        first, last = claim.code.lines
        source = (Path(__file__).parents[2] / claim.code.path).read_text(encoding="utf-8").splitlines()[first - 1 : last]
        assert source[0].startswith("@") and f'"{claim.slug}"' in "".join(source[:3])
