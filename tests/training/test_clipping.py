"""Adaptive gradient clipping against a slow definition: which axes a unit has, what is exempt, what stays as it is."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from normlib.errors import NormlibError, UnknownNameError
from normlib.training import adaptive_clip, adaptive_clip_grad_, parameters_except, unitwise_norm

SHAPES = [(), (5,), (3, 5), (4, 4), (4, 2, 3), (4, 3, 2, 2), (2, 3, 2, 1, 2)]


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_gradient(weight: Tensor, gradient: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(weight.clone())
    parameter.grad = gradient.clone()
    return parameter


def root_of_squares(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def defined(gradient: Tensor, weight: Tensor, clipping: float, eps: float) -> Tensor:
    """The paper's two cases, unit by unit and element by element."""
    units = weight.shape[0] if weight.ndim >= 2 else 1
    rows = []
    for g, w in zip(gradient.reshape(units, -1).tolist(), weight.reshape(units, -1).tolist(), strict=True):
        size, limit = root_of_squares(g), max(root_of_squares(w), eps)
        rows.append([clipping * limit / size * value for value in g] if size / limit > clipping else g)
    return torch.tensor(rows, dtype=torch.float64).reshape(weight.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clipping", [0.01, 0.5, 2.0])
def test_both_ways_are_the_definition(shape: tuple[int, ...], clipping: float) -> None:
    weight, gradient = drawn(shape, 0), drawn(shape, 1)
    wanted = defined(gradient, weight, clipping, 1e-3)
    torch.testing.assert_close(adaptive_clip(gradient, weight, clipping), wanted, rtol=1e-13, atol=0)
    parameter = with_gradient(weight, gradient)
    adaptive_clip_grad_([parameter], clipping)
    torch.testing.assert_close(parameter.grad, wanted, rtol=1e-13, atol=0)
    assert torch.equal(parameter, weight)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), max_size=4).map(tuple),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 1e4]),
    clipping=st.sampled_from([1e-3, 0.01, 0.16, 1.0]),
    eps=st.sampled_from([1e-3, 1.0]),
)
def test_no_unit_exceeds_the_limit_and_those_within_stay_bit_for_bit(
    shape: tuple[int, ...], seed: int, scale: float, clipping: float, eps: float
) -> None:
    weight, gradient = drawn(shape, seed), scale * drawn(shape, seed + 1)
    parameter = with_gradient(weight, gradient)
    fraction = adaptive_clip_grad_([parameter], clipping, eps)
    limit = clipping * unitwise_norm(weight).clamp(min=eps)
    assert (unitwise_norm(parameter.grad) <= limit * (1 + 1e-12)).all()
    within = unitwise_norm(gradient) <= limit
    torch.testing.assert_close(fraction, (~within).double().mean())
    assert torch.equal(torch.where(within, parameter.grad, 0.0), torch.where(within, gradient, 0.0))
    wanted = defined(gradient, weight, clipping, eps)
    torch.testing.assert_close(parameter.grad, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(adaptive_clip(gradient, weight, clipping, eps), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("outputs", "inputs"), [(2, 3), (3, 3)])
def test_a_unit_of_a_linear_layer_is_an_output_not_an_input(outputs: int, inputs: int) -> None:
    weight = torch.ones(outputs, inputs, dtype=torch.float64)
    gradient = torch.zeros_like(weight)
    gradient[1] = 1.0  # one output has all the gradient
    parameter = with_gradient(weight, gradient)
    fraction = adaptive_clip_grad_([parameter], clipping=0.9)
    assert fraction == 1 / outputs
    assert not parameter.grad[0].any()
    torch.testing.assert_close(parameter.grad[1], torch.full((inputs,), 0.9, dtype=torch.float64))


def test_units_of_convolutions_embeddings_and_vectors() -> None:
    assert unitwise_norm(nn.Conv2d(6, 4, (3, 2), groups=2).weight).shape == (4, 1, 1, 1)
    assert unitwise_norm(nn.Conv1d(6, 4, 3).weight).shape == (4, 1, 1)
    assert unitwise_norm(nn.Linear(6, 4).weight).shape == (4, 1)
    assert unitwise_norm(nn.Embedding(10, 4).weight).shape == (10, 1)
    assert torch.equal(unitwise_norm(torch.tensor([3.0, -4.0])), torch.tensor(5.0))
    assert torch.equal(unitwise_norm(torch.tensor(-2.0)), torch.tensor(2.0))


def test_a_unit_that_starts_at_zero_still_moves() -> None:
    weight, gradient = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    parameter = with_gradient(weight, gradient)
    adaptive_clip_grad_([parameter], clipping=0.5, eps=0.01)
    torch.testing.assert_close(parameter.grad, gradient * 0.005 / 3)
    torch.testing.assert_close(adaptive_clip(gradient, weight, 0.5, 0.01), parameter.grad)


def test_parameters_without_gradients_are_passed_over_and_dtypes_mix() -> None:
    mixed = [
        with_gradient(drawn((3, 4), i, dtype), drawn((3, 4), 9 + i, dtype))
        for i, dtype in enumerate([torch.float16, torch.bfloat16, torch.float32, torch.float64])
    ]
    before = [p.grad.clone() for p in mixed]
    idle = nn.Parameter(torch.ones(2))
    assert adaptive_clip_grad_([idle, *mixed], clipping=0.3) == 1
    assert idle.grad is None
    for parameter, gradient in zip(mixed, before, strict=True):
        assert parameter.grad.dtype == parameter.dtype
        wanted = defined(gradient, parameter.detach(), 0.3, 1e-3)
        eps = torch.finfo(parameter.dtype).eps
        torch.testing.assert_close(parameter.grad.double(), wanted, rtol=2 * eps if eps > 1e-7 else 1e-6, atol=0)
        torch.testing.assert_close(adaptive_clip(gradient, parameter.detach(), 0.3), parameter.grad)
    assert adaptive_clip_grad_([idle]) == 0


def test_the_norm_of_half_precision_does_not_overflow() -> None:
    parameter = with_gradient(torch.ones(1, 100, dtype=torch.float16), torch.full((1, 100), 1e4, dtype=torch.float16))
    adaptive_clip_grad_([parameter], clipping=0.5)
    assert torch.equal(parameter.grad, torch.full((1, 100), 0.5, dtype=torch.float16))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden_and_stays_in_its_unit(bad: float) -> None:
    gradient = torch.ones(2, 3)
    gradient[0, 1] = bad
    parameter = with_gradient(torch.ones(2, 3), gradient)
    adaptive_clip_grad_([parameter])
    assert parameter.grad[0].isnan().any()
    assert parameter.grad[1].isfinite().all()
    torch.testing.assert_close(adaptive_clip(gradient, torch.ones(2, 3)), parameter.grad, equal_nan=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
        self.header = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.header(self.body(x)))


def test_what_is_exempt_keeps_its_gradient_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    net = Net()
    net(drawn((6, 3), 0, torch.float32)).square().sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    assert adaptive_clip_grad_(parameters_except(net, "head"), clipping=1e-5) == 1
    same = {name for name, parameter in net.named_parameters() if torch.equal(parameter.grad, before[name])}
    assert same == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("exempt", "left"),
    [
        ([], ["body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias", "header", "head"]),
        (["body"], ["header", "head"]),
        (["body.0", "header.bias", "header"], ["body.2", "head"]),
        (["head.weight", "body", "header"], ["head.bias"]),
    ],
)
def test_names_stand_for_modules_and_parameters(exempt: list[str], left: list[str]) -> None:
    net = Net()
    wanted = [p for name, p in net.named_parameters() if any(name == part or name.startswith(part + ".") for part in left)]
    found = parameters_except(net, *exempt)
    assert [id(p) for p in found] == [id(p) for p in wanted]


