"""Which records are shown, what is said of their origin, and the ledger of claims."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from normlib.errors import NormlibError, UnknownNameError
from normlib.lab import Drawing, Judgement, Record, Store, Study, judge_identity, run
from normlib.lab.reading.results import best_records, duration, ledger, provenance_line
from normlib.studies.common.looks import subplots

Make = Callable[..., Record]


def trial(c: Any, seed: int) -> dict[str, Any]:
    return {"x": c.size * seed}


@pytest.fixture
def study() -> Iterator[Study]:
    declared = Study(
        "toy.shown", item="none", title="a title", kind="exact", vary={"arm": ["a", "b"]},
        quick={"size": 1}, laptop={"size": 2}, full={"size": 3}, seeds={"quick": 1, "laptop": 2, "full": 3},
    )  # fmt: skip
    declared.trial(trial)

    @declared.draw
    def _(table: Any) -> Drawing:
        return Drawing(subplots()[0], caption=f"Arm b has {table.groupby('arm').x.median()['b']}.", alt="Nothing.")

    @declared.claim("even", "Both arms are equal.", criterion="no difference")
    def _(table: Any) -> Judgement:
        arms = table.groupby("arm").x.median()
        return judge_identity("difference", arms["b"] - arms["a"], 0)

    yield declared
    del Study.instances["toy.shown"]


@pytest.fixture
def fill(study: Study, store: Store, make_record: Make) -> Callable[..., None]:
    def fill(preset: str, count: int | None = None, **changes: Any) -> None:
        for config, seed in study.trials(preset)[:count]:
            body = {"preset": preset, "config": config, "seed": seed, "code": study.code(config), "table": {"x": 1.0}, **changes}
            store.append(make_record(study="toy.shown", **body))

    return fill


# -- the best records ----------------------------------------------------------------------------------------------------


def test_full_comes_before_laptop_before_quick(study: Study, store: Store, fill: Callable[..., None]) -> None:
    with pytest.raises(NormlibError, match=r"normlib run toy\.shown --preset quick"):
        best_records(study, store)
    for preset, count in (("quick", 2), ("laptop", 4), ("full", 6)):
        fill(preset)
        found = best_records(study, store)
        assert (found.preset, len(found.records), found.fresh, found.whole) == (preset, count, True, True)


def test_a_preset_may_be_named(study: Study, store: Store, fill: Callable[..., None]) -> None:
    fill("quick")
    fill("full")
    assert best_records(study, store, "quick").preset == "quick"
    with pytest.raises(NormlibError, match=r"no records at laptop.*--preset laptop"):
        best_records(study, store, "laptop")
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        best_records(study, store, "quik")


def test_fresh_records_come_before_stale_ones(study: Study, store: Store, fill: Callable[..., None]) -> None:
    fill("quick", code="0ld", commit="older", start="2025-01-01")
    fill("quick", code="0lder", commit="oldest", start="2024-01-01")
    found = best_records(study, store)
    assert (found.fresh, {r.commit for r in found.records}) == (False, {"older"})
    assert "measured by an older version of this code" in provenance_line(found)
    fill("quick")
    found = best_records(study, store)
    assert (found.fresh, {r.commit for r in found.records}) == (True, {"abc"})
    assert "older version" not in provenance_line(found)


def test_what_is_incomplete_gives_way_or_is_flagged(study: Study, store: Store, fill: Callable[..., None]) -> None:
    fill("full", count=3)
    found = best_records(study, store)
    assert (found.preset, found.whole) == ("full", False)
    assert "incomplete: 3 of 6 runs" in provenance_line(found)
    fill("laptop")
    assert best_records(study, store).preset == "laptop"
    fill("full")
    assert best_records(study, store).preset == "full"


def test_failed_trials_are_no_records(study: Study, store: Store, fill: Callable[..., None]) -> None:
    fill("full", status="failed", reason="no luck")
    fill("quick")
    assert best_records(study, store).preset == "quick"


def test_the_real_run_is_found(study: Study, store: Store) -> None:
    run(study, store=store, seeds=2)
    found = best_records(study, store)
    assert (found.seeds, found.whole, found.fresh) == (2, True, True)
    assert found.drawing().caption == "Arm b has 0.5."


# -- what is said of them ------------------------------------------------------------------------------------------------


def test_the_provenance_is_one_line(study: Study, store: Store, fill: Callable[..., None]) -> None:
    fill("full", notes={"data": {"name": "digits", "official": False}}, seconds=20.0, status="diverged", reason="why")
    assert provenance_line(best_records(study, store)) == (
        "preset full, digits (not the official files), 3 seeds, a processor, 2 min of computing, 2026-01-02, 6 of 6 runs diverged"
    )
    fill("quick", notes={"data": {"name": "digits"}}, seconds=0.01)
    line = provenance_line(best_records(study, store, "quick"))
    assert line == "preset quick, digits, 1 seed, a processor, under 1 s of computing, 2026-01-02"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "under 1 s"), (1, "1 s"), (59, "59 s"), (61, "1 min"), (5399, "90 min"), (7200, "2.0 h")]
)
def test_times_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- drawing and judging what there is -----------------------------------------------------------------------------------


def test_incomplete_records_that_cannot_be_drawn_are_told(study: Study, store: Store, fill: Callable[..., None]) -> None:
    fill("quick", count=1)
    found = best_records(study, store)
    for use in (found.drawing, found.judge):
        with pytest.raises(NormlibError, match=r"incomplete.*normlib run toy\.shown --preset quick"):
            use()
    assert [row.verdict for row in ledger(store, [study])] == ["records incomplete"]


def test_older_records_that_cannot_be_drawn_are_told(study: Study, store: Store, fill: Callable[..., None]) -> None:
    fill("quick", code="0ld", table={"renamed": 1.0})
    with pytest.raises(NormlibError, match="of an older version of its code"):
        best_records(study, store).drawing()


def test_a_fault_of_the_drawing_itself_is_not_hidden(study: Study, store: Store, fill: Callable[..., None]) -> None:
    fill("quick", table={"renamed": 1.0})
    with pytest.raises(AttributeError):
        best_records(study, store).drawing()


def test_the_ledger_has_each_claim_with_or_without_records(study: Study, store: Store, fill: Callable[..., None]) -> None:
    [row] = ledger(store, [study])
    assert (row.claim.slug, row.judgement, row.verdict) == ("even", None, "no records yet")
    fill("laptop")
    [row] = ledger(store, [study])
    assert (row.verdict, row.found and row.found.preset) == ("reproduced", "laptop")


def test_records_that_came_with_the_package_are_found(
    study: Study, fill: Callable[..., None], store: Store, tmp_path: Path
) -> None:
    fill("full")
    own = Store(tmp_path / "own", [store.folder])
    assert best_records(study, own).preset == "full"
    assert run(study, "full", store=own, device="cpu", workers=1).skipped == 6
    assert not own.folder.exists()
    older = dataclasses.replace(best_records(study, own).records[0], code="0ld", commit="other")
    own.append(older)
    assert best_records(study, own).fresh
