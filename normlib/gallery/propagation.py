"""Faults in signal propagation plots: the average squared mean and the average variance of the channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlib.gallery.fault import SOUND, Effect, Fault, Implementation
from normlib.gallery.samples import average, noise, ramp, standard
from normlib.layers.batch import BatchNorm, batch_moments
from normlib.layers.shapes import per_channel
from normlib.residual.join import Join


def channel_moments(x: Tensor) -> tuple[float, float]:
    """Return squared mean and variance of the channels of (N, C, H, W), averaged over channels."""
    mean, var = batch_moments(x)
    return average(mean.square()), average(var)


def over_channels(x: Tensor) -> tuple[float, float]:
    """Take the moments over the channels of each position, and average those."""
    return average(x.mean(1).square()), average(x.var(1, correction=0))


def two_constants(moments: Implementation, half_distance: float) -> float:
    """Return the squared mean of two channels that hold a constant and its negative."""
    maps = torch.ones(8, 2, 4, 4, dtype=torch.float64) * half_distance
    return moments(maps * torch.tensor([1.0, -1.0], dtype=maps.dtype).view(2, 1, 1))[0]


def check_over_channels(moments: Implementation) -> float:
    """Channels that are constant have no variance."""
    maps = per_channel(ramp(4), noise(8, 4, 2, 2)).expand(8, 4, 2, 2)
    return moments(maps)[1]


OVER_CHANNELS = Fault(
    name="over_channels",
    family="propagation",
    title="Means are taken over the channels instead of over samples and positions",
    seen="mean(1) in a published helper, and axes carried over from code with channels last.",
    symptom="A plot that looks well. Channels of opposite means cancel, so the mean shift that it should show is not there.",
    wrong=over_channels,
    right=channel_moments,
    check=check_over_channels,
    bound=1e-9,
    effect=Effect("average squared mean", "mean of the channels, ±", (0, 1, 2, 3), two_constants, lambda mean: 0.0),
)


def count_from_batch(x: Tensor) -> tuple[float, float]:
    """Divide the sum over channels by the size of the batch."""
    mean, var = batch_moments(x)
    return float(mean.square().sum() / len(x)), float(var.sum() / len(x))


def check_count_from_batch(moments: Implementation) -> float:
    """Channels of variance 1 have average variance 1, also where there are not as many as samples."""
    return abs(moments(standard(2, 8, 4, 4, axes=[0, 2, 3]))[1] - 1)


def by_batch(moments: Implementation, batch: int) -> float:
    """Return the average variance of 64 channels of variance 1, for a given batch size."""
    return moments(standard(batch, 64, 4, 4, axes=[0, 2, 3]))[1]


COUNT_FROM_BATCH = Fault(
    name="count_from_batch",
    family="propagation",
    title="The sum over channels is divided by the batch size",
    seen="shape[0] for shape[1], in a published script; in other layouts axis 0 does hold the channels.",
    symptom="All curves are off by one factor, C / N, which changes with the width of each stage.",
    wrong=count_from_batch,
    right=channel_moments,
    check=check_count_from_batch,
    bound=1e-9,
    effect=Effect("average variance of unit channels", "batch size", (4, 16, 64, 256), by_batch, lambda batch: 64 / batch),
)


def unbiased_moments(x: Tensor) -> tuple[float, float]:
    """Divide the variance by the count less one."""
    axes = [0, 2, 3]
    return average(x.mean(axes).square()), average(x.var(axes))


def check_unbiased_moments(moments: Implementation) -> float:
    """Squared mean and variance add up to the mean square."""
    x = 1 + noise(2, 4, 2, 2)
    return abs(sum(moments(x)) - average(x.square()))


def few_positions(moments: Implementation, count: int) -> float:
    """Return the average variance of unit channels with a given number of values."""
    return moments(standard(count, 4, 1, 1, axes=[0, 2, 3]))[1]


UNBIASED_MOMENTS = Fault(
    name="unbiased_moments",
    family="propagation",
    title="The variance of a channel is the unbiased one",
    seen="The default of torch.var; the plots of `brock2021a` were made with the biased one.",
    symptom="Nothing where maps are large. At 1 × 1 maps and small batches the last points of the curve bend up.",
    wrong=unbiased_moments,
    right=channel_moments,
    check=check_unbiased_moments,
    bound=1e-9,
    effect=Effect("variance of unit channels", "values in a channel", (2, 4, 16, 64, 256), few_positions, lambda m: m / (m - 1)),
)


def after_the_gain(branch: Implementation, join: Join, x: Tensor) -> float:
    """Measure what a block adds to its input."""
    return channel_moments(join(x, branch(x)) - x)[1]


def before_the_gain(branch: Implementation, join: Join, x: Tensor) -> float:
    """Measure the output of the branch."""
    return channel_moments(branch(x))[1]


def gated_branch(residual_variance: Implementation, gain: float) -> float:
    """Return the variance at the end of a branch that keeps it at 1, in a block of a given gain."""
    return residual_variance(turned, Join(gain=gain), standard(16, 4, 2, 2, axes=[0, 2, 3]))


def check_after_the_gain(residual_variance: Implementation) -> float:
    """A branch that keeps the variance has residual variance 1, also behind a gain that starts at zero."""
    return abs(gated_branch(residual_variance, 0.0) - 1)


def turned(x: Tensor) -> Tensor:
    """Turn each pair of channels by a quarter: the variance stays, and the result is orthogonal to what came in."""
    first, second = x.unflatten(1, (-1, 2)).unbind(2)
    return torch.stack([-second, first], 2).flatten(1, 2)


AFTER_THE_GAIN = Fault(
    name="after_the_gain",
    family="propagation",
    title="The residual variance is measured behind the gain of the branch",
    seen="A hook on the sum instead of on the last convolution; libraries whose last gain starts at zero.",
    symptom="Zero for every block of a fresh network with SkipInit, and α² too small otherwise.",
    wrong=after_the_gain,
    right=before_the_gain,
    check=check_after_the_gain,
    bound=1e-6,
    effect=Effect("residual variance", "gain", (0, 0.2, 0.5, 1), gated_branch, lambda gain: gain**2),
)


class TurnedBranch(nn.Module):
    """A residual block whose branch is batch norm and a quarter turn."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, eps=1e-12, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to its input."""
        return x + turned(self.norm(x))


