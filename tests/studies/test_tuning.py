"""The rate of an arm: best median on validation, and none that diverged."""

from __future__ import annotations

import numpy as np
import pandas as pd

from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned

TABLE = pd.DataFrame(
    [
        (arm, rate, seed, score)
        for arm, rate, scores in [
            ("a", 0.1, [0.5, 0.6, 0.7]),
            ("a", 1.0, [0.9, 0.9, np.nan]),
            ("b", 0.1, [0.2, 0.2, 0.9]),
            ("b", 1.0, [0.4, 0.4, 0.1]),
        ]
        for seed, score in enumerate(scores)
    ],
    columns=["arm", "rate", "seed", "score"],
)


def test_picks_the_best_median_among_the_rates_that_never_diverged() -> None:
    kept, rates = tuned(TABLE, ["arm"], "score")
    assert rates == {"a": 0.1, "b": 1.0}
    assert len(kept) == 6 and set(zip(kept.arm, kept.rate, strict=True)) == set(rates.items())


def test_low_scores_can_be_the_better_ones() -> None:
    assert tuned(TABLE, ["arm"], "score", low=True)[1] == {"a": 0.1, "b": 0.1}


def test_several_columns_make_an_arm() -> None:
    assert set(tuned(TABLE.assign(norm="batch"), ["arm", "norm"], "score")[1]) == {("a", "batch"), ("b", "batch")}


def test_rates_in_words() -> None:
    assert rates_in_words({"a": 0.1, "b": 1.0}, {"a": "tanh"}) == "0.1 for tanh, 1 for b"


def test_best_rates_at_an_end_of_the_grid_of_their_own_arm() -> None:
    grids = {"low": (0.1, 0.2, 0.4), "high": (1.0, 2.0, 4.0), "short": (0.1, 0.2)}
    table = pd.DataFrame([(arm, rate) for arm, rates in grids.items() for rate in rates], columns=["arm", "rate"])
    assert at_ends(table, ["arm"], {"low": 0.4, "high": 2.0, "short": 0.1}) == ["low"]
    rates = {("low", "batch"): 0.2, ("high", "batch"): 1.0}
    assert at_ends(table.assign(norm="batch"), ["arm", "norm"], rates) == [("high", "batch")]
    assert ends_in_words(["a", "b"]) == " (at an end of the rates tried: a, b)" and ends_in_words([]) == ""
