"""Faults in which channels of a map share a statistic: layer, root mean square and group norm of convolutional networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normlib.gallery.fault import Effect, Fault, Implementation
from normlib.gallery.samples import largest, noise, size, standard
from normlib.layers.group import group_norm
from normlib.layers.rms import rms_norm


def with_strengths(strengths: list[float]) -> Tensor:
    """Return one image whose channels have mean 0 and the given standard deviations."""
    return standard(1, len(strengths), 8, 8, axes=[2, 3]) * torch.tensor(strengths, dtype=torch.float64).view(-1, 1, 1)


def contrast(norm: Implementation, ratio: float) -> float:
    """Return the ratio of two channels after the norm, for a given ratio before it."""
    y = norm(with_strengths([ratio, 1.0]))
    return size(y[:, 0]) / size(y[:, 1])


def check_contrast(norm: Implementation) -> float:
    """A channel three times as strong as its neighbor is so after the norm: the two share one statistic."""
    return abs(contrast(norm, 3) - 3)


def per_channel_layer(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Standardize each channel of each image."""
    return group_norm(x, x.shape[1], eps=eps)


def one_group(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Standardize each image over all its channels and positions."""
    return group_norm(x, 1, eps=eps)


PER_CHANNEL_LAYER = Fault(
    name="per_channel_layer",
    family="layer",
    title="The layer norm of a convolutional network has statistics for each channel",
    seen="The notes `seed004` say it: one mean and variance for each input channel. That is instance norm.",
    symptom="How strongly a channel responds is lost; global average pooling right after the norm sees zeros.",
    wrong=per_channel_layer,
    right=one_group,
    check=check_contrast,
    bound=1e-3,
    effect=Effect("ratio of two channels after the norm", "ratio before the norm", (1, 2, 4, 8), contrast, lambda ratio: 1.0),
)


def rms_over_positions(x: Tensor, eps: float | None = None) -> Tensor:
    """Divide each channel of each image by its root mean square."""
    return rms_norm(x, x.shape[2:], eps=eps)


def rms_over_all(x: Tensor, eps: float | None = None) -> Tensor:
    """Divide each image by the root mean square over its channels and positions."""
    return rms_norm(x, x.shape[1:], eps=eps)


RMS_OVER_POSITIONS = Fault(
    name="rms_over_positions",
    family="layer",
    title="The root mean square norm of maps has a statistic for each channel",
    seen="Convolutional code that was published under the name of RMSNorm; it is filter response normalization.",
    symptom="A comparison of RMSNorm with layer norm on images is one of another method.",
    wrong=rms_over_positions,
    right=rms_over_all,
    check=check_contrast,
    bound=1e-3,
    effect=Effect("ratio of two channels after the norm", "ratio before the norm", (1, 2, 4, 8), contrast, lambda ratio: 1.0),
)


def interleaved_groups(x: Tensor, num_groups: int, eps: float = 1e-5) -> Tensor:
    """Put every G-th channel into one group."""
    groups = x.unflatten(1, (-1, num_groups))  # (N, C/G, G, *)
    axes = [1, *range(3, groups.ndim)]
    mean, var = groups.mean(axes, keepdim=True), groups.var(axes, correction=0, keepdim=True)
    return ((groups - mean) / (var + eps).sqrt()).flatten(1, 2)


def check_interleaved_groups(norm: Implementation) -> float:
    """What the first half of the channels holds does not change the second half of two groups."""
    x, other = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1)
    mixed = torch.cat([other[:, :2], x[:, 2:]], 1)
    return largest(norm(mixed, 2)[:, 2:] - norm(x, 2)[:, 2:])


def loud_half(norm: Implementation, strength: float) -> float:
    """Return the root mean square of the first of four channels in two groups; the first two go in at a given strength."""
    return size(norm(with_strengths([strength, strength, 1.0, 1.0]), 2, eps=0.0)[:, 0])


INTERLEAVED_GROUPS = Fault(
    name="interleaved_groups",
    family="layer",
    title="A group of group norm is every G-th channel",
    seen="A reshape to (C/G, G) where (G, C/G) is meant; both have the right shape. Groups are neighbors.",
    symptom="It trains, a little differently. Checkpoints of other code give other outputs, without an error.",
    wrong=interleaved_groups,
    right=group_norm,
    check=check_interleaved_groups,
    bound=1e-9,
    effect=Effect(
        "root mean square of the first channel",
        "strength of the first group",
        (0.25, 0.5, 1, 2, 4),
        loud_half,
        lambda strength: strength / math.sqrt((strength**2 + 1) / 2),
    ),
)