def fresh_in_evaluation(net: nn.Module, x: Tensor) -> list[float]:
    """Measure the variance after each block of a network in evaluation."""
    outputs = SOUND["record_activations"](net, x, TurnedBranch, training=False)
    return [channel_moments(output)[1] for output in outputs.values()]


def fresh_in_training(net: nn.Module, x: Tensor) -> list[float]:
    """Measure the variance after each block of a network in training."""
    outputs = SOUND["record_activations"](net, x, TurnedBranch, training=True)
    return [channel_moments(output)[1] for output in outputs.values()]


def after_block(variances: Implementation, block: int) -> float:
    """Return the variance after a block of a fresh residual network with batch norm; the input has variance 1."""
    net = nn.Sequential(*[TurnedBranch(2) for _ in range(block)])
    corners = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)  # of a square: uncorrelated
    return variances(net, corners[:, :, None, None])[-1]


def check_fresh_in_evaluation(variances: Implementation) -> float:
    """With batch norm on its branches the variance grows by 1 a block: 9 after eight."""
    return abs(after_block(variances, 8) - 9)


FRESH_IN_EVALUATION = Fault(
    name="fresh_in_evaluation",
    family="propagation",
    title="A fresh network with batch norm is measured in evaluation mode",
    seen="Habit: measuring begins with eval(). At initialization the running statistics are 0 and 1.",
    symptom="Batch norm is the identity, and the network with it looks just as the one without: variance doubles a block.",
    wrong=fresh_in_evaluation,
    right=fresh_in_training,
    check=check_fresh_in_evaluation,
    bound=1e-6,
    effect=Effect("average variance", "block", (1, 2, 4, 8, 16), after_block, lambda block: 2.0**block),
)
