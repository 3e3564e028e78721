"""Renormalized, Lp, noisy, variance and decorrelated batch norm: what replaces the batch's mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from definitions.case import CHANNELS, EPS, SHAPES, Case, State, affine, elementwise, moments, moved, sets_of


def by_channel(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each channel, and the number of values of one."""
    m = moments(x, lambda i: i[1])
    return torch.stack([m[c][0] for c in range(CHANNELS)]), torch.stack([m[c][1] for c in range(CHANNELS)]), m[0][2]


def step(state: State, rate: float | None = 0.1, **statistics: Tensor) -> State:
    """What the running statistics of these names are after one step, and the counter."""
    rate = 1 / (int(state["num_batches_tracked"]) + 1) if rate is None else rate
    after = {name: (1 - rate) * state[name] + rate * new.detach() for name, new in statistics.items()}
    return {**after, "num_batches_tracked": state["num_batches_tracked"] + 1}


def clipped(value: Tensor, low: float, high: float) -> float:
    return min(max(value.item(), low), high)


def renormalized(r_max: float = 3.0, d_max: float = 5.0):
    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        running_mean, running_std = state["running_mean"], (state["running_var"] + EPS) ** 0.5
        if not training:
            return affine(elementwise(x, lambda i, v: (v - running_mean[i[1]]) / running_std[i[1]]), state), {}
        mean, var, n = by_channel(x)
        std = (var + EPS) ** 0.5
        r = [clipped(std[c] / running_std[c], 1 / r_max, r_max) for c in range(CHANNELS)]
        d = [clipped((mean[c] - running_mean[c]) / running_std[c], -d_max, d_max) for c in range(CHANNELS)]
        y = elementwise(x, lambda i, v: (v - mean[i[1]]) / std[i[1]] * r[i[1]] + d[i[1]])
        return affine(y, state), moved(state, mean, var * n / (n - 1))

    return define


def noisy(n_mu: float, n_sigma: float, r_mu: float, r_sigma: float):
    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        if not training:
            mean, var = state["running_mean"], state["running_var"]
            return affine(elementwise(x, lambda i, v: (v - mean[i[1]]) / (var[i[1]] + EPS) ** 0.5), state), {}
        mu = [-n_mu + 2 * n_mu * u for u in torch.rand(CHANNELS).double()]
        sigma = [1 + (n_sigma - 1) * u for u in torch.rand(CHANNELS).double()]
        normal, uniform = torch.randn(x.shape).double(), torch.rand(x.shape).double()
        mean, var, n = by_channel(x)
        a = affine(elementwise(x, lambda i, v: (v - mean[i[1]]) / (var[i[1]] + EPS) ** 0.5), state)
        s = elementwise(normal, lambda i, u: sigma[i[1]] + r_sigma * u)
        m = elementwise(uniform, lambda i, u: (mu[i[1]] - r_mu) + 2 * r_mu * u)
        return elementwise(a, lambda i, v: s[i] * v + m[i]), moved(state, mean, var * n / (n - 1))

    return define


def average_absolute(values: list[Tensor]) -> Tensor:
    return sum(abs(v) for v in values) / len(values)


def root_mean_square(values: list[Tensor]) -> Tensor:
    return (sum(v**2 for v in values) / len(values)) ** 0.5


def largest(values: list[Tensor]) -> Tensor:
    return max((abs(v) for v in values), key=Tensor.item)


def hoffer_l1(values: list[Tensor]) -> Tensor:
    mean = sum(values) / len(values)
    return (math.pi / 2) ** 0.5 * average_absolute([v - mean for v in values])


def hoffer_inf(values: list[Tensor]) -> Tensor:
    """The constant is the mean of the inverses of two bounds on the expected maximum of n values of a standard normal."""
    mean, log = sum(values) / len(values), math.log(len(values))
    lower, upper = (log / (math.pi * math.log(2))) ** 0.5, (2 * log) ** 0.5
    return (1 / lower + 1 / upper) / 2 * largest([v - mean for v in values])


