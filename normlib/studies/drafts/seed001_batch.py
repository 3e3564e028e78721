"""Reading notes on three papers (the draft `seed001`): what its section on batch normalization says."""

from __future__ import annotations

import torch

from normlib.lab import Drawing, Study
from normlib.layers import batch_norm
from normlib.probes import covariance
from normlib.studies.common.statements import at_most, dots, gap, normal, verdict_counts

batch = Study(
    "seed001.batch",
    item="Sections 2, 3",
    title="The reading notes on batch norm: which of their statements hold, and how far off are the others?",
    kind="exact",
    vary={},
    quick={},
    laptop={},
    full=None,
)


@batch.trial
def _(c, seed):
    x, gamma, beta = 5 + 2 * normal(seed, 32, 8), normal(seed + 1, 8), normal(seed + 2, 8)
    y = batch_norm(x, eps=0.0)
    alike = batch_norm(normal(seed + 3, 4_096, 1) + 0.5 * normal(seed + 4, 4_096, 4), eps=0.0)
    one_map = normal(seed, 1, 3, 8, 8)
    return {
        "mean_0_variance_1": max(float(y.mean(0).abs().max()), gap(y.var(0, correction=0), 1.0)),
        "whitens": gap(covariance(alike), torch.eye(4)),
        "makes_it_gaussian": distance_from_gaussian(normal(seed, 4_096, 2).square().sum(1, keepdim=True)),
        "scale_acts_on_x": gap(gamma * x + beta, batch_norm(x, gamma, beta, eps=0.0)),
        "restores_the_input": gap(batch_norm(x, x.std(0, correction=0), x.mean(0), eps=0.0), x),
        "no_batch_of_1": gap(batch_norm(x[:1], gamma, beta)[0], beta),
        "a_batch_of_1_map": gap(batch_norm(one_map, eps=0.0), standardized_channels(one_map)),
        "one_bad_batch": max(gap(batch_norm(bad), batch_norm(x)) for bad in (10 * x, x / 10, x + 20)),
    }


def distance_from_gaussian(x):
    """Return the largest distance of distribution functions: batch norm of one feature, shape (N, 1), and N(0, 1)."""
    y = batch_norm(x, eps=0.0).flatten().sort().values
    expected = torch.special.ndtr(y)
    steps = torch.arange(len(y) + 1, dtype=y.dtype) / len(y)
    return float(torch.maximum((expected - steps[:-1]).abs(), (expected - steps[1:]).abs()).max())


def standardized_channels(maps):
    """Standardize each channel of each sample: instance normalization, written out."""
    return (maps - maps.mean((2, 3), keepdim=True)) / maps.std((2, 3), correction=0, keepdim=True)


@batch.draw
def _(table):
    return Drawing(
        dots(batch, table),
        caption="What the reading notes say of batch normalization. A dot is the distance between what is said and what is "
        "measured, relative to the larger of the two: rounding at the left, as wrong as can be at the right. "
        f"{verdict_counts(batch, table)} statements of the draft hold. The row on a batch of one map is ours.",
        alt="A dot for each of eight statements on batch norm, on a log axis of the distance from what is said. Those that hold "
        "lie at rounding or below a percent, those that do not above a tenth.",
    )


@batch.claim(
    "mean-0-variance-1",
    "Batch normalization gives each feature the mean 0 and the variance 1.",
    criterion="mean within 1e-10 of 0 and variance within 1e-10 of 1, without eps",
)
def _(table):
    return at_most(1e-10, table.mean_0_variance_1, "furthest mean from 0 or variance from 1")


@batch.claim(
    "whitens",
    "Batch normalization is a whitening procedure.",
    criterion="whitened means uncorrelated too: covariance of the outputs within 1e-6 of the identity, inputs correlated at 0.8",
)
def _(table):
    return at_most(1e-6, table.whitens, "largest correlation that is left", "each feature is standardized by itself")


@batch.claim(
    "makes-it-gaussian",
    "Batch normalization brings each column to N(0, 1).",
    criterion="N(0, 1) taken at its word: distribution functions at most 0.05 apart (our bound), exponentially distributed inputs",
)
def _(table):
    note = "mean and variance are those of N(0, 1), the shape is that of the input"
    return at_most(0.05, table.makes_it_gaussian, "largest distance of the distribution functions", note)


@batch.claim(
    "scale-acts-on-x",
    "The output of batch normalization is y = γx + β, as the equation is printed.",
    criterion="relative difference at most 1e-6 from batch normalization with the same scale and shift",
)
def _(table):
    note = "a misprint: the sentence above the equation and the code both take the normalized x̂"
    return at_most(1e-6, table.scale_acts_on_x, "largest relative difference", note)


@batch.claim(
    "restores-the-input",
    "With β = μ and γ = σ the original activations come back.",
    criterion="relative difference at most 1e-10, with μ and σ of the batch that is normalized, and without eps",
)
def _(table):
    return at_most(1e-10, table.restores_the_input, "largest relative difference")


@batch.claim(
    "no-batch-of-1",
    "Batch normalization cannot be applied at batch size 1.",
    criterion="a single vector: the output is the shift β within 1e-10, whatever the input",
)
def _(table):
    return at_most(1e-10, table.no_batch_of_1, "largest relative distance of the output from β")


@batch.claim(
    "a-batch-of-1-map",
    "In a convolutional network batch normalization can be applied at batch size 1: it is instance normalization then.",
    criterion="relative difference at most 1e-10 from standardizing each channel over its positions",
    by="notes",
)
def _(table):
    return at_most(1e-10, table.a_batch_of_1_map, "largest relative difference")


@batch.claim(
    "one-bad-batch",
    "One batch that is too large or too small, or shifted, does not ruin what the next layer is trained on.",
    criterion="the output of batch normalization in training moves by at most 1 % (our bound): ten times larger, smaller, or "
    "shifted by ten standard deviations, at the usual eps",
)
def _(table):
    return at_most(0.01, table.one_bad_batch, "largest relative change of the output")
