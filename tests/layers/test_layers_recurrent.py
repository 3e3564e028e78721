"""Normalized recurrent cells: equal to torch's without a norm, to slow definitions with one, and what leaves them unchanged."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from definitions.recurrent import EPS, F, H, N, T, doubles, gru, lstm, made, over_samples, over_units, rnn, rows, start
from torch import Tensor, nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import (
    BatchNormLSTMCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LayerNormRNNCell,
    ShapeError,
    reference,
    unroll,
)

PAIRS = [(LayerNormRNNCell, nn.RNNCell, nn.RNN), (LayerNormLSTMCell, nn.LSTMCell, nn.LSTM), (LayerNormGRUCell, nn.GRUCell, nn.GRU)]
LAYER_CELLS = [ours for ours, _, _ in PAIRS]
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])


# ---- without a norm: torch's


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("ours", "theirs", "layer"), PAIRS)
def test_without_norm_each_is_torchs(ours: type, theirs: type, layer: type, bias: bool) -> None:
    mine, torchs, sequence = made(ours, norm="none", bias=bias), theirs(F, H, bias), layer(F, H, bias=bias).double()
    torchs.double().load_state_dict(mine.state_dict())
    sequence.load_state_dict({f"{name}_l0": value for name, value in mine.state_dict().items()})
    for x, hx in ((doubles(N, F), start(ours)), (doubles(N, F), None), (doubles(F), None)):
        torch.testing.assert_close(mine(x, hx), torchs(x, hx))
    assert mine.extra_repr() == torchs.extra_repr()
    x = doubles(T, N, F).requires_grad_()
    outputs, final = unroll(mine, x)
    wanted, last = sequence(x)
    torch.testing.assert_close(outputs, wanted)
    torch.testing.assert_close(final, tuple(h[0] for h in last) if isinstance(last, tuple) else last[0])
    torch.testing.assert_close(*(torch.autograd.grad(y, x, doubles(T, N, H, seed=3))[0] for y in (outputs, wanted)))


def test_relu_cell_is_torchs() -> None:
    mine, torchs = made(LayerNormRNNCell, nonlinearity="relu", norm="none"), nn.RNNCell(F, H, nonlinearity="relu")
    torchs.double().load_state_dict(mine.state_dict())
    torch.testing.assert_close(mine(doubles(N, F), start(mine)), torchs(doubles(N, F), start(mine)))
    assert mine.extra_repr() == torchs.extra_repr()


@pytest.mark.parametrize(("ours", "theirs", "layer"), [*PAIRS, (BatchNormLSTMCell, nn.LSTMCell, None)])
def test_constructor_is_torchs_and_more_by_keyword(ours: type, theirs: type, layer: type) -> None:
    mine, torchs = (list(inspect.signature(cell).parameters.values()) for cell in (ours, theirs))
    assert [(p.name, p.default) for p in mine[: len(torchs)]] == [(p.name, p.default) for p in torchs]
    assert all(p.kind is p.KEYWORD_ONLY for p in mine[len(torchs) :])
    module = ours(F, H, device="meta", **({"max_length": 2} if ours is BatchNormLSTMCell else {}))
    assert all(t.is_meta for t in module.state_dict().values())


@pytest.mark.parametrize("cell", LAYER_CELLS)
def test_arms_draw_the_same_weights(cell: type) -> None:
    cells = [lambda: cell(F, H, norm="none"), lambda: cell(F, H)]
    cells += [lambda: BatchNormLSTMCell(F, H, max_length=2)] if cell is LayerNormLSTMCell else []
    plain, *others = (torch.manual_seed(0) and make() for make in cells)
    for other in others:
        for name, value in plain.state_dict().items():
            assert torch.equal(other.state_dict()[name], value)


# ---- with a norm: the definition, from sums over lists of numbers


DEFINITIONS: dict[type, Callable[..., Any]] = {
    LayerNormRNNCell: rnn,
    LayerNormLSTMCell: lstm(over_units),
    LayerNormGRUCell: gru,
    BatchNormLSTMCell: lstm(over_samples),
}


@PATHS
@pytest.mark.parametrize("cell", DEFINITIONS)
def test_value_and_gradient_are_those_of_the_definition(cell: type, formula: bool) -> None:
    module, x = made(cell, eps=EPS), doubles(T, N, F).requires_grad_()
    p, hx = dict(module.named_parameters()), start(cell)
    with reference(formula):
        got, _ = unroll(module, x, hx)
    wanted = []
    for step in x:
        hx = DEFINITIONS[cell](rows(step), *([rows(s) for s in hx] if isinstance(hx, tuple) else [rows(hx)]), p)
        wanted.append(hx[0] if isinstance(hx, tuple) else hx)
    torch.testing.assert_close(got, torch.stack(wanted))
    inputs, direction = [x, *p.values()], doubles(T, N, H, seed=3)
    ours, theirs = (torch.autograd.grad(y, inputs, direction) for y in (got, torch.stack(wanted)))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cell", [*LAYER_CELLS, BatchNormLSTMCell])
def test_twice_differentiable(cell: type) -> None:
    module = made(cell, eps=EPS)
    hx = start(cell, 2)
    h, *rest = hx if isinstance(hx, tuple) else (hx,)

    def output(x: Tensor, h: Tensor) -> Tensor:
        state = (h, *rest) if rest else h
        return unroll(module, x[None], state)[0]

    assert torch.autograd.gradgradcheck(output, (doubles(2, F).requires_grad_(), h.requires_grad_()))


# ---- what leaves layer-normalized cells unchanged


def weights_scaled(cell: nn.Module, **parts: tuple[float, slice]) -> nn.Module:
    other = copy.deepcopy(cell)
    for name, (factor, units) in parts.items():
        getattr(other, name.rstrip("_")).data[units] *= factor
    return other


ALL, GATES, CANDIDATE = slice(None), slice(0, 2 * H), slice(2 * H, 3 * H)
SCALED = [
    (LayerNormRNNCell, {"weight_ih": (5, ALL), "weight_hh": (5, ALL)}, True),
    (LayerNormRNNCell, {"weight_ih": (5, ALL)}, False),
    (LayerNormLSTMCell, {"weight_ih": (5, ALL)}, True),
    (LayerNormLSTMCell, {"weight_hh": (0.2, ALL)}, True),
    (LayerNormLSTMCell, {"weight_hh": (0.2, slice(H))}, False),  # the four gates share their statistics
    (LayerNormGRUCell, {"weight_ih": (5, GATES)}, True),
    (LayerNormGRUCell, {"weight_ih": (5, CANDIDATE)}, True),
    (LayerNormGRUCell, {"weight_hh": (0.2, GATES), "weight_hh_": (3, CANDIDATE)}, True),
    (LayerNormGRUCell, {"weight_hh": (0.2, slice(H))}, False),
]


@pytest.mark.parametrize(("cell", "parts", "same"), SCALED)
def test_scale_of_weights_that_share_statistics_does_not_matter(cell: type, parts: dict[str, Any], same: bool) -> None:
    module = made(cell, eps=1e-12)
    x, hx = doubles(T, N, F), start(cell)
    ours, other = unroll(module, x, hx)[0], unroll(weights_scaled(module, **parts), x, hx)[0]
    assert torch.allclose(ours, other, rtol=0, atol=1e-8) == same


@pytest.mark.parametrize("cell", LAYER_CELLS)
def test_samples_do_not_see_each_other(cell: type) -> None:
    module, x = made(cell), doubles(T, N, F)
    torch.testing.assert_close(unroll(module, x)[0][:, 1], unroll(module, x[:, 1])[0])


def test_scale_of_a_units_weights_does_not_matter_to_batch_norm() -> None:
    module, x, hx = made(BatchNormLSTMCell, eps=1e-12), doubles(T, N, F), start(BatchNormLSTMCell)
    other = weights_scaled(module, weight_ih=(5, slice(1, 4)), weight_hh=(0.2, slice(2, 7)))
    torch.testing.assert_close(unroll(module, x, hx)[0], unroll(other, x, hx)[0], rtol=0, atol=1e-8)


def test_gains_of_layer_norm_start_at_one_and_shifts_at_zero() -> None:
    cell = LayerNormLSTMCell(F, H)
    cell.norm_hh.weight.data.fill_(5)
    cell.norm_c.bias.data.fill_(5)
    cell.reset_parameters()
    assert (cell.norm_hh.weight == 1).all() and (cell.norm_c.bias == 0).all()
    assert cell.bias_ih.abs().max() > 0


# ---- the rest of the contract


@pytest.mark.parametrize(
    ("cell", "x", "hx", "says"),
    [
        (LayerNormRNNCell(F, H), (N, F + 1), None, r"input of shape \(N, 2\) or \(2,\), but got \(3, 3\)"),
        (LayerNormGRUCell(F, H), (T, N, F), None, "unroll"),
        (LayerNormGRUCell(F, H), (), None, "expects input"),
        (LayerNormRNNCell(F, H), (N, F), (N, H + 1), r"hx of shape \(3, 3\).*got \(3, 4\)"),
        (LayerNormGRUCell(F, H), (F,), (1, H), r"hx of shape \(3,\)"),
        (LayerNormLSTMCell(F, H), (N, F), (N, H), r"pair \(h, c\), but got Tensor"),
        (LayerNormLSTMCell(F, H), (N, F), ((N, H), (1, H)), r"hx\[1\] of shape \(3, 3\).*got \(1, 3\)"),
        (BatchNormLSTMCell(F, H, max_length=2), (N, F), ((1, H), (N, H)), r"hx\[0\]"),
        (BatchNormLSTMCell(F, H, max_length=2), (1, F), None, "more than 1 value per channel"),
        (BatchNormLSTMCell(F, H, max_length=2), (F,), None, "expects input"),
    ],
)
def test_shapes_that_do_not_fit(cell: nn.Module, x: tuple[int, ...], hx: Any, says: str) -> None:
    pair = hx is not None and isinstance(hx[0], tuple)
    state = None if hx is None else tuple(torch.zeros(s) for s in hx) if pair else torch.zeros(hx)
    before = copy.deepcopy(cell.state_dict())
    with pytest.raises(ShapeError, match=says) as raised:
        cell(torch.randn(x), state, *([0] if cell.takes_step else []))
    assert isinstance(raised.value, NormlibError)
    torch.testing.assert_close(dict(cell.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LayerNormLSTMCell(F, H, norm="batch"), UnknownNameError, "norm of LayerNormLSTMCell.*Known: layer, none"),
        (lambda: LayerNormRNNCell(F, H, nonlinearity="tan"), UnknownNameError, "did you mean 'tanh'"),
        (lambda: BatchNormLSTMCell(F, H, max_length=0), ShapeError, "max_length=0"),
        (lambda: BatchNormLSTMCell(F, H, max_length=2)(torch.randn(N, F), None, -1), ShapeError, "step=-1 is no time step"),
        (lambda: unroll(LayerNormRNNCell(F, H), torch.randn(0, N, F)), ShapeError, r"got \(0, 3, 2\)"),
    ],
)
def test_other_mistakes(make: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize("cell", [*LAYER_CELLS, BatchNormLSTMCell])
def test_checkpoints_copies_and_pickles(cell: type) -> None:
    module, x = made(cell), doubles(T, N, F)
    unroll(module, x)
    module.eval()
    fresh = cell(F, H, dtype=torch.float64, **({"max_length": 3} if cell is BatchNormLSTMCell else {})).eval()
    fresh.load_state_dict(module.state_dict())
    for other in (fresh, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(unroll(other, x), unroll(module, x), rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", [*LAYER_CELLS, BatchNormLSTMCell])
def test_half_precision(cell: type, bias: bool) -> None:
    module, x = made(cell, bias=bias), doubles(T, 8, F)
    assert any("bias" in name for name in module.state_dict()) == bias
    wanted, _ = unroll(module.float(), x.float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = unroll(module, x.float())
    half, _ = unroll(module.bfloat16(), x.bfloat16())
    assert half.dtype == torch.bfloat16
    for got in (mixed, half):
        assert (got.float() - wanted).abs().mean() < 0.03


@pytest.mark.parametrize("cell", [*LAYER_CELLS, BatchNormLSTMCell])
def test_one_step_compiles_whole(cell: type) -> None:
    module, x, hx = made(cell), doubles(T, N, F).requires_grad_(), start(cell)
    other = copy.deepcopy(module)
    wanted, _ = unroll(module, x, hx)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler about itself
        got, _ = unroll(torch.compile(other, fullgraph=True, backend="aot_eager"), x, hx)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x) for y in (got, wanted)))
    torch.testing.assert_close(dict(other.state_dict()), dict(module.state_dict()))


@pytest.mark.parametrize("cell", [LayerNormLSTMCell, BatchNormLSTMCell])
def test_one_step_exports(cell: type) -> None:
    module, x, hx = made(cell), doubles(N, F), start(cell)
    step = (1,) if cell is BatchNormLSTMCell else ()
    wanted = copy.deepcopy(module)(x, hx, *step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        exported = torch.export.export(module, (x, hx, *step)).module()
    torch.testing.assert_close(exported(x, hx, *step), wanted)


@pytest.mark.parametrize("cell", LAYER_CELLS)
def test_function_transforms(cell: type) -> None:
    module, x = made(cell), doubles(5, N, F)

    def output(x: Tensor) -> Tensor:
        y = torch.func.functional_call(module, dict(module.named_parameters()), x)
        return y[0] if isinstance(y, tuple) else y

    torch.testing.assert_close(torch.vmap(output)(x), torch.stack([output(each) for each in x]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch about its own decompositions
        _, along = torch.func.jvp(output, (x[0],), (x[1],))
    torch.testing.assert_close(along, torch.einsum("abcd,cd->ab", torch.func.jacrev(output)(x[0]), x[1]))
