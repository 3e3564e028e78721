"""Figure 1 of Santurkar et al.: how far a distribution moves, and what is read from the curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from normlib.studies.smoothness.santurkar2018_fig1 import INITS, RATES, movement, per_run, watched_layers, when


def test_the_movement_of_a_shifting_normal_is_the_shift_in_its_widths() -> None:
    sample = np.sort(np.random.default_rng(0).standard_normal(4001))
    looks = np.stack([np.percentile(3 * (sample + 0.5 * at), np.linspace(2.5, 97.5, 20)) for at in range(5)])
    width = np.percentile(3 * sample, np.linspace(2.5, 97.5, 20)).std()
    assert movement(looks) == pytest.approx(1.5 / width, rel=1e-6)
    assert movement(100 * looks) == pytest.approx(movement(looks)), "free of the scale of the activations"
    assert movement(looks[:1].repeat(5, axis=0)) == 0


def test_the_layers_are_those_of_the_paper_in_a_vgg() -> None:
    assert watched_layers(13) == {"early": 2, "late": 10}  # the third and the eleventh
    assert all(0 <= early < late < count for count in (4, 6, 8, 16) for early, late in [watched_layers(count).values()])
    assert when(300)[0] == 0 and when(300)[-1] == 300 and len(when(300)) == 15


def test_a_run_is_read_from_its_curve() -> None:
    curve = {"step": [0, 10, 40], "learned": [0.1, 0.8, 0.8]}
    rows = [
        {"seed": 0, "norm": norm, "init": init, "rate": rate, "step": step, "learned": value / (1 + (norm == "none"))}
        for norm in ("none", "batch") for init in INITS for rate in RATES
        for step, value in zip(*curve.values(), strict=True)
    ]  # fmt: skip
    table, plain, normed = pd.DataFrame(rows), ("none", "he", 0.1), ("batch", "he", 0.1)
    first, mean, last = (per_run(table, value) for value in ("first", "mean", "last"))
    assert first[normed][0] == 10 and first[plain][0] == np.inf
    assert mean[normed][0] == pytest.approx((4.5 + 24) / 40)
    assert last[plain][0] == pytest.approx(0.4)
