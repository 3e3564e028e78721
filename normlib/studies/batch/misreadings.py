"""What the drafts leave open or say in passing of the statistics of batch normalization: a row for each, drafts' and ours.

What they state in so many words is judged under their own keys. Slips of the pen are not held against them: where a word or an
index went wrong, the row says what is right and is ours.
"""

from __future__ import annotations

import torch

from normlib.lab import Drawing, Study
from normlib.layers import BatchNorm, batch_norm, layer_norm
from normlib.probes import covariance
from normlib.studies.common.statements import at_most, dots, gap, normal

MISSED = 0.1  # by how much the error of a small batch has to grow with the data, relatively

misreadings = Study(
    "notes.misreadings",
    item="the drafts on the statistics",
    title="What is easily misread in batch norm's statistics: whose they are, when they are used, what they tell",
    kind="exact",
    vary={},
    quick={},
    laptop={},
    full=None,
)


@misreadings.trial
def _(c, seed):
    x = 2 + 3 * normal(seed, 32, 4)
    mean, deviation = x.mean(0), x.std(0, correction=0)
    constant = torch.cat([torch.full_like(x[:, :1], 5.0), x], 1)
    return {
        "divided_by_the_variance": gap(((x - mean) / deviation.square()).std(0, correction=0), 1 / deviation),
        "sum_over_features": gap((x.T - x.mean(1)).T / x.std(1, correction=0)[:, None], layer_norm(x, [4], eps=0.0)),
        "no_value_without_eps": float(batch_norm(constant, eps=0.0)[:, 0].isfinite().double().mean()),
        "rank_of_a_batch_of_60": gap(torch.linalg.matrix_rank(covariance(normal(seed, 60, 100))), 59),
        "starts_at_0_and_1": sum(gap(kept, said) for kept, said in zip(kept_by(BatchNorm(4)), (0, 1), strict=True)),
        "start_has_no_effect": effect_of_the_start(x),
        "parameters_are_not_averaged": effect_of_the_parameters(x),
        "evaluation_forgets_the_batch": effect_of_the_others(x),
        "remembers_a_bad_batch": distance_of_memory(20.0, x),
        "said_less_by_more_data": missing_growth(seed),
        "a_batch_of_8_misses_by_a_third": gap(error_of_batch_means(normal(seed + 2, 1, 100_000)), 8**-0.5),
    }


def kept_by(layer):
    """Return the running mean and the running variance of a layer."""
    return layer.get_buffer("running_mean"), layer.get_buffer("running_var")


def effect_of_the_start(x):
    """Start the running statistics elsewhere; return the largest relative change of the outputs in training."""
    usual, other = BatchNorm(4).double(), BatchNorm(4).double()
    for kept in kept_by(other):
        kept.fill_(7.0)
    return gap(other(x).detach(), usual(x).detach())


def effect_of_the_parameters(x):
    """Move scale and shift; return the largest relative change of the running statistics that a batch leaves."""
    usual, other = BatchNorm(4).double(), BatchNorm(4).double()
    with torch.no_grad():
        other.weight.fill_(3.0)
        other.bias.fill_(-2.0)
    usual(x), other(x)
    return max(gap(*pair) for pair in zip(kept_by(other), kept_by(usual), strict=True))


def effect_of_the_others(x):
    """Return the largest relative change of a sample's output in evaluation when the rest of its batch goes."""
    layer = BatchNorm(4).double()
    layer(x)
    layer.eval()
    return gap(layer(x)[:1].detach(), layer(x[:1]).detach())


def distance_of_memory(shift, x):
    """Shift a batch; return how far its outputs are from unchanged, or the running mean from being off by a tenth of the shift."""
    usual, bad = BatchNorm(4, momentum=0.1).double(), BatchNorm(4, momentum=0.1).double()
    outputs = gap(bad(x + shift).detach(), usual(x).detach())
    return max(outputs, gap(kept_by(bad)[0] - kept_by(usual)[0], 0.1 * shift))


def error_of_batch_means(data, batch=8):
    """Return the typical distance of a batch's mean from that of its data set, in the data's deviations; `data`: (sets, items)."""
    means = data.reshape(len(data), -1, batch).mean(2)
    return float(((means - data.mean(1, keepdim=True)) / data.std(1, correction=0, keepdim=True)).square().mean().sqrt())


