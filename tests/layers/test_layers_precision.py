"""Numbers of few bits, far from zero, very large, very small, or none at all: what every registered norm makes of them."""

from __future__ import annotations

import copy

import pytest
import torch
from every_norm import BATCH_STATISTICS, NOISE, SQUASHING, named, run, takes, values, with_argument
from torch import Tensor, nn

from normlib.layers import NORMS, make_norm

CHANNELS, SHAPE = 32, (4, 32, 3, 3)
EACH = pytest.mark.parametrize("name", NORMS)
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
TORCHS = {
    "batch": lambda: nn.BatchNorm2d(CHANNELS),
    "sync": lambda: nn.BatchNorm2d(CHANNELS),
    "layer": lambda: nn.GroupNorm(1, CHANNELS),
    "group": lambda: nn.GroupNorm(32, CHANNELS),
    "instance": lambda: nn.InstanceNorm2d(CHANNELS),
}


def made(spec: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh layer; in evaluation where training draws noise, which another dtype would draw otherwise."""
    return make_norm(spec, CHANNELS, dtype=dtype).train(named(spec) not in NOISE)


def derivatives(y: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, [x, *module.parameters()], values(*y.shape, seed=1, dtype=y.dtype), materialize_grads=True))


def close(got: Tensor, wanted: Tensor, steps: float) -> None:
    """Within so many rounding steps, of the dtype of `got`, of the largest value that is wanted."""
    allowed = steps * torch.finfo(got.dtype).eps * float(wanted.detach().abs().max())
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=allowed)


@HALVES
@PATHS
@EACH
def test_half_input_is_computed_wide_and_rounded_once(name: str, formula: bool, half: torch.dtype) -> None:
    module, x = made(name), values(*SHAPE, dtype=half).requires_grad_()
    exact, wide = copy.deepcopy(module).double(), x.detach().double().requires_grad_()
    y, wanted = run(module, x, formula), run(exact, wide, formula)
    assert y.dtype == half
    close(y, wanted, 1)
    for ours, theirs in zip(derivatives(y, module, x), derivatives(wanted, exact, wide), strict=True):
        close(ours.to(half), theirs, 8)
    for ours, theirs in zip(module.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-4)


@HALVES
@PATHS
@EACH
def test_half_modules_stay_half(name: str, formula: bool, half: torch.dtype) -> None:
    module, x = made(name).to(half), values(*SHAPE, dtype=half)
    exact = copy.deepcopy(module).double()
    y, wanted = run(module, x, formula), run(exact, x.double(), formula)
    assert y.dtype == half
    assert all(t.dtype == half for t in module.state_dict().values() if t.is_floating_point())
    close(y, wanted, 4)


@PATHS
@EACH
def test_autocast_does_not_lower_the_precision_of_statistics(name: str, formula: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = values(*SHAPE, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = run(made(name), x, formula)
        wanted = run(made(name), x, formula)
        assert y.dtype == dtype
        torch.testing.assert_close(y, wanted, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)


@PATHS
@EACH
def test_a_mean_far_from_zero_costs_its_ratio_to_the_spread(name: str, formula: bool) -> None:
    ratio = 1e4
    x = (ratio + (values(*SHAPE) - 2) / 3).float()
    naive = x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()
    assert (naive - x.double().var((0, 2, 3), correction=0)).abs().max() > 1  # the square of the ratio, in rounding steps: 12
    module, exact = made(name), made(name, torch.float64)
    if takes(name, "eps"):
        module, exact = (made(with_argument(name, eps=1e-5), dtype) for dtype in (torch.float32, torch.float64))
    close(run(module, x, formula), run(exact, x.double(), formula), 8 * ratio)
    for ours, theirs in zip(module.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-3, atol=1e-4)


@PATHS
@EACH
@pytest.mark.parametrize("constant", [0.0, 3.0])
@pytest.mark.parametrize("channels", [1, CHANNELS], ids=["one", "all"])
def test_constant_channels_give_finite_values_and_gradients(name: str, formula: bool, constant: float, channels: int) -> None:
    module, x = made(name), values(*SHAPE, dtype=torch.float32)
    x[:, :channels] = constant
    y = run(module, x.requires_grad_(), formula)
    assert y.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in derivatives(y, module, x))


@PATHS
@EACH
def test_tiny_values_are_right(name: str, formula: bool) -> None:
    x = 1e-20 * values(*SHAPE, dtype=torch.float32)
    spec = with_argument(name, eps=1e-5)
    y, wanted = run(made(spec), x, formula), run(made(spec, torch.float64), x.double(), formula)
    close(y, wanted, 64)


@PATHS
@EACH
def test_squares_that_overflow_are_never_taken_for_values(name: str, formula: bool) -> None:
    x = 1e20 * values(*SHAPE, dtype=torch.float32)
    y, wanted = run(made(name), x, formula), run(made(name, torch.float64), x.double(), formula)
    right = (y - wanted).abs() <= 1e-4 * wanted.abs().max()
    blank = y == y[:1, :, :1, :1]  # what a zero would give, the same all over the channel
    assert (right | blank | ~y.isfinite()).all()


@pytest.mark.parametrize("scale", [1e20, 1e-20])
@pytest.mark.parametrize("name", [name for name in TORCHS if name in NORMS])
def test_overflow_and_underflow_are_torchs(name: str, scale: float) -> None:
    ours, theirs, x = made(name), TORCHS[name](), scale * values(*SHAPE, dtype=torch.float32)
    torch.testing.assert_close(run(ours, x), theirs(x), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()), rtol=0, atol=0)


@PATHS
@EACH
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_not_hidden(name: str, formula: bool, bad: float) -> None:
    x = values(*SHAPE, dtype=torch.float32)
    x[1, 2, 0, 1] = bad
    training = name not in NOISE
    y, other = (run(made(name), x, which) for which in (formula, not formula))
    assert torch.equal(y.isnan(), other.isnan())
    if bad != bad or name not in SQUASHING:
        assert not y[1, 2, 0, 1].isfinite()
    if name in BATCH_STATISTICS and training:
        assert not y[:, 2].isfinite().any()
    else:
        assert y[[0, 2, 3]].isfinite().all()
