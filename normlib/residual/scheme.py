"""What a residual network asks of the method that stands in for normalization on its branches; and two that only add."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.residual.join import Join


class ResidualScheme:
    r"""The plain sum $x_{l+1} = x_l + f_l(x_l)$, and what every other scheme may change in it.

    **Idea.** A scheme is made once per network, from the number of blocks in each stage, and handed the places of a block to
    fill: `entry` after the pre-activation, where branch and projected shortcut begin; `shift` before each weight layer and
    each activation of the branch; `join` at its end. When the weights have been drawn, `initialize` adjusts them. A block
    reads

        h = entry(activation(x))
        x = join(projection(h) if there is one else x, branch(h))

    **Formula.** $x_{l+1} = x_l + f_l(x_l)$. If each branch keeps the variance of its input, the variance doubles at every
    block: $\operatorname{Var} x_l = 2^l$.

    Args:
        stages: number of blocks in each stage; the first block of a stage may project its shortcut.
        device: where the parameters of the modules are made.
        dtype: their dtype.

    Attributes:
        stages: as passed, a tuple.
        depth: the number of blocks $L$, which is the number of branches.

    Raises:
        NormlibError: if `stages` is empty, or a stage has no block.

    Example:
        >>> scheme = ResidualScheme([3, 4, 6, 3])
        >>> scheme.depth, scheme.position(1, 0)
        (16, 3)
        >>> scheme.join(1, 0)
        Join(shortcut_scale=1, branch_scale=1, gain=None)

    Source: `he2016`.
    """

    def __init__(
        self,
        stages: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_stages(stages)
        self.stages = tuple(stages)
        self.depth = sum(stages)
        self.device, self.dtype = device, dtype

    def position(self, stage: int, block: int) -> int:
        """Return which block of the network this is, counted from 0.

        Raises:
            NormlibError: if there is no such block.
        """
        if not (0 <= stage < len(self.stages) and 0 <= block < self.stages[stage]):
            raise NormlibError(f"there is no block {block} in stage {stage}; both count from 0, and the stages hold {self.stages}.")
        return sum(self.stages[:stage]) + block

    def entry(self, stage: int, block: int) -> nn.Module:
        """Build what the input of a branch passes first, and that of a projected shortcut with it: here the identity."""
        return nn.Identity()

    def shift(self) -> nn.Module:
        """Build what stands before a weight layer or an activation of a branch: here the identity."""
        return nn.Identity()

    def join(self, stage: int, block: int) -> nn.Module:
        """Build the module `f(shortcut, branch)` at the end of a block."""
        return Join()

    def initialize(self, branches: Sequence[nn.Module], head: nn.Module) -> None:
        """Adjust initial weights, once, after they have been drawn: here they are left as they are.

        Args:
            branches: the branch of each block, in order, without its shortcut.
            head: the classifier.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}(stages={list(self.stages)})"


class ScaledSum(ResidualScheme):
    r"""The sum divided by the root of two, so that it keeps the variance.

    **Idea.** Two independent terms of equal variance add up to twice that variance; divide it out.

    **Formula.** $x_{l+1} = (x_l + f_l(x_l)) / \sqrt 2$. If each branch keeps the variance of its input, so does the block; but
    what entered the first block makes up only $2^{-l}$ of the variance after $l$ blocks: deep networks forget their input.

    Args:
        stages: see `ResidualScheme`.
        device: see `ResidualScheme`.
        dtype: see `ResidualScheme`.

    Example:
        >>> ScaledSum([2]).join(0, 0)
        Join(shortcut_scale=0.7071, branch_scale=0.7071, gain=None)

    Source: `hoedt2022`, section Moment Control.
    """

    def join(self, stage: int, block: int) -> nn.Module:
        """Build the sum over the root of two."""
        return Join(math.sqrt(0.5), math.sqrt(0.5))


def check_stages(stages: Sequence[int]) -> None:
    """Check that there are stages, and that each has a block.

    Raises:
        NormlibError: if not.
    """
    if isinstance(stages, (int, str)) or len(stages) == 0 or not all(isinstance(blocks, int) and blocks > 0 for blocks in stages):
        raise NormlibError(f"stages={stages!r} should be the number of blocks in each stage, 1 or more, as in [3, 4, 6, 3].")
