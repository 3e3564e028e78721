"""Faults in layer norm and root mean square norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normlib.gallery.fault import Effect, Fault, Implementation
from normlib.gallery.samples import largest, noise, size, standard
from normlib.layers.layer import LayerNorm, layer_norm
from normlib.layers.rms import rms_norm
from normlib.layers.shapes import affine


def unbiased_std(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Divide by the standard deviation that torch gives by default."""
    var = x.var(-1, keepdim=True)
    return affine((x - x.mean(-1, keepdim=True)) / (var + eps).sqrt(), weight, bias)


def check_unbiased_std(norm: Implementation) -> float:
    """The output of each sample has root mean square 1."""
    return abs(size(norm(noise(4, 8), [8])) - 1)


def few_features(norm: Implementation, features: int) -> float:
    """Return the root mean square of the output for a given number of features."""
    return size(norm(noise(4, features), [features], eps=0.0))


UNBIASED_STD = Fault(
    name="unbiased_std",
    family="layer",
    title="Layer norm divides by the unbiased standard deviation",
    seen="x.std(-1) divides by H − 1: the class in the reading notes `seed001`. The paper divides by H.",
    symptom="Outputs are too small by sqrt((H − 1) / H): a tenth at 4 features, nothing at 512, NaN at 1.",
    wrong=unbiased_std,
    right=layer_norm,
    check=check_unbiased_std,
    bound=1e-4,
    effect=Effect(
        "root mean square of the output",
        "features",
        (2, 4, 16, 64, 512),
        few_features,
        lambda features: math.sqrt(1 - 1 / features),
    ),
)


def eps_beside_std(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Add eps to the standard deviation where it belongs to the variance."""
    std = x.std(-1, correction=0, keepdim=True)
    return affine((x - x.mean(-1, keepdim=True)) / (std + eps), weight, bias)


def check_eps_beside_std(norm: Implementation) -> float:
    """At variance 1 the output has variance 1 / (1 + eps)."""
    return abs(size(norm(standard(1, 8), [8], eps=0.3)) - 1 / math.sqrt(1.3))


def faint_sample(norm: Implementation, scale: float) -> float:
    """Return the root mean square of the output for a sample of a given scale."""
    return size(norm(scale * standard(1, 64), [64]))


EPS_BESIDE_STD = Fault(
    name="eps_beside_std",
    family="layer",
    title="Layer norm has eps outside the root",
    seen="The paper writes no eps; the class in the reading notes `seed001` adds it to the standard deviation.",
    symptom="A checkpoint runs but its small activations, such as padding, come out up to 30 times as large as they were trained.",
    wrong=eps_beside_std,
    right=layer_norm,
    check=check_eps_beside_std,
    bound=1e-9,
    effect=Effect(
        "root mean square of the output", "scale of the sample", (1e-4, 1e-3, 1e-2, 1e-1, 1), faint_sample, lambda s: s / (s + 1e-5)
    ),
)


def over_the_batch(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Take the statistics of each feature over the samples."""
    mean, var = x.mean(0), x.var(0, correction=0)
    return affine((x - mean) / (var + eps).sqrt(), weight, bias)


def check_over_the_batch(norm: Implementation) -> float:
    """The output for a sample does not depend on the samples beside it."""
    x = noise(4, 8)
    return largest(norm(x, [8])[:1] - norm(x[:1], [8]))


def loud_sample(norm: Implementation, scale: float) -> float:
    """Return the root mean square of the output for a sample of a given scale, in a batch whose other half has scale 1."""
    loud, quiet = standard(1, 64), standard(1, 64, seed=1)
    loud, quiet = loud.sign(), quiet.sign()  # each feature: ±scale and ±1, so its variance is known
    return size(norm(torch.cat([scale * loud, -scale * loud, quiet, -quiet]), [64], eps=0.0)[:2])


OVER_THE_BATCH = Fault(
    name="over_the_batch",
    family="layer",
    title="Layer norm takes its statistics over the batch",
    seen="dim=0 where dim=-1 is meant, or features and samples exchanged on the way in.",
    symptom="It is batch norm without running statistics: a batch of one gives zeros, and samples see each other.",
    wrong=over_the_batch,
    right=layer_norm,
    check=check_over_the_batch,
    bound=1e-9,
    effect=Effect(
        "root mean square of its output",
        "scale of the sample",
        (0.25, 0.5, 1, 2, 4),
        loud_sample,
        lambda scale: scale / math.sqrt((scale**2 + 1) / 2),
    ),
)


class AveragedLayerNorm(nn.LayerNorm):
    """Layer norm that keeps running statistics and uses them in evaluation."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, normalized_shape: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(normalized_shape, eps)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(()))
        self.register_buffer("running_var", torch.ones(()))

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the sample in training, by the averages over samples in evaluation."""
        if not self.training:
            return affine((input - self.running_mean) / (self.running_var + self.eps).sqrt(), self.weight, self.bias)
        var, mean = torch.var_mean(input.detach(), -1, correction=0)
        self.running_mean.lerp_(mean.mean().to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(var.mean().to(self.running_var.dtype), self.momentum)
        return super().forward(input)


def check_averaged_layer_norm(layer: Implementation) -> float:
    """Training and evaluation compute the same."""
    module, x = layer(8).double(), noise(4, 8)
    return largest(module.train()(x) - module.eval()(x))


def rescaled_sample(layer: Implementation, scale: float) -> float:
    """Return the root mean square of the output in evaluation for a sample of a given scale; the others had scale 1."""
    return size(layer(64).double().eval()(scale * standard(1, 64)))


AVERAGED_LAYER_NORM = Fault(
    name="averaged_layer_norm",
    family="layer",
    title="Layer norm uses running statistics in evaluation",
    seen="Carried over from batch norm: the notes `seed004` advise it.",
    symptom="The invariance to the scale of a single sample, which layer norm is for, holds in training only.",
    wrong=AveragedLayerNorm,
    right=LayerNorm,
    check=check_averaged_layer_norm,
    bound=1e-9,
    effect=Effect(
        "root mean square of the output",
        "scale of the sample",
        (0.25, 0.5, 1, 2, 4),
        rescaled_sample,
        lambda scale: scale / math.sqrt(1 + 1e-5),
    ),
)


def half_statistics(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Take the mean square in the precision of the input."""
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return affine(x / (x.square().mean(-1, keepdim=True) + eps).sqrt(), weight, None)


def check_half_statistics(norm: Implementation) -> float:
    """In half precision a constant of 1000 has root mean square 1 after the norm."""
    return abs(constant_in_half(norm, 1000) - 1)


def constant_in_half(norm: Implementation, value: float) -> float:
    """Return the root mean square of the output in float16 for an input that is constant."""
    return size(norm(torch.full((1, 8), float(value), dtype=torch.float16), [8]).double())


HALF_STATISTICS = Fault(
    name="half_statistics",
    family="layer",
    title="The mean square is taken in half precision",
    seen="Formulas that compute in whatever dtype comes in; fused kernels take their statistics in float32.",
    symptom="A square passes 65 504 at 256: the mean square is infinite, and the output is 0 without a word.",
    wrong=half_statistics,
    right=rms_norm,
    check=check_half_statistics,
    bound=1e-2,
    effect=Effect(
        "root mean square of the output",
        "value of the input",
        (1, 16, 128, 512, 4096),
        constant_in_half,
        lambda value: float(value < 256),
    ),
)
