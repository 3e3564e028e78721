"""Filter response norm and its thresholds: a root mean square per channel, the sign on one position, a ReLU that moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlib.layers import (
    FilterResponseNorm,
    ShapeError,
    ThresholdedLinearUnit,
    filter_response_norm,
    includes_activation,
    make_norm,
    reference,
    rms_norm,
    thresholded_linear,
)
from normlib.networks import make_network

N, C = 3, 4
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


@PATHS
def test_without_thresholds_it_is_rms_norm_of_each_channel(formula: bool) -> None:
    x = values(N, C, 3, 2)
    with reference(formula):
        y = FilterResponseNorm(C, eps=1e-3, tlu=False, dtype=torch.float64)(x)
    torch.testing.assert_close(y, rms_norm(x, (3, 2), eps=1e-3))


@PATHS
@pytest.mark.parametrize("shape", [(N, C), (N, C, 1), (N, C, 1, 1)], ids=str)
def test_one_position_leaves_the_sign_and_hardly_a_gradient(shape: tuple[int, ...], formula: bool) -> None:
    x = values(*shape).requires_grad_()
    eps = 1e-14
    with reference(formula):
        y = FilterResponseNorm(C, eps=eps, tlu=False, dtype=torch.float64)(x)
    torch.testing.assert_close(y, x.sign())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.abs().max() < 1e-8
    y = filter_response_norm(x, eps=0.5)  # and with an eps that is not small
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, 0.5 / (x**2 + 0.5) ** 1.5)


@PATHS
def test_scale_does_not_matter_and_shift_does(formula: bool) -> None:
    x, layer = values(N, C, 5), FilterResponseNorm(C, eps=1e-12, dtype=torch.float64)
    with reference(formula):
        torch.testing.assert_close(layer(5 * x), layer(x))
        assert not torch.allclose(layer(5 + x), layer(x))
        torch.testing.assert_close(layer(x)[:1], layer(x[:1]))  # no sample depends on another


def test_an_eps_that_is_given_counts_by_its_size_too() -> None:
    x = values(N, C, 5)
    torch.testing.assert_close(filter_response_norm(x, eps=-0.2), filter_response_norm(x, eps=0.2), rtol=0, atol=0)


def test_memory_order_is_kept() -> None:
    x = values(N, C, 3, 2).to(memory_format=torch.channels_last)
    y = FilterResponseNorm(C, dtype=torch.float64)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, FilterResponseNorm(C, dtype=torch.float64)(x.contiguous()))


@PATHS
@pytest.mark.parametrize("start", [0.2, -0.2])
def test_a_learned_eps_counts_by_its_size(start: float, formula: bool) -> None:
    x = values(N, C, 5)
    layer = FilterResponseNorm(C, eps=start, learn_eps=True, dtype=torch.float64)
    with reference(formula):
        y = layer(x)
        torch.testing.assert_close(y, FilterResponseNorm(C, eps=0.2, dtype=torch.float64)(x))
    (gradient,) = torch.autograd.grad(y.sum(), layer.learned_eps)
    assert gradient * start < 0  # a larger eps makes the output smaller


def test_eps_by_default() -> None:
    assert FilterResponseNorm(C).eps == 1e-6
    assert FilterResponseNorm(C, learn_eps=True).learned_eps.tolist() == pytest.approx([1e-4])
    assert FilterResponseNorm(C).learned_eps is None


def test_thresholds_are_a_relu_that_moves() -> None:
    unit, y = ThresholdedLinearUnit(C, dtype=torch.float64), values(N, C, 5)
    torch.testing.assert_close(unit(y), y.relu())
    unit.tau.data = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    tau = unit.tau.view(C, 1)
    torch.testing.assert_close(unit(y), (y - tau).relu() + tau)
    unit.reset_parameters()
    assert not unit.tau.any()


def test_gradient_of_the_thresholds_counts_what_they_cut() -> None:
    tau = torch.tensor([0.0, 2.0], requires_grad=True)
    y = torch.tensor([[-1.0, 3.0], [0.0, 1.0], [-2.0, 2.0]], requires_grad=True)
    to_y, to_tau = torch.autograd.grad(thresholded_linear(y, tau).sum(), [y, tau])
    assert to_y.tolist() == [[0, 1], [1, 0], [0, 1]]  # where both are equal, to y
    assert to_tau.tolist() == [2, 1]


@PATHS
def test_thresholds_follow_the_affine_map(formula: bool) -> None:
    x, layer = values(N, C, 5), FilterResponseNorm(C, dtype=torch.float64)
    for parameter in layer.parameters():
        parameter.data.uniform_(-1, 1)
    with reference(formula):
        y = layer(x)
    inner = filter_response_norm(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, torch.maximum(inner, layer.tau.view(C, 1)))
    assert (y == layer.tau.view(C, 1)).any()
    layer.reset_parameters()
    torch.testing.assert_close(dict(layer.state_dict()), dict(FilterResponseNorm(C, dtype=torch.float64).state_dict()))


def test_it_replaces_the_activation_only_with_thresholds() -> None:
    for spec, includes in (("frn", True), ("frn:tlu=False", False)):
        assert includes_activation(make_norm(spec, C)) is includes
        block = make_network("mlp", sizes=[4, 4, 2], norm=spec).blocks[0]
        assert isinstance(block.activation, nn.Identity) is includes


@pytest.mark.parametrize("layer", [FilterResponseNorm(3), ThresholdedLinearUnit(3)])
@pytest.mark.parametrize(("shape", "says"), [((2, 4), "as many channels"), ((2, 5, 5, 3), "movedim"), ((3,), r"x\[None\]")])
def test_wrong_channels_are_refused(layer: nn.Module, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        layer(torch.randn(shape))
