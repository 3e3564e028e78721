"""Faults in what batch normalization keeps between batches: the running statistics, and when they are used."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from normlib.gallery.fault import Effect, Fault, Implementation
from normlib.gallery.samples import average, every_sign, largest, noise, spread, standard
from normlib.layers.batch import BatchNorm, batch_moments, batch_norm


class Textbook(nn.Module):
    """A sound batch norm of vectors, written out; each fault below overrides one of its steps.

    Args:
        num_features: number of channels C.
        eps: added to the variance.
        momentum: the weight of the newest batch; None takes the mean of all batches so far.

    Shape:
        Input (N, C), output the same.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum, self.batches = eps, momentum, 0
        self.make_buffers(num_features)

    def make_buffers(self, num_features: int) -> None:
        """Register the running statistics."""
        self.register_buffer("running_mean", torch.zeros(num_features, dtype=torch.float64))
        self.register_buffer("running_var", torch.ones(num_features, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the batch in training, by the running statistics in evaluation."""
        if not self.training:
            return batch_norm(x, mean=self.running_mean, var=self.running_var, eps=self.eps)
        mean, var = batch_moments(x)
        self.track(mean, var, len(x))
        return batch_norm(x, mean=mean, var=var, eps=self.eps)

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics towards the mean and the unbiased variance of a batch."""
        rate = self.rate()
        self.running_mean = (1 - rate) * self.running_mean + rate * mean
        self.running_var = (1 - rate) * self.running_var + rate * var * count / (count - 1)

    def rate(self) -> float:
        """Return the weight of the newest batch."""
        self.batches += 1
        return 1 / self.batches if self.momentum is None else self.momentum


def trained(layer: Implementation, *batches: Tensor, **arguments: Any) -> Any:
    """Make a layer for one channel in float64, and show it some batches in training."""
    module = layer(1, **arguments).double()
    for batch in batches:
        module(batch)
    return module


class LateBuffers(Textbook):
    """Registers the running statistics at the first call."""

    def make_buffers(self, num_features: int) -> None:
        """Wait until the shape of the input is known."""

    def forward(self, x: Tensor) -> Tensor:
        """Register the buffers if there are none, then normalize."""
        if not hasattr(self, "running_mean"):
            super().make_buffers(x.shape[1])
        return super().forward(x)


def check_late_buffers(layer: Implementation) -> float:
    """A fresh layer loads the checkpoint of a trained one: no key is left over."""
    checkpoint = trained(layer, noise(8, 1)).state_dict()
    return len(layer(1).load_state_dict(checkpoint, strict=False).unexpected_keys)


def mean_after_loading(layer: Implementation, mean: float) -> float:
    """Return the mean output in evaluation after a checkpoint went into a fresh layer, for data of a given mean."""
    data = mean + standard(16, 1)
    fresh = layer(1).double()
    fresh.load_state_dict(trained(layer, data, momentum=1.0).state_dict(), strict=False)
    return average(fresh.eval()(data))


LATE_BUFFERS = Fault(
    name="late_buffers",
    family="batch",
    title="The buffers are registered inside forward",
    seen="The shape is known there without asking for it: the class in the reading notes `seed001`.",
    symptom="A checkpoint does not load into a fresh layer; with strict=False it loads in silence, and the statistics are lost.",
    wrong=LateBuffers,
    right=BatchNorm,
    check=check_late_buffers,
    bound=0,
    effect=Effect(
        "mean output after loading", "mean of the data", (0, 1, 2, 4), mean_after_loading, lambda mean: mean / math.sqrt(1 + 1e-5)
    ),
)


class GraphInBuffers(Textbook):
    """Keeps the graph of every batch in the running statistics."""

    def track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics without leaving the graph."""
        rate = self.rate()
        self.running_mean = (1 - rate) * self.running_mean + rate * mean
        self.running_var = (1 - rate) * self.running_var + rate * var * count / (count - 1)


def check_graph_in_buffers(layer: Implementation) -> float:
    """The running mean asks for no gradient."""
    return float(trained(layer, noise(8, 1).requires_grad_()).running_mean.requires_grad)


def nodes_kept(layer: Implementation, steps: int) -> int:
    """Count the nodes of the graph that the running mean holds after some steps."""
    start = trained(layer, *[noise(8, 1).requires_grad_() for _ in range(steps)]).running_mean.grad_fn
    seen, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


GRAPH_IN_BUFFERS = Fault(
    name="graph_in_buffers",
    family="batch",
    title="The running statistics keep the graph of every batch",
    seen="An update without detach or no_grad: the class in the reading notes `seed001`, and tutorials that assign buffers.",
    symptom="Memory grows by each step, deepcopy raises, and a backward pass through the buffer reaches graphs already freed.",
    wrong=GraphInBuffers,
    right=BatchNorm,
    check=check_graph_in_buffers,
    bound=0,
    effect=Effect("nodes of the graph kept", "steps", (1, 2, 4, 8, 16, 32), nodes_kept),
)


class BiasedBuffer(Textbook):
    """Keeps the biased variance for evaluation."""

    def track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics towards the variance divided by m."""
        super().track(mean.detach(), var.detach() * (count - 1) / count, count)


def check_biased_buffer(layer: Implementation) -> float:
    """After one batch of two at momentum 1, the running variance is the unbiased one."""
    batch = noise(2, 1)
    return largest(trained(layer, batch, momentum=1.0).running_var - batch.var(0, correction=1))


def spread_in_evaluation(layer: Implementation, batch: int) -> float:
    """Return the standard deviation in evaluation after training on every batch of signs of a given size."""
    batches = every_sign(batch)[:, :, None]
    module = trained(layer, *batches, momentum=None, eps=1e-12)
    return spread(module.eval()(every_sign(1)))


BIASED_BUFFER = Fault(
    name="biased_buffer",
    family="batch",
    title="The running variance is the biased one",
    seen="One variance is computed and used for both; asked about in the issues of libraries and courses from 2019 to 2026.",
    symptom="Training is right. In evaluation outputs are too wide by sqrt(m / (m − 1)): 1.41 at two samples a batch.",
    wrong=BiasedBuffer,
    right=BatchNorm,
    check=check_biased_buffer,
    bound=1e-9,
    effect=Effect(
        "standard deviation in evaluation", "batch size", (2, 3, 4, 8), spread_in_evaluation, lambda m: math.sqrt(m / (m - 1))
    ),
)


class ReversedMomentum(Textbook):
    """Weighs the old statistics, not the new ones, by momentum."""

    def rate(self) -> float:
        """Return the weight that should have been the old statistics'."""
        return 1 - super().rate()


def check_reversed_momentum(layer: Implementation) -> float:
    """At momentum 0.1, one batch of mean 1 moves the running mean from 0 to 0.1."""
    return abs(float(trained(layer, 1 + standard(8, 1), momentum=0.1).running_mean) - 0.1)


def mean_after_jump(layer: Implementation, batches: int) -> float:
    """Return the running mean some batches after the mean of the data went from 0 to 1."""
    return float(trained(layer, *[1 + standard(8, 1)] * batches).running_mean)


REVERSED_MOMENTUM = Fault(
    name="reversed_momentum",
    family="batch",
    title="Momentum weighs the old statistics, not the new ones",
    seen="The convention of optimizers, and of other frameworks, carried over: 0.1 here is 0.9 there.",
    symptom="The running statistics are all but those of the last batch, so evaluation is as noisy as training.",
    wrong=ReversedMomentum,
    right=BatchNorm,
    check=check_reversed_momentum,
    bound=1e-9,
    effect=Effect(
        "running mean", "batches since the mean went from 0 to 1", (1, 2, 4, 8, 16), mean_after_jump, lambda k: 1 - 0.1**k
    ),
)
