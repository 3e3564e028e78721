"""Statistics held constant: the same outputs, and the gradients that the backward study predicts."""

from __future__ import annotations

import pytest
import torch

from normlib.layers import batch_norm
from normlib.studies.batch.ioffe2015_backward import compact, held_constant
from normlib.studies.batch.ioffe2015_blowup import ARMS, HeldConstant, effect_of_biases, network
from normlib.studies.common.statements import gap, normal


def gradient_of(constant: str) -> torch.Tensor:
    x = (1 + 2 * normal(0, 16, 3)).requires_grad_()
    y = HeldConstant(3, constant).double()(x)
    return torch.autograd.grad(y, x, normal(1, 16, 3) + 1)[0]


@pytest.mark.parametrize("constant", ["", "mean", "variance", "mean + variance"])
def test_what_is_held_constant_does_not_change_the_output(constant: str) -> None:
    x = 1 + 2 * normal(0, 16, 3)
    assert gap(HeldConstant(3, constant).double()(x).detach(), batch_norm(x)) < 1e-12


def test_centering_alone_keeps_the_scale() -> None:
    x = 1 + 2 * normal(0, 16, 3)
    assert gap(HeldConstant(3, "mean, unscaled").double()(x).detach(), x - x.mean(0)) < 1e-12


def test_gradients_keep_what_belongs_to_a_constant_statistic() -> None:
    x, gradient, one = 1 + 2 * normal(0, 16, 3), normal(1, 16, 3) + 1, torch.ones(3).double()
    assert gap(gradient_of(""), compact(x, one, gradient, 1e-5)) < 1e-10
    assert gap(gradient_of("mean + variance"), held_constant(x, one, gradient, 1e-5)) < 1e-10
    assert gradient_of("variance").sum(0).abs().max() < 1e-10 < gradient_of("mean").sum(0).abs().min()


def test_biases_before_it_are_moved_by_the_mean_alone_and_do_nothing() -> None:
    x = normal(3, 32, 6)
    for constant in ARMS:
        net = network([6, 8, 8, 2], constant, seed=0).double()
        net(x).square().sum().backward()
        moved = max(float(block.layer.bias.grad.abs().max()) for block in net.blocks)
        assert (moved > 1e-3) is ("mean" in constant), constant
        for block in net.blocks:
            block.layer.bias.data.fill_(5.0)
        assert effect_of_biases(net, x) < 1e-10
