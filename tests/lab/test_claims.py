"""Verdicts: every branch, and the interval that they rest on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from normlib.lab import Judgement, Verdict, bootstrap_interval, judge_effect, judge_identity, number

INF = math.inf


def verdict(samples: list[float], claimed: tuple[float, float], null: float = 0.0) -> Verdict:
    return judge_effect("difference", samples, claimed=claimed, null=null).verdict


# -- the interval --------------------------------------------------------------------------------------------------------


def test_the_interval_is_the_same_each_time_and_leaves_the_generators_alone() -> None:
    samples = np.random.default_rng(1).normal(size=10)
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert bootstrap_interval(samples) == bootstrap_interval(list(samples))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_the_interval_covers_as_often_as_it_says(statistic: object) -> None:
    """200 samples of 40 normal numbers: 95 % intervals miss the true center in about one of twenty."""
    rng = np.random.default_rng(2)
    found = [bootstrap_interval(rng.normal(3.0, 1.0, 40), statistic, draws=400) for _ in range(200)]  # type: ignore[arg-type]
    assert 0.88 <= np.mean([low <= 3.0 <= high for low, high in found]) <= 0.99


def test_the_interval_lies_within_the_samples_and_widens_with_the_level() -> None:
    samples = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    narrow, wide = bootstrap_interval(samples, level=0.5), bootstrap_interval(samples, level=0.99)
    assert 1.0 <= wide[0] <= narrow[0] <= 8.0 <= narrow[1] <= wide[1] <= 64.0
    assert bootstrap_interval([2.0] * 5) == (2.0, 2.0)


def test_an_infinite_sample_is_no_accident() -> None:
    assert bootstrap_interval([1.0, 2.0, INF]) == (1.0, INF)


# -- effects -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "claimed", "null", "expected"),
    [
        ([2.0, 2.1, 2.2], (1.0, 3.0), 0.0, Verdict.REPRODUCED),
        ([2.0, 2.1, 2.2], (0.0, INF), 0.0, Verdict.REPRODUCED),
        ([-2.0, -2.1, -2.2], (-INF, 0.0), 0.0, Verdict.REPRODUCED),
        ([-0.1, 0.0, 0.1], (-0.5, 0.5), 0.0, Verdict.REPRODUCED),  # "there is no difference" is a claim as well
        ([-1.0, 0.5, 2.0], (1.0, 3.0), 0.0, Verdict.UNRESOLVED),
        ([-1.0, 0.5, 2.0], (0.0, INF), 0.0, Verdict.UNRESOLVED),
        ([-1.0, 0.5, 2.0], (-0.5, 0.5), 0.0, Verdict.UNRESOLVED),
        ([0.0, 0.0, 0.0], (0.0, INF), 0.0, Verdict.UNRESOLVED),  # a tie
        ([1.0, 1.0, 1.0], (-INF, 1.0), 1.0, Verdict.UNRESOLVED),
        ([0.5, 0.6, 0.7], (1.0, 3.0), 0.0, Verdict.DIRECTION),
        ([4.0, 5.0, 6.0], (1.0, 3.0), 0.0, Verdict.DIRECTION),
        ([0.8, 0.8, 0.9], (0.3, 0.5), 1.0, Verdict.DIRECTION),
        ([-0.5, -0.6, -0.7], (1.0, 3.0), 0.0, Verdict.NOT_REPRODUCED),
        ([1.2, 1.3, 1.4], (0.3, 0.5), 1.0, Verdict.NOT_REPRODUCED),
        ([0.6, 0.7, 0.8], (-0.5, 0.5), 0.0, Verdict.NOT_REPRODUCED),
        ([0.4, 0.5, 0.6], (-0.5, 0.5), 0.0, Verdict.UNRESOLVED),
        ([1.3, 1.4, 2.4], (-0.5, 2.0), 0.0, Verdict.UNRESOLVED),
        ([2.1, 2.2, 2.4], (-0.5, 2.0), 0.0, Verdict.NOT_REPRODUCED),
    ],
)
def test_every_verdict(samples: list[float], claimed: tuple[float, float], null: float, expected: Verdict) -> None:
    assert verdict(samples, claimed, null) is expected
    mirrored = [2 * null - x for x in samples]
    assert verdict(mirrored, (2 * null - claimed[1], 2 * null - claimed[0]), null) is expected


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_seeds_settle_nothing(count: int) -> None:
    found = judge_effect("difference", [2.0] * count, claimed=(1.0, 3.0), null=0.0)
    assert (found.verdict, found.low, found.high) == (Verdict.UNRESOLVED, None, None)
    assert f"{count} seed" in found.note
    assert "seeds" in found.note or count == 1


def test_an_exact_number_needs_one_sample() -> None:
    found = judge_effect("ratio", [2.0], claimed=(1.5, 2.5), null=1.0, exact=True, note="by construction")
    assert (found.verdict, found.low, found.high, found.note) == (Verdict.REPRODUCED, 2.0, 2.0, "by construction")


def test_a_sample_that_is_no_number_settles_nothing() -> None:
    found = judge_effect("difference", [2.0, math.nan, 2.0, 2.0], claimed=(1.0, 3.0), null=0.0)
    assert (found.verdict, found.note) == (Verdict.UNRESOLVED, "no number for 1 of 4 seeds")


def test_the_effect_is_the_median_with_its_interval() -> None:
    found = judge_effect("steps saved", [1.0, 2.0, 30.0], claimed=(0.0, INF), null=0.0)
    assert (found.value, found.low, found.high) == (2.0, 1.0, 30.0)
    assert str(found) == "steps saved: 2 [1, 30]"


# -- identities ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [(0.0, True), (1e-6, True), (1.1e-6, False), (INF, False), (math.nan, False)],
)
def test_an_identity_holds_within_its_tolerance(error: float, expected: bool) -> None:
    found = judge_identity("largest error", error, 1e-6)
    assert found.verdict is (Verdict.REPRODUCED if expected else Verdict.NOT_REPRODUCED)
    assert found.note == "tolerance 1.0·10⁻⁶"
    assert judge_identity("largest error", error, 1e-6, note="said otherwise").note == "said otherwise"


# -- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (-0.0, "0"), (1, "1"), (2.3456, "2.35"), (-0.5, "−0.5"), (0.001, "0.001"), (0.00099, "9.9·10⁻⁴"),
        (123.4, "123"), (999.4, "999"), (999.6, "1,000"), (12345.6, "12,346"), (-12345.6, "−12,346"), (123456, "1.2·10⁵"),
        (-1.5e-9, "−1.5·10⁻⁹"), (INF, "∞"), (-INF, "−∞"), (math.nan, "not a number"), (np.float32(0.25), "0.25"),
    ],
)  # fmt: skip
def test_numbers_read_well(value: float, text: str) -> None:
    assert number(value) == text


def test_a_judgement_without_an_interval_is_the_number() -> None:
    assert str(Judgement("error", 0.5, None, None, Verdict.REPRODUCED)) == "error: 0.5"
