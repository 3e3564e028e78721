"""Dynamic tanh and dynamic erf: near zero a line, far out a constant, and nothing of a norm's invariance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from normlib.layers import Derf, DynamicTanh, ShapeError, derf, dynamic_tanh, make_norm

C = 3
BOTH = pytest.mark.parametrize("layer", [DynamicTanh, Derf])
SLOPE = {DynamicTanh: 1.0, Derf: 2 / math.sqrt(math.pi)}  # of tanh and of erf at 0


def made(layer: type, **kwargs: float) -> nn.Module:
    module = layer(C, dtype=torch.float64, **kwargs)
    module.weight.data = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    module.bias.data = torch.tensor([0.0, 1.0, -3.0], dtype=torch.float64)
    return module


def values(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@BOTH
def test_near_zero_it_is_a_line(layer: type) -> None:
    module, x = made(layer, alpha=0.7), 1e-5 * values(2, C, 4)
    weight, bias = module.weight.view(C, 1), module.bias.view(C, 1)
    torch.testing.assert_close(module(x) - bias, SLOPE[layer] * 0.7 * x * weight, rtol=1e-8, atol=1e-13)


@BOTH
def test_far_out_it_is_a_constant(layer: type) -> None:
    module = made(layer)
    far = torch.full((1, C), 1e4, dtype=torch.float64)
    torch.testing.assert_close(module(far)[0], module.weight + module.bias)
    torch.testing.assert_close(module(-far)[0], module.bias - module.weight)


@BOTH
def test_it_is_odd_about_the_bias(layer: type) -> None:
    module, x = made(layer), values(2, C)
    torch.testing.assert_close(module(-x) - module.bias, module.bias - module(x))


@BOTH
def test_one_slope_serves_all_channels_and_trades_with_the_scale_of_the_input(layer: type) -> None:
    x = values(2, C, 4)
    torch.testing.assert_close(made(layer, alpha=0.5)(3 * x), made(layer, alpha=1.5)(x))
    assert not torch.allclose(made(layer)(3 * x), made(layer)(x), rtol=0.1)  # no norm


def test_the_shift_of_derf_moves_its_middle() -> None:
    module = made(Derf, alpha=0.5, shift=1.5)
    middle = torch.full((1, C), -3.0, dtype=torch.float64)
    torch.testing.assert_close(module(middle)[0], module.bias)
    x = values(2, C)
    torch.testing.assert_close(module(x - 3), made(Derf, alpha=0.5)(x))
    torch.testing.assert_close(derf(x), torch.erf(x / 2))
    torch.testing.assert_close(dynamic_tanh(x), torch.tanh(x / 2))


def test_derf_is_the_steeper_of_the_two() -> None:
    x = torch.linspace(0.1, 5, 50)[:, None].expand(-1, C)
    assert (Derf(C)(x) > DynamicTanh(C)(x)).all()


@BOTH
@pytest.mark.parametrize("shape", [(0, C), (0, C, 4), (1, C), (1, C, 1, 1)], ids=str)
def test_any_number_of_values_will_do(layer: type, shape: tuple[int, ...]) -> None:
    module = made(layer)
    y = module(values(*shape))
    assert y.shape == shape
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("shape", [(2, C), (2, C, 1), (2, C, 1, 1), (2, C, 5)], ids=str)
def test_slope_is_that_of_tanh(shape: tuple[int, ...]) -> None:
    x = values(*shape).requires_grad_()
    (gradient,) = torch.autograd.grad(DynamicTanh(C, alpha=0.7, affine=False, dtype=torch.float64)(x).sum(), x)
    torch.testing.assert_close(gradient, 0.7 / torch.cosh(0.7 * x) ** 2)


@BOTH
def test_a_value_depends_on_itself_alone(layer: type) -> None:
    module, x = made(layer), values(2, C, 4)
    torch.testing.assert_close(module(x)[:1, :, :1], module(x[:1, :, :1]))


def test_parameters_have_the_names_and_shapes_of_the_authors_layers() -> None:
    shapes = {name: tuple(value.shape) for name, value in Derf(C).state_dict().items()}
    assert shapes == {"alpha": (1,), "shift": (1,), "weight": (C,), "bias": (C,)}
    del shapes["shift"]
    assert shapes == {name: tuple(value.shape) for name, value in DynamicTanh(C).state_dict().items()}
    assert [name for name, _ in Derf(C, affine=False).named_parameters()] == ["alpha", "shift"]


@BOTH
def test_start_and_reset(layer: type) -> None:
    module = layer(C, alpha=0.8)
    assert module.alpha.tolist() == pytest.approx([0.8])
    start = {name: value.clone() for name, value in module.state_dict().items()}
    for parameter in module.parameters():
        parameter.data.normal_()
    module.reset_parameters()
    torch.testing.assert_close(dict(module.state_dict()), start)


def test_specs_take_whole_numbers() -> None:
    assert make_norm("dyt", C).alpha.item() == 0.5
    module = make_norm("derf:alpha=1,shift=2", C)
    assert (module.alpha.dtype, module.shift.dtype) == (torch.float32, torch.float32)
    assert (module.alpha.item(), module.shift.item()) == (1.0, 2.0)


@pytest.mark.parametrize("spec", ["dyt", "derf"])
def test_on_tokens_the_features_are_last(spec: str) -> None:
    tokens, norm = values(2, 5, C).float(), make_norm(spec, C, channel_axis=-1)
    norm.norm.weight.data = torch.arange(1.0, C + 1)
    torch.testing.assert_close(norm(tokens), make_norm(spec, C)(tokens.flatten(0, 1)).view(2, 5, C) * torch.arange(1.0, C + 1))


@BOTH
def test_wrong_channels_are_refused(layer: type) -> None:
    with pytest.raises(ShapeError, match="movedim"):
        layer(C)(torch.randn(2, 5, C))


@pytest.mark.parametrize("function", [dynamic_tanh, derf])
def test_formulas_are_twice_differentiable(function: object) -> None:
    x, alpha = values(2, C).requires_grad_(), torch.full((1,), 0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, alpha))
    assert torch.autograd.gradgradcheck(function, (x, alpha))
