"""The algebra of weight norms: which are equal where, what leaves them unchanged, and what that makes of their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normlib.weights import (
    activation_gain,
    centered_weight_norm,
    parametrize_weight,
    scaled_weight_standardization,
    weight_norm,
    weight_standardization,
)

few = settings(max_examples=25, deadline=None)
SIDES = st.integers(3, 5)  # a row of two values may be two nearly equal ones, whose difference holds few digits
SHAPES = st.tuples(st.integers(1, 4), SIDES) | st.tuples(st.integers(1, 4), st.integers(1, 4), SIDES, st.integers(1, 3))
SEEDS = st.integers(0, 2**16)
CENTERED = ["centered_weight", "standardized_weight:eps=0.0", "scaled_weight:eps=0.0"]
SCALE_FREE = ["weight", *CENTERED]


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Holder(nn.Module):
    """A weight of any shape, and nothing else."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def normalized(spec: str, weight: Tensor) -> Holder:
    return parametrize_weight(Holder(weight.clone()), spec)


def raw_of(holder: Holder) -> nn.Parameter:
    weights = holder.parametrizations.weight
    return weights.original if weights.is_tensor else weights.original1


def column(shape: tuple[int, ...], seed: int) -> Tensor:
    return doubles(shape[0], *[1] * (len(shape) - 1), seed=seed)


@few
@given(SHAPES, SEEDS)
def test_lengths_of_rows(shape: tuple[int, ...], seed: int) -> None:
    v, g = doubles(*shape, seed=seed), column(shape, seed + 1)
    fan_in = v[0].numel()
    for weight, squares in (
        (weight_norm(v, g), g.flatten() ** 2),
        (centered_weight_norm(v, g), g.flatten() ** 2),
        (weight_standardization(v, 0.0), torch.full(shape[:1], float(fan_in), dtype=torch.float64)),
        (scaled_weight_standardization(v, g, 1.7, eps=0.0), 1.7**2 * g.flatten() ** 2),
    ):
        torch.testing.assert_close(weight.flatten(1).square().sum(1), squares)


@few
@given(SHAPES, SEEDS)
def test_each_is_another_on_something(shape: tuple[int, ...], seed: int) -> None:
    v, g = doubles(*shape, seed=seed), column(shape, seed + 1)
    axes, fan_in = tuple(range(1, len(shape))), v[0].numel()
    centered = centered_weight_norm(v, g)
    torch.testing.assert_close(centered, weight_norm(v - v.mean(axes, keepdim=True), g))
    torch.testing.assert_close(centered, scaled_weight_standardization(v, g, eps=0.0))
    torch.testing.assert_close(centered, weight_standardization(v, 0.0) * g / fan_in**0.5)
    torch.testing.assert_close(weight_standardization(v, 0.1), F.layer_norm(v, shape[1:], eps=0.1))


