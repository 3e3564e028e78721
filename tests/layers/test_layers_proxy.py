"""Proxy norm: how exact its integrals are, and what it makes of channels that are as Gaussian as it supposes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from normlib.activations import make_activation
from normlib.errors import UnknownNameError
from normlib.layers import ProxyNorm, ShapeError, group_norm, includes_activation, make_norm, proxy_norm, reference
from normlib.layers.proxy import proxy_moments

N, C = 3, 4
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
MEANS = torch.linspace(-4, 4, 1601, dtype=torch.float64)


def moments_of(activation: str, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the activation of a Gaussian, its scale given half by weight and half by proxy_weight."""
    return proxy_moments(make_activation(activation), std.sqrt(), mean - std, std.sqrt() - 1, std.sqrt())


def relu_moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """The closed form for ReLU."""
    density = torch.exp(-((mean / std) ** 2) / 2) / math.sqrt(2 * math.pi)
    above = torch.special.ndtr(mean / std)
    first = mean * above + std * density
    return first, (mean**2 + std**2) * above + mean * std * density - first**2


@pytest.mark.parametrize("std", [0.25, 1.0, 4.0])
def test_relu_is_integrated_to_four_digits(std: float) -> None:
    stds = torch.full_like(MEANS, std)
    mean, var = moments_of("relu", std * MEANS, stds)
    exact_mean, exact_var = relu_moments(std * MEANS, stds)
    assert ((mean - exact_mean).abs() / std).max() < 1e-4
    assert ((var - exact_var).abs() / std**2).max() < 1e-4


@pytest.mark.parametrize("name", ["logistic", "tanh", "gelu", "silu", "softplus"])
def test_smooth_activations_are_integrated_to_nine_digits(name: str) -> None:
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(120))
    weights = weights / weights.sum()
    means = MEANS[::100]
    exact = make_activation(name)(means + nodes[:, None])
    mean, var = moments_of(name, means, torch.ones_like(means))
    exact_mean = (weights[:, None] * exact).sum(0)
    torch.testing.assert_close(mean, exact_mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(var, (weights[:, None] * (exact - exact_mean) ** 2).sum(0), rtol=0, atol=1e-9)


def test_gradients_reach_all_four_vectors() -> None:
    vectors = [torch.full((1,), value, dtype=torch.float64, requires_grad=True) for value in (1.2, 0.3, 0.1, -0.2)]
    weight, bias, proxy_weight, proxy_bias = vectors
    mean, _ = proxy_moments(torch.relu, *vectors)
    gradients = torch.autograd.grad(mean, vectors)
    std = weight * (1 + proxy_weight)
    exact, _ = relu_moments(weight * proxy_bias + bias, std)
    for ours, theirs in zip(gradients, torch.autograd.grad(exact, vectors), strict=True):
        assert ours.item() == pytest.approx(theirs.item(), abs=0.01)  # of a step function: a digit or two fewer


@PATHS
def test_the_identity_gives_back_a_standardized_channel(formula: bool) -> None:
    layer = ProxyNorm(C, activation="identity", proxy_eps=0.0, dtype=torch.float64)
    x = torch.randn(N, C, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.arange(1, C + 1)
    with reference(formula):
        y = layer(x)
    own = layer.proxy_bias.view(C, 1, 1), 1 + layer.proxy_weight.view(C, 1, 1)
    torch.testing.assert_close(y, (group_norm(x, 1) - own[0]) / own[1])  # the affine map cancels


@PATHS
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_gaussian_channels_come_out_with_mean_zero_and_variance_one(activation: str, formula: bool) -> None:
    x = torch.randn(64, C, 64, 64, generator=torch.Generator().manual_seed(0))
    layer = ProxyNorm(C, activation=activation, proxy_eps=0.0)
    layer.weight.data = torch.tensor([0.5, 1.0, 1.5, -1.0])
    layer.bias.data = torch.tensor([0.5, 0.0, -0.5, 1.0])
    with reference(formula), torch.no_grad():
        y = layer(x)
    assert y.mean((0, 2, 3)).abs().max() < 0.01
    assert (y.var((0, 2, 3)) - 1).abs().max() < 0.02


def test_the_proxy_can_follow_a_channel_that_is_not_standard() -> None:
    generator = torch.Generator().manual_seed(0)
    offset, scale = torch.tensor([-0.8, -0.3, 0.3, 0.8]), torch.tensor([0.5, 1.0, 1.0, 0.5])
    x = offset.view(C, 1, 1) + scale.view(C, 1, 1) * torch.randn(64, C, 64, 64, generator=generator)
    layer = ProxyNorm(C, proxy_eps=0.0)
    assert layer(x).mean((0, 2, 3)).abs().max() > 0.3  # layer norm leaves channels their means
    normed = group_norm(x, 1)
    layer.proxy_bias.data, layer.proxy_weight.data = normed.mean((0, 2, 3)), normed.std((0, 2, 3)) - 1
    y = layer(x)
    assert y.mean((0, 2, 3)).abs().max() < 0.01
    assert (y.var((0, 2, 3)) - 1).abs().max() < 0.05


@PATHS
def test_no_sample_depends_on_another(formula: bool) -> None:
    layer, x = ProxyNorm(C, dtype=torch.float64), torch.randn(N, C, 3, dtype=torch.float64)
    with reference(formula):
        torch.testing.assert_close(layer(x)[:1], layer(x[:1]))
    assert not list(layer.buffers())


@PATHS
def test_proxy_eps_stands_under_the_root(formula: bool) -> None:
    x = torch.randn(N, C, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = ProxyNorm(C, proxy_eps=0.5, dtype=torch.float64)
    with reference(formula):
        y = layer(x)
    mean, var = relu_moments(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(y, (group_norm(x, 1).relu() - mean) / (var + 0.5).sqrt(), rtol=0, atol=1e-3)


def test_defaults_and_reset() -> None:
    layer = make_norm("proxy:groups=2,activation=gelu", C)
    assert isinstance(layer.activation, torch.nn.GELU)
    assert layer.num_groups == 2
    assert make_norm("proxy", C).num_groups == 1
    assert includes_activation(layer)
    for parameter in layer.parameters():
        parameter.data.normal_()
    layer.reset_parameters()
    torch.testing.assert_close(dict(layer.state_dict()), dict(ProxyNorm(C).state_dict()))


def test_errors_say_what_fits() -> None:
    with pytest.raises(ShapeError, match="What fits: groups=1, 2, 4"):
        ProxyNorm(C, groups=3)
    with pytest.raises(UnknownNameError, match="did you mean 'gelu'"):
        ProxyNorm(C, activation="glu")
    with pytest.raises(ShapeError, match="as many channels"):
        ProxyNorm(C)(torch.randn(2, 3))


def test_formula_is_twice_differentiable() -> None:
    x = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    vectors = [torch.full((2,), value, dtype=torch.float64, requires_grad=True) for value in (1.2, 0.3, 0.1, -0.2)]

    def smooth(x: Tensor, *vectors: Tensor) -> Tensor:
        return proxy_norm(x, 1, *vectors, torch.tanh)

    assert torch.autograd.gradcheck(smooth, (x, *vectors))
    assert torch.autograd.gradgradcheck(smooth, (x, *vectors))
