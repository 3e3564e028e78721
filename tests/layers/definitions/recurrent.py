"""Normalized recurrent cells, one step of each, from sums over lists of numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from definitions.case import EPS

T, N, F, H = 4, 3, 2, 3
State = dict[str, Tensor]
Rows = list[list[Any]]  # a list of numbers for each sample


def rows(x: Tensor) -> Rows:
    return [list(sample) for sample in x]


def times(x: Rows, weight: Tensor) -> Rows:
    """The summed inputs of each sample."""
    return [[sum(w * v for w, v in zip(row, sample, strict=True)) for row in weight] for sample in x]


def standard(values: list[Any]) -> list[Any]:
    mean = sum(values) / len(values)
    var = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / (var + EPS) ** 0.5 for v in values]


def over_units(x: Rows) -> Rows:
    return [standard(sample) for sample in x]


def over_samples(x: Rows) -> Rows:
    return [list(sample) for sample in zip(*(standard(list(unit)) for unit in zip(*x, strict=True)), strict=True)]


def scaled(x: Rows, gain: Tensor) -> Rows:
    return [[g * v for g, v in zip(gain, sample, strict=True)] for sample in x]


def added(*terms: Rows | Tensor) -> Rows:
    """The sum of rows and of vectors that are the same for each sample."""
    samples = next(len(term) for term in terms if isinstance(term, list))
    spread = [term if isinstance(term, list) else [list(term)] * samples for term in terms]
    return [[sum(values) for values in zip(*sample, strict=True)] for sample in zip(*spread, strict=True)]


def stacked(x: Rows) -> Tensor:
    return torch.stack([torch.stack(sample) for sample in x])


def rnn(x: Rows, h: Rows, p: State) -> Tensor:
    a = scaled(over_units(added(times(h, p["weight_hh"]), times(x, p["weight_ih"]))), p["norm.weight"])
    return torch.tanh(stacked(added(a, p["bias_ih"], p["bias_hh"])))


def lstm(norm: Callable[[Rows], Rows]) -> Callable[[Rows, Rows, Rows, State], tuple[Tensor, Tensor]]:
    def define(x: Rows, h: Rows, c: Rows, p: State) -> tuple[Tensor, Tensor]:
        of_h = scaled(norm(times(h, p["weight_hh"])), p["norm_hh.weight"])
        of_x = scaled(norm(times(x, p["weight_ih"])), p["norm_ih.weight"])
        gates = stacked(added(of_h, of_x, p["bias_ih"], p["bias_hh"]))
        i, f, o = (torch.sigmoid(gates[:, at : at + H]) for at in (0, H, 3 * H))
        cell = f * stacked(c) + i * torch.tanh(gates[:, 2 * H : 3 * H])
        return o * torch.tanh(stacked(added(scaled(norm(rows(cell)), p["norm_c.weight"]), p["norm_c.bias"]))), cell

    return define


def gru(x: Rows, h: Rows, p: State) -> Tensor:
    def part(values: Rows, kind: str, norm: str, units: slice) -> Tensor:
        summed = times(values, p[f"weight_{kind}"][units])
        return stacked(added(scaled(over_units(summed), p[f"{norm}.weight"]), p[f"bias_{kind}"][units]))

    gates, candidate = slice(0, 2 * H), slice(2 * H, 3 * H)
    r, z = torch.sigmoid(part(x, "ih", "norm_ih", gates) + part(h, "hh", "norm_hh", gates)).split(H, 1)
    n = torch.tanh(part(x, "ih", "norm_in", candidate) + r * part(h, "hh", "norm_hn", candidate))
    return (1 - z) * n + z * stacked(h)


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(cell: type[nn.Module], **kwargs: Any) -> nn.Module:
    """A cell of float64 whose every parameter is random."""
    if "max_length" in inspect.signature(cell).parameters:
        kwargs = {"max_length": 3, **kwargs}
    module = cell(F, H, dtype=torch.float64, **kwargs)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = doubles(*parameter.shape, seed=50 + seed)
    return module


def start(cell: nn.Module | type, samples: int = N, seed: int = 7) -> Any:
    h, c = doubles(samples, H, seed=seed), doubles(samples, H, seed=seed + 1)
    return (h, c) if "LSTM" in getattr(cell, "__name__", type(cell).__name__) else h
