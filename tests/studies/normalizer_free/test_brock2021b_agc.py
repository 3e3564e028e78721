"""What is read from the table of adaptive clipping, on tables whose answers are known."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest

from normlib.lab import Config
from normlib.studies.normalizer_free.brock2021b_agc import ARMS, COMMON, LAMBDAS, agc, best_lambda, scores, stable_rates, stricter


def table() -> pd.DataFrame:
    """Return runs in which λ = 0.01 bears every rate at the large batch and the others end with the loss of guessing there."""
    rows = []
    for arm, batch, rate, seed in itertools.product(ARMS, (32, 256), (COMMON, 1.0), (0, 1)):
        bears = batch == 32 or rate == COMMON or arm == "λ=0.01"
        held_out = 60.0 + 10 * (arm == "λ=0.01") * (batch == 256) + 5 * (rate == 1.0) + seed if bears else math.nan
        last_loss = 0.5 if bears else math.nan
        rows.append((arm, batch, rate, seed, held_out, held_out - 1, last_loss))
    return pd.DataFrame(rows, columns=["arm", "batch", "rate", "seed", "held_out", "accuracy", "last_loss"])


def test_the_largest_stable_rate_leaves_out_what_diverged_or_learned_nothing() -> None:
    runs = table()
    assert stable_rates(runs, 256).loc[0].to_dict() == {arm: 1.0 if arm == "λ=0.01" else COMMON for arm in ARMS}
    assert (stable_rates(runs, 32) == 1.0).all(axis=None)
    runs.loc[(runs.batch == 32) & (runs.rate == 1.0), "last_loss"] = 2.2
    assert (stable_rates(runs, 32) == COMMON).all(axis=None)
    runs.loc[runs.arm == "BN", "last_loss"] = math.nan
    assert stable_rates(runs, 256)["BN"].isna().all()


def test_scores_and_the_best_lambda_are_those_at_their_own_rates() -> None:
    assert best_lambda(table(), 256) == "λ=0.01"
    tie = table()
    tie["held_out"] = 50.0 + tie.seed * (tie.arm == "λ=0.16")
    assert best_lambda(tie, 32) == "λ=0.16"
    tie["held_out"] = math.nan
    assert best_lambda(tie, 32) in LAMBDAS
    assert scores(table(), 256).loc[1].to_dict() == {arm: 75.0 if arm == "λ=0.01" else 60.0 for arm in ARMS}


def test_strict_against_loose_is_a_difference_of_differences_and_divergence_counts_as_guessing() -> None:
    runs = table()
    assert stricter(runs).tolist() == [10.0, 10.0]
    runs.loc[(runs.arm == "λ=0.16") & (runs.batch == 256) & (runs.rate == COMMON), "held_out"] = math.nan
    assert stricter(runs).tolist() == [60.0, 61.0]


@pytest.mark.parametrize("arm", LAMBDAS)
def test_clipping_changes_the_training(arm: str) -> None:
    settings = {**agc.quick, "batch": 128, "rate": 1.0, "train": 256, "epochs": 4}
    losses = {name: agc.trial_function(Config({**settings, "arm": name}), 0)["last_loss"] for name in ("unclipped", arm)}
    assert losses[arm] != losses["unclipped"]
