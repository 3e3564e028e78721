"""Covariate shift: the population's best fit against a large sample's; the distances against cases known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from normlib.studies.batch import covariate_shift as study
from normlib.studies.batch.unit_shift import compare, curves, distances


def test_the_best_line_is_that_of_a_large_sample() -> None:
    rng, answer = np.random.default_rng(0), np.array([0.3, -1.0, 0.2, 0.6])
    x = rng.normal(*study.TARGET, 400_000)
    y = np.polynomial.polynomial.polyval(x, answer) + 0.1 * rng.standard_normal(len(x))
    by_sample = np.polynomial.polynomial.polyfit(x, y, 1)
    assert study.best(1, answer, *study.population(*study.TARGET)) == pytest.approx(by_sample, abs=5e-3)


def test_distances_of_tables_known_by_hand() -> None:
    first, second = np.array([[6, 2], [1, 1]]), np.array([[1, 1], [4, 4]])
    marginal, conditional = distances(first, second)
    assert marginal == pytest.approx(0.8 - 0.2)
    assert conditional == pytest.approx((0.2 * 0.25 + 0.2 * 0) / 0.4)


def test_a_bin_that_one_side_never_sees_says_nothing() -> None:
    assert distances(np.array([[3, 1], [0, 0]]), np.array([[6, 2], [0, 5]]))[1] == 0


@pytest.mark.parametrize(("turned", "shifted"), [(False, False), (False, True), (True, False)])
def test_chance_is_one_and_what_moves_is_told_apart(turned: bool, shifted: bool) -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(4_000), rng.random(4_000) ** (2 if shifted else 1)
    y_before = (rng.random(4_000) < before).astype(int)
    y_after = (rng.random(4_000) < (1 - after if turned else after)).astype(int)
    found = compare(before, after, y_before, y_after, bins=10, permutations=20, rng=rng)
    assert (found["conditional"] > 5) is turned and (found["marginal"] > 5) is shifted
    assert turned or found["conditional"] == pytest.approx(1, abs=0.5)


def test_curves_are_shares() -> None:
    drawn = curves({"before": np.array([[1, 3]] * 4), "after": np.array([[0, 2]] * 4)})
    assert drawn["label"] == 1 and drawn["answer_before"] == [0.75] * 4 and sum(drawn["density_after"]) == 1
