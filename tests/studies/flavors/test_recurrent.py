"""What is measured along a sequence against derivatives by hand, and what is read from a table against numbers made up for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from normlib.layers import BatchNormLSTMCell
from normlib.studies.flavors.ba2016_recurrent import decades, drift
from normlib.studies.flavors.cooijmans2017_gain import EPS, Cell, growth
from normlib.studies.flavors.sequences import along, share_of_steps


def test_the_gradient_runs_through_all_later_steps() -> None:
    cell, head = nn.RNNCell(1, 1, nonlinearity="relu").double(), nn.Linear(1, 2).double()
    for parameter, value in zip(cell.parameters(), (1.0, 0.5, 0.0, 0.0), strict=True):
        nn.init.constant_(parameter, value)
    nn.init.zeros_(head.bias)
    head.weight.data = torch.tensor([[0.0], [2.0]]).double()
    found = along(cell, head, torch.tensor([[[1.0], [0.0], [4.0]]]).double(), torch.tensor([0]))
    assert found.sizes == pytest.approx([1.0, 0.5, 4.25])
    last = 2 / (1 + np.exp(-2 * 4.25))  # the derivative of log(1 + exp(2 h))
    assert found.gradients == pytest.approx([last / 4, last / 2, last])


def test_a_cell_is_left_as_it_is() -> None:
    cell = BatchNormLSTMCell(3, 4, max_length=5).eval()
    before = {name: value.clone() for name, value in cell.state_dict().items()}
    found = along(cell, nn.Linear(4, 2), torch.randn(6, 5, 3), torch.arange(6) % 2)
    assert len(found.sizes) == len(found.gradients) == 5 and not cell.training
    assert all(torch.equal(before[name], value) for name, value in cell.state_dict().items())


def test_what_is_read_from_a_table() -> None:
    made = {"step": [0, 5, 10], "row": [0, 1, 2], "size_start": [1.0, 2.0, 4.0], "gradient_start": [0.01, 1.0, 10.0]}
    plain = pd.DataFrame({"norm": "none", "scale": 1.0, "seed": 0, "loss": [3.0, 1.0, 2.0], **made})
    runs = pd.concat([plain, plain.assign(norm="layer", loss=[3.0, 2.0, 1.0]), plain.assign(norm="batch", loss=[3.0, 2.0, 1.5])])
    assert drift(runs, "size_start").loc[0, ("none", 1.0)] == pytest.approx(np.log(4))
    assert decades(runs).loc[0, ("none", 1.0)] == pytest.approx(-3)
    assert share_of_steps(runs, "layer", "none", "norm") == {0: 2.0}
    assert share_of_steps(runs, "batch", "none", "norm") == {0: np.inf}


def test_a_cell_by_hand() -> None:
    cell, h, x = Cell(4, "orthogonal", 0.3, seed=1), torch.randn(9, 4).double(), torch.randn(9, 1).double()
    assert torch.allclose(cell.W @ cell.W.T, torch.eye(4).double()) and float(cell.U.norm()) == pytest.approx(1.0)
    summed = h @ cell.W.T + x * cell.U.T
    standard = (summed - summed.mean(0)) / (summed.var(0, correction=0) + EPS).sqrt()
    assert torch.allclose(cell(x, h), torch.tanh(0.3 * standard))


def test_the_growth_is_that_of_many_draws() -> None:
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).double()
    state = torch.tanh(z)
    assert growth(1.0) == pytest.approx(float(((1 - state**2).square().mean() / state.square().mean()).sqrt()), rel=1e-2)
    assert 1 < growth(0.01) < 1.001 < growth(0.5) < growth(1.0)
