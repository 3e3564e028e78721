"""Switchable norm: what it is at each corner of its weights, and the law that spares it two passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlib.layers import BatchNorm, ChannelLayerNorm, InstanceNorm, ShapeError, SwitchNorm, reference, switch_norm
from normlib.layers.moments import instance_moments, pooled_moments

N, C = 3, 4
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
KINDS = [InstanceNorm, ChannelLayerNorm, BatchNorm]


def maps(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    channel = torch.arange(C, dtype=torch.float64).view(C, 1, 1)
    return channel + (1 + channel) * torch.randn(N, C, 3, 2, generator=generator, dtype=torch.float64)


def made(mean: int | None = None, var: int | None = None, **kwargs: bool) -> SwitchNorm:
    """A layer all of whose mean and variance come from the statistic of these numbers."""
    layer = SwitchNorm(C, dtype=torch.float64, **kwargs)
    for logits, index in ((layer.mean_weight, mean), (layer.var_weight, var)):
        if index is not None:
            logits.data = 1e4 * nn.functional.one_hot(torch.tensor(index), len(logits)).double()
    return layer


@PATHS
@pytest.mark.parametrize("index", range(3))
def test_each_corner_is_a_norm_known_before(index: int, formula: bool) -> None:
    ours, theirs = made(index, index), KINDS[index](C, dtype=torch.float64)
    with reference(formula):
        for step, training in enumerate((True, True, False)):
            torch.testing.assert_close(ours.train(training)(maps(step)), theirs.train(training)(maps(step)))
    if index == 2:
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer)


@PATHS
def test_mean_and_variance_are_chosen_apart(formula: bool) -> None:
    x = maps()
    with reference(formula):
        y = made(mean=2, var=0)(x)
    wanted = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(y, wanted)


@PATHS
def test_equal_weights_take_thirds(formula: bool) -> None:
    x = maps()
    sets = [(2, 3), (1, 2, 3), (0, 2, 3)]
    mean = sum(x.mean(axes, keepdim=True) for axes in sets) / 3
    var = sum(x.var(axes, correction=0, keepdim=True) for axes in sets) / 3
    with reference(formula):
        torch.testing.assert_close(made()(x), (x - mean) / (var + 1e-5).sqrt())


@pytest.mark.parametrize(("axis", "axes"), [(1, (1, 2, 3)), (0, (0, 2, 3))], ids=["layer", "batch"])
def test_statistics_of_larger_sets_follow_from_those_of_instances(axis: int, axes: tuple[int, ...]) -> None:
    x = 1000 + maps()
    mean, var = pooled_moments(*instance_moments(x), axis)
    torch.testing.assert_close(mean.flatten(), x.mean(axes), rtol=1e-13, atol=0)
    torch.testing.assert_close(var.flatten(), x.var(axes, correction=0), rtol=1e-9, atol=0)
    _, nearly = pooled_moments(x.mean((2, 3)), x.var((2, 3), correction=1), axis)  # the law holds for biased variances alone
    assert not torch.allclose(nearly.flatten(), x.var(axes, correction=0), rtol=1e-2)


@PATHS
def test_running_statistics_are_those_of_batch_norm_whatever_the_weights(formula: bool) -> None:
    ours, theirs = made(), BatchNorm(C, dtype=torch.float64)
    with reference(formula):
        ours(maps()), theirs(maps())
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@PATHS
def test_without_the_batch_share_no_sample_depends_on_another(formula: bool) -> None:
    layer, x = made(use_batch=False), maps()
    assert layer.mean_weight.shape == layer.var_weight.shape == (2,)
    assert not list(layer.buffers())
    assert layer.extra_repr().endswith("use_batch=False")
    with reference(formula):
        torch.testing.assert_close(layer(x)[:1], layer(x[:1]))
        assert not torch.allclose(made()(x)[:1], made()(x[:1]))
        torch.testing.assert_close(layer.eval()(x), layer.train()(x))


@PATHS
def test_in_evaluation_the_batch_share_is_the_running_one(formula: bool) -> None:
    layer, x = made(), maps()
    with reference(formula):
        layer(x)
        before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        torch.testing.assert_close(layer.eval()(x)[:1], layer(x[:1]))
    torch.testing.assert_close(dict(layer.named_buffers()), before)


def test_only_differences_of_logits_matter() -> None:
    layer, x = made(), maps()
    layer.mean_weight.data = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    y = layer(x)
    gradients = torch.autograd.grad(y, [layer.mean_weight, layer.var_weight], maps(1))
    for gradient in gradients:
        assert gradient.abs().max() > 1e-3
        assert gradient.sum().abs() < 1e-10
    layer.mean_weight.data += 7
    torch.testing.assert_close(layer(x), y)


def test_reset_forgets_all() -> None:
    layer = SwitchNorm(C)
    fresh = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.randn(2, C, 3))
    for parameter in layer.parameters():
        parameter.data.normal_()
    layer.reset_parameters()
    torch.testing.assert_close(dict(layer.state_dict()), fresh)


@PATHS
def test_evaluation_can_go_backward_after_a_step_in_training(formula: bool) -> None:
    layer, x = made(), maps().requires_grad_()
    with reference(formula):
        y = layer.eval()(x)
        wanted = torch.autograd.grad(y, [x, layer.mean_weight], maps(1), retain_graph=True)
        layer.train()(x)
    torch.testing.assert_close(torch.autograd.grad(y, [x, layer.mean_weight], maps(1)), wanted)


@PATHS
@pytest.mark.parametrize("shape", [(N, C), (N, C, 1), (N, C, 1, 1)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_one_position_is_refused_and_leaves_the_buffers_alone(shape: tuple[int, ...], training: bool, formula: bool) -> None:
    layer = SwitchNorm(C).train(training)
    with reference(formula), pytest.raises(ShapeError, match="more than one position; use layer, group or batch"):
        layer(torch.randn(shape))
    assert layer.num_batches_tracked.item() == 0


def test_formula_is_twice_differentiable() -> None:
    x = maps()[:2, :2].requires_grad_()
    logits = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([0.0, 1.0, 0.5], [0.3, 0.2, -1.0])]
    assert torch.autograd.gradcheck(switch_norm, (x, *logits))
    assert torch.autograd.gradgradcheck(switch_norm, (x, *logits))
