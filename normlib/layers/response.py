"""Filter response normalization and the thresholded linear unit (`singh2020`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlib.layers.affine import ChannelAffine
from normlib.layers.moments import instance_map
from normlib.layers.shapes import affine, channel_affine, check_channels, per_channel
from normlib.mode import by_formula, formula


@formula
def filter_response_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: Tensor | None = None,
    eps: Tensor | float = 1e-6,
) -> Tensor:
    """Divide by the root mean square over positions, then cut off: `max(x / sqrt(mean(x²) + |eps|) * weight + bias, threshold)`.

    Args:
        x: input of shape (N, C, *).
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        threshold: lower limit of the output, of shape (C,), or None for no limit.
        eps: its absolute value is added to the mean square, under the root; a number or one value in a tensor.

    Returns:
        A tensor of the shape of `x`.

    Source: `singh2020`.
    """
    y = channel_affine(x / (_mean_square(x) + _size(eps)).sqrt(), weight, bias)
    return y if threshold is None else thresholded_linear(y, threshold)


@formula
def thresholded_linear(x: Tensor, threshold: Tensor) -> Tensor:
    """Return `max(x, threshold)` with the threshold of shape (C,) along axis 1 of `x` (N, C, *).

    Where the two are equal the gradient goes to `x`.

    Source: `singh2020`.
    """
    return x.clamp(min=per_channel(threshold, x))


def _mean_square(x: Tensor) -> Tensor:
    """Return the mean over positions of x², of shape (N, C, 1, ...); of a vector, x²."""
    return x.square().mean(tuple(range(2, x.ndim)), keepdim=True) if x.ndim > 2 else x.square()


def _size(eps: Tensor | float) -> Tensor | float:
    return eps.abs() if isinstance(eps, Tensor) else abs(eps)


class ThresholdedLinearUnit(nn.Module):
    r"""Thresholded linear unit: a ReLU whose threshold is learned.

    **Idea.** A norm that does not center leaves it open where zero lies; so the cut is learned rather than put at zero.

    **Formula.** $z = \max(y, \tau_c)$, see `thresholded_linear`. At $\tau = 0$, where training starts, it is ReLU.

    **Axes.** One threshold per channel. **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: none. torch has no such layer.

    Args:
        num_features: number of channels C.
        device: where the parameter `tau` of shape (C,) is made.
        dtype: its dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels.

    Example:
        >>> unit = ThresholdedLinearUnit(2)
        >>> _ = unit.tau.data.copy_(torch.tensor([0.0, -1.0]))
        >>> unit(torch.full((1, 2), -5.0)).tolist()
        [[0.0, -1.0]]

    Source: `singh2020`.
    """

    def __init__(self, num_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.num_features = num_features
        self.tau = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the thresholds to zero."""
        nn.init.zeros_(self.tau)

    def forward(self, input: Tensor) -> Tensor:
        """Cut `input` (N, C, *) off below at the thresholds."""
        check_channels(type(self).__name__, input, self.num_features)
        return thresholded_linear(input, self.tau)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return f"{self.num_features}"


class FilterResponseNorm(ChannelAffine):
    r"""Filter response normalization with its thresholded linear unit.

    **Idea.** Each channel of each sample is scaled by its own strength; no other sample, no other channel and no mean enters.
    What the missing mean would do to a ReLU, the learned threshold repairs.

    **Formula.** $y = \gamma_c\,x / \sqrt{\nu_{nc}^2 + |\epsilon|} + \beta_c$, $z = \max(y, \tau_c)$, see `filter_response_norm`.
    With `tlu` it replaces the activation too (`includes_activation`): put none after it.

    **Axes.** One mean square $\nu^2$ per sample and channel, over all positions: axes 2 onwards. It is `RMSNorm` over them.

    **Variance.** None is taken: the mean square is about zero, divided by the count.

    **eps** is added to the mean square, under the root, as its absolute value. Over one position, a map of 1 × 1 or a vector,
    $x / \sqrt{x^2 + \epsilon}$ is little but the sign of x and hardly has a gradient: there let `learn_eps`.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: none known. From other code: a learned eps is one value for the layer. torch has no such
    layer.

    Args:
        num_features: number of channels C.
        eps: see above; None is 1e-6, or 1e-4 where it is learned.
        affine: whether to learn `weight` and `bias` of shape (C,).
        device: where parameters are made.
        dtype: their dtype.
        tlu: whether to learn the thresholds `tau` of shape (C,) and cut off there. False leaves the activation to the
            network.
        learn_eps: whether eps is learned, as `learned_eps` of shape (1,) that starts at `eps`.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels.

    Example:
        >>> x = 5 + 2 * torch.randn(2, 3, 4, 4)
        >>> y = FilterResponseNorm(3, tlu=False)(x)
        >>> torch.allclose(y.square().mean((2, 3)), torch.ones(2, 3))
        True
        >>> torch.equal(FilterResponseNorm(3)(x), y.relu())
        True

    Source: `singh2020`.
    """

    tau: nn.Parameter | None
    learned_eps: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float | None = None,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        tlu: bool = True,
        learn_eps: bool = False,
    ) -> None:
        super().__init__(num_features, affine, device, dtype)
        self.eps = (1e-4 if learn_eps else 1e-6) if eps is None else eps
        tau = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if tlu else None
        learned = nn.Parameter(torch.empty(1, device=device, dtype=dtype)) if learn_eps else None
        self.register_parameter("tau", tau)
        self.register_parameter("learned_eps", learned)
        self.reset_parameters()

    @property
    def includes_activation(self) -> bool:
        """Whether it replaces the activation: with its thresholds it does."""
        return self.tau is not None

    def reset_parameters(self) -> None:
        """Set the scale to one, shift and thresholds to zero, a learned eps to its start."""
        super().reset_parameters()
        if self.tau is not None:
            nn.init.zeros_(self.tau)
        if self.learned_eps is not None:
            nn.init.constant_(self.learned_eps, self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel of each sample of `input` (N, C, *) and cut off below at the thresholds."""
        check_channels(type(self).__name__, input, self.num_features)
        eps = self.eps if self.learned_eps is None else self.learned_eps
        if by_formula():
            return filter_response_norm(input, self.weight, self.bias, self.tau, eps)
        return self._fused(input, eps)

    def _fused(self, input: Tensor, eps: Tensor | float) -> Tensor:
        """Compute by one factor for each channel of each sample, of `weight` and the root mean square."""
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        factor = (_mean_square(x) + _size(eps)).rsqrt().view(x.shape[:2])
        y = instance_map(x, affine(factor, self.weight, None), self.bias)
        return (y if self.tau is None else thresholded_linear(y, self.tau)).to(input.dtype)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        tlu, learn_eps = self.tau is not None, self.learned_eps is not None
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}, tlu={tlu}, learn_eps={learn_eps}"
