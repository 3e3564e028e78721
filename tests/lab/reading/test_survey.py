"""Where studies stand, and which of them is run next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from normlib.lab import Record, Store, Study
from normlib.lab.reading.survey import Standing, Want, cost, most_wanted, standing, survey, want

Make = Callable[..., Record]


def trial(c: Any, seed: int) -> dict[str, Any]:
    return {"x": c.size * seed}


@pytest.fixture
def study() -> Iterator[Study]:
    declared = Study(
        "toy.surveyed", item="none", title="a title", kind="exact", vary={"arm": ["a", "b"]},
        quick={"size": 1}, laptop={"size": 2}, full=None, seeds={"quick": 1, "laptop": 3},
    )  # fmt: skip
    declared.trial(trial)
    yield declared
    del Study.instances["toy.surveyed"]


@pytest.fixture
def records(study: Study, make_record: Make) -> list[Record]:
    """Every trial at laptop, fresh, on one device, two seconds each."""
    return [
        make_record(study=study.id, preset="laptop", config=c, seed=s, code=study.code(c), seconds=2.0)
        for c, s in study.trials("laptop")
    ]


def made(name: str, preset: str = "laptop", **changes: Any) -> Standing:
    """A study with everything missing, but for what is changed."""
    body: dict[str, Any] = {"wanted": 6, "fresh": 0, "stale": 0, "failed": 0, "diverged": 0, "other": 0, "devices": {}, **changes}
    body = {"seconds": 0.0, "trial_seconds": None, "missing": 6 - body["fresh"] - body["stale"] - body["failed"], **body}
    return Standing(name, preset, **body)


# -- where a study stands ------------------------------------------------------------------------------------------------


def test_every_trial_is_in_one_state(study: Study, records: list[Record]) -> None:
    changed = [
        dataclasses.replace(records[0], status="diverged", reason="why"),
        dataclasses.replace(records[1], device="NVIDIA H200"),
        dataclasses.replace(records[2], code="0ld", seconds=8.0),
        dataclasses.replace(records[3], status="failed", reason="no luck", seconds=0.0),
        # records[4] and records[5] are missing
        dataclasses.replace(records[0], seed=7),
        dataclasses.replace(records[0], config={"arm": "c", "size": 2}, code="0ld"),
    ]
    found = standing(study, "laptop", changed)
    assert (found.wanted, found.fresh, found.stale, found.failed, found.missing) == (6, 2, 1, 1, 2)
    assert (found.diverged, found.other, found.left) == (1, 2, 4)
    assert found.devices == {"NVIDIA H200": 1, "a processor": 2}
    assert (found.seconds, found.trial_seconds) == (6.0, 2.0)


def test_a_fresh_record_comes_before_a_stale_one_and_that_before_a_failure(study: Study, records: list[Record]) -> None:
    stale = dataclasses.replace(records[0], code="0ld")
    failed = dataclasses.replace(records[0], status="failed", reason="no luck")
    for order in ([records[0], stale, failed], [failed, stale, records[0]]):
        assert standing(study, "laptop", order).fresh == 1
        assert standing(study, "laptop", [r for r in order if r is not records[0]]).stale == 1
        assert standing(study, "laptop", [failed]).failed == 1


def test_a_device_may_be_named_in_part(study: Study, records: list[Record]) -> None:
    changed = [dataclasses.replace(records[0], device="NVIDIA H200"), *records[1:]]
    assert standing(study, "laptop", changed, "h200").fresh == 1
    assert standing(study, "laptop", changed, "processor").fresh == 5
    assert standing(study, "laptop", changed, "T4").missing == 6


def test_the_survey_has_each_preset_that_the_study_has(study: Study, store: Store, records: list[Record]) -> None:
    store.append_all(records)
    found = survey([study], store, ["quick", "laptop", "full"])
    assert [(s.preset, s.wanted, s.fresh) for s in found] == [("quick", 2, 0), ("laptop", 6, 6)]
    assert found[0].trial_seconds is None


# -- what is run next ----------------------------------------------------------------------------------------------------

OLDER = {"stale": 6, "trial_seconds": 1.0}
WHOLE = {"fresh": 6, "trial_seconds": 1.0}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([made("s.a")], Want.UNMEASURED),
        ([made("s.a", failed=2)], Want.UNMEASURED),
        ([made("s.a"), made("s.a", "quick", **WHOLE)], Want.INCOMPLETE),
        ([made("s.a", **OLDER)], Want.STALE),
        ([made("s.a", fresh=5, trial_seconds=1.0)], Want.INCOMPLETE),
        ([made("s.a", **WHOLE)], Want.NOTHING),
        ([made("s.a", "quick")], Want.NOTHING),
    ],
)
def test_what_the_book_lacks(rows: list[Standing], expected: Want) -> None:
    assert want(rows, "laptop") is expected


def test_the_most_wanted_come_first() -> None:
    rows = [
        made("s.whole", **WHOLE),
        made("s.seeds", fresh=4, trial_seconds=1.0),
        made("s.stale", **OLDER),
        made("s.other", "quick"),
        made("s.nothing"),
    ]
    assert most_wanted(rows, "laptop") == ["s.nothing", "s.stale", "s.seeds", "s.whole"]
    assert most_wanted(rows, "full") == []


def test_the_cheap_come_before_the_dear_and_the_unknown_last() -> None:
    rows = [
        made("s.dear", stale=6, trial_seconds=9.0),
        made("s.cheap", stale=6, trial_seconds=1.0),
        made("s.nearly_done", fresh=5, stale=1, trial_seconds=5.0),
    ]
    assert most_wanted(rows, "laptop") == ["s.nearly_done", "s.cheap", "s.dear"]
    unknown = [made("s.b"), made("s.a")]
    assert most_wanted(unknown, "laptop") == ["s.b", "s.a"]


def test_the_cost_comes_from_the_nearest_preset_that_has_records() -> None:
    quick, laptop, full = made("s.a", "quick", trial_seconds=0.1), made("s.a"), made("s.a", "full", trial_seconds=7.0)
    assert cost([quick, laptop], "laptop") == pytest.approx(0.6)
    assert cost([made("s.a", "quick"), laptop, full], "laptop") == 42.0
    assert cost([quick, made("s.a", fresh=4, trial_seconds=3.0), full], "laptop") == 6.0
    assert cost([made("s.a", "quick"), laptop], "laptop") is None
