"""The halves of the ranking, the failures of the two rules and the setbacks over rates, on tables that are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from normlib.studies.unified.lubana2021_small_batch import rate_at
from normlib.studies.unified.lubana2021_stability import worst_setbacks
from normlib.studies.unified.lubana2021_training import NETWORKS, halves
from normlib.studies.unified.training_drawing import failures_in_words


def test_halves_are_of_the_ten_and_not_of_none() -> None:
    orders = ["abcd", "abdc", "cabd"]  # slowest first; c and a change halves
    rows = [
        {"network": network, "norm": norm, "seed": 0, "speed": at}
        for network, order in zip(NETWORKS, orders, strict=True)
        for at, norm in enumerate(order)
    ]
    rows += [{"network": network, "norm": "none", "seed": 0, "speed": -at} for at, network in enumerate(NETWORKS)]
    assert halves(pd.DataFrame(rows)).iloc[0].to_dict() == {"a": False, "b": True, "c": True, "d": False}


def test_rules_meet_at_the_batch_of_the_paper() -> None:
    assert {rate_at(rule, 256) for rule in ("linear", "kept", "code")} == {0.1}
    assert rate_at("linear", 16) * 16 == rate_at("kept", 16) == rate_at("code", 16) / 16 == pytest.approx(0.1)


def test_worst_setbacks_are_over_rates_and_infinite_after_divergence() -> None:
    values = {("x", 0.1): 0.2, ("x", 0.3): np.inf, ("y", 0.1): 0.5, ("y", 0.3): 0.1}
    table = pd.DataFrame([{"norm": norm, "rate": rate, "seed": 3, "setback": s} for (norm, rate), s in values.items()])
    assert worst_setbacks(table).loc[3].to_dict() == {"x": np.inf, "y": 0.5}


def test_failures_are_listed_with_their_number() -> None:
    runs = [("batch", 0, 1), ("batch", 1, 0), ("layer", 0, 1), ("layer", 1, 1), ("group", 0, 0), ("group", 1, 0)]
    table = pd.DataFrame(runs, columns=["norm", "seed", "failed"])
    assert (
        failures_in_words(table) == "batch norm (1 of 2), layer norm" and failures_in_words(table[table.norm == "group"]) == "none"
    )
