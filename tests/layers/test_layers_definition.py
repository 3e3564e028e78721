"""Each normalizer against its slow float64 definition: value, gradient, double gradient, buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from definitions import CASES, MAPS, Case
from definitions.case import EPS, elementwise, moments
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
from normlib.spec import spec_name

ARMS = [pytest.param(case, shape, id=f"{case}-{len(shape)}d") for case in CASES for shape in case.shapes]


def doubles(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def with_random_parameters(module: torch.nn.Module) -> torch.nn.Module:
    for seed, parameter in enumerate(module.parameters()):
        parameter.data += 0.1 * doubles(*parameter.shape, seed=10 + seed).data
    return module


def test_every_norm_has_a_definition() -> None:
    assert {spec_name(case.spec) for case in CASES} == set(NORMS)


def derivatives(y: Tensor, inputs: list[Tensor], seed: int) -> list[Tensor]:
    """The gradient of `y` along a direction, and the gradient of a direction of that; zeros where there is none."""
    first = torch.autograd.grad(y, inputs, doubles(*y.shape, seed=seed).detach(), create_graph=True, materialize_grads=True)
    mixed = sum((doubles(*g.shape, seed=seed + 1).detach() * g).sum() for g in first)
    if not mixed.requires_grad:  # y is linear in every input
        return [*first, *map(torch.zeros_like, inputs)]
    return [*first, *torch.autograd.grad(mixed, inputs, materialize_grads=True)]


@pytest.mark.parametrize(("case", "shape"), ARMS)
@pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
def test_value_derivatives_and_buffers_are_those_of_the_definition(case: Case, shape: tuple[int, ...], formula: bool) -> None:
    module = with_random_parameters(make_norm(case.spec, shape[1], dtype=torch.float64))
    for step, training in enumerate((True, True, False)):
        x, names = doubles(*shape, seed=step), [name for name, _ in module.named_parameters()]
        state = {name: value.detach().clone() for name, value in module.state_dict().items()}
        state.update({name: state[name].requires_grad_() for name in names})
        torch.manual_seed(step)
        wanted, changed = case.define(x, state, training)
        torch.manual_seed(step)
        with reference(formula):
            got = module.train(training)(x)
        torch.testing.assert_close(got, wanted)
        ours = derivatives(got, [x, *module.parameters()], seed=5 + step)
        theirs = derivatives(wanted, [x, *(state[name] for name in names)], seed=5 + step)
        torch.testing.assert_close(ours, theirs)
        after = {name: value.detach() for name, value in module.state_dict().items()}
        torch.testing.assert_close(after, {name: value.detach() for name, value in {**state, **changed}.items()})


@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("layer", [LayerNorm, RMSNorm])
def test_last_axes_norms_follow_the_definition(layer: type, last: int) -> None:
    x = doubles(2, 3, 4)
    module = with_random_parameters(layer(x.shape[-last:], eps=EPS, dtype=torch.float64))
    m = moments(x, lambda i: i[:-last])
    center = layer is LayerNorm

    def standard(i: tuple[int, ...], v: Tensor) -> Tensor:
        mean, var, _ = m[i[:-last]]
        return (v - mean) / (var + EPS) ** 0.5 if center else v / (var + mean**2 + EPS) ** 0.5

    wanted = elementwise(x, standard) * module.weight + (module.bias if center else 0)
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