def scaled_by(size: Callable[[list[Tensor]], Tensor], rate: float | None = 0.1):
    """Centered by the mean, divided by a size of the values of a channel."""

    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        mean, scale = state["running_mean"], state["running_scale"]
        if training:
            sets = sets_of(x, lambda i: i[1])
            mean, _, _ = by_channel(x)
            scale = torch.stack([size(sets[c]) for c in range(CHANNELS)])
        y = elementwise(x, lambda i, v: (v - mean[i[1]]) / (scale[i[1]] ** 2 + EPS) ** 0.5)
        return affine(y, state), step(state, rate, running_mean=mean, running_scale=scale) if training else {}

    return define


def uncentered(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
    _, var, n = by_channel(x)
    divided_by = var if training else state["running_var"]
    y = elementwise(x, lambda i, v: v / (divided_by[i[1]] + EPS) ** 0.5)
    return affine(y, state), step(state, running_var=var * n / (n - 1)) if training else {}


def inverse_root(matrix: Tensor) -> Tensor:
    """The inverse root of a positive matrix by Newton's iteration for the matrix sign, in Denman and Beavers' form."""
    root, inverse = matrix, torch.eye(len(matrix), dtype=matrix.dtype)
    for _ in range(15):
        root, inverse = (root + torch.linalg.inv(inverse)) / 2, (inverse + torch.linalg.inv(root)) / 2
    return inverse


def principal(matrix: Tensor) -> Tensor:
    """Rows are the eigenvectors, over the roots of their eigenvalues; with the signs that the layer's own routine gives."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([vectors[:, k] / values[k] ** 0.5 for k in range(len(matrix))])


def whitened(size: int, matrix_of: Callable[[Tensor], Tensor] = inverse_root):
    def define(x: Tensor, state: State, training: bool) -> tuple[Tensor, State]:
        covs, mean = state["running_cov"], state["running_mean"]
        sets = sets_of(x, lambda i: i[1])
        n = len(sets[0])
        if training:
            mean, _, _ = by_channel(x)

            def covariance(i: int, j: int) -> Tensor:
                return sum((a - mean[i]) * (b - mean[j]) for a, b in zip(sets[i], sets[j], strict=True)) / n

            groups = [range(first, first + size) for first in range(0, CHANNELS, size)]
            covs = torch.stack([torch.stack([torch.stack([covariance(i, j) for j in group]) for i in group]) for group in groups])
        matrices = [matrix_of(cov + EPS * torch.eye(size, dtype=x.dtype)) for cov in covs]

        def standard(i: tuple[int, ...], _: Tensor) -> Tensor:
            group, row = divmod(i[1], size)
            others = [group * size + j for j in range(size)]
            return sum(matrices[group][row, j] * (x[(i[0], c, *i[2:])] - mean[c]) for j, c in enumerate(others))

        changed = step(state, running_mean=mean, running_cov=covs * n / (n - 1)) if training else {}
        return affine(elementwise(x, standard), state), changed

    return define


WIDE = ((5, 4), (3, 4, 3), (3, 4, 3, 2), (2, 4, 2, 1, 3), (2, 4, 2, 1, 2, 2))  # more values per channel than channels
CASES = [
    Case(f"renorm:eps={EPS}", renormalized()),
    Case(f"renorm:eps={EPS},r_max=1.1,d_max=0.2", renormalized(1.1, 0.2)),
    Case(f"noisy:eps={EPS}", noisy(0.5, 1.25, 0.1, 0.1)),
    Case(f"noisy:eps={EPS},n_mu=0.2,n_sigma=3,r_mu=0.7,r_sigma=0.4,affine=False", noisy(0.2, 3, 0.7, 0.4), tuple(SHAPES[:3])),
    Case(f"lp:eps={EPS}", scaled_by(average_absolute)),
    Case(f"lp:p=2,eps={EPS}", scaled_by(root_mean_square)),
    Case(f"lp:p=inf,eps={EPS},momentum=None", scaled_by(largest, None)),
    Case(f"lp:p=1,centered=True,eps={EPS}", scaled_by(hoffer_l1)),
    Case(f"lp:p=inf,centered=True,eps={EPS}", scaled_by(hoffer_inf)),
    Case(f"variance:eps={EPS}", uncentered),
    Case(f"decorrelated:eps={EPS}", whitened(4), WIDE),
    Case(f"decorrelated:size=2,eps={EPS}", whitened(2)),
    Case(f"decorrelated:size=2,method=pca,eps={EPS}", whitened(2, principal)),
]
