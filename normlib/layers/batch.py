"""Batch normalization (`ioffe2015`): each channel is standardized over the batch and all positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from normlib.layers.mode import by_formula, formula
from normlib.layers.shapes import MAX_FUSED_RANK, channel_affine, check_channels, check_count, per_channel


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of `x` (N, C, *), each of shape (C,)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = [0, *range(2, x.ndim)]
    return x.mean(axes), x.var(axes, correction=0)


@formula
def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each channel: `(x - mean) / sqrt(var + eps) * weight + bias`.

    Args:
        x: input of shape (N, C, *).
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        mean: mean of shape (C,), or None for the mean of this batch.
        var: variance of shape (C,), or None for the biased variance of this batch.
        eps: added to the variance, under the root.

    Returns:
        A tensor of the shape of `x`. The gradient flows through the mean and the variance of the batch.

    Source: `ioffe2015`, algorithm 1.
    """
    if mean is None or var is None:
        mean, var = batch_moments(x)
    standard = (x - per_channel(mean, x)) / (per_channel(var, x) + eps).sqrt()
    return channel_affine(standard, weight, bias)


class BatchNorm(_BatchNorm):
    r"""Batch normalization of input of any rank.

    **Idea.** What a layer receives keeps its mean and its scale while the layers before it learn; the network learns a new
    mean and scale by `bias` and `weight`.

    **Formula.** $y = \gamma\,(x - \mu_c) / \sqrt{\sigma_c^2 + \epsilon} + \beta$, see `batch_norm`.

    **Axes.** One mean and one variance per channel, over the batch and all positions: axes 0 and 2 onwards.

    **Variance.** Biased (divided by the count $m$) in the formula; unbiased (divided by $m - 1$) in `running_var`.

    **eps** is added to the variance, under the root.

    **Train and eval.** In training the statistics are those of the batch, the gradient flows through them, and the running
    statistics move towards them by `momentum` (without a graph). In evaluation the running statistics are used and left as
    they are. With `track_running_stats=False` the batch's own statistics are used in both.

    **Departures.** From the paper: it averages population statistics over several batches after training; a running mean is
    kept here, as everywhere since. From torch: one class for every rank from (N, C) up, and an error leaves the buffers
    untouched. Constructor, buffers and `state_dict` are those of `torch.nn.BatchNorm2d`.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running statistics; None takes the mean of all batches so far.
        affine: whether to learn `weight` and `bias`.
        track_running_stats: whether to keep `running_mean`, `running_var`, `num_batches_tracked`.
        device: where parameters and buffers are made.
        dtype: their dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or a channel has one value where batch statistics are used.

    Example:
        >>> layer = BatchNorm(3)
        >>> y = layer(5 + 2 * torch.randn(8, 3, 4, 4))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
        >>> layer
        BatchNorm(3, eps=1e-05, momentum=0.1, affine=True, ...track_running_stats=True)

    Source: `ioffe2015`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, C, *) and, in training, move the running statistics."""
        if by_formula():
            self._check_input_dim(input)
            return self._by_formula(input)
        if input.ndim > MAX_FUSED_RANK:
            return self.forward(input.flatten(2)).reshape(input.shape)
        return super().forward(input)

    @property
    def _uses_batch(self) -> bool:
        return self.training or self.running_mean is None

    def _check_input_dim(self, input: Tensor) -> None:
        check_channels(type(self).__name__, input, self.num_features)
        if self._uses_batch:
            count = input.numel() // max(self.num_features, 1)
            fix = "Use a larger batch, drop the last incomplete one (DataLoader's drop_last=True), or call eval()."
            check_count(count, "channel when training", input, fix)

    def _by_formula(self, input: Tensor) -> Tensor:
        if not self._uses_batch:
            return batch_norm(input, self.weight, self.bias, self.running_mean, self.running_var, self.eps)
        mean, var = batch_moments(input)
        if self.track_running_stats:
            self._track(mean, var, input.numel() // self.num_features)
        return batch_norm(input, self.weight, self.bias, mean, var, self.eps)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch with `count` values per channel."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = var * count / (count - 1)
        # .data, as the fused op does: no new version of the buffer, so a fast path run before can still go backward
        self.running_mean.data.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.data.lerp_(unbiased.to(self.running_var.dtype), rate)
