"""What is read from figure 1: inputs of the sigmoids, how far percentiles travel, and factors of steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from normlib.networks import MLP
from normlib.studies.batch.ioffe2015_fig1 import at_best_cells, movement, sigmoid_inputs, steps_saved


def test_the_inputs_are_those_of_a_forward_pass_in_plain_torch() -> None:
    net = MLP([7, 5, 4, 3], "logistic", "batch", "normal:std=1", seed=0)
    for block in net.blocks:
        torch.nn.init.normal_(block.norm.weight)
        torch.nn.init.normal_(block.norm.bias)
    x = torch.randn(50, 7)
    found, hidden = sigmoid_inputs(net.eval(), x), x
    for block in net.blocks:
        s = hidden @ block.layer.weight.T + block.layer.bias
        x_hat = (s - s.mean(0)) / (s.var(0, correction=0) + 1e-5).sqrt()
        y = block.norm.weight * x_hat + block.norm.bias
        hidden = torch.sigmoid(y)
    torch.testing.assert_close(found["x_hat"], x_hat, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["y"], y, atol=1e-5, rtol=1e-4)
    assert not net.training and float(net.blocks[1].norm.running_mean.abs().max()) == 0


def test_without_a_norm_the_sigmoid_receives_the_sum() -> None:
    net, x = MLP([7, 5, 4, 3], "logistic", "none", seed=0), torch.randn(20, 7)
    hidden = torch.sigmoid(net.blocks[0].layer(x))
    torch.testing.assert_close(sigmoid_inputs(net, x)["y"], net.blocks[1].layer(hidden).detach())


def test_movement_is_the_largest_range_over_the_largest_spread() -> None:
    still = [[-1.0, 0.0, 1.0]] * 3
    shifted = [[-1.0, 0.0, 1.0], [0.0, 1.0, 2.0], [-1.0, 0.0, 1.0]]  # every percentile by 1, spread 2
    widened = [[-0.5, 0.0, 0.5], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]  # the outer ones by 1.5, spread up to 4
    found = movement(torch.tensor([still, shifted, widened]).permute(1, 2, 0))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 0.375]))


def runs(rows: list[tuple[str, float, float, float, float]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["norm", "std", "reached", "validation", "accuracy"])
    return table.assign(seed=0, rate=0.1, step=100, steps=100)


def test_steps_saved_when_a_network_never_arrives() -> None:
    arrivals = {0.1: (80, 20), 0.2: (np.inf, 20), 0.3: (50, np.inf), 0.4: (np.inf, np.inf)}
    rows = [(norm, std, at, 0, 0) for std, both in arrivals.items() for norm, at in zip(("none", "batch"), both, strict=True)]
    saved = steps_saved(runs(rows))
    np.testing.assert_array_equal(saved.to_numpy(), [[4, 5, 0, np.nan]])


def test_the_best_cell_is_chosen_by_validation_not_by_test() -> None:
    table = runs([("none", 0.1, 1, 0.8, 0.7), ("none", 0.2, 1, 0.7, 0.9), ("batch", 0.1, 1, 0.6, 0.9), ("batch", 0.2, 1, 0.7, 0.8)])
    best, final = at_best_cells(table)
    assert best == {"none": (0.1, 0.1), "batch": (0.2, 0.1)}
    np.testing.assert_allclose(final[["none", "batch"]], [[70, 80]])
