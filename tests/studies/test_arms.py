from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch

from normlib.data import load
from normlib.lab import Config
from normlib.networks import VGG
from normlib.studies.common.arms import first_at, images_for, population_accuracy, side_by_side
from normlib.training import accuracy


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


def test_population_statistics_are_averages_over_batches_and_leave_the_model_alone() -> None:
    images = load("digits").standardized().subset(200, 100)
    net = VGG(11, width=1 / 16, in_channels=1, norm="batch", seed=0)
    before = copy.deepcopy(net.state_dict())
    found = population_accuracy(net, images.x_train[:96].split(32), images.x_test, images.y_test)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    by_hand = copy.deepcopy(net)
    norms = [module for module in by_hand.modules() if hasattr(module, "running_mean")]
    sums = [[torch.zeros_like(m.running_mean), torch.zeros_like(m.running_var)] for m in norms]
    by_hand.train()
    for batch in images.x_train[:96].split(32):
        for norm in norms:
            norm.momentum = 1.0  # keep this batch's own
        by_hand(batch)
        for total, norm in zip(sums, norms, strict=True):
            total[0] += norm.running_mean / 3
            total[1] += norm.running_var / 3
    for total, norm in zip(sums, norms, strict=True):
        norm.running_mean.copy_(total[0])
        norm.running_var.copy_(total[1])
    assert found == accuracy(by_hand, images.x_test, images.y_test, statistics="eval")
    assert found != accuracy(net, images.x_test, images.y_test, statistics="eval")
