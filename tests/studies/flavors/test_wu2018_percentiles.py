"""Percentiles are NumPy's, of what the last convolution puts out in training; before a norm their scale is free."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from normlib import data
from normlib.lab import Config
from normlib.networks import PlainConvNet
from normlib.studies.flavors.wu2018_percentiles import PERCENTILES, SAMPLE, percentiles, ranges, spread, wider

TINY = {"data": "digits", "pool": 1, "train": 400, "test": 50, "validation": 50, "depth": 5, "width": 8, "epochs": 1, "rate": 0.02}


def test_spread_is_that_of_numpy() -> None:
    values = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(list(spread(values).values()), np.percentile(values.double().numpy(), PERCENTILES))


def test_the_first_row_is_the_last_convolution_of_the_untrained_network_in_train_mode() -> None:
    table = percentiles.trial_function(Config({**TINY, "norm": "batch:ghost=32"}), 0)
    images = data.load("digits").subset(400, 50, 0).standardized().split_validation(50, 0)
    net = PlainConvNet(5, 8, 1, 10, "batch:ghost=32", "he", 0, 8).train()
    x = images.x_train[:SAMPLE]
    for position, block in enumerate(net.blocks[:-1]):
        x = block(x)
        x = net.pool(x) if position in net.pooled else x
    expected = np.percentile(net.blocks[-1].layer(x).detach().numpy(), PERCENTILES)
    np.testing.assert_allclose([table[f"p{p}"][0] for p in PERCENTILES], expected, rtol=1e-4, atol=1e-5)
    assert table["step"][0] == 0 and table["step"][-1] == 350 // 64


@pytest.mark.parametrize(("norm", "free"), [("batch", True), ("group:size=4", True), ("none", False)])
def test_ten_times_the_weights_are_ten_times_the_range_and_with_a_norm_the_same_network(norm: str, free: bool) -> None:
    images = data.load("digits").standardized().x_train[:50]
    net = PlainConvNet(5, 8, 1, 10, norm, "he", 0, 8)
    before = net(images)
    net.blocks[-1].layer.weight.data *= 10
    assert torch.allclose(net(images), before, atol=1e-2) is free


def test_ranges_are_taken_at_the_end_of_each_run_and_compared_with_the_wider_norm() -> None:
    rows = [
        (norm, seed, step, -width * step, width * step)
        for norm, width in (("none", 6), ("batch:ghost=32", 1), ("group:size=8", 2))
        for seed in (0, 1) for step in (1, 5)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["norm", "seed", "step", "p1", "p99"])
    assert ranges(table)["none"].tolist() == [60, 60] and ranges(table, 0)["none"].tolist() == [12, 12]
    assert wider(ranges(table)).tolist() == [3, 3]
