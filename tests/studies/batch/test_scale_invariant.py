"""The network that sees no length, the balance of decay and gradient, the sum of steps, and the width of a valley of rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normlib.studies.batch.arora2019 import decades_around_best
from normlib.studies.batch.scale_invariant import Settled, length, scale_invariant_mlp, stretched, typical_rate
from normlib.studies.batch.vanlaarhoven2017 import growth_gap
from normlib.studies.common.statements import gap, normal
from normlib.training import Step


@torch.no_grad()
def test_the_network_sees_the_length_of_no_weight_only_if_normalized() -> None:
    x = normal(0, 20, 6)
    for norm, same in (("batch", True), ("none", False)):
        model = scale_invariant_mlp([6, 8, 8, 4], norm, seed=0)
        assert (gap(model(x), stretched(model, 5.0)(x)) < 1e-12) is same
        assert length(stretched(model, 5.0)) == pytest.approx(5 * length(model))
    trained = [p for p in scale_invariant_mlp([6, 8, 4], "batch", seed=0).parameters() if p.requires_grad]
    assert [p.ndim for p in trained] == [2, 2], "no gains and no shifts are trained"


def test_typical_rate_is_rate_over_squared_length_of_a_unit() -> None:
    model = scale_invariant_mlp([2, 3], "batch", seed=0)
    with torch.no_grad():
        next(model.parameters()).copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0]]))
    assert typical_rate(model, 0.5) == pytest.approx(0.5 / 4)


def test_a_unit_in_balance_keeps_its_length() -> None:
    """Choose rate and decay so that the decay takes what the step adds: then the balanced rate is that which acts."""
    x, y = normal(0, 40, 5), torch.arange(40) % 3
    model = scale_invariant_mlp([5, 3], "batch", seed=1)
    weight = next(p for p in model.parameters() if p.requires_grad).detach()
    step, settled, rate = Step(0, model=model, x=x, y=y, rate=1e-4, loss=F.cross_entropy, _objective=objective), Settled(), 1e-4
    settled(step, model)
    slope = step.gradients()["0.head.weight"]
    unit = int(settled.squares[0][0].argsort()[1])  # the median of three
    decay = float(rate * slope[unit].square().sum() / (2 * weight[unit].square().sum()))
    after = weight[unit] * (1 - rate * decay) - rate * slope[unit]
    assert float(after.norm() / weight[unit].norm()) == pytest.approx(1, abs=1e-10)
    assert settled.balanced_rate(rate * decay) == pytest.approx(rate / float(weight[unit].square().sum()), rel=1e-9)


def objective(model, x, y):  # type: ignore[no-untyped-def]
    return F.cross_entropy(model(x), y)


def test_growth_gap_adds_the_squares_of_orthogonal_steps() -> None:
    assert growth_gap(3.0, 0.5, [0, 1, 2], [64.0, 36.0, 1e9], [3.0, 5.0, 34**0.5]) == pytest.approx(0)
    assert growth_gap(3.0, 0.5, [0, 1], [64.0, 0.0], [3.0, 7.0]) == pytest.approx(1.5)


def test_a_valley_of_rates_ends_where_the_loss_doubles_or_is_none() -> None:
    rates = 10.0 ** np.arange(-2, 4)
    assert decades_around_best(rates, np.array([9, 1.9, 1, 2, 2.1, 1.1])) == pytest.approx(2)
    assert decades_around_best(rates, np.array([1, 1, 1, 1, 1, 1])) == pytest.approx(5)
    assert decades_around_best(rates, np.array([9, np.inf, 1, np.inf, 1, 1])) == 0
    assert np.isnan(decades_around_best(rates, np.full(6, np.inf)))
