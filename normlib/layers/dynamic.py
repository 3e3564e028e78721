"""Point-wise stand-ins for normalization: dynamic tanh (`zhu2025`) and its successor with erf (`chen2025derf`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normlib.layers.affine import ChannelAffine
from normlib.layers.moments import instance_map
from normlib.layers.shapes import channel_affine, check_channels
from normlib.mode import by_formula, formula


@formula
def dynamic_tanh(x: Tensor, alpha: Tensor | float = 0.5, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Squash each value: `tanh(alpha x) * weight + bias`.

    Args:
        x: input of shape (N, C, *).
        alpha: slope, a number or one value in a tensor.
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.

    Returns:
        A tensor of the shape of `x`.

    Source: `zhu2025`.
    """
    return channel_affine(torch.tanh(alpha * x), weight, bias)


@formula
def derf(
    x: Tensor,
    alpha: Tensor | float = 0.5,
    shift: Tensor | float = 0.0,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Squash each value: `erf(alpha x + shift) * weight + bias`.

    Args:
        x: input of shape (N, C, *).
        alpha: slope, a number or one value in a tensor.
        shift: where the middle lies, a number or one value in a tensor.
        weight: scale of shape (C,), or None for 1.
        bias: shift of the output of shape (C,), or None for 0.

    Returns:
        A tensor of the shape of `x`.

    Source: `chen2025derf`.
    """
    return channel_affine(torch.erf(alpha * x + shift), weight, bias)


def _squashed(
    squash: Callable[[Tensor], Tensor],
    x: Tensor,
    alpha: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Compute `squash(alpha x + shift) * weight + bias`, the map inside and the one outside in a fused pass each."""
    y = squash(instance_map(x.to(torch.promote_types(x.dtype, torch.float32)), alpha.expand(x.shape[:2]), shift))
    return (y if weight is None else instance_map(y, weight.expand(x.shape[:2]), bias)).to(x.dtype)


class DynamicTanh(ChannelAffine):
    r"""Dynamic tanh: a learned squashing function where a norm would stand.

    **Idea.** In trained Transformers the output of layer normalization, drawn against its input, is S-shaped: what it does is
    to squash the largest values. That much needs no statistics.

    **Formula.** $y = \gamma_c \tanh(\alpha\,x) + \beta_c$ with one $\alpha$ for all channels, see `dynamic_tanh`.

    **Axes.** None: each value by itself. **Variance** and **eps.** None. Any number of values will do, none included.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: none. torch has no such layer; checkpoints of the authors' layer load (`alpha`, `weight`,
    `bias`). No stand-in for batch normalization in convolutional networks: there the paper itself reports a large loss.

    Args:
        num_features: number of channels C.
        alpha: $\alpha$ at the start. The paper tunes it to the width in large language models.
        affine: whether to learn `weight` and `bias` of shape (C,); `alpha` is learned always.
        device: where parameters are made.
        dtype: their dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels.

    Example:
        >>> y = DynamicTanh(3)(torch.full((1, 3), 2.0))
        >>> torch.allclose(y, torch.tanh(torch.tensor(1.0)))
        True

    Source: `zhu2025`.
    """

    def __init__(
        self,
        num_features: int,
        alpha: float = 0.5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, affine, device, dtype)
        self.initial_alpha = alpha
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the slope to its start, the scale to one, the shift to zero."""
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.initial_alpha)

    def forward(self, input: Tensor) -> Tensor:
        """Squash each value of `input` (N, C, *)."""
        check_channels(type(self).__name__, input, self.num_features)
        if by_formula() or not input.is_contiguous():  # of a strided input no map is fused, and the formula is the shorter
            return dynamic_tanh(input, self.alpha, self.weight, self.bias)
        return _squashed(torch.tanh, input, self.alpha, None, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return f"{self.num_features}, alpha={self.initial_alpha}, affine={self.affine}"


class Derf(ChannelAffine):
    r"""Dynamic erf: `DynamicTanh` with the error function, and a shift inside it.

    **Idea.** Among S-shaped functions the paper finds the error function, the integral of a Gaussian, to train best.

    **Formula.** $y = \gamma_c\,\mathrm{erf}(\alpha\,x + s) + \beta_c$ with one $\alpha$ and one $s$ for all channels, see `derf`.

    **Axes.** None: each value by itself. **Variance** and **eps.** None. Any number of values will do, none included.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: none. torch has no such layer; checkpoints of the authors' layer load (`alpha`, `shift`,
    `weight`, `bias`).

    Args:
        num_features: number of channels C.
        alpha: $\alpha$ at the start.
        affine: whether to learn `weight` and `bias` of shape (C,); `alpha` and `shift` are learned always.
        device: where parameters are made.
        dtype: their dtype.
        shift: $s$ at the start.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels.

    Example:
        >>> y = Derf(3)(torch.full((1, 3), 2.0))
        >>> torch.allclose(y, torch.erf(torch.tensor(1.0)))
        True

    Source: `chen2025derf`.
    """

    def __init__(
        self,
        num_features: int,
        alpha: float = 0.5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        shift: float = 0.0,
    ) -> None:
        super().__init__(num_features, affine, device, dtype)
        self.initial_alpha, self.initial_shift = alpha, shift
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.shift = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set slope and inner shift to their start, the scale to one, the outer shift to zero."""
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.initial_alpha)
        nn.init.constant_(self.shift, self.initial_shift)

    def forward(self, input: Tensor) -> Tensor:
        """Squash each value of `input` (N, C, *)."""
        check_channels(type(self).__name__, input, self.num_features)
        if by_formula():
            return derf(input, self.alpha, self.shift, self.weight, self.bias)
        return _squashed(torch.erf, input, self.alpha, self.shift, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return f"{self.num_features}, alpha={self.initial_alpha}, affine={self.affine}, shift={self.initial_shift}"
