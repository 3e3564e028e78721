"""Each normalizer against a slow float64 definition: which elements share a mean and a variance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from itertools import product

import pytest
import torch
from torch import Tensor

from normlib.layers import (
    NORMS,
    BatchNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    make_norm,
    reference,
    rms_norm,
)

SHAPES = [(3, 4), (2, 4, 3), (2, 4, 3, 2), (2, 4, 2, 1, 3), (2, 4, 2, 1, 2, 2)]
MAPS = SHAPES[1:]
EPS = 0.3  # large, so that its place matters

Share = Callable[[tuple[int, ...]], Hashable]

# index of an element -> name of the set whose statistics it takes; C = 4 channels, in axis 1
SHARES: dict[str, Share] = {
    "batch": lambda i: i[1],
    "layer": lambda i: i[0],
    "rms": lambda i: i[0],
    "group:groups=2": lambda i: (i[0], i[1] // 2),
    "group:size=1": lambda i: (i[0], i[1]),
    "instance:affine=True": lambda i: (i[0], i[1]),
}


def by_definition(x: Tensor, share: Share, center: bool = True, eps: float = EPS) -> Tensor:
    """Standardize element by element, from sums over the sets that `share` makes."""
    members = defaultdict(list)
    for index in product(*map(range, x.shape)):
        members[share(index)].append(x[index])
    values = []
    for index in product(*map(range, x.shape)):
        same = members[share(index)]
        mean = sum(same) / len(same) if center else 0.0
        var = sum((value - mean) ** 2 for value in same) / len(same)
        values.append((x[index] - mean) / (var + eps) ** 0.5)
    return torch.stack(values).reshape(x.shape)


def doubles(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def with_random_affine(module: torch.nn.Module) -> torch.nn.Module:
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = doubles(*parameter.shape, seed=10 + seed).data
    return module


def affine_of(module: torch.nn.Module, y: Tensor) -> Tensor:
    view = (1, -1) + (1,) * (y.ndim - 2)
    bias = getattr(module, "bias", None)
    return y * module.weight.view(view) + (0 if bias is None else bias.view(view))


@pytest.mark.parametrize("spec", SHARES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
def test_value_and_gradient_are_those_of_the_definition(spec: str, shape: tuple[int, ...], formula: bool) -> None:
    if len(shape) == 2 and spec.startswith("instance"):
        pytest.skip("one position")
    text = spec + ("," if ":" in spec else ":") + f"eps={EPS}"
    module = with_random_affine(make_norm(text, shape[1], dtype=torch.float64))
    x = doubles(*shape)
    wanted = affine_of(module, by_definition(x, SHARES[spec], center=spec != "rms"))
    with reference(formula):
        got = module(x)
    torch.testing.assert_close(got, wanted)
    direction = doubles(*shape, seed=5).detach()
    inputs = [x, *module.parameters()]
    torch.testing.assert_close(torch.autograd.grad(got, inputs, direction), torch.autograd.grad(wanted, inputs, direction))


@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("layer", [LayerNorm, RMSNorm])
def test_last_axes_norms_follow_the_definition(layer: type, last: int) -> None:
    x = doubles(2, 3, 4)
    module = with_random_affine(layer(x.shape[-last:], eps=EPS, dtype=torch.float64))
    standard = by_definition(x, lambda i: i[:-last], center=layer is LayerNorm)
    wanted = standard * module.weight + (module.bias if layer is LayerNorm else 0)
    for formula in (False, True):
        with reference(formula):
            torch.testing.assert_close(module(x), wanted)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch": batch_norm,
    "layer": lambda x: layer_norm(x, x.shape[1:]),
    "rms": lambda x: rms_norm(x, x.shape[1:]),
    "group": lambda x: group_norm(x, 2),
    "instance": instance_norm,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_are_twice_differentiable(name: str) -> None:
    x = doubles(2, 2, 3)
    assert torch.autograd.gradcheck(FORMULAS[name], (x,))
    assert torch.autograd.gradgradcheck(FORMULAS[name], (x,))


@pytest.mark.parametrize("spec", [name for name in NORMS if name not in ("none", "group")] + ["group:groups=2"])
def test_fast_paths_are_twice_differentiable(spec: str) -> None:
    module = make_norm(spec, 2, dtype=torch.float64)
    x = doubles(2, 2, 3)
    assert torch.autograd.gradcheck(module, (x,))
    assert torch.autograd.gradgradcheck(module, (x,))


@pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
@pytest.mark.parametrize(
    ("layer", "unbiased"),
    [(BatchNorm, 10 / 3), (InstanceNorm, 0.5)],  # 4 + 1 + 1 + 4 over 3; the mean of 1/2 and 1/2
    ids=["batch", "instance"],
)
def test_running_variance_is_unbiased(layer: type, unbiased: float, formula: bool) -> None:
    module = layer(1, momentum=1.0, track_running_stats=True, dtype=torch.float64)
    with reference(formula):
        module(torch.tensor([[[0.0, 1.0]], [[3.0, 4.0]]], dtype=torch.float64))
    assert module.running_mean.item() == pytest.approx(2.0)
    assert module.running_var.item() == pytest.approx(unbiased)


@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_half_precision_formula_is_computed_wide_and_returned_in_half(shape: tuple[int, ...]) -> None:
    x = 1000 + doubles(*shape).detach().bfloat16()
    module = BatchNorm(shape[1])
    with reference():
        got = module(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, batch_norm(x.double()).bfloat16(), atol=1e-2, rtol=1e-2)