@pytest.mark.parametrize("name", ["hed", "", "body.1", "head.", "head.weigth", "bod"])
def test_a_name_that_matches_no_parameter_is_an_error(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"Known: .*head\.weight"):
        parameters_except(Net(), "head", name)


def test_a_shared_parameter_is_exempt_by_either_name() -> None:
    net = Net()
    net.head.weight = net.body[0].weight = nn.Parameter(torch.ones(4, 4))
    for name in ("head", "body.0"):
        assert all(p is not net.head.weight for p in parameters_except(net, name))
    assert sum(p is net.head.weight for p in parameters_except(net)) == 1


def test_parametrized_weights_are_clipped_as_they_are_stored() -> None:
    net = Net()
    parametrizations.weight_norm(net.header)
    names = {id(p): name for name, p in net.named_parameters()}
    kept = [names[id(p)] for p in parameters_except(net, "head", "body")]
    assert kept == ["header.bias", "header.parametrizations.weight.original0", "header.parametrizations.weight.original1"]
    net(drawn((6, 3), 0, torch.float32)).square().sum().backward()
    assert adaptive_clip_grad_(parameters_except(net, "head"), clipping=1e-5) == 1
    for parameter in parameters_except(net, "head"):
        limit = 1e-5 * unitwise_norm(parameter.detach()).clamp(min=1e-3)
        assert (unitwise_norm(parameter.grad) <= limit * (1 + 1e-5)).all()


def test_weight_decay_and_momentum_come_after_clipping() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    twin, x = copy.deepcopy(net), 10 * drawn((5, 3), 0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    weight, velocity = twin.weight.detach().clone(), torch.zeros(2, 3, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        assert adaptive_clip_grad_(net.parameters(), clipping=0.02) == 1
        optimizer.step()
        gradient = defined(2 * weight @ x.T @ x, weight, 0.02, 1e-3)
        velocity = 0.9 * velocity + gradient + 0.5 * weight
        weight = weight - 0.1 * velocity
    torch.testing.assert_close(net.weight.detach(), weight, rtol=1e-12, atol=0)


def test_nothing_waits_for_the_values() -> None:
    net = Net().to("meta")  # has shapes but no values: reading one is an error
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter)
    assert adaptive_clip_grad_(parameters_except(net, "head")).device.type == "meta"


def test_one_tensor_is_taken_as_one_parameter() -> None:
    parameter = with_gradient(torch.ones(2, 3), torch.ones(2, 3))
    assert adaptive_clip_grad_(parameter, clipping=0.1) == 1
    torch.testing.assert_close(parameter.grad, torch.full((2, 3), 0.1))


def test_calls_that_would_clip_nothing_or_the_wrong_thing_are_errors() -> None:
    net = Net()
    with pytest.raises(NormlibError, match=r"parameters_except\(model"):
        adaptive_clip_grad_(net)  # type: ignore[arg-type]
    with pytest.raises(NormlibError, match="used up"):
        adaptive_clip_grad_(iter([]))
    for arguments in ({"clipping": 0.0}, {"eps": 0.0}, {"clipping": math.nan}):
        with pytest.raises(NormlibError, match="positive"):
            adaptive_clip_grad_(net.parameters(), **arguments)
