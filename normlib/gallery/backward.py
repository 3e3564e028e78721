"""Faults in the backward pass of batch normalization, and in its statistics over several workers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from normlib.gallery.fault import Effect, Fault, Implementation
from normlib.gallery.samples import average, largest, noise, spread, standard
from normlib.layers.batch import batch_moments, batch_norm
from normlib.layers.sync import combined_moments


def detached_statistics(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Hold mean and variance constant in the backward pass."""
    mean, var = batch_moments(x.detach())
    return batch_norm(x, weight, bias, mean, var, eps)


def check_detached_statistics(norm: Implementation) -> float:
    """The gradient of anything with respect to the input sums to zero over the batch."""
    x = noise(16, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(norm(x).exp().sum(), x)
    return largest(gradient.sum(0))


def bias_after(norm: Implementation, steps: int, rate: float = 0.1) -> float:
    """Train the bias before the layer for some steps; the target has mean 1, which no bias can reach."""
    u = standard(32, 1)
    bias = torch.zeros(1, dtype=u.dtype, requires_grad=True)
    for _ in range(steps):
        loss = 0.5 * (norm(u + bias, eps=0.0) - (u + 1)).square().mean()
        bias.data -= rate * torch.autograd.grad(loss, bias)[0]
    return float(bias.detach())


DETACHED_STATISTICS = Fault(
    name="detached_statistics",
    family="batch",
    title="No gradient flows through the mean and the variance",
    seen="Statistics taken under no_grad, to save memory or by habit; the warning of `ioffe2015`, section 2.",
    symptom="The bias before the layer grows by the same amount at each step, and the loss stays where it is.",
    wrong=detached_statistics,
    right=batch_norm,
    check=check_detached_statistics,
    bound=1e-8,
    effect=Effect("bias before the layer", "steps", (0, 25, 50, 100), bias_after, lambda steps: 0.1 * steps),
)


def summed_gradient(x: Tensor, gradient: Tensor, eps: float = 1e-5) -> Tensor:
    """Go backward with sums over the batch where the formula has means."""
    var = x.var(0, correction=0)
    standardized = batch_norm(x, eps=eps)
    along = (gradient * standardized).sum(0)
    return (gradient - gradient.sum(0) - along * standardized) / (var + eps).sqrt()


def differentiated(x: Tensor, gradient: Tensor, eps: float = 1e-5) -> Tensor:
    """Go backward through `batch_norm` by automatic differentiation."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(batch_norm(x, eps=eps), x, gradient)[0]


def check_summed_gradient(backward: Implementation) -> float:
    """The gradient with respect to the input sums to zero over the batch."""
    return largest(backward(noise(16, 3), noise(16, 3, seed=1)).sum(0))


def constant_gradient(backward: Implementation, batch: int) -> float:
    """Return what becomes of a gradient of 1 for each sample: nothing should pass."""
    x = standard(batch, 1)
    return float(backward(x, torch.ones_like(x), eps=0.0)[0])


SUMMED_GRADIENT = Fault(
    name="summed_gradient",
    family="batch",
    title="The backward pass centers the gradient by its sum, not by its mean",
    seen="A mean that is defined without its division: the gradient formula of `hoedt2022`.",
    symptom="A gradient of the wrong sign that grows with the batch, where little or nothing should pass.",
    wrong=summed_gradient,
    right=differentiated,
    check=check_summed_gradient,
    bound=1e-8,
    effect=Effect("gradient for a gradient of 1", "batch size", (2, 4, 8, 32), constant_gradient, lambda m: 1.0 - m),
)


def worker_variances(counts: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the moments of several workers: the mean of their means, and the mean of their variances."""
    return counts.sum(0), means.mean(0), variances.mean(0)


def synchronized(combine: Implementation, shards: Sequence[Tensor]) -> Tensor:
    """Normalize the batches of several workers, each of shape (N, C), by their combined moments; eps is 0."""
    moments = [batch_moments(shard) for shard in shards]
    counts = torch.tensor([len(shard) for shard in shards])
    _, mean, var = combine(counts, *(torch.stack(list(column)) for column in zip(*moments, strict=True)))
    return batch_norm(torch.cat(list(shards)), mean=mean, var=var, eps=0.0)


def check_worker_variances(combine: Implementation) -> float:
    """The batches of all workers together come out with variance 1."""
    return abs(spread(synchronized(combine, [noise(8, 1), 2 + noise(8, 1)])) - 1)


def two_workers(combine: Implementation, distance: float) -> float:
    """Return the standard deviation of the output of two workers whose means lie a given distance apart."""
    return spread(synchronized(combine, [standard(8, 1), distance + standard(8, 1)]))


WORKER_VARIANCES = Fault(
    name="worker_variances",
    family="batch",
    title="Synchronized batch norm averages the workers' variances, and forgets how far their means lie apart",
    seen="All-reduce of mean and variance instead of mean and mean square; the variance of a mixture has two terms.",
    symptom="Nothing while workers see alike data; with sorted or domain-wise shards the output is too wide.",
    wrong=worker_variances,
    right=combined_moments,
    check=check_worker_variances,
    bound=1e-6,
    effect=Effect(
        "standard deviation of the output",
        "distance between the workers' means",
        (0, 1, 2, 4, 8),
        two_workers,
        lambda distance: math.sqrt(1 + distance**2 / 4),
    ),
)


def uncounted_workers(counts: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the moments of several workers as if they had as many samples each."""
    return counts.sum(0), means.mean(0), variances.mean(0) + means.var(0, correction=0)


def check_uncounted_workers(combine: Implementation) -> float:
    """The batches of all workers together come out with mean 0, also where they differ in size."""
    return abs(average(synchronized(combine, [noise(12, 1), 2 + noise(4, 1)])))


def last_incomplete(combine: Implementation, samples: int) -> float:
    """Return the mean output of two workers of means 0 and 1 and variance 1; the first has 16 samples, the second fewer."""
    return average(synchronized(combine, [standard(16, 1), 1 + standard(samples, 1)]))


UNCOUNTED_WORKERS = Fault(
    name="uncounted_workers",
    family="batch",
    title="Synchronized batch norm gives every worker the same weight, whatever its number of samples",
    seen="A mean over processes where a sum over samples is meant; it is right until the last batch of the epoch.",
    symptom="Mean and variance are off at each incomplete batch; K workers are not one big batch.",
    wrong=uncounted_workers,
    right=combined_moments,
    check=check_uncounted_workers,
    bound=1e-6,
    effect=Effect(
        "mean of the output",
        "samples of the second worker (16 of the first)",
        (2, 4, 8, 16),
        last_incomplete,
        lambda samples: (samples / (16 + samples) - 0.5) / math.sqrt(1.25),
    ),
)
