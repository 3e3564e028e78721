"""Each weight norm against its slow float64 definition, row by row and element by element: value, gradient, double gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlib.weights import (
    WEIGHT_NORMS,
    centered_weight_norm,
    parametrize_weight,
    scaled_weight_standardization,
    standardization,
    weight_norm,
    weight_standardization,
)

LAYERS = {
    "linear": lambda: nn.Linear(5, 3),
    "conv1d": lambda: nn.Conv1d(2, 3, 4),
    "conv2d": lambda: nn.Conv2d(3, 2, 2),
    "conv3d": lambda: nn.Conv3d(1, 2, (1, 2, 3)),
    "grouped": lambda: nn.Conv2d(4, 6, 2, groups=2),
    "depthwise": lambda: nn.Conv2d(3, 3, 3, groups=3),
}
GAMMA, EPS = 1.3, 0.3  # EPS is large, so that its place matters
OF_SOME = 8.0  # rows of a fan-in of about 10 and a variance of about 1: of some of them 8 is more than the sum of squares


def row_by_row(weight: Tensor, function: Callable[[int, list[Tensor]], list[Tensor]]) -> Tensor:
    rows = [function(o, list(weight[o].flatten())) for o in range(weight.shape[0])]
    return torch.stack([torch.stack(row) for row in rows]).reshape(weight.shape)


def centered(row: list[Tensor]) -> list[Tensor]:
    mean = sum(row) / len(row)
    return [w - mean for w in row]


def length(row: list[Tensor]) -> Tensor:
    return sum(w * w for w in row) ** 0.5


def define_weight(g: Tensor, v: Tensor) -> Tensor:
    return row_by_row(v, lambda o, row: [g.flatten()[o] * w / length(row) for w in row])


def define_centered(g: Tensor, v: Tensor) -> Tensor:
    return row_by_row(v, lambda o, row: [g.flatten()[o] * w / length(centered(row)) for w in centered(row)])


def define_standardized(weight: Tensor) -> Tensor:
    def standard(o: int, row: list[Tensor]) -> list[Tensor]:
        variance = sum(w * w for w in centered(row)) / len(row)
        return [w / (variance + EPS) ** 0.5 for w in centered(row)]

    return row_by_row(weight, standard)


def define_scaled(eps: float) -> Callable[..., Tensor]:
    def define(weight: Tensor, gain: Tensor | None = None) -> Tensor:
        def scaled(o: int, row: list[Tensor]) -> list[Tensor]:
            squares = sum(w * w for w in centered(row))  # the fan-in times the biased variance
            scale = GAMMA * (1 if gain is None else gain.flatten()[o])
            return [scale * w / (squares**0.5 if squares >= eps else math.sqrt(eps)) for w in centered(row)]

        return row_by_row(weight, scaled)

    return define


# the spec, its definition, and the formula; arguments are the parameters in the order of `parametrizations.weight`
Arm = tuple[Callable[..., Tensor], Callable[..., Tensor]]
ARMS: dict[str, Arm] = {
    "weight": (define_weight, lambda g, v: weight_norm(v, g)),
    "centered_weight": (define_centered, lambda g, v: centered_weight_norm(v, g)),
    f"standardized_weight:eps={EPS}": (define_standardized, lambda w: weight_standardization(w, EPS)),
    f"scaled_weight:gain={GAMMA}": (
        define_scaled(1e-4),
        lambda w, gain: scaled_weight_standardization(w, gain, GAMMA),
    ),
    f"scaled_weight:gain={GAMMA},eps={OF_SOME}": (
        define_scaled(OF_SOME),
        lambda w, gain: scaled_weight_standardization(w, gain, GAMMA, OF_SOME),
    ),
    f"scaled_weight:gain={GAMMA},affine=False": (
        define_scaled(1e-4),
        lambda w: scaled_weight_standardization(w, None, GAMMA),
    ),
}


def doubles(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.5 + torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def made(layer: str, spec: str) -> nn.Module:
    module = parametrize_weight(LAYERS[layer]().double(), spec)
    for seed, parameter in enumerate(module.parametrizations.weight.parameters()):
        parameter.data.copy_(doubles(*parameter.shape, seed=seed))
    return module


def derivatives(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The gradient of `y` along a direction, and the gradient of a direction of that."""
    first = torch.autograd.grad(y, inputs, doubles(*y.shape, seed=5).detach(), create_graph=True)
    mixed = sum((doubles(*g.shape, seed=6).detach() * g).sum() for g in first)
    return [*first, *torch.autograd.grad(mixed, inputs, materialize_grads=True)]


