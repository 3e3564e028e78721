"""Norms that bring an activation: filter response norm with its thresholds, both EvoNorms, proxy norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from definitions.case import CHANNELS, EPS, Case, Share, State, affine, elementwise, moments, sets_of


def response(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
    squares = {name: sum(v**2 for v in values) / len(values) for name, values in sets_of(x, lambda i: i[:2]).items()}
    eps = abs(state["learned_eps"][0]) if "learned_eps" in state else EPS
    y = affine(elementwise(x, lambda i, v: v / (squares[i[:2]] + eps) ** 0.5), state)
    if "tau" not in state:
        return y, {}
    return elementwise(y, lambda i, v: v if v > state["tau"][i[1]] else state["tau"][i[1]]), {}


def evonorm_b0(rate: float | None = 0.1):
    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        batch, instance = moments(x, lambda i: i[1]), moments(x, lambda i: i[:2])

        def divided(i: tuple[int, ...], v: Tensor) -> Tensor:
            left = ((batch[i[1]][1] if training else state["running_var"][i[1]]) + EPS) ** 0.5
            right = state["v"][i[1]] * v + (instance[i[:2]][1] + EPS) ** 0.5
            return v / (left if left > right else right)

        y = affine(elementwise(x, divided), state)
        if not training:
            return y, {}
        unbiased = torch.stack([batch[c][1] * batch[c][2] / (batch[c][2] - 1) for c in range(CHANNELS)]).detach()
        step = 1 / (int(state["num_batches_tracked"]) + 1) if rate is None else rate
        running = (1 - step) * state["running_var"] + step * unbiased
        return y, {"running_var": running, "num_batches_tracked": state["num_batches_tracked"] + 1}

    return define


def evonorm_s0(share: Share):
    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        m = moments(x, share)

        def gated(i: tuple[int, ...], v: Tensor) -> Tensor:
            return v / (1 + torch.exp(-state["v"][i[1]] * v)) / (m[share(i)][1] + EPS) ** 0.5

        return affine(elementwise(x, gated), state), {}

    return define


def proxy(share: Share, activation: Callable[[Tensor], Tensor], proxy_eps: float):
    """Proxy norm of a smooth activation, for which any fine grid integrates to many digits."""

    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        m = moments(x, share)
        y = affine(elementwise(x, lambda i, v: (v - m[share(i)][0]) / (m[share(i)][1] + EPS) ** 0.5), state)
        mean, var = [], []
        for c in range(CHANNELS):
            weight = state["weight"][c] if "weight" in state else 1.0
            bias = state["bias"][c] if "bias" in state else 0.0
            z = torch.linspace(-10, 10, 801, dtype=torch.float64)
            density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
            values = activation(weight * (state["proxy_bias"][c] + (1 + state["proxy_weight"][c]) * z) + bias)
            mean.append((density * values).sum())
            var.append((density * values**2).sum() - mean[-1] ** 2)
        return elementwise(y, lambda i, v: (activation(v) - mean[i[1]]) / (var[i[1]] + proxy_eps) ** 0.5), {}

    return define


def silu(t: Tensor) -> Tensor:
    return t / (1 + torch.exp(-t))


MORE_THAN_ONE = ((2, 4, 3), (2, 4, 3, 2), (2, 4, 2, 1, 3))
CASES = [
    Case(f"frn:eps={EPS}", response),
    Case(f"frn:eps={EPS},tlu=False,affine=False", response),
    Case(f"frn:eps={-EPS},learn_eps=True", response),
    Case(f"evonorm_b0:eps={EPS}", evonorm_b0()),
    Case(f"evonorm_b0:eps={EPS},momentum=None,affine=False", evonorm_b0(None)),
    Case(f"evonorm_s0:groups=2,eps={EPS}", evonorm_s0(lambda i: (i[0], i[1] // 2))),
    Case(f"evonorm_s0:size=1,eps={EPS},affine=False", evonorm_s0(lambda i: i[:2]), MORE_THAN_ONE),
    Case(f"proxy:activation=silu,eps={EPS}", proxy(lambda i: i[0], silu, 0.03)),
    Case(
        f"proxy:activation=tanh,groups=2,eps={EPS},proxy_eps=0.4,affine=False",
        proxy(lambda i: (i[0], i[1] // 2), torch.tanh, 0.4),
        MORE_THAN_ONE,
    ),
]
