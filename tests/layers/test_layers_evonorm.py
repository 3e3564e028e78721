"""EvoNorm: the limits of its slope v, where it meets batch norm and ReLU, and the wrong formula that circulates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normlib.layers import (
    BatchNorm,
    EvoNormB0,
    EvoNormS0,
    ShapeError,
    batch_norm,
    evonorm_b0,
    evonorm_s0,
    group_norm,
    includes_activation,
    make_norm,
    reference,
)

N, C, G = 3, 4, 2
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])


def maps(seed: int = 0, batch: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 + 2 * torch.randn(batch, C, 3, 2, generator=generator, dtype=torch.float64)


def b0(v: float, **kwargs: object) -> EvoNormB0:
    layer = EvoNormB0(C, dtype=torch.float64, **kwargs)
    layer.v.data.fill_(v)
    return layer


def s0(v: float) -> EvoNormS0:
    layer = EvoNormS0(C, groups=G, dtype=torch.float64)
    layer.v.data.fill_(v)
    return layer


def group_std(x: Tensor) -> Tensor:
    var = x.unflatten(1, (G, -1)).var((2, 3, 4), correction=0) + 1e-5
    return var.sqrt().repeat_interleave(C // G, 1)[..., None, None]


@PATHS
def test_s0_with_a_steep_slope_is_relu_over_the_group_deviation(formula: bool) -> None:
    x = maps()
    with reference(formula):
        torch.testing.assert_close(s0(1e6)(x), x.relu() / group_std(x))
        torch.testing.assert_close(s0(-1e6)(x), -(-x).relu() / group_std(x))


@PATHS
def test_s0_with_no_slope_is_half_of_x_over_the_group_deviation(formula: bool) -> None:
    x = maps()
    with reference(formula):
        torch.testing.assert_close(s0(0.0)(x), x / group_std(x) / 2)


@PATHS
def test_s0_multiplies_by_v_and_does_not_divide(formula: bool) -> None:
    x = maps()
    with reference(formula):
        y = s0(2.0)(x)
    torch.testing.assert_close(y, x * torch.sigmoid(2 * x) / group_std(x))
    assert not torch.allclose(y, x * torch.sigmoid(x / 2) / group_std(x), rtol=0.1)
    both_at_one = x * torch.sigmoid(x) / group_std(x)
    torch.testing.assert_close(s0(1.0)(x), both_at_one)


@PATHS
def test_s0_of_the_centered_is_group_norm_times_a_gate(formula: bool) -> None:
    x = maps()
    x = (x.unflatten(1, (G, -1)) - x.unflatten(1, (G, -1)).mean((2, 3, 4), keepdim=True)).flatten(1, 2)
    with reference(formula):
        torch.testing.assert_close(s0(1.0)(x), group_norm(x, G) * torch.sigmoid(x))


@PATHS
def test_s0_takes_each_sample_by_itself_and_needs_no_buffers(formula: bool) -> None:
    x, layer = maps(), s0(1.0)
    with reference(formula):
        torch.testing.assert_close(layer(x)[:1], layer(x[:1]))
    assert not list(layer.buffers())


@PATHS
def test_b0_without_slope_divides_by_the_larger_deviation(formula: bool) -> None:
    x = maps()
    batch, instance = (x.var(axes, correction=0, keepdim=True) + 1e-5 for axes in ((0, 2, 3), (2, 3)))
    assert (batch > instance).any() and (batch < instance).any()
    with reference(formula):
        torch.testing.assert_close(b0(0.0)(x), x / torch.maximum(batch, instance).sqrt())


@PATHS
def test_b0_levels_off_at_one_over_v(formula: bool) -> None:
    with reference(formula):
        y = b0(4.0)(maps())
    assert 0.15 < y.max() < 1 / 4
    assert y.min() < -1  # not so below


@PATHS
def test_b0_of_one_sample_needs_no_maximum(formula: bool) -> None:
    x = maps(batch=1)
    std = (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    with reference(formula):
        torch.testing.assert_close(b0(0.7)(x), x / (std + (0.7 * x).relu()))


@PATHS
def test_b0_is_batch_norm_of_centered_channels_where_the_slope_is_out_of_reach(formula: bool) -> None:
    x = maps()
    x = x - x.mean((0, 2, 3), keepdim=True)
    with reference(formula):
        y = b0(-1e6)(x)
    torch.testing.assert_close(torch.where(x > 0, y, 0), torch.where(x > 0, batch_norm(x), 0))
    assert y[x < 0].abs().max() < 1e-5  # there the second bound is huge


@PATHS
def test_b0_of_vectors_has_no_instance_variance(formula: bool) -> None:
    x = maps()[..., 0, 0]
    std = (x.var(0, correction=0) + 1e-5).sqrt()
    with reference(formula):
        torch.testing.assert_close(b0(1.0)(x), x / torch.maximum(std, x + 1e-5**0.5))


@PATHS
@pytest.mark.parametrize("momentum", [0.1, None])
def test_b0_keeps_the_running_variance_of_batch_norm_and_no_mean(momentum: float | None, formula: bool) -> None:
    ours, theirs = b0(1.0, momentum=momentum), BatchNorm(C, momentum=momentum, dtype=torch.float64)
    with reference(formula):
        for step in range(3):
            ours(maps(step)), theirs(maps(step))
    assert set(ours.state_dict()) == {"weight", "bias", "v", "running_var", "num_batches_tracked"}
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == 3


@PATHS
def test_b0_in_evaluation_takes_the_running_variance_and_leaves_it(formula: bool) -> None:
    layer, x = b0(1.0), maps()
    layer.running_var.fill_(9.0)
    with reference(formula):
        y = layer.eval()(x)
    torch.testing.assert_close(y, evonorm_b0(x, layer.v, var=torch.full((C,), 9.0, dtype=torch.float64)))
    assert layer.running_var.tolist() == [9.0] * C
    assert layer.num_batches_tracked == 0
    assert not torch.allclose(y, layer.train()(x), rtol=0.1)


@PATHS
def test_b0_untracked_takes_the_batch_in_evaluation_too(formula: bool) -> None:
    layer = b0(1.0, track_running_stats=False)
    assert not list(layer.buffers())
    with reference(formula):
        torch.testing.assert_close(layer.eval()(maps()), layer.train()(maps()))


@pytest.mark.parametrize("layer", [b0(3.0), s0(3.0)], ids=["b0", "s0"])
def test_reset_starts_over(layer: EvoNormB0 | EvoNormS0) -> None:
    layer(maps())
    layer.reset_parameters()
    assert layer.v.tolist() == [1.0] * C
    if isinstance(layer, EvoNormB0):
        assert layer.running_var.tolist() == [1.0] * C
        assert layer.num_batches_tracked == 0


def test_both_bring_their_activation() -> None:
    assert includes_activation(make_norm("evonorm_b0", 32))
    assert includes_activation(make_norm("evonorm_s0", 32))


def test_groups_of_s0() -> None:
    assert EvoNormS0(64).num_groups == 32
    assert make_norm("evonorm_s0:size=8", 24).num_groups == 3
    assert make_norm("evonorm_s0:groups=8", 24).num_groups == 8
    with pytest.raises(ShapeError, match="groups=32 does not divide 12 channels"):
        EvoNormS0(12)
    with pytest.raises(ShapeError, match="not both"):
        EvoNormS0(12, groups=2, size=6)


@PATHS
def test_too_few_values_are_refused_and_leave_the_buffers_alone(formula: bool) -> None:
    layer = EvoNormB0(C)
    with reference(formula):
        with pytest.raises(ShapeError, match="more than 1 value per channel when training"):
            layer(torch.randn(1, C))
        with pytest.raises(ShapeError, match="as many channels"):
            layer(torch.randn(2, C + 1))
        assert layer.num_batches_tracked.item() == 0
        assert layer.eval()(torch.randn(1, C)).shape == (1, C)
        with pytest.raises(ShapeError, match=r"per sample and group.*fewer groups"):
            EvoNormS0(C, groups=C)(torch.randn(5, C))


@pytest.mark.parametrize("function", [evonorm_b0, lambda x, v: evonorm_s0(x, 1, v)], ids=["b0", "s0"])
def test_formulas_are_twice_differentiable(function: object) -> None:
    x, v = maps()[:2, :2].requires_grad_(), torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, v))
    assert torch.autograd.gradgradcheck(function, (x, v))
