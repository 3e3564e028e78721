"""Layer normalization (`ba2016`): each sample is standardized over its own features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.layers.group import GroupNorm
from normlib.layers.shapes import affine, check_trailing
from normlib.mode import by_formula, formula


@formula
def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize over the last axes: `(x - mean) / sqrt(var + eps) * weight + bias`.

    Args:
        x: input of shape (*, normalized_shape).
        normalized_shape: the sizes of the last axes, over which mean and biased variance are taken.
        weight: scale of shape normalized_shape, or None for 1.
        bias: shift of shape normalized_shape, or None for 0.
        eps: added to the variance, under the root.

    Returns:
        A tensor of the shape of `x`.

    Source: `ba2016`, equations 3 and 4.
    """
    axes = tuple(range(-len(normalized_shape), 0))
    mean = x.mean(axes, keepdim=True)
    var = x.var(axes, correction=0, keepdim=True)
    return affine((x - mean) / (var + eps).sqrt(), weight, bias)


class LayerNorm(nn.LayerNorm):
    r"""Layer normalization over the last axes, as `torch.nn.LayerNorm`.

    **Idea.** Statistics of one sample need no batch: training and evaluation compute the same, whatever the batch size.

    **Formula.** $y = \gamma \odot (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, see `layer_norm`.

    **Axes.** One mean and one variance for each index of the leading axes, over the last `len(normalized_shape)` axes.

    **Variance.** Biased. **eps** is added to the variance, under the root.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: it has no eps. From torch: none but the text of the error for a wrong shape. A single value
    (normalized_shape 1) gives `bias`, as in torch. For channels in axis 1, see `ChannelLayerNorm`.

    Args:
        normalized_shape: the sizes of the last axes, or one int for the last axis.
        eps: see above.
        elementwise_affine: whether to learn `weight` and, unless `bias` is False, `bias`, each of shape normalized_shape.
        bias: see above.
        device: where parameters are made.
        dtype: their dtype.

    Shape:
        Input (*, normalized_shape), output the same.

    Raises:
        ShapeError: if the last axes do not have the sizes normalized_shape.

    Example:
        >>> y = LayerNorm(6)(5 + 2 * torch.randn(2, 4, 6))
        >>> bool(y.mean(-1).abs().max() < 1e-5)
        True

    Source: `ba2016`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (*, normalized_shape) over its last axes."""
        check_trailing(type(self).__name__, input, self.normalized_shape)
        if by_formula():
            return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        return super().forward(input)


class ChannelLayerNorm(GroupNorm):
    r"""Layer normalization of channel-first input: the norm that the spec `"layer"` names.

    **Idea.** On (N, C) it is `LayerNorm(C)`. On maps (N, C, *) it is what convolutional networks call layer normalization
    (`wu2018`): a sample has one mean and one variance over all channels and positions, and an affine map per channel. So
    the number of parameters does not depend on the size of the map.

    **Formula.** `group_norm` with one group. **Axes.** 1 and onwards. **Variance.** Biased. **eps** under the root.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: its gain and bias are per unit, not per channel. From torch: torch has it as
    `torch.nn.GroupNorm(1, C)`, whose checkpoints load, as do those of `torch.nn.LayerNorm(C)`. Not for tokens (N, T, C)
    with features last: those take `LayerNorm(C)`.

    Args:
        num_features: number of channels C.
        eps: see above.
        affine: whether to learn `weight` and `bias` of shape (C,).
        device: where parameters are made.
        dtype: their dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels.

    Example:
        >>> x = torch.randn(2, 6)
        >>> torch.allclose(ChannelLayerNorm(6)(x), LayerNorm(6)(x), atol=1e-6)
        True

    Source: `ba2016`, `wu2018`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, num_features, eps, affine, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each sample of `input` (N, C, *) over its axes 1 and onwards."""
        if input.ndim == 2 and not by_formula():  # three times as fast as one group there
            self._check_input(input)
            return F.layer_norm(input, (self.num_channels,), self.weight, self.bias, self.eps)
        return super().forward(input)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"


def token_layer_norm(
    num_features: int,
    eps: float = 1e-5,
    affine: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LayerNorm:
    """Make the `LayerNorm(C)` of tokens (N, T, C): what the spec `"layer"` names where features come last.

    Source: `ba2016`.
    """
    return LayerNorm(num_features, eps, affine, device=device, dtype=dtype)
