"""Batch normalization (`ioffe2015`): each channel is standardized over the batch and all positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlib.layers.shapes import MAX_FUSED_RANK, ShapeError, channel_affine, check_channels, check_count, divisors, per_channel
from normlib.mode import by_formula, formula


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

    **Axes.** One mean and one variance per channel, over the batch and all positions: axes 0 and 2 onwards. With `ghost=g`
    each g samples in a row are a batch of their own in training (`hoffer2017`): the statistic batch is smaller than the
    batch.

    **Variance.** Biased (divided by the count $m$) in the formula; unbiased (divided by $m - 1$) in `running_var`.

    **eps** is added to the variance, under the root.

    **Train and eval.** In training the statistics are those of the batch, the gradient flows through them, and the running
    statistics move towards them by `momentum` (without a graph); of several ghost batches they take the mean. In evaluation
    the running statistics are used and left as they are. With `track_running_stats=False` the batch's own statistics are
    used in both.

    **Departures.** From the paper: it averages population statistics over several batches after training; a running mean is
    kept here, as everywhere since, and `normlib.surgery.reestimate_statistics` does as the paper does. From torch: one class
    for every rank from (N, C) up, `ghost`, and an error leaves the buffers untouched. Constructor, buffers and `state_dict`
    are those of `torch.nn.BatchNorm2d`.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running statistics; None takes the mean of all batches so far.
        affine: whether to learn `weight` and `bias`.
        track_running_stats: whether to keep `running_mean`, `running_var`, `num_batches_tracked`.
        device: where parameters and buffers are made.
        dtype: their dtype.
        bias: False leaves the shift out.
        ghost: samples in a ghost batch; None makes the whole batch one.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, a channel has one value where batch statistics are used, or `ghost`
            does not divide N.

    Example:
        >>> layer = BatchNorm(3)
        >>> y = layer(5 + 2 * torch.randn(8, 3, 4, 4))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
        >>> layer
        BatchNorm(3, eps=1e-05, momentum=0.1, affine=True, ...track_running_stats=True)

    Source: `ioffe2015`.
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
        *,
        bias: bool = True,
        ghost: int | None = None,
    ) -> None:
        if ghost is not None and (not isinstance(ghost, int) or ghost < 1):
            raise ShapeError(f"ghost={ghost!r} is no number of samples. Pass a whole number from 1 up, or None.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)  # torch takes `bias` since 2.13 only
        self.ghost = ghost

    def reset_parameters(self) -> None:
        """Set the scale to one, the shift to zero, and forget the running statistics."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, C, *) and, in training, move the running statistics."""
        self._check_input_dim(input)
        if not self._uses_batch:
            return self._in_evaluation(input)
        ghosts = 1 if self.ghost is None else max(input.shape[0] // self.ghost, 1)
        x = input if ghosts == 1 else _ghosts_as_channels(input, ghosts)
        # an empty batch has no statistics, and the fused operation leaves the running ones as they are
        y = self._by_formula(x, ghosts) if by_formula() and x.numel() else self._fused(x, ghosts)
        return y if ghosts == 1 else _ghosts_as_samples(y, ghosts)

    @property
    def _uses_batch(self) -> bool:
        return self.training or self.running_mean is None

    def _check_input_dim(self, input: Tensor) -> None:
        check_channels(type(self).__name__, input, self.num_features)
        if not self._uses_batch:
            return
        ghost = getattr(self, "ghost", None)  # a subclass may have none
        if ghost is not None and input.shape[0] % ghost:
            fitting = ", ".join(map(str, divisors(input.shape[0])))
            raise ShapeError(
                f"ghost={ghost} does not divide a batch of {input.shape[0]} samples. What fits: ghost={fitting}. "
                "Drop the last incomplete batch (DataLoader's drop_last=True), or choose one of these."
            )
        samples = input.shape[0] if ghost is None else ghost
        count = samples * input.shape[2:].numel()
        fix = "Use a larger batch, drop the last incomplete one (DataLoader's drop_last=True), or call eval()."
        check_count(count, "channel when training", input, fix)

    def _in_evaluation(self, input: Tensor) -> Tensor:
        """Normalize by the running statistics."""
        mean, var = self.running_mean, self.running_var
        if by_formula():
            return batch_norm(input, self.weight, self.bias, mean, var, self.eps)
        return F.batch_norm(_fusible(input), mean, var, self.weight, self.bias, False, 0.0, self.eps).view_as(input)

    def _by_formula(self, x: Tensor, ghosts: int) -> Tensor:
        mean, var = batch_moments(x)
        if self.track_running_stats:
            self._track(mean, var, x.numel() // x.shape[1], ghosts)
        return batch_norm(x, _repeated(self.weight, ghosts), _repeated(self.bias, ghosts), mean, var, self.eps)

    def _fused(self, x: Tensor, ghosts: int) -> Tensor:
        weight, bias = _repeated(self.weight, ghosts), _repeated(self.bias, ghosts)
        flat = _fusible(x)
        if not self.track_running_stats:
            return F.batch_norm(flat, None, None, weight, bias, True, 0.0, self.eps).view_as(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        if ghosts == 1 and self.momentum is not None:
            self.num_batches_tracked.add_(1)
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(flat, mean, var, weight, bias, True, self.momentum, self.eps).view_as(x)
        # into buffers of this call, at momentum 1: the rate may be a tensor, and the channels those of several ghosts
        mean, var = _repeated(self.running_mean.detach(), ghosts).clone(), _repeated(self.running_var.detach(), ghosts).clone()
        y = F.batch_norm(flat, mean, var, weight, bias, True, 1.0, self.eps)
        self._move(mean, var, ghosts)
        return y.view_as(x)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int, ghosts: int = 1) -> None:
        """Move the running statistics towards those of a batch: mean, biased variance, and values per channel."""
        self._move(mean, var * (count / max(count - 1, 1)), ghosts)

    @torch.no_grad()
    def _move(self, mean: Tensor, unbiased: Tensor, ghosts: int = 1) -> None:
        """Move the running statistics by `momentum`; without it, by one over the number of batches so far."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate: Any = self.momentum
        if rate is None:
            rate = self.num_batches_tracked.to(self.running_mean.dtype).reciprocal()
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            # .data, as the fused op does: no new version of the buffer, so a fast path run before can still go backward
            buffer = running if torch.compiler.is_compiling() else running.data
            buffer.lerp_(new.detach().view(ghosts, -1).mean(0).to(running.dtype), rate)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        ghost = getattr(self, "ghost", None)
        return super().extra_repr() + ("" if ghost is None else f", ghost={ghost}")


def _fusible(x: Tensor) -> Tensor:
    return x.flatten(2) if x.ndim > MAX_FUSED_RANK else x


def _repeated(vector: Tensor, ghosts: int) -> Tensor:
    """Repeat a vector (C,), or None, for the channels of each ghost batch."""
    return vector if vector is None or ghosts == 1 else vector.repeat(ghosts)


def _ghosts_as_channels(x: Tensor, ghosts: int) -> Tensor:
    """Turn (ghosts · n, C, *) into (n, ghosts · C, *)."""
    return x.unflatten(0, (ghosts, -1)).transpose(0, 1).flatten(1, 2)


def _ghosts_as_samples(y: Tensor, ghosts: int) -> Tensor:
    """Undo `_ghosts_as_channels`."""
    return y.unflatten(1, (ghosts, -1)).transpose(0, 1).flatten(0, 1)