@pytest.mark.parametrize("spec", SCALE_FREE)
@few
@given(SHAPES, SEEDS)
def test_scale_and_shift_of_a_row_do_not_matter(spec: str, shape: tuple[int, ...], seed: int) -> None:
    holder = normalized(spec, doubles(*shape, seed=seed))
    before = holder.weight.detach()
    shift = 0 if spec == "weight" else column(shape, seed + 2)
    with torch.no_grad():
        raw_of(holder).mul_(column(shape, seed + 1).exp()).add_(shift)
    torch.testing.assert_close(holder.weight, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", SCALE_FREE)
@few
@given(SHAPES, SEEDS)
def test_gradient_is_orthogonal_to_what_does_not_matter(spec: str, shape: tuple[int, ...], seed: int) -> None:
    holder = normalized(spec, doubles(*shape, seed=seed) + 0.3)
    raw = raw_of(holder)
    (gradient,) = torch.autograd.grad(holder.weight, raw, doubles(*shape, seed=seed + 1))
    rows, scale = gradient.flatten(1), gradient.flatten(1).norm(dim=1) + 1
    assert bool(((rows * raw.flatten(1)).sum(1).abs() < 1e-12 * scale * raw.flatten(1).norm(dim=1)).all())
    if spec != "weight":
        assert bool((rows.sum(1).abs() < 1e-12 * scale * rows.shape[1]).all())


@pytest.mark.parametrize("spec", SCALE_FREE)
def test_the_gradient_is_not_zero(spec: str) -> None:
    holder = normalized(spec, doubles(3, 4))
    (gradient,) = torch.autograd.grad(holder.weight, raw_of(holder), doubles(3, 4, seed=1))
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("formula", [weight_norm, centered_weight_norm])
def test_gradient_of_the_length_is_along_the_direction(formula: object) -> None:
    v, g, upstream = doubles(3, 2, 2), column((3, 2, 2), 1).requires_grad_(), doubles(3, 2, 2, seed=2)
    (gradient,) = torch.autograd.grad(formula(v, g), g, upstream)  # type: ignore[operator]
    direction = v if formula is weight_norm else v - v.mean((1, 2), keepdim=True)
    wanted = (upstream * direction).sum((1, 2), keepdim=True) / direction.square().sum((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(gradient, wanted)


def test_gradient_of_the_direction_is_that_of_the_weight_less_its_part_along_it() -> None:
    v, g, upstream = doubles(3, 5).requires_grad_(), column((3, 5), 1), doubles(3, 5, seed=2)
    (gradient,) = torch.autograd.grad(weight_norm(v, g), v, upstream)
    length = v.norm(dim=1, keepdim=True)
    along = (upstream * v).sum(1, keepdim=True) / length
    torch.testing.assert_close(gradient, g / length * upstream - g * along / length**2 * v)


def test_gradient_descent_lengthens_directions_by_pythagoras() -> None:
    layer = parametrize_weight(nn.Linear(6, 4).double(), "weight")
    v = layer.parametrizations.weight.original1
    x, y, rate = doubles(20, 6), doubles(20, 4, seed=1), 0.3
    before, grown = v.detach().square().sum(1), torch.zeros(4, dtype=torch.float64)
    for _ in range(5):
        layer.zero_grad()
        (layer(x) - y).square().mean().backward()
        grown += rate**2 * v.grad.square().sum(1)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= rate * parameter.grad
    assert bool((grown > 1e-6).all())
    torch.testing.assert_close(v.detach().square().sum(1), before + grown)


@pytest.mark.parametrize("spec", CENTERED)
def test_a_common_mean_of_the_inputs_is_not_passed_on(spec: str) -> None:
    layer = parametrize_weight(nn.Conv2d(3, 4, 3, bias=False).double(), spec)
    x = doubles(2, 3, 5, 5)
    torch.testing.assert_close(layer(x + 7), layer(x))


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(8, 8, 3), 72),
        (nn.Conv2d(8, 8, 3, groups=4), 18),
        (nn.Conv2d(8, 8, 3, groups=8), 9),
        (nn.Conv1d(8, 4, 1), 8),
        (nn.Linear(8, 4), 8),
    ],
)
def test_fan_in_counts_the_channels_of_a_group_and_the_kernel(layer: nn.Module, fan_in: int) -> None:
    scaled = parametrize_weight(layer, "scaled_weight:gain=2.0").weight.detach().flatten(1)
    assert scaled.shape[1] == fan_in
    torch.testing.assert_close(scaled.std(1, correction=0), torch.full(scaled.shape[:1], 2 / fan_in**0.5))


@pytest.mark.parametrize("name", ["relu", "tanh", "silu"])
def test_the_gain_keeps_mean_and_variance_through_depth(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    activation = {"relu": torch.relu, "tanh": torch.tanh, "silu": F.silu}[name]
    x = torch.randn(1000, 256, generator=generator)
    for _ in range(8):
        raw = 1 + 5 * torch.randn(256, 256, generator=generator)  # mean and scale of the raw weights do not matter
        weight = scaled_weight_standardization(raw, None, activation_gain(name))
        x = activation(x) @ weight.T
    assert float(x.var()) == pytest.approx(1, abs=0.15)
    assert abs(float(x.mean())) < 0.05
