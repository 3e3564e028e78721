"""Instance normalization (`ulyanov2016`): each channel of each sample is standardized over its positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.instancenorm import _InstanceNorm

from normlib.layers.batch import batch_norm
from normlib.layers.shapes import MAX_FUSED_RANK, channel_affine, check_channels, check_count
from normlib.mode import by_formula, formula


@formula
def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalize each channel of each sample: `(x - mean) / sqrt(var + eps) * weight + bias`.

    Args:
        x: input of shape (N, C, *) with at least one axis of positions.
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        eps: added to the variance, under the root.

    Returns:
        A tensor of the shape of `x`.

    Source: `ulyanov2016`.
    """
    axes = tuple(range(2, x.ndim))
    mean = x.mean(axes, keepdim=True)
    var = x.var(axes, correction=0, keepdim=True)
    return channel_affine((x - mean) / (var + eps).sqrt(), weight, bias)


class InstanceNorm(_InstanceNorm):
    r"""Instance normalization of input of any rank from (N, C, L) up.

    **Idea.** The contrast of an image is not its content: each channel of each image is brought to the same mean and scale.

    **Formula.** $y = \gamma_c\,(x - \mu_{nc}) / \sqrt{\sigma_{nc}^2 + \epsilon} + \beta_c$, see `instance_norm`.

    **Axes.** One mean and one variance per sample and channel, over all positions: axes 2 onwards.

    **Variance.** Biased in the formula; unbiased in `running_var`, if that is tracked.

    **eps** is added to the variance, under the root.

    **Train and eval.** The same, unless `track_running_stats`: then the running statistics move towards the batch's mean of
    the samples' statistics in training, and replace the samples' own in evaluation (which is batch normalization's way).

    **Departures.** From the paper: it has no affine map. From torch: one class for every rank, so that the batch axis is
    never optional, and a wrong number of channels always raises. As in torch, `num_batches_tracked` stays 0 and
    `momentum=None` leaves the running statistics as they are. Constructor, buffers and `state_dict` are those of
    `torch.nn.InstanceNorm2d`.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running statistics.
        affine: whether to learn `weight` and `bias` (by default not).
        track_running_stats: whether to keep running statistics (by default not).
        device: where parameters and buffers are made.
        dtype: their dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or there is one position where the samples' own statistics are used.

    Example:
        >>> y = InstanceNorm(3)(5 + 2 * torch.randn(2, 3, 4, 4))
        >>> bool(y.mean((2, 3)).abs().max() < 1e-5)
        True

    Source: `ulyanov2016`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel of each sample of `input` (N, C, *)."""
        self._check_input_dim(input)
        if not input.numel():  # torch's operation fails on an empty batch
            return channel_affine(input, self.weight, self.bias)
        if by_formula():
            return self._by_formula(input)
        if input.ndim > MAX_FUSED_RANK:
            return self.forward(input.flatten(2)).reshape(input.shape)
        mean, var, momentum = self.running_mean, self.running_var, self.momentum or 0.0
        if self._uses_sample:
            return F.instance_norm(input, mean, var, self.weight, self.bias, True, momentum, self.eps)
        return F.batch_norm(input, mean, var, self.weight, self.bias, False, momentum, self.eps)

    @property
    def _uses_sample(self) -> bool:
        return self.training or not self.track_running_stats

    def _check_input_dim(self, input: Tensor) -> None:
        check_channels(type(self).__name__, input, self.num_features)
        if self._uses_sample:
            fix = "It normalizes maps (N, C, *) with more than one position; use layer, group or batch here."
            check_count(math.prod(input.shape[2:]), "sample and channel", input, fix)

    def _by_formula(self, input: Tensor) -> Tensor:
        if not self._uses_sample:
            return batch_norm(input, self.weight, self.bias, self.running_mean, self.running_var, self.eps)
        if self.track_running_stats:
            self._track(input)
        return instance_norm(input, self.weight, self.bias, self.eps)

    @torch.no_grad()
    def _track(self, input: Tensor) -> None:
        """Move the running statistics towards the mean over the batch of the samples' statistics."""
        assert self.running_mean is not None and self.running_var is not None
        maps = input.flatten(2).to(self.running_mean.dtype)
        rate = self.momentum or 0.0
        # .data: see BatchNorm
        self.running_mean.data.lerp_(maps.mean(2).mean(0), rate)
        self.running_var.data.lerp_(maps.var(2, correction=1).mean(0), rate)
