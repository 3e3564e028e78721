from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import NORMS, GroupNorm
from normlib.spec import SpecError
from normlib.surgery import normalize, normalized_parts
from normlib.weights import WEIGHT_NORMS


def convolution() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 32, 3)


@pytest.mark.parametrize("spec", list(NORMS) + list(WEIGHT_NORMS))
def test_every_norm_goes_onto_a_convolution_and_lets_the_gradient_through(spec: str) -> None:
    net = normalize(convolution(), spec)
    net(torch.randn(4, 3, 6, 6)).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_norm_of_activations_follows_the_layer() -> None:
    layer, x = convolution(), torch.randn(2, 3, 6, 6)
    net = normalize(layer, "group:size=8")
    assert [name for name, _ in net.named_children()] == ["layer", "norm"] and net.layer is layer
    torch.testing.assert_close(net(x), GroupNorm(4, 32)(layer(x)))


def test_a_norm_of_weights_stays_in_the_layer() -> None:
    layer = convolution()
    raw = layer.weight.detach().clone()
    assert normalize(layer, "standardized_weight") is layer
    assert parametrize.is_parametrized(layer, "weight")
    rows = layer.weight.detach().flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(32), atol=1e-6, rtol=0)
    assert not torch.equal(layer.weight, raw)


def test_both_kinds_go_together_in_either_order() -> None:
    for spec in ("standardized_weight + group:size=8", "group:size=8+standardized_weight"):
        layer, norm = normalized_parts(convolution(), spec)
        assert parametrize.is_parametrized(layer, "weight") and isinstance(norm, GroupNorm)


def test_the_norm_has_the_dtype_of_the_layer() -> None:
    assert normalize(convolution().double(), "batch").norm.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("layer", "spec", "error", "says"),
    [
        (nn.Conv2d(3, 32, 3), "bacth", UnknownNameError, "did you mean 'batch'"),
        (nn.Conv2d(3, 32, 3), "scaled_wieght", UnknownNameError, "did you mean 'scaled_weight'"),
        (nn.Conv2d(3, 32, 3), "batch+layer", SpecError, "names two norms"),
        (nn.Conv2d(3, 32, 3), "weight+scaled_weight", SpecError, "names two weight norms"),
        (nn.Conv2d(3, 32, 3), 3, SpecError, "got 3"),
        (nn.Conv2d(3, 12, 3), "weight+group:size=8", NormlibError, "does not divide 12"),
        (nn.ReLU(), "batch", NormlibError, r"got ReLU.*make_norm\('batch'"),
    ],
)
def test_what_does_not_fit_says_so_and_leaves_the_layer(layer: nn.Module, spec: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        normalize(layer, spec)
    assert not parametrize.is_parametrized(layer)
