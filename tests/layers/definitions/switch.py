"""Switchable norm: three ways to share a mean and a variance, and their mixture."""

from __future__ import annotations

import torch
from torch import Tensor

from definitions.case import CHANNELS, EPS, MAPS, Case, State, affine, elementwise, moments, moved

SHARES = {"instance": lambda i: (i[0], i[1]), "layer": lambda i: i[0], "batch": lambda i: i[1]}


def portions(logits: Tensor) -> list[Tensor]:
    total = sum(torch.exp(value) for value in logits)
    return [torch.exp(value) / total for value in logits]


def switch(kinds: tuple[str, ...] = ("instance", "layer", "batch"), rate: float | None = 0.1, track: bool = True):
    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        found = {kind: moments(x, SHARES[kind]) for kind in kinds}
        tracked = track and "batch" in kinds

        def of(kind: str, i: tuple[int, ...], which: int) -> Tensor:
            if kind == "batch" and tracked and not training:
                return state[("running_mean", "running_var")[which]][i[1]]
            return found[kind][SHARES[kind](i)][which]

        means, variances = portions(state["mean_weight"]), portions(state["var_weight"])

        def standard(i: tuple[int, ...], v: Tensor) -> Tensor:
            mean = sum(portion * of(kind, i, 0) for portion, kind in zip(means, kinds, strict=True))
            var = sum(portion * of(kind, i, 1) for portion, kind in zip(variances, kinds, strict=True))
            return (v - mean) / (var + EPS) ** 0.5

        y = affine(elementwise(x, standard), state)
        if not (tracked and training):
            return y, {}
        own = [found["batch"][channel] for channel in range(CHANNELS)]
        step = 1 / (int(state["num_batches_tracked"]) + 1) if rate is None else rate
        unbiased = torch.stack([var * n / (n - 1) for _, var, n in own])
        return y, moved(state, torch.stack([mean for mean, _, _ in own]), unbiased, step)

    return define


CASES = [
    Case(f"switch:eps={EPS}", switch(), tuple(MAPS)),
    Case(f"switch:eps={EPS},momentum=None,affine=False", switch(rate=None), tuple(MAPS)),
    Case(f"switch:eps={EPS},track_running_stats=False", switch(track=False), tuple(MAPS)),
    Case(f"switch:eps={EPS},use_batch=False", switch(("instance", "layer")), tuple(MAPS)),
]
