"""Noisy batch normalization (`santurkar2018`): batch normalization whose output drifts at random at every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normlib.layers.batch import BatchNorm, batch_moments, batch_norm
from normlib.layers.shapes import per_channel
from normlib.mode import by_formula, formula


@formula
def noisy_batch_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Scale and shift each element of the normalized batch by noise: `scale * batch_norm(x) + shift`.

    Args:
        x: input of shape (N, C, *).
        scale: what to multiply by, of the shape of `x`; see `batch_noise`.
        shift: what to add, of the shape of `x`.
        weight: scale of shape (C,), or None for 1; it acts before the noise.
        bias: shift of shape (C,), or None for 0; it acts before the noise.
        eps: added to the variance, under the root.

    Returns:
        A tensor of the shape of `x`.

    Source: `santurkar2018`, algorithm 1.
    """
    return scale * batch_norm(x, weight, bias, eps=eps) + shift


def batch_noise(
    x: Tensor, n_mu: float = 0.5, n_sigma: float = 1.25, r_mu: float = 0.1, r_sigma: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Draw the noise of one step: first a distribution for each channel, then from it a scale and a shift for each element.

    Args:
        x: input of shape (N, C, *), for its shape and its device, whose default generator draws.
        n_mu: the mean of a channel's shifts is uniform from -n_mu to n_mu.
        n_sigma: the mean of a channel's scales is uniform from 1 to n_sigma.
        r_mu: an element's shift is uniform within r_mu of the mean of its channel.
        r_sigma: an element's scale is normal about the mean of its channel, with this standard deviation.

    Returns:
        Scale and shift, of the shape of `x`, in float32 or wider. A seed gives the same noise whatever the dtype of `x`.

    Source: `santurkar2018`, algorithm 1.
    """

    def drawn(by: Callable[..., Tensor], *shape: int) -> Tensor:
        return by(shape, dtype=torch.float32, device=x.device).to(torch.promote_types(x.dtype, torch.float32))

    mu, sigma = (per_channel(drawn(torch.rand, x.shape[1]), x) for _ in range(2))
    normal, uniform = drawn(torch.randn, *x.shape), drawn(torch.rand, *x.shape)
    scale = (1 + (n_sigma - 1) * sigma) + r_sigma * normal
    shift = n_mu * (2 * mu - 1) + r_mu * (2 * uniform - 1)
    return scale, shift


class NoisyBatchNorm(BatchNorm):
    r"""Batch normalization followed by random scales and shifts, drawn anew at every step.

    **Idea.** If batch normalization helped because it keeps the distributions of activations still, then moving them on
    purpose right behind it should undo the help. The paper finds that it hardly does.

    **Formula.** $y = s\,(\gamma \hat x + \beta) + m$, see `noisy_batch_norm`. At each step and for each channel
    $\mu \sim U(-n_\mu, n_\mu)$ and $\sigma \sim U(1, n_\sigma)$ are drawn; then for each element
    $m \sim U(\mu - r_\mu, \mu + r_\mu)$ and $s \sim N(\sigma, r_\sigma)$, see `batch_noise`.

    **Axes.** Those of `BatchNorm`; a position of a map counts as a sample, so that m and s differ between positions.

    **Variance.** Biased in the formula; unbiased in `running_var`. **eps** is added to the variance, under the root.

    **Train and eval.** Noise in training only; evaluation is that of `BatchNorm`. The running statistics are those of the
    input, before any noise. The noise comes from torch's default generator of the input's device, so `torch.manual_seed`
    repeats it; compiled code draws other numbers than eager code from the same seed.

    **Departures.** From the paper, which leaves these open: the noise acts after weight and bias, $r_\sigma$ is a standard
    deviation, mu and sigma are drawn for each channel, and evaluation has no noise. torch has no such layer; arguments,
    buffers and `state_dict` are those of `torch.nn.BatchNorm2d`.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running statistics; None takes the mean of all batches so far.
        affine: whether to learn `weight` and `bias`.
        track_running_stats: whether to keep `running_mean`, `running_var`, `num_batches_tracked`.
        device: where parameters and buffers are made.
        dtype: their dtype.
        n_mu: see above; the defaults of all four are the paper's.
        n_sigma: see above.
        r_mu: see above.
        r_sigma: see above.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or a channel has one value where batch statistics are used.

    Example:
        >>> layer, x = NoisyBatchNorm(3), torch.randn(8, 3, 4, 4)
        >>> torch.allclose(layer(x), layer(x))
        False
        >>> quiet = NoisyBatchNorm(3, n_mu=0, n_sigma=1, r_mu=0, r_sigma=0)
        >>> torch.allclose(quiet(x), BatchNorm(3)(x))
        True

    Source: `santurkar2018`, algorithm 1.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        n_mu: float = 0.5,
        n_sigma: float = 1.25,
        r_mu: float = 0.1,
        r_sigma: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.n_mu, self.n_sigma, self.r_mu, self.r_sigma = n_mu, n_sigma, r_mu, r_sigma

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, C, *); in training, add the noise and move the running statistics."""
        if not self.training or not input.numel():
            return super().forward(input)
        self._check_input_dim(input)
        scale, shift = batch_noise(input, self.n_mu, self.n_sigma, self.r_mu, self.r_sigma)
        if not by_formula():
            return torch.addcmul(shift, scale, super().forward(input)).to(input.dtype)
        if self.track_running_stats:
            self._track(*batch_moments(input), input.numel() // self.num_features)
        return noisy_batch_norm(input, scale, shift, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them, and the noise."""
        noise = f"n_mu={self.n_mu}, n_sigma={self.n_sigma}, r_mu={self.r_mu}, r_sigma={self.r_sigma}"
        return f"{super().extra_repr()}, {noise}"
