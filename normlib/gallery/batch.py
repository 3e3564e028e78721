"""Faults in the formula of batch normalization: axes, the place of the affine map and of eps, the variance."""

from __future__ import annotations

import math

from torch import Tensor

from normlib.gallery.fault import Effect, Fault, Implementation
from normlib.gallery.samples import average, largest, noise, ramp, spread, standard
from normlib.layers.batch import batch_moments, batch_norm
from normlib.layers.shapes import affine, channel_affine, per_channel

MAP_AXES = (0, 2, 3)


def per_position(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalize maps by statistics over the batch alone."""
    mean, var = x.mean(0), x.var(0, correction=0)
    return channel_affine((x - mean) / (var + eps).sqrt(), weight, bias)


def check_per_position(norm: Implementation) -> float:
    """A batch of one image is standardized over its positions."""
    return abs(spread(norm(noise(1, 1, 8, 8))) - 1)


def common_pattern(norm: Implementation, strength: float) -> float:
    """Return how strongly a pattern that all images share, under noise of variance 1, stands in the output."""
    images = strength * standard(8, 8, seed=1) + standard(64, 1, 8, 8, axes=[0])
    return spread(norm(images).mean(0))


PER_POSITION = Fault(
    name="per_position",
    family="batch",
    title="On maps, each position has a mean and a variance of its own",
    seen="Code written for vectors, mean(dim=0), used on maps: the class in the reading notes `seed001`.",
    symptom="It trains. What all images share is gone, and in evaluation no other image size fits the buffers.",
    wrong=per_position,
    right=batch_norm,
    check=check_per_position,
    bound=1e-3,
    effect=Effect(
        "strength of the common pattern in the output",
        "strength of the common pattern in the input",
        (0.5, 1, 2, 4),
        common_pattern,
        lambda strength: 0.0,
    ),
)


def last_axis_affine(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Multiply by a gain of shape (C,) without moving it to the channel axis."""
    return affine(batch_norm(x, eps=eps), weight, bias)


def check_last_axis_affine(norm: Implementation) -> float:
    """The standard deviation of each channel is its gain."""
    y = norm(noise(8, 4, 4, 4), weight=ramp(4))
    return largest(y.std(MAP_AXES, correction=0) - ramp(4))


def channel_spread(norm: Implementation, channel: int) -> float:
    """Return the standard deviation of one output channel; the gain of channel c is c."""
    return spread(norm(standard(8, 4, 4, 4, axes=[0, 2]), weight=ramp(4))[:, channel - 1])


LAST_AXIS_AFFINE = Fault(
    name="last_axis_affine",
    family="batch",
    title="The gain of a channel multiplies a column of the map",
    seen="A parameter of shape (C,) broadcasts along the last axis: the class in the reading notes `seed001`.",
    symptom="An error for most maps. Where the width equals the number of channels it runs, and no channel gets its gain.",
    wrong=last_axis_affine,
    right=batch_norm,
    check=check_last_axis_affine,
    bound=1e-4,
    effect=Effect(
        "standard deviation of the channel", "gain of the channel", (1, 2, 3, 4), channel_spread, lambda channel: math.sqrt(7.5)
    ),
)


def last_axis_statistics(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Subtract a mean of shape (C,) without moving it to the channel axis."""
    mean, var = batch_moments(x)
    return channel_affine((x - mean) / (var + eps).sqrt(), weight, bias)


def check_last_axis_statistics(norm: Implementation) -> float:
    """Each channel has mean 0."""
    y = norm(noise(8, 4, 4, 4) + per_channel(ramp(4), noise(8, 4, 4, 4)))
    return largest(y.mean(MAP_AXES))


def channel_mean(norm: Implementation, channel: int) -> float:
    """Return the mean of one output channel; the input channel c has mean c and variance 1."""
    x = standard(8, 4, 4, 4, axes=MAP_AXES)
    return average(norm(x + per_channel(ramp(4), x), eps=0.0)[:, channel - 1])


LAST_AXIS_STATISTICS = Fault(
    name="last_axis_statistics",
    family="batch",
    title="The mean of a channel is subtracted from a column of the map",
    seen="Statistics taken without kept dimensions: the four-line layer of `hoedt2022` and other short listings.",
    symptom="An error for most maps. Where the width equals the number of channels it runs, and the channels keep their means.",
    wrong=last_axis_statistics,
    right=batch_norm,
    check=check_last_axis_statistics,
    bound=1e-6,
    effect=Effect("mean of the output", "mean of the channel", (1, 2, 3, 4), channel_mean, lambda channel: channel - 2.5),
)


def affine_on_input(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Scale and shift x where the standardized x is meant."""
    return channel_affine(x, weight, bias)


def check_affine_on_input(norm: Implementation) -> float:
    """With gain 1 and bias 0, the output has standard deviation 1."""
    return abs(spread(norm(3 + 2 * noise(64, 1), weight=ramp(1))) - 1)


def output_spread(norm: Implementation, scale: float) -> float:
    """Return the standard deviation of the output for an input of a given standard deviation."""
    return spread(norm(scale * standard(64, 1)))


AFFINE_ON_INPUT = Fault(
    name="affine_on_input",
    family="batch",
    title="Scale and shift act on x, not on the standardized x",
    seen="A missing hat in the formula: the reading notes `seed001`.",
    symptom="An affine map of the raw input: there is no normalization at all.",
    wrong=affine_on_input,
    right=batch_norm,
    check=check_affine_on_input,
    bound=1e-3,
    effect=Effect(
        "standard deviation of the output", "standard deviation of the input", (0.1, 1, 10, 100), output_spread, lambda scale: scale
    ),
)


def one_pass_variance(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Take the variance for the mean square less the square of the mean."""
    axes = [0, *range(2, x.ndim)]
    mean = x.mean(axes)
    var = (x.square().mean(axes) - mean.square()).clamp(min=0)
    return batch_norm(x, weight, bias, mean, var, eps)


def far_from_zero(norm: Implementation, mean: float) -> float:
    """Return the standard deviation of the output in float32 for an input of variance 1 and a given mean."""
    return spread(norm((mean + standard(4096, 1)).float()))


def check_one_pass_variance(norm: Implementation) -> float:
    """The mean of the input does not matter, not even 10 000 standard deviations of it."""
    return abs(spread(norm((1e4 + standard(4096, 1)).float())) - 1)


ONE_PASS_VARIANCE = Fault(
    name="one_pass_variance",
    family="batch",
    title="The variance is a difference of two large numbers",
    seen="Kernels that read their input once: E[x²] − E[x]² in single precision cancels when the mean is large.",
    symptom="Nothing near zero mean. Far from it the variance is rounding error, at times 0, and the output explodes.",
    wrong=one_pass_variance,
    right=batch_norm,
    check=check_one_pass_variance,
    bound=1e-2,
    effect=Effect("standard deviation of the output", "mean of the input", (1, 10, 100, 1e3, 1e4), far_from_zero),
)


def eps_on_std(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Add eps to the standard deviation where it belongs to the variance."""
    mean, var = batch_moments(x)
    return channel_affine((x - per_channel(mean, x)) / (per_channel(var, x).sqrt() + eps), weight, bias)


def check_eps_on_std(norm: Implementation) -> float:
    """At variance 1 the output has variance 1 / (1 + eps)."""
    return abs(spread(norm(standard(64, 1), eps=0.3)) - 1 / math.sqrt(1.3))


EPS_ON_STD = Fault(
    name="eps_on_std",
    family="batch",
    title="eps stands outside the root",
    seen="Layers written from a formula without eps, which each author then puts where it avoids the division by zero.",
    symptom="Equal at ordinary scales. A channel that is nearly constant is blown up to variance 1 instead of fading out.",
    wrong=eps_on_std,
    right=batch_norm,
    check=check_eps_on_std,
    bound=1e-6,
    effect=Effect(
        "standard deviation of the output",
        "standard deviation of the input",
        (1e-4, 1e-3, 1e-2, 1e-1, 1),
        output_spread,
        lambda s: s / (s + 1e-5),
    ),
)


def unbiased_forward(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Divide by m − 1 where the formula divides by m."""
    axes = [0, *range(2, x.ndim)]
    return batch_norm(x, weight, bias, x.mean(axes), x.var(axes), eps)


def check_unbiased_forward(norm: Implementation) -> float:
    """Over the batch itself the output has variance 1."""
    return abs(spread(norm(noise(4, 1))) - 1)


def small_batch(norm: Implementation, batch: int) -> float:
    """Return the standard deviation of the output for a batch of a given size."""
    return spread(norm(noise(batch, 1), eps=0.0))


UNBIASED_FORWARD = Fault(
    name="unbiased_forward",
    family="batch",
    title="Training divides by the unbiased variance",
    seen="The default of torch.var divides by m − 1; the running variance, which does want it, is often swapped with it.",
    symptom="The output is too small by sqrt((m − 1) / m): nothing at m = 1000, three tenths at m = 2.",
    wrong=unbiased_forward,
    right=batch_norm,
    check=check_unbiased_forward,
    bound=1e-3,
    effect=Effect(
        "standard deviation of the output", "batch size", (2, 4, 8, 32, 128), small_batch, lambda m: math.sqrt((m - 1) / m)
    ),
)
