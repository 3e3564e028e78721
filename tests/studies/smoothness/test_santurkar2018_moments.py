"""The drift of moments behind and before batch norm: two parameters, three layers, and what is read from a table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from normlib.networks import PlainConvNet
from normlib.probes import moment_snapshot
from normlib.studies.smoothness.santurkar2018_moments import from_parameters, over_layers, ratio, usual, watched_layers, when


def test_behind_batch_norm_the_moments_are_its_parameters() -> None:
    net, x = PlainConvNet(5, 4, 1, 10, "batch", image_size=8), torch.randn(32, 1, 8, 8)
    norm = net.blocks[2].norm
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -2.0, 0.3]))
    layers = ["blocks.2.norm"]
    found = moment_snapshot(net, x, layers, sides=["input", "output"], training=True)
    assert from_parameters(net, found, layers) < 1e-5
    with torch.no_grad():
        norm.bias += 0.1
    assert from_parameters(net, found, layers) == pytest.approx(0.1, rel=1e-3)
    plain = PlainConvNet(5, 4, 1, 10, "noisy", image_size=8)
    found = moment_snapshot(plain, x, layers, sides=["input", "output"], training=True)
    assert from_parameters(plain, found, layers) == 0, "the statement is one on batch norm alone"


def test_looks_and_layers() -> None:
    assert watched_layers(13) == [1, 8, 12]  # layers 2, 9, 13 of the paper
    assert len(when(300)) == 12 and when(300)[0] == 0 and when(300)[-1] == 299


def test_ratios_take_the_mean_over_looks_and_the_geometric_mean_over_layers() -> None:
    rows = [
        {"arm": arm, "side": side, "seed": 0, "step": step, "layer": layer, "mean": size * layer * (step + 1), "variance": 9 * size}
        for arm, size in (("none", 1.0), ("noisy", 5.0)) for side in ("input", "output") for step in (0, 2) for layer in (1, 4)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    assert usual(table, "mean", "none")[0] == pytest.approx(2 * 2)  # the root of 1 · 4, times the mean of 1 and 3
    assert np.allclose(ratio(table, ("noisy", "after"), ("none", "before")), 5)
    assert over_layers(table, "mean").query("arm == 'none' and side == 'input'").drift.tolist() == pytest.approx([2, 6])
