"""Faults in weight standardization and weight normalization: the factor, the axes, the variance, eps, the gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normlib.gallery.fault import Effect, Fault, Implementation
from normlib.gallery.samples import average, largest, noise, standard
from normlib.weights.norm import weight_norm
from normlib.weights.standardization import scaled_weight_standardization


def centered(weight: Tensor) -> Tensor:
    """Subtract from each row of (outputs, inputs) its mean."""
    return weight - weight.mean(1, keepdim=True)


def rows(fan_in: int, std: float = 1.0) -> Tensor:
    """Return eight rows of mean 0 and a given biased standard deviation."""
    return std * standard(8, fan_in, axes=[1])


def check_row_norm(standardize: Implementation) -> float:
    """Each row has norm 1: the layer keeps the variance of independent inputs."""
    return largest(standardize(noise(8, 27)).norm(dim=1) - 1)


def multiplied_by_std(weight: Tensor, gamma: float = 1.0) -> Tensor:
    """Multiply by the standard deviation where the formula divides."""
    fan_in = weight.shape[1]
    return gamma * centered(weight) * weight.std(1, correction=0, keepdim=True) * math.sqrt(fan_in)


def norm_by_scale(standardize: Implementation, std: float) -> float:
    """Return the norm of a standardized row of 16 weights, for a given standard deviation of the raw ones."""
    return average(standardize(rows(16, std)).norm(dim=1))


MULTIPLIED_BY_STD = Fault(
    name="multiplied_by_std",
    family="weights",
    title="Weight standardization multiplies by the standard deviation",
    seen="A slip of one sign in an exponent: published in a tutorial on diffusion models, and corrected by a reader.",
    symptom="The layer depends on the scale of its raw weights more than before: twice the weights give four times the output.",
    wrong=multiplied_by_std,
    right=scaled_weight_standardization,
    check=check_row_norm,
    bound=1e-6,
    effect=Effect(
        "norm of the row", "standard deviation of the raw weights", (0.05, 0.1, 0.2, 0.4), norm_by_scale, lambda std: 16 * std**2
    ),
)


def without_fan_in(weight: Tensor, gamma: float = 1.0) -> Tensor:
    """Bring each weight, not each row, to unit size."""
    return gamma * centered(weight) / weight.std(1, correction=0, keepdim=True)


def norm_by_fan_in(standardize: Implementation, fan_in: int) -> float:
    """Return the norm of a standardized row of a given number of weights."""
    return average(standardize(rows(fan_in)).norm(dim=1))


WITHOUT_FAN_IN = Fault(
    name="without_fan_in",
    family="weights",
    title="The root of the fan-in is missing",
    seen="Weight standardization as it is used under a normalizer, carried over to networks that have none.",
    symptom="Each layer multiplies the standard deviation by the root of its fan-in: 68 for a 3 × 3 convolution of 512 channels.",
    wrong=without_fan_in,
    right=scaled_weight_standardization,
    check=check_row_norm,
    bound=1e-6,
    effect=Effect("norm of the row", "fan-in", (9, 144, 576, 4608), norm_by_fan_in, math.sqrt),
)


def unbiased_rows(weight: Tensor, gamma: float = 1.0) -> Tensor:
    """Divide by the unbiased standard deviation of the row."""
    return gamma * centered(weight) / (weight.std(1, keepdim=True) * math.sqrt(weight.shape[1]))


UNBIASED_ROWS = Fault(
    name="unbiased_rows",
    family="weights",
    title="Weight standardization divides by the unbiased standard deviation",
    seen="The default of torch.std and torch.var, in ports of the networks.",
    symptom="Rows are short by sqrt((N − 1) / N): 6 % in a depthwise 3 × 3 convolution, at every layer again.",
    wrong=unbiased_rows,
    right=scaled_weight_standardization,
    check=check_row_norm,
    bound=1e-6,
    effect=Effect("norm of the row", "fan-in", (2, 4, 9, 27, 144), norm_by_fan_in, lambda fan_in: math.sqrt(1 - 1 / fan_in)),
)


def eps_on_raw_variance(weight: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Add eps to the variance of the raw weights, before the fan-in comes in."""
    var = weight.var(1, correction=0, keepdim=True)
    return gamma * centered(weight) / ((var + eps) * weight.shape[1]).sqrt()


def fresh_row(standardize: Implementation, fan_in: int) -> float:
    """Return the norm of a standardized row of variance 1 / fan-in, at eps 1e-5."""
    return average(standardize(rows(fan_in, fan_in**-0.5), eps=1e-5).norm(dim=1))


def check_eps_on_raw_variance(standardize: Implementation) -> float:
    """A wide row as it is drawn, of variance 1 / fan-in, comes out with norm 1 at eps 1e-5 too."""
    return abs(fresh_row(standardize, 4608) - 1)


