"""Signal propagation without a network: what mean and variance of a channel become in a wide residual network of ReLU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from normlib.residual import expected_variances
from normlib.studies.normalizer_free.kernel import arc_cosine

KEPT = 1 / (math.pi - 1)
"""Squared mean over variance of what ReLU makes of a standard normal input."""


class Predicted(NamedTuple):
    """What is expected of a block: the columns of a signal propagation plot."""

    squared_mean: float
    variance: float
    residual_variance: float


def he_weights(stages: Sequence[int], books: bool, layers: int = 3, alpha: float = 1.0) -> list[Predicted]:
    """Predict, block by block, what weights by He's rule do: inputs of mean 0 and variance 1, no border.

    Each layer keeps the mean square and raises the correlation of two inputs; the mean of a channel is what all inputs share.

    Args:
        stages: number of blocks in each stage; each stage starts with a projection.
        books: whether the input of each block is divided by what `expected_variances` says; otherwise it is taken as it is.
        layers: weight layers of a branch.
        alpha: factor of the branch in the sum.
    """
    mean, variance, found = 0.0, 1.0, []
    for block in expected_variances(stages, alpha):
        power = (mean + variance) / (block.beta**2 if books else 1)
        correlation = mean / (mean + variance)
        if block.is_transition:
            mean, variance = power * arc_cosine(correlation), power * (1 - arc_cosine(correlation))
        for _ in range(layers):
            correlation = arc_cosine(correlation)
        residual = power * (1 - correlation)
        mean, variance = mean + alpha**2 * power * correlation, variance + alpha**2 * residual
        found.append(Predicted(mean, variance, residual))
    return found


def missing(side: int) -> float:
    """Return which part of the taps of a 3×3 filter, padded by one on each side, falls on the padding of a square map.

    Example:
        >>> round(missing(32), 3), round(missing(8), 3)
        (0.041, 0.16)
    """
    return 1 - ((3 * side - 2) / (3 * side)) ** 2


def scaled_weights(stages: Sequence[int], side: int, zeros: bool, alpha: float = 1.0) -> list[Predicted]:
    """Predict the same for scaled weight standardization and bottlenecks, to first order in the border of the maps.

    Without a border this is `expected_variances`. A missing tap costs its share of the variance; the filter then no longer sums to
    zero, which brings back the share that the mean of ReLU has, as a mean that differs from position to position.

    Args:
        stages: number of blocks in each stage; every stage but the first halves the map.
        side: of the input.
        zeros: whether maps are padded with zeros; otherwise they close up, and have no border.
        alpha: factor of the branch in the sum.
    """
    variance, stage, found = 1 - (missing(side) if zeros else 0), -1, []
    for block in expected_variances(stages, alpha):
        stage += block.is_transition
        seen = side // 2 ** max(stage - block.is_transition, 0)  # the first block of a stage takes the map of the one before
        power = variance / block.beta**2
        residual = power * (1 - ((1 - KEPT) * missing(seen) if zeros else 0))
        variance = (power if block.is_transition else variance) + alpha**2 * residual
        found.append(Predicted(0.0, variance, residual))
    return found


def batch_norm_first(position: int) -> Predicted:
    """Return what batch norm, ReLU, convolution by He's rule make of the block at `position` (from 1) of its stage."""
    return Predicted((position + 1) / math.pi, (position + 1) * (1 - 1 / math.pi), 1 - 1 / math.pi)


def relu_first(position: int) -> Predicted:
    """Return the same for ReLU, batch norm, convolution with weights of variance 1 / fan-in."""
    return Predicted(0.0, position + 1, 1.0)
