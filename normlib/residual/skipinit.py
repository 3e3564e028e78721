"""A learnable scalar at the end of each branch: SkipInit (`de2020`) and ReZero (`bachlechner2021`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.residual.join import Join
from normlib.residual.scheme import ResidualScheme

INVERSE_ROOT_DEPTH = "1/sqrt(d)"


class SkipInit(ResidualScheme):
    r"""A learnable scalar at the end of each residual branch.

    **Idea.** With batch normalization the variance at the $l$-th block is about $l$ while its branch puts out 1, so the
    branch supplies one part in $l + 1$ of what leaves the block; without, it supplies one half. SkipInit makes the branch as
    small by a scalar, and nothing else.

    **Formula.** $x_{l+1} = x_l + g_l f_l(x_l)$, with $g_l$ learned from an initial value of at most $1/\sqrt d$ in a network
    of $d$ blocks. If each branch keeps the variance of its input, $\operatorname{Var} x_d \le (1 + 1/d)^d < e$. The usual
    initial value is 0: each block starts as the identity.

    **Departures.** The paper has biases in the weight layers and more dropout beside it: those are the network's. At 0 the
    branches get no gradient in the first step; the scalars do.

    Args:
        stages: see `ResidualScheme`.
        gain: initial value of the scalars: a number, or the text `"1/sqrt(d)"`.
        device: see `ResidualScheme`.
        dtype: see `ResidualScheme`.

    Raises:
        NormlibError: if `gain` is neither.

    Example:
        >>> SkipInit([3, 3, 3]).join(0, 0)
        Join(shortcut_scale=1, branch_scale=1, gain=0.0)
        >>> SkipInit([3, 3, 3], gain="1/sqrt(d)").gain == 1 / 3
        True

    Source: `de2020`.
    """

    def __init__(
        self,
        stages: Sequence[int],
        gain: float | str = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stages, device, dtype)
        if gain == INVERSE_ROOT_DEPTH:
            gain = self.depth**-0.5
        if isinstance(gain, str):
            raise NormlibError(f"gain={gain!r} is no initial value of a scalar. Pass a number, or {INVERSE_ROOT_DEPTH!r}.")
        self.gain = gain

    def join(self, stage: int, block: int) -> nn.Module:
        """Build the gated sum."""
        return Join(gain=self.gain, device=self.device, dtype=self.dtype)


class ReZero(SkipInit):
    r"""A learnable scalar that starts at zero, at the end of each residual branch.

    **Idea.** At initialization each block is the identity, so every singular value of the input-output Jacobian is 1 at any
    depth: dynamical isometry. The same gate as `SkipInit` at its usual initial value, found from another side: SkipInit
    came from what batch normalization does to residual branches of convolutions, ReZero from isometry, in fully connected
    nets and Transformers.

    **Formula.** $x_{l+1} = x_l + g_l f_l(x_l)$, $g_l = 0$ at initialization.

    **Departures.** None in the gate. The paper's ResNet keeps batch normalization beside it: name a norm as well.

    Args:
        stages: see `ResidualScheme`.
        device: see `ResidualScheme`.
        dtype: see `ResidualScheme`.

    Example:
        >>> x = torch.randn(2, 3)
        >>> torch.equal(ReZero([4]).join(0, 0)(x, torch.randn(2, 3)), x)
        True

    Source: `bachlechner2021`.
    """

    def __init__(
        self,
        stages: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stages, 0.0, device, dtype)