def test_every_weight_norm_has_a_definition() -> None:
    assert {spec.partition(":")[0] for spec in ARMS} | {"spectral"} == set(WEIGHT_NORMS)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("spec", ARMS)
def test_value_and_derivatives_are_those_of_the_definition(spec: str, layer: str) -> None:
    define, formula = ARMS[spec]
    module = made(layer, spec)
    parameters = list(module.parametrizations.weight.parameters())
    for computed in (module.weight, formula(*parameters)):
        torch.testing.assert_close(computed, define(*parameters))
        ours, theirs = derivatives(computed, parameters), derivatives(define(*parameters), parameters)
        torch.testing.assert_close(ours, theirs)


def test_eps_has_a_say_in_some_rows_alone() -> None:
    weight = made("linear", "scaled_weight").parametrizations.weight.original
    squares = (weight - weight.mean(1, keepdim=True)).square().sum(1)
    assert 0 < int((squares < OF_SOME).sum()) < 3


@pytest.mark.parametrize("spec", ARMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_is_near_the_definition(spec: str, dtype: torch.dtype, tolerance: float) -> None:
    exact, module = made("conv2d", spec).weight, made("conv2d", spec).to(dtype)
    half = module.weight
    assert half.dtype == dtype
    assert torch.equal(half, ARMS[spec][1](*module.parametrizations.weight.parameters()))  # no fused operation in half
    torch.testing.assert_close(half.double(), exact, rtol=tolerance, atol=tolerance)


def test_half_precision_is_computed_wide() -> None:
    v = (1 + 1e-2 * torch.arange(64.0)).view(2, 32).bfloat16()
    wanted = weight_standardization(v.double(), 0.0).bfloat16()
    assert torch.equal(weight_standardization(v, 0.0), wanted)
    layer = nn.Linear(32, 2, dtype=torch.bfloat16)
    layer.weight.data = v
    assert torch.equal(parametrize_weight(layer, "standardized_weight:eps=0.0").weight, wanted)


@pytest.mark.parametrize(("dead", "calls"), [(False, 0), (True, 1)])
def test_scaled_standardization_takes_the_fast_path_unless_eps_has_a_say(
    dead: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = made("conv2d", "scaled_weight")
    formula, called = standardization.scaled_weight_standardization, []

    def watched(*args: object) -> Tensor:
        called.append(1)
        return formula(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(standardization, "scaled_weight_standardization", watched)
    if dead:
        layer.parametrizations.weight.original.data[0] = 3.0
    weight = layer.weight
    assert len(called) == calls
    assert bool((weight[0] == 0).all()) == dead
    weight.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parametrizations.weight.parameters())


@pytest.mark.parametrize("spec", ["weight", "centered_weight"])
def test_a_row_without_direction_gives_nan_and_only_that(spec: str) -> None:
    layer = made("linear", spec)
    layer.parametrizations.weight.original1.data[1] = 0.0
    assert layer.weight.isnan().all(1).tolist() == [False, True, False]


def test_raw_weight_stays_as_it_was() -> None:
    layer = LAYERS["conv2d"]()
    raw = layer.weight.detach().clone()
    parametrize_weight(layer, "scaled_weight")
    assert torch.equal(layer.parametrizations.weight.original, raw)
    assert parametrize.is_parametrized(layer, "weight")
