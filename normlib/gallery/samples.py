"""Inputs whose moments are known exactly, so that what comes out has a closed form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Draw N(0, 1) in float64 from a generator of its own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard(*shape: int, axes: Sequence[int] | None = None, seed: int = 0) -> Tensor:
    """Draw noise and bring it to mean 0 and biased variance 1 over some axes exactly; None takes all axes together.

    Example:
        >>> x = standard(5, 3, axes=[0])
        >>> torch.allclose(x.square().mean(0), torch.ones(3, dtype=x.dtype))
        True
    """
    x = noise(*shape, seed=seed)
    axes = list(range(x.ndim)) if axes is None else list(axes)
    x = x - x.mean(axes, keepdim=True)
    return x / x.square().mean(axes, keepdim=True).sqrt()


def every_sign(count: int) -> Tensor:
    """Return every row of a given number of signs: a population of mean 0 and variance 1, sampled without chance.

    Example:
        >>> every_sign(2).tolist()
        [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count)), dtype=torch.float64)


def ramp(channels: int) -> Tensor:
    """Return 1, 2, ..., one number a channel."""
    return torch.arange(1, channels + 1, dtype=torch.float64)


def average(x: Tensor) -> float:
    """Return the mean of all elements."""
    return float(x.detach().mean())


def spread(x: Tensor) -> float:
    """Return the standard deviation of all elements together, divided by the count."""
    return float(x.detach().std(correction=0))


def size(x: Tensor) -> float:
    """Return the root mean square of all elements."""
    return float(x.detach().square().mean().sqrt())


def largest(x: Tensor) -> float:
    """Return the largest absolute value."""
    return float(x.detach().abs().max())
