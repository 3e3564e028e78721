"""Moments of wide random ReLU networks in closed form: one squared mean and one variance, carried from block to block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

HALF_GAUSSIAN = 1 - 1 / math.pi
"""Variance that a layer with He's weights makes of the ReLU of a standard normal; 1/π is its squared mean."""


def arc_cosine(rho: float, layers: int = 1) -> float:
    """Return the cosine of two samples behind `layers` wide ReLU layers, if it is `rho` in front of them.

    Example:
        >>> round(arc_cosine(0.0), 4), arc_cosine(1.0)  # 1/π: what is independent becomes alike
        (0.3183, 1.0)
    """
    for _ in range(layers):
        rho = (math.sqrt(max(0.0, 1 - rho**2)) + rho * (math.pi - math.acos(min(rho, 1.0)))) / math.pi
    return rho


@dataclass(frozen=True)
class Moments:
    """Squared mean and variance, each an average over the channels.

    Samples are independent draws, so the mean of a channel is what they have in common: the cosine of two of them is the share of
    the squared mean in the mean square. So a ReLU layer, which is known for cosines, is known for both moments.
    """

    squared_mean: float
    variance: float

    @property
    def square(self) -> float:
        """The mean square."""
        return self.squared_mean + self.variance

    @property
    def share(self) -> float:
        """The share of the squared mean in the mean square."""
        return self.squared_mean / self.square if self.square else 0.0

    def times(self, factor: float) -> Moments:
        """Return the moments of the same signal with its square multiplied by a factor."""
        return Moments(factor * self.squared_mean, factor * self.variance)

    def plus(self, other: Moments) -> Moments:
        """Return the moments of the sum with a signal that random weights have made of this one or another."""
        return Moments(self.squared_mean + other.squared_mean, self.variance + other.variance)

    def through(self, layers: int) -> Moments:
        """Return the moments behind as many pairs of a ReLU and a layer with He's weights: the mean square stays."""
        rho = arc_cosine(self.share, layers)
        return Moments(self.square * rho, self.square * (1 - rho))


def largest_of(count: int) -> Moments:
    """Return the moments of the largest of `count` standard normal numbers.

    Example:
        >>> nine = largest_of(9)  # a max-pooling over 3×3
        >>> round(nine.squared_mean, 4), round(nine.variance, 4)
        (2.2053, 0.3574)
    """
    x = np.linspace(-9, 9, 20_001)
    below = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    density = count * below ** (count - 1) * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    mean = float(x @ density)
    return Moments(mean**2, float(x**2 @ density) - mean**2)


def gate_moments(bias: float, signal: Moments) -> tuple[float, float, float, float]:
    """Return the moments of a logistic gate t whose argument is normal, with the mean `bias` over channels and samples.

    Args:
        bias: of the argument.
        signal: of the argument without the bias: its squared mean is what all samples of a channel share.

    Returns:
        E t² and E (1 − t)², and the same of the mean over the samples of a channel in place of t.

    Example:
        >>> [round(moment, 6) for moment in gate_moments(0.0, Moments(0.0, 0.0))]
        [0.25, 0.25, 0.25, 0.25]
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    shared, own = math.sqrt(signal.squared_mean) * nodes, math.sqrt(signal.variance) * nodes
    gate = 1 / (1 + np.exp(-(bias + shared[:, None] + own[None, :])))
    mean = gate @ weights
    return (
        float(weights @ gate**2 @ weights), float(weights @ (1 - gate) ** 2 @ weights),
        float(weights @ mean**2), float(weights @ (1 - mean) ** 2),
    )  # fmt: skip
