"""The parts that a residual block is put together from: where shortcut and branch join, a constant factor, a scalar bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError


class Join(nn.Module):
    r"""Where the branch of a residual block meets its shortcut: $y = a\,x + b\,g\,f(x)$.

    **Idea.** A normalizer at the start of a branch makes the branch small beside a shortcut that grows with depth. Every
    method of this package does so by the factors of this one sum instead, and differs from the others in what they are.

    **Formula.** $y = a\,x + b\,g\,f(x)$, with constants $a$, $b$ and one learnable scalar $g$.

    **Train and eval.** The same; there are no buffers.

    **Departures.** The papers fold a constant factor into the code of the block; here it stands in a module of its own, so
    the output of the branch can be watched before it is scaled.

    Args:
        shortcut_scale: $a$.
        branch_scale: $b$.
        gain: initial value of the parameter `gain`, of shape (); None for no such parameter, which is $g = 1$. It wants no
            weight decay.
        device: where the parameter is made.
        dtype: its dtype.

    Shape:
        Shortcut and branch (N, *) of one shape; output the same.

    Raises:
        NormlibError: if shortcut and branch differ in shape; they would be broadcast without a word otherwise.

    Example:
        >>> x, f = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 10.0])
        >>> Join(branch_scale=0.2)(x, f)
        tensor([3., 4.])
        >>> torch.equal(Join(gain=0.0)(x, f), x)
        True

    Source: `shao2020` for the two constants, `de2020` for the scalar.
    """

    gain: nn.Parameter | None

    def __init__(
        self,
        shortcut_scale: float = 1.0,
        branch_scale: float = 1.0,
        gain: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shortcut_scale, self.branch_scale, self.initial_gain = shortcut_scale, branch_scale, gain
        self.register_parameter("gain", None if gain is None else nn.Parameter(torch.empty((), device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to its initial value."""
        if self.gain is not None and self.initial_gain is not None:
            nn.init.constant_(self.gain, self.initial_gain)

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Join a shortcut and the output of its branch."""
        if shortcut.shape != branch.shape:
            raise NormlibError(
                f"Join got a shortcut of shape {tuple(shortcut.shape)} and a branch of shape {tuple(branch.shape)}; they must "
                "agree. Where a block changes width or resolution, its shortcut needs a projection."
            )
        scaled = shortcut if self.shortcut_scale == 1 else shortcut * self.shortcut_scale
        if self.gain is None:
            return torch.add(scaled, branch, alpha=self.branch_scale)
        return scaled + branch * (self.gain * self.branch_scale)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return f"shortcut_scale={self.shortcut_scale:.4g}, branch_scale={self.branch_scale:.4g}, gain={self.initial_gain}"


class Scale(nn.Module):
    r"""Multiplication by a constant that is not learned.

    Args:
        factor: the constant.

    Shape:
        Any; the output has the shape of the input.

    Example:
        >>> Scale(0.5)(torch.tensor([2.0, -4.0]))
        tensor([ 1., -2.])
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, input: Tensor) -> Tensor:
        """Multiply each element."""
        return input * self.factor

    def extra_repr(self) -> str:
        """Return the factor as torch prints it."""
        return f"{self.factor:.4g}"


class ScalarBias(nn.Module):
    """One learnable number, added to every element: what Fixup puts before each weight layer and each activation.

    Args:
        device: where the parameter `bias`, of shape (), is made; it starts at 0 and wants no weight decay.
        dtype: its dtype.

    Shape:
        Any; the output has the shape of the input.

    Example:
        >>> x = torch.randn(2, 3)
        >>> torch.equal(ScalarBias()(x), x)
        True

    Source: `zhang2019fixup`.
    """

    def __init__(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the bias to zero."""
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Add the bias to each element."""
        return input + self.bias
