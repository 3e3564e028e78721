"""Moments of each channel of each sample, what follows from them for larger sets, and the map that they decide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def instance_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the positions of `x` (N, C, *), each of shape (N, C)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(x.flatten(2) if x.ndim > 2 else x[..., None], 2, correction=0)
    return mean, var


def pooled_moments(mean: Tensor, var: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the moments of the union of sets of equal size: the law of total variance.

    Args:
        mean: the mean of each set.
        var: its biased variance.
        axis: the axis along which the sets lie that are put together; it stays, with size 1.

    Returns:
        The mean of the means; and the mean of the variances plus the variance of the means.

    Example:
        >>> x = torch.randn(5, 7)
        >>> _, var = pooled_moments(x.mean(1), x.var(1, correction=0), 0)
        >>> torch.allclose(var, x.var(correction=0))
        True
    """
    between = mean.var(axis, correction=0, keepdim=True)
    return mean.mean(axis, keepdim=True), var.mean(axis, keepdim=True) + between


def per_instance(matrix: Tensor, x: Tensor) -> Tensor:
    """View a matrix of shape (N, C) so that it broadcasts over the positions of `x` (N, C, *)."""
    return matrix.view(*matrix.shape, *[1] * (x.ndim - 2))


def instance_map(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Return `x * scale + shift`, with gradients through all, in the dtype of `x`.

    Args:
        x: input of shape (N, C, *).
        scale: a factor for each channel of each sample, of shape (N, C).
        shift: a term for each, of shape (N, C), or for each channel, of shape (C,), or None for 0.
    """
    scale = scale.to(torch.promote_types(scale.dtype, torch.float32))
    shift = torch.zeros_like(scale) if shift is None else shift.to(scale.dtype).expand_as(scale)
    if x.ndim == 2 or not x.is_contiguous() or x.numel() == 0:
        return (x * per_instance(scale, x) + per_instance(shift, x)).to(x.dtype)
    # batch norm at mean 0 and variance 1 is that map, with samples put beside channels; torch fuses it, backward too
    scale, shift = scale.flatten().contiguous(), shift.flatten().contiguous()  # on one position it misreads strides of 0
    zero, one = torch.zeros_like(scale.detach()), torch.ones_like(scale.detach())
    flat = x.view(1, scale.numel(), x.shape[2:].numel())
    return F.batch_norm(flat, zero, one, scale, shift, False, 0.0, 0.0).view_as(x)
