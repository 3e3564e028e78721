"""RescaleNet (`shao2020`): shortcut and branch are weighted so that the variance stays and every block counts the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.residual.join import Join
from normlib.residual.scheme import ResidualScheme


def rescale_coefficients(depth: int) -> list[tuple[float, float]]:
    r"""Return $(a_l, b_l)$ of each block: $b_l^2 = 1 / (l + L)$ and $a_l^2 = 1 - b_l^2$, with $l$ from 0.

    Args:
        depth: number of blocks $L$.

    Returns:
        L pairs. The output of block $l$ makes up $b_l^2 \prod_{k>l} a_k^2 = 1 / (2L - 1)$ of the final variance, whichever
        $l$; the rest is the input's.

    Raises:
        NormlibError: if there is no block.

    Example:
        >>> [(round(a**2, 3), round(b**2, 3)) for a, b in rescale_coefficients(3)]
        [(0.667, 0.333), (0.75, 0.25), (0.8, 0.2)]

    Source: `shao2020`.
    """
    if depth < 1:
        raise NormlibError(f"rescale_coefficients got depth={depth}; expected the number of blocks, 1 or more.")
    shares = [1 / (block + depth) for block in range(depth)]  # b squared
    return [((1 - share) ** 0.5, share**0.5) for share in shares]


class RescaleNet(ResidualScheme):
    r"""Weighted sums that keep the variance, in which every block contributes the same.

    **Idea.** Dividing each sum by $\sqrt 2$ keeps the variance too, but halves what came before at every block. Weights that
    move towards the shortcut with depth give all blocks the same share in the final variance.

    **Formula.** $x_{l+1} = a_l x_l + b_l f_l(x_l)$ with $b_l^2 = 1 / (l + c)$, $a_l^2 = 1 - b_l^2$, $c = L$: see
    `rescale_coefficients`.

    **Departures.** The paper's code differs from its formula in three ways. A bias per channel before each convolution is
    set by the means of the first 8 batches: data-dependent centering, which is not done here; without it the mean of ReLU
    networks drifts. The factor of the branch is $1/\sqrt L$ at every block and a learnable scalar that starts at 1 (`gain`
    here); the rest of $b_l$ is in the initial weights, which changes no output at initialization, but the rates at which
    blocks learn. An activation follows the sum: that is the network's. A network of one block has $a_0 = 0$: no shortcut.

    Args:
        stages: see `ResidualScheme`.
        gain: initial value of a learnable scalar on each branch; None for none, as in the formula.
        device: see `ResidualScheme`.
        dtype: see `ResidualScheme`.

    Example:
        >>> RescaleNet([2, 3]).join(1, 2)
        Join(shortcut_scale=0.9428, branch_scale=0.3333, gain=None)

    Source: `shao2020`.
    """

    def __init__(
        self,
        stages: Sequence[int],
        gain: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stages, device, dtype)
        self.gain = gain
        self.coefficients = rescale_coefficients(self.depth)

    def join(self, stage: int, block: int) -> nn.Module:
        """Build the weighted sum of this block."""
        return Join(*self.coefficients[self.position(stage, block)], self.gain, self.device, self.dtype)
