"""Two sets of records of one study: what differs, by how much, and which verdicts change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from normlib.lab import Judgement, Record, Study, judge_effect
from normlib.lab.reading.differences import (
    AGREES,
    DIFFERS,
    FEW,
    SAME,
    Comparison,
    Difference,
    VerdictPair,
    compare,
    relative_difference,
)

Make = Callable[..., Record]
Records = Callable[..., list[Record]]
SEEDS = 5


def trial(c: Any, seed: int) -> dict[str, Any]:
    return {"x": 0.0}


@pytest.fixture
def study() -> Iterator[Study]:
    declared = Study(
        "toy.compared", item="none", title="a title", kind="train", vary={"arm": ["a", "b"]}, quick={}, laptop={}, full=None,
        seeds={"quick": 1, "laptop": SEEDS},
    )  # fmt: skip
    declared.trial(trial)

    @declared.claim("larger", "Arm b is larger.", criterion="b − a above zero")
    def _(table: Any) -> Judgement:
        arms = table.pivot(index="seed", columns="arm", values="x")
        return judge_effect("b − a", (arms.b - arms.a).to_numpy(), claimed=(0, math.inf), null=0)

    yield declared
    del Study.instances["toy.compared"]


@pytest.fixture
def measured(study: Study, make_record: Make) -> Records:
    """Records of both arms at laptop; `table(arm, seed)` gives their columns."""

    def make(table: Callable[[str, int], dict[str, Any]], seeds: int = SEEDS, **changes: Any) -> list[Record]:
        trials = study.trials("laptop", seeds)
        bodies = [{"config": c, "seed": s, "code": study.code(c), "table": table(c["arm"], s), **changes} for c, s in trials]
        return [make_record(study=study.id, preset="laptop", **body) for body in bodies]

    return make


def number(arm: str, seed: int) -> dict[str, Any]:
    return {"x": {"a": 10.0, "b": 20.0}[arm] + seed}


def of(comparison: Comparison, arm: str, column: str = "x") -> Difference:
    return next(d for d in comparison.differences if d.config["arm"] == arm and d.column == column)


# -- the relative difference ---------------------------------------------------------------------------------------------


def test_the_relative_difference_of_every_kind_of_number() -> None:
    nan, inf = math.nan, math.inf
    a = np.array([2.0, -2.0, 0.0, 0.0, nan, nan, 1.0, inf, inf, 1.0])
    b = np.array([3.0, -3.0, 0.0, -1.0, nan, 1.0, nan, inf, 1.0, inf])
    assert relative_difference(a, b).tolist() == [0.5, -0.5, 0.0, -inf, 0.0, inf, inf, 0.0, inf, inf]


def test_records_are_the_same_as_themselves(study: Study, measured: Records) -> None:
    records = measured(lambda arm, seed: {"x": [1.0, math.nan, math.inf], "word": "yes", **{"y": seed}})
    found = compare(study, "laptop", records, list(reversed(records)))
    assert (found.matched, found.only_first, found.only_second) == (2 * SEEDS, 0, 0)
    assert {d.outcome for d in found.differences} == {SAME}
    assert {d.column for d in found.differences} == {"x", "word", "y"}
    assert not any(pair.changed for pair in found.verdicts)


def test_a_constant_factor_is_found_exactly(study: Study, measured: Records) -> None:
    curve = measured(lambda arm, seed: {"x": [1.0 + seed, 2.0 + seed, 4.0 + seed]})
    scaled = measured(lambda arm, seed: {"x": [1.5 * v for v in (1.0 + seed, 2.0 + seed, 4.0 + seed)]})
    found = of(compare(study, "laptop", curve, scaled), "a")
    assert (found.relative, found.low, found.high, found.largest) == pytest.approx((0.5, 0.5, 0.5, 0.5))
    assert (found.outcome, found.seeds) == (DIFFERS, SEEDS)
    back = of(compare(study, "laptop", scaled, curve), "a")
    assert back.relative == pytest.approx(-1 / 3)


def test_the_medians_over_seeds_are_compared_by_a_slow_definition(study: Study, measured: Records) -> None:
    draw = np.random.default_rng(0)
    tables: dict[tuple[str, int, int], list[float]] = {
        (arm, seed, side): draw.normal(5, 1, 4).tolist() for arm in "ab" for seed in range(SEEDS) for side in (0, 1)
    }
    first, second = (measured(lambda arm, seed, side=side: {"x": tables[arm, seed, side]}) for side in (0, 1))
    found = of(compare(study, "laptop", first, second), "b")
    rows = []
    for row in range(4):
        a, b = (sorted(tables["b", seed, side][row] for seed in range(SEEDS))[SEEDS // 2] for side in (0, 1))
        rows.append((b - a) / abs(a))
    assert found.relative == pytest.approx((sorted(rows)[1] + sorted(rows)[2]) / 2)
    assert found.largest == pytest.approx(max(map(abs, rows)))
    assert found.low is not None and found.high is not None and found.low <= found.relative <= found.high


def test_noise_agrees_and_a_shift_beyond_it_does_not(study: Study, measured: Records) -> None:
    first = measured(lambda arm, seed: {"x": 10.0 + seed})
    noise = measured(lambda arm, seed: {"x": 10.0 + (seed + 2) % SEEDS})
    shift = measured(lambda arm, seed: {"x": 20.0 + seed})
    assert of(compare(study, "laptop", first, noise), "a").outcome == AGREES
    assert of(compare(study, "laptop", first, shift), "a").outcome == DIFFERS


def test_two_seeds_are_too_few(study: Study, measured: Records) -> None:
    found = of(compare(study, "laptop", measured(number, seeds=2), measured(lambda a, s: {"x": 2.0 * s}, seeds=2)), "a")
    assert (found.outcome, found.low, found.high, found.seeds) == (FEW, None, None, 2)


# -- exact studies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [(1.0, 1.00005, AGREES), (1.0, 1.001, DIFFERS), (0.0, 1e-7, AGREES), (0.0, 1e-5, DIFFERS), (math.nan, 1.0, DIFFERS)],
)
def test_an_exact_study_is_compared_to_float_tolerance(
    study: Study, measured: Records, monkeypatch: pytest.MonkeyPatch, first: float, second: float, outcome: str
) -> None:
    monkeypatch.setattr(study, "kind", "exact")
    sides = [measured(lambda arm, seed, x=x: {"x": [x, 2.0]}, seeds=1) for x in (first, second)]
    assert of(compare(study, "laptop", *sides), "a").outcome == outcome


def test_one_seed_that_is_off_makes_an_exact_study_differ(study: Study, measured: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "kind", "exact")
    off = measured(lambda arm, seed: {"x": 9.0 if (arm, seed) == ("b", 4) else number(arm, seed)["x"]})
    found = compare(study, "laptop", measured(number), off)
    assert (of(found, "a").outcome, of(found, "b").outcome) == (SAME, DIFFERS)


# -- what cannot be subtracted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("yes", "no"), ([1.0, 2.0], [1.0]), (1.0, None), (["a", "b"], ["a", "c"]), (1.0, [1.0, 2.0])],
)
def test_texts_and_lengths_that_are_unlike_differ(study: Study, measured: Records, first: Any, second: Any) -> None:
    sides = [measured(lambda arm, seed, x=x: {} if x is None else {"x": x}) for x in (first, second)]
    found = of(compare(study, "laptop", *sides), "a")
    assert found.outcome == DIFFERS
    assert math.isnan(found.relative)


def test_a_divergence_on_one_side_is_told(study: Study, measured: Records) -> None:
    records = measured(number)
    diverged = [dataclasses.replace(records[0], status="diverged", reason="why"), *records[1:]]
    found = compare(study, "laptop", records, diverged)
    assert of(found, "a", "status").outcome == DIFFERS
    assert not [d for d in found.differences if d.config["arm"] == "b" and d.column == "status"]


# -- matching ------------------------------------------------------------------------------------------------------------


def test_only_trials_of_both_sets_are_compared(study: Study, measured: Records) -> None:
    records = measured(number)
    failed = dataclasses.replace(records[-1], status="failed", reason="no luck", table={})
    found = compare(study, "laptop", records[:6], [*records[4:-1], failed])
    assert (found.matched, found.only_first, found.only_second) == (2, 4, 3)
    assert compare(study, "laptop", records, []) == Comparison(
        study.id, "laptop", 0, 10, 0, [], [VerdictPair("toy.compared/larger", "reproduced", None)]
    )


def test_code_and_device_do_not_keep_trials_apart_and_fresh_records_count(study: Study, measured: Records) -> None:
    other = measured(lambda arm, seed: {"x": 1.0}, code="0ld", device="NVIDIA H200", start="2027-01-01")
    found = compare(study, "laptop", measured(number), other)
    assert found.matched == 2 * SEEDS
    again = compare(study, "laptop", measured(number), [*measured(number), *other])
    assert {d.outcome for d in again.differences} == {SAME}


def test_a_verdict_that_changes_is_told(study: Study, measured: Records) -> None:
    turned = measured(lambda arm, seed: number({"a": "b", "b": "a"}[arm], seed))
    [pair] = compare(study, "laptop", measured(number), turned).verdicts
    assert pair == VerdictPair("toy.compared/larger", "reproduced", "not reproduced")
    assert pair.changed
