"""What norms share whose running statistics are not batch normalization's pair: the buffers, and one fused map per channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.layers.batch import BatchNorm
from normlib.layers.shapes import MAX_FUSED_RANK, affine, channel_affine


class StatisticNorm(BatchNorm):
    """Batch normalization's arguments, checks and bookkeeping over other running statistics: a base, of no use by itself.

    A subclass says in `_fresh` what it keeps, calls `_keep` at the end of its constructor, and normalizes in `_by_batch`, where
    it calls `_follow`, and in `_in_evaluation`. No graph may hold a buffer itself: they move in place, whatever still waits to
    go backward. What batch normalization would keep and the subclass does not is None, and not in the `state_dict`.
    """

    def _fresh(self, **place: Any) -> dict[str, Tensor]:
        """Return the running statistics, by the names of their buffers, as they are before the first batch."""
        raise NotImplementedError

    def _keep(self, track: bool, **place: Any) -> None:
        """Make the buffers, if running statistics are kept; `place` is torch's device and dtype."""
        self.track_running_stats = track
        if track:
            for name, value in self._fresh(**place).items():
                self.register_buffer(name, value)
            self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=place["device"]))

    def reset_running_stats(self) -> None:
        """Forget the running statistics."""
        if self.track_running_stats:
            for name, value in self._fresh().items():
                getattr(self, name).copy_(value)
            self.get_buffer("num_batches_tracked").zero_()

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, C, *) and, in training, move the running statistics."""
        self._check_input_dim(input)
        if not input.numel():  # it has no statistics
            return channel_affine(input, self.weight, self.bias).to(input.dtype)
        return self._by_batch(input) if self._uses_batch else self._in_evaluation(input)

    def _by_batch(self, input: Tensor) -> Tensor:
        """Normalize by the statistics of `input`, and let the running statistics follow them."""
        raise NotImplementedError

    def _in_evaluation(self, input: Tensor) -> Tensor:
        """Normalize by the running statistics."""
        raise NotImplementedError

    @property
    def _uses_batch(self) -> bool:
        return self.training or not self.track_running_stats

    @torch.no_grad()
    def _follow(self, **statistics: Tensor) -> None:
        """Move the buffers of these names towards a batch's statistics, at the rate that batch normalization would take."""
        if not self.track_running_stats:
            return
        counter = self.get_buffer("num_batches_tracked").add_(1)
        for name, new in statistics.items():
            running: Tensor = getattr(self, name)
            rate: Any = counter.to(running.dtype).reciprocal() if self.momentum is None else self.momentum
            running.mul_(1 - rate).add_(rate * new.detach().to(running.dtype))  # vmap has no rule for lerp_


def fused_map(x: Tensor, scale: Tensor, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return `(x * scale + shift) * weight + bias` per channel, with gradients through all, in one fused pass each way.

    Args:
        x: input of shape (N, C, *).
        scale: what to multiply by, of shape (C,).
        shift: what to add, of shape (C,), or None for 0.
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
    """
    scale, shift = affine(scale, weight, None), affine(torch.zeros_like(scale) if shift is None else shift, weight, bias)
    flat = x.flatten(2) if x.ndim > MAX_FUSED_RANK else x
    # batch norm at mean 0 and variance 1 is that map; torch fuses it, backward too, where it does not fuse x * scale + shift
    zero, one = torch.zeros_like(scale.detach()), torch.ones_like(scale.detach())
    return F.batch_norm(flat, zero, one, scale, shift, False, 0.0, 0.0).view_as(x)