EPS_ON_RAW_VARIANCE = Fault(
    name="eps_on_raw_variance",
    family="weights",
    title="eps, chosen for activations, is added to the variance of raw weights",
    seen="Weight standardization by way of a batch norm kernel: its eps meets a variance of 1 / fan-in, not of 1.",
    symptom="Wide rows are short: 2 % in a 3 × 3 convolution of 512 channels, and more as weight decay shrinks the raw weights.",
    wrong=eps_on_raw_variance,
    right=scaled_weight_standardization,
    check=check_eps_on_raw_variance,
    bound=1e-6,
    effect=Effect("norm of the row", "fan-in", (27, 576, 4608, 18432), fresh_row, lambda fan_in: 1 / math.sqrt(1 + fan_in * 1e-5)),
)


def over_outputs(weight: Tensor, gamma: float = 1.0) -> Tensor:
    """Take mean and variance of each input's weights, over the outputs."""
    std = weight.std(0, correction=0, keepdim=True)
    return gamma * (weight - weight.mean(0, keepdim=True)) / (std * math.sqrt(weight.shape[1]))


def check_over_outputs(standardize: Implementation) -> float:
    """Each row sums to zero: a mean that all inputs share does not reach the output."""
    return largest(standardize(noise(8, 27)).sum(1))


def shifted_output(standardize: Implementation, mean: float) -> float:
    """Return the mean of the first output for inputs of mean 1; raw rows have the mean ± a given one, and variance 1."""
    pattern = torch.stack([torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).roll(shift) for shift in range(4)])
    half = mean + pattern  # rows and columns of the pattern sum to zero
    return float(standardize(torch.cat([half, -half]))[0].sum())


OVER_OUTPUTS = Fault(
    name="over_outputs",
    family="weights",
    title="The statistics of weight standardization are taken over the outputs",
    seen="Axes of a framework that stores (positions, inputs, outputs), used where the outputs come first.",
    symptom="The variance is about right. Means that ReLU makes pass and grow: the mean shift that it should stop.",
    wrong=over_outputs,
    right=scaled_weight_standardization,
    check=check_over_outputs,
    bound=1e-9,
    effect=Effect(
        "mean of the output for inputs of mean 1",
        "mean of the raw row",
        (0, 0.25, 0.5, 1, 2),
        shifted_output,
        lambda mean: 2 * mean / math.sqrt(1 + mean**2),
    ),
)


def detached_rows(weight: Tensor, gamma: float = 1.0) -> Tensor:
    """Hold mean and standard deviation of the row constant in the backward pass."""
    mean, std = weight.detach().mean(1, keepdim=True), weight.detach().std(1, correction=0, keepdim=True)
    return gamma * (weight - mean) / (std * math.sqrt(weight.shape[1]))


def check_detached_rows(standardize: Implementation) -> float:
    """The gradient with respect to a raw row is orthogonal to that row."""
    weight = noise(8, 27).requires_grad_()
    (gradient,) = torch.autograd.grad(standardize(weight).exp().sum(), weight)
    return largest((gradient * weight).sum(1))


def drift(standardize: Implementation, steps: int) -> float:
    """Return how far the mean of a raw row of 16 weights has moved after some steps at rate 0.1 on the sum of its weights."""
    weight = rows(16).requires_grad_()
    for _ in range(steps):
        weight.data -= 0.1 * torch.autograd.grad(standardize(weight).sum(), weight)[0]
    return average(weight)


DETACHED_ROWS = Fault(
    name="detached_rows",
    family="weights",
    title="No gradient flows through the statistics of the weights",
    seen="Weights that are standardized under no_grad, after each step or in a hook.",
    symptom="Raw weights move where the output cannot follow: their mean and length drift while the loss stays.",
    wrong=detached_rows,
    right=scaled_weight_standardization,
    check=check_detached_rows,
    bound=1e-8,
    effect=Effect("mean of the raw row", "steps", (0, 25, 50, 100), drift, lambda steps: -0.025 * steps),
)


def whole_tensor(v: Tensor, g: Tensor) -> Tensor:
    """Divide by the norm of the whole weight."""
    return g * v / v.norm()


def check_whole_tensor(normalize: Implementation) -> float:
    """Each row has the length g."""
    return largest(normalize(noise(8, 27), torch.full((8, 1), 3.0)).norm(dim=1) - 3)


def row_by_outputs(normalize: Implementation, outputs: int) -> float:
    """Return the length of the first of some rows of equal length, at g = 1."""
    v = standard(outputs, 16, axes=[1])
    return float(normalize(v, torch.ones(outputs, 1, dtype=v.dtype))[0].norm())


WHOLE_TENSOR = Fault(
    name="whole_tensor",
    family="weights",
    title="Weight normalization divides by the norm of the whole weight",
    seen="v / v.norm() on a matrix, where the paper speaks of the vector of one unit.",
    symptom="g is no length any more: outputs shrink with the root of the width, and one long row makes all others short.",
    wrong=whole_tensor,
    right=weight_norm,
    check=check_whole_tensor,
    bound=1e-5,
    effect=Effect("length of a row at g = 1", "outputs", (1, 4, 16, 64), row_by_outputs, lambda outputs: outputs**-0.5),
)
