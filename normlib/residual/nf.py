"""Normalizer-free residual branches (`brock2021a`): the variance is not measured but kept in the books."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from normlib.residual.join import Join, Scale
from normlib.residual.scheme import ResidualScheme, check_stages


class BlockVariance(NamedTuple):
    """What is expected of one block at initialization: the entry that the books have for it."""

    beta: float
    """The standard deviation of its input, which is divided out of it."""
    variance: float
    """The variance of its output."""
    is_transition: bool
    """Whether it is the first of its stage, where the variance is forgotten."""


def expected_variances(stages: Sequence[int], alpha: float = 0.2) -> list[BlockVariance]:
    r"""Keep the books of a normalizer-free ResNet: $\beta_l^2 = \operatorname{Var} x_l$, $\operatorname{Var} x_0 = 1$.

    A branch takes in $x_l / \beta_l$, of variance 1, and puts out variance 1, which the join multiplies by $\alpha^2$. The
    shortcut adds $\operatorname{Var} x_l$; at the first block of a stage, where it is a projection of $x_l / \beta_l$, it
    adds 1 instead.

    Args:
        stages: number of blocks in each stage.
        alpha: $\alpha$.

    Returns:
        One entry per block, in order.

    Raises:
        NormlibError: if `stages` is empty, or a stage has no block.

    Example:
        >>> for block in expected_variances([2, 2], alpha=1):
        ...     print(round(block.beta, 3), block.variance, block.is_transition)
        1.0 2.0 True
        1.414 3.0 False
        1.732 2.0 True
        1.414 3.0 False

    Source: `brock2021a`.
    """
    check_stages(stages)
    variance, books = 1.0, []
    for block in (block for blocks in stages for block in range(blocks)):
        beta = math.sqrt(variance)
        variance = (1.0 if block == 0 else variance) + alpha**2
        books.append(BlockVariance(beta, variance, block == 0))
    return books


class NormalizerFree(ResidualScheme):
    r"""The branches of a normalizer-free ResNet: scaled down by the expected standard deviation, and by a constant.

    **Idea.** Batch normalization divides the input of each branch by its standard deviation, so the variance of the network
    grows by the same amount at each block and is forgotten at each transition. If the branches keep the variance of what
    they take in, that standard deviation is known without measuring.

    **Formula.** $x_{l+1} = x_l + \alpha f_l(x_l / \beta_l)$, $\beta_l = \sqrt{\operatorname{Var} x_l}$ from
    `expected_variances`.

    **Variance.** The books hold for branches that turn unit variance into unit variance: scaled weight standardization, with
    the gain of the activation, gives such. At the first block of a stage the shortcut must be a projection of what `entry`
    puts out; in the very first stage it may be the identity, as the variance is 1 there.

    **Departures.** `entry` stands after the pre-activation, as in the paper's code, and not before as in its equation: the
    same for ReLU, not for others. Letters are the paper's: `hoedt2022` swaps $\alpha$ and $\beta$, and the paper's code calls
    $1/\beta$ beta. The code also has SkipInit's scalar, at 0, on top of $\alpha$ (`gain=0`); the network then starts with
    all its branches shut and does not follow the books.

    Args:
        stages: see `ResidualScheme`.
        alpha: $\alpha$; with 1 the variance grows as in a ResNet with batch normalization.
        gain: initial value of a learnable scalar on each branch; None for none.
        device: see `ResidualScheme`.
        dtype: see `ResidualScheme`.

    Attributes:
        books: what `expected_variances` returns.

    Example:
        >>> scheme = NormalizerFree([2, 2], alpha=1)
        >>> scheme.entry(0, 0), scheme.entry(0, 1), scheme.join(0, 1)
        (Identity(), Scale(0.7071), Join(shortcut_scale=1, branch_scale=1, gain=None))

    Source: `brock2021a`.
    """

    def __init__(
        self,
        stages: Sequence[int],
        alpha: float = 0.2,
        gain: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stages, device, dtype)
        self.alpha, self.gain = alpha, gain
        self.books = expected_variances(stages, alpha)

    def entry(self, stage: int, block: int) -> nn.Module:
        """Build the division by the expected standard deviation."""
        beta = self.books[self.position(stage, block)].beta
        return nn.Identity() if beta == 1 else Scale(1 / beta)

    def join(self, stage: int, block: int) -> nn.Module:
        """Build the sum with the branch scaled by alpha."""
        return Join(1.0, self.alpha, self.gain, self.device, self.dtype)