def missing_growth(seed):
    """Make the data set 100 times as large; return by how much the growth of the error falls short of MISSED."""
    small, large = (error_of_batch_means(normal(seed, sets, 100_000 // sets)) for sets in (100, 1))
    return max(0.0, 1 - (large / small - 1) / MISSED)


@misreadings.draw
def _(table):
    return Drawing(
        dots(misreadings, table),
        caption="What is easily misread in the statistics. A dot is the distance between what is said and what is measured. The "
        "rows on the start at 0 and 1 and on more data are of a draft, the notes on three layers. All others are ours: they say "
        "what is right where a draft leaves a word, a mode or a limit open.",
        alt="A dot for each of eleven statements on the statistics of batch norm, on a log axis of the distance from what is said.",
    )


@misreadings.claim(
    "divided-by-the-variance",
    "Dividing by the variance, the word that stands beside σ in one draft, would leave the standard deviation 1/σ instead of 1.",
    criterion="relative difference at most 1e-10 from 1/σ",
)
def _(table):
    note = "the formula in the draft is the standard deviation; the word is a slip"
    return at_most(1e-10, table.divided_by_the_variance, "largest relative difference", note)


@misreadings.claim(
    "sum-over-features",
    "Sums over the samples make batch normalization. The same sums over the features make layer normalization.",
    criterion="statistics over the features: relative difference from layer normalization at most 1e-10, without eps",
)
def _(table):
    return at_most(1e-10, table.sum_over_features, "largest relative difference")


@misreadings.claim(
    "no-value-without-eps",
    "Without eps, as the drafts print the formula, a feature that is constant in the batch has no value.",
    criterion="no finite output of a feature that is 5 for every sample",
)
def _(table):
    return at_most(0.0, table.no_value_without_eps, "share of its outputs that are finite")


@misreadings.claim(
    "rank-of-a-batch-of-60",
    "A batch of 60 cannot whiten a layer of 100 units: its covariance has the rank 59 and no inverse.",
    criterion="rank of the covariance of 60 normal samples exactly 59",
)
def _(table):
    return at_most(0.0, table.rank_of_a_batch_of_60, "relative distance of the rank from 59")


@misreadings.claim(
    "starts-at-0-and-1",
    "One can start σ at 1 and μ at 0.",
    criterion="taken as meant for what a layer keeps: running mean 0 and running variance 1 in a new layer, exactly",
    by="seed004",
)
def _(table):
    note = "scale and shift start at 1 and 0 too; they are what is learned"
    return at_most(0.0, table.starts_at_0_and_1, "distance from 0 and 1", note)


@misreadings.claim(
    "start-has-no-effect",
    "Where the running statistics start has no effect on training.",
    criterion="the outputs in training stay exactly as they are if both start at 7",
)
def _(table):
    return at_most(0.0, table.start_has_no_effect, "largest relative change of the outputs")


@misreadings.claim(
    "parameters-are-not-averaged",
    "What is averaged for inference are statistics of what comes in. Scale and shift have no part in it.",
    criterion="the running statistics stay exactly as they are at another scale and shift",
)
def _(table):
    return at_most(0.0, table.parameters_are_not_averaged, "largest relative change of the running statistics")


@misreadings.claim(
    "evaluation-forgets-the-batch",
    "In evaluation a sample's output does not depend on the batch that it comes in.",
    criterion="relative difference at most 1e-10 between a sample alone and in a batch of 32",
)
def _(table):
    note = "in training it does depend on it: one layer, two functions"
    return at_most(1e-10, table.evaluation_forgets_the_batch, "largest relative difference", note)


@misreadings.claim(
    "remembers-a-bad-batch",
    "The outputs forget that a batch was shifted; the running mean remembers a tenth of the shift.",
    criterion="momentum 0.1, a shift by 20: outputs in training unchanged, the running mean off by 2, relatively within 1e-10",
)
def _(table):
    return at_most(1e-10, table.remembers_a_bad_batch, "largest relative difference")


@misreadings.claim(
    "said-less-by-more-data",
    "The larger the full data set, the less do μ and σ of 5 to 10 items say of it.",
    criterion="what a batch of 8 misses grows with the data: error of its mean at least 10 % larger (our bound) with "
    "100,000 items than with 1,000",
    by="seed004",
)
def _(table):
    note = "the error grows from 0, where the batch is all the data, to σ/√m; there it stays once the data are many batches"
    return at_most(0.0, table.said_less_by_more_data, "part of that growth that is missing", note)


@misreadings.claim(
    "a-batch-of-8-misses-by-a-third",
    "The mean of 8 items misses the mean of all by σ/√8, about a third of the deviation.",
    criterion="root mean square distance within 2 % of σ/√8, normal numbers",
)
def _(table):
    return at_most(0.02, table.a_batch_of_8_misses_by_a_third, "relative distance from σ/√8")
