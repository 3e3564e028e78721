from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from normlib.lab import Config
from normlib.studies.common.arms import first_at, images_for, side_by_side


def test_held_out_images_are_neither_trained_on_nor_the_test_images() -> None:
    tune, whole = images_for(Config({"data": "digits", "train": 300, "test": 50}), seed=0)
    assert (len(tune.x_train), len(tune.x_test), len(whole.x_test)) == (250, 50, 50)
    assert not torch.equal(tune.x_test, whole.x_test)
    assert abs(float(whole.x_train.mean())) < 1e-5
    known = {row.numpy().tobytes() for row in tune.x_train.flatten(1)}
    assert not known & {row.numpy().tobytes() for row in tune.x_test.flatten(1)}


def test_a_target_that_is_never_reached_is_infinitely_far() -> None:
    assert first_at([0, 5], [0.1, 0.2], 0.2) == 5
    assert first_at([0, 5], [0.1, np.nan], 0.2) == np.inf


def test_arms_stand_side_by_side_whatever_their_numbers() -> None:
    runs = pd.DataFrame({"norm": ["a", "a", "b", "b"], "step": [0, 1, 0, 1], "seed": 0, "score": [np.nan, 1.0, np.inf, 2.0]})
    wide = side_by_side(runs, "norm", "score")
    assert list(wide.columns) == ["a", "b"] and np.isnan(wide.a[0]) and wide.b[0] == np.inf
    assert side_by_side(runs, ["norm", "step"], "score", norm="b").loc[0, ("b", 1)] == 2.0
