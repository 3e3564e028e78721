"""Batch, layer, root mean square, group and instance norm: which elements share a mean and a variance."""

from __future__ import annotations

import torch
from torch import Tensor

from definitions.case import CHANNELS, EPS, MAPS, Case, Share, State, affine, elementwise, moments, moved, sets_of


def standardized(share: Share):
    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        m = moments(x, share)
        y = elementwise(x, lambda i, v: (v - m[share(i)][0]) / (m[share(i)][1] + EPS) ** 0.5)
        return affine(y, state), {}

    return define


def root_mean_square(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
    squares = {name: sum(v**2 for v in values) / len(values) for name, values in sets_of(x, lambda i: i[0]).items()}
    return affine(elementwise(x, lambda i, v: v / (squares[i[0]] + EPS) ** 0.5), state), {}


def batch(share: Share, rate: float | None = 0.1):
    """Batch norm whose sets are `share`; their names are (anything, channel)."""

    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        if not training:
            mean, var = state["running_mean"], state["running_var"]
            return affine(elementwise(x, lambda i, v: (v - mean[i[1]]) / (var[i[1]] + EPS) ** 0.5), state), {}
        m = moments(x, share)
        y = elementwise(x, lambda i, v: (v - m[share(i)][0]) / (m[share(i)][1] + EPS) ** 0.5)
        means, variances = [], []
        for channel in range(CHANNELS):
            own = [value for name, value in m.items() if name[1] == channel]
            means.append(sum(mean for mean, _, _ in own) / len(own))
            variances.append(sum(var * n / (n - 1) for _, var, n in own) / len(own))
        step = 1 / (int(state["num_batches_tracked"]) + 1) if rate is None else rate
        return affine(y, state), moved(state, torch.stack(means), torch.stack(variances), step)

    return define


CASES = [
    Case("none", lambda x, state, training: (x, {})),
    Case(f"batch:eps={EPS}", batch(lambda i: (0, i[1]))),
    Case(f"batch:eps={EPS},momentum=None,affine=False", batch(lambda i: (0, i[1]), None)),
    Case(f"batch:eps={EPS},momentum=0.7,bias=False", batch(lambda i: (0, i[1]), 0.7)),
    Case(f"batch:eps={EPS},ghost=2", batch(lambda i: (i[0] // 2, i[1])), ((4, 4), (6, 4, 2), (4, 4, 2, 1))),
    Case(f"batch:eps={EPS},ghost=1", batch(lambda i: (i[0], i[1])), tuple(MAPS)),
    Case(f"layer:eps={EPS}", standardized(lambda i: i[0])),
    Case(f"rms:eps={EPS}", root_mean_square),
    Case(f"group:groups=2,eps={EPS}", standardized(lambda i: (i[0], i[1] // 2))),
    Case(f"group:size=1,eps={EPS}", standardized(lambda i: (i[0], i[1])), tuple(MAPS)),
    Case(f"instance:affine=True,eps={EPS}", standardized(lambda i: (i[0], i[1])), tuple(MAPS)),
]
