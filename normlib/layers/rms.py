"""Root mean square normalization (`zhang2019rms`): layer normalization without its mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normlib.layers.shapes import affine, channel_affine, check_channels, check_trailing
from normlib.mode import by_formula, formula


@formula
def rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Divide by the root mean square over the last axes: `x / sqrt(mean(x²) + eps) * weight`.

    Args:
        x: input of shape (*, normalized_shape).
        normalized_shape: the sizes of the last axes, over which the mean is taken.
        weight: scale of shape normalized_shape, or None for 1.
        eps: added to the mean square, under the root; None takes the machine epsilon of the dtype that is computed in.

    Returns:
        A tensor of the shape of `x`.

    Source: `zhang2019rms`, equation 4.
    """
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    axes = tuple(range(-len(normalized_shape), 0))
    rms = (x.square().mean(axes, keepdim=True) + eps).sqrt()
    return affine(x / rms, weight, None)


class RMSNorm(nn.RMSNorm):
    r"""Root mean square normalization over the last axes, as `torch.nn.RMSNorm`.

    **Idea.** Of layer normalization's two steps only the rescaling is kept: half the statistics, no bias.

    **Formula.** $y = \gamma \odot x / \sqrt{\overline{x^2} + \epsilon}$, see `rms_norm`.

    **Axes.** One root mean square for each index of the leading axes, over the last `len(normalized_shape)` axes.

    **Variance.** None is taken: the mean square is about zero, divided by the count.

    **eps** is added to the mean square, under the root. None is the machine epsilon of the computation (float32's for half
    precision).

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: its equation has no eps. From torch: none but the text of the error for a wrong shape.

    Args:
        normalized_shape: the sizes of the last axes, or one int for the last axis.
        eps: see above.
        elementwise_affine: whether to learn `weight` of shape normalized_shape.
        device: where the parameter is made.
        dtype: its dtype.

    Shape:
        Input (*, normalized_shape), output the same.

    Raises:
        ShapeError: if the last axes do not have the sizes normalized_shape.

    Example:
        >>> y = RMSNorm(6)(5 + 2 * torch.randn(2, 4, 6))
        >>> torch.allclose(y.square().mean(-1), torch.ones(2, 4))
        True

    Source: `zhang2019rms`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (*, normalized_shape) over its last axes."""
        check_trailing(type(self).__name__, input, self.normalized_shape)
        if by_formula():
            return rms_norm(input, self.normalized_shape, self.weight, self.eps)
        return super().forward(input)


class ChannelRMSNorm(nn.Module):
    r"""Root mean square normalization of channel-first input: the norm that the spec `"rms"` names.

    **Idea.** `ChannelLayerNorm` without its mean and bias. On (N, C) it is `RMSNorm(C)`.

    **Formula.** `rms_norm` over axes 1 and onwards, then a scale per channel.

    **Axes.** One root mean square per sample, over all channels and positions. **eps** as in `RMSNorm`.

    **Train and eval.** The same; there are no buffers.

    **Departures.** The paper treats vectors only; over maps this is the counterpart of `ChannelLayerNorm`. torch has no such
    layer; on (N, C) checkpoints of `torch.nn.RMSNorm(C)` load. Not for tokens (N, T, C) with features last: those take
    `RMSNorm(C)`.

    Args:
        num_features: number of channels C.
        eps: see `RMSNorm`.
        affine: whether to learn `weight` of shape (C,).
        device: where the parameter is made.
        dtype: its dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels.

    Example:
        >>> y = ChannelRMSNorm(3)(5 + 2 * torch.randn(2, 3, 4, 4))
        >>> torch.allclose(y.square().mean((1, 2, 3)), torch.ones(2))
        True

    Source: `zhang2019rms`.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float | None = None,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if affine else None
        self.register_parameter("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to one."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each sample of `input` (N, C, *) over its axes 1 and onwards."""
        check_channels(type(self).__name__, input, self.num_features)
        normalize = rms_norm if by_formula() else nn.functional.rms_norm
        weight = None if self.weight is None else self.weight.to(input.dtype)  # half in, half out
        if input.ndim == 2:
            return normalize(input, input.shape[1:], weight, self.eps)
        return channel_affine(normalize(input, input.shape[1:], None, self.eps), weight, None)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


def token_rms_norm(
    num_features: int,
    eps: float | None = None,
    affine: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> RMSNorm:
    """Make the `RMSNorm(C)` of tokens (N, T, C): what the spec `"rms"` names where features come last.

    Source: `zhang2019rms`.
    """
    return RMSNorm(num_features, eps, affine, device=device, dtype=dtype)
