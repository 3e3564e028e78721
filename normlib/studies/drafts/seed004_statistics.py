"""Notes on normalization (the draft `seed004`): what they say of the statistics of batch normalization."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from normlib.lab import Drawing, Study
from normlib.layers import BatchNorm, batch_moments, batch_norm
from normlib.studies.common.statements import at_most, dots, gap, normal, verdict_counts

statistics = Study(
    "seed004.statistics",
    item="BatchNorm",
    title="The notes on μ and σ of batch norm: how they are computed holds, how they are learned does not",
    kind="exact",
    vary={},
    quick={},
    laptop={},
    full=None,
)


@statistics.trial
def _(c, seed):
    a, one = 2 + 3 * normal(seed, 256, 4), normal(seed, 1, 6)
    sigma = (a - a.mean(0)).square().mean(0).sqrt()
    mean, variance = batch_moments(one)
    return {
        "mu_and_sigma_are_learned": not_learned(a),
        "standardizes": gap((a - a.mean(0)) / sigma, batch_norm(a, eps=0.0)),
        "one_pair_per_neuron": gap(means_of(normal(seed, 32, 6)), 6),
        "one_pair_per_channel": gap(means_of(normal(seed, 32, 6, 8, 8)), 6),
        "averages_for_inference": gap(*averages(seed)),
        "batch_of_1_variance_0": gap(mean, one[0]) + float(variance.abs().max()),
        "small_kernel_more_data": gap(positions(3, 0) / positions(7, 0), 14**2 / 10**2),
        "not_with_padding": gap(positions(3, 1), positions(7, 3)),
    }


def not_learned(a):
    """Return the share of μ and σ of a layer that are no parameters of it, or move without an optimizer."""
    norm = BatchNorm(4).double()
    parameters = {id(parameter) for parameter in norm.parameters()}
    kept = [norm.get_buffer("running_mean"), norm.get_buffer("running_var")]
    before = [statistic.clone() for statistic in kept]
    norm(a)
    pairs = zip(kept, before, strict=True)
    return sum(id(now) not in parameters or not torch.equal(now, was) for now, was in pairs) / 2


def means_of(a):
    """Count the means that batch normalization takes of activations."""
    return batch_moments(a)[0].numel()


def averages(seed):
    """Return the running mean after 20 batches, and the exponentially weighted average of their means."""
    norm, average = BatchNorm(4, momentum=0.1).double(), torch.zeros(4, dtype=torch.float64)
    for x in 2 + 3 * normal(seed, 20, 32, 4):
        norm(x)
        average = 0.9 * average + 0.1 * x.mean(0)
    return norm.get_buffer("running_mean"), average


def positions(kernel, padding):
    """Count the positions that a convolution of a 16×16 map has."""
    return F.conv2d(torch.ones(1, 1, 16, 16), torch.ones(1, 1, kernel, kernel), padding=padding).numel()


@statistics.draw
def _(table):
    return Drawing(
        dots(statistics, table),
        caption="What the notes say of the statistics of batch normalization. A dot is the distance between what is said and what "
        f"is measured, relative to the larger of the two. {verdict_counts(statistics, table)} statements of the draft hold. The "
        "row on padding is ours: with it the number of positions does not depend on the kernel.",
        alt="A dot for each of eight statements on μ and σ of batch norm, on a log axis of the distance from what is said. "
        "All but one lie at zero or at rounding.",
    )


@statistics.claim(
    "mu-and-sigma-are-learned",
    "μ and σ are learned by gradient descent, like any other parameter.",
    criterion="both are parameters of the layer, and a pass forward without an optimizer leaves them as they are",
)
def _(table):
    note = "they are statistics of the batch; what is learned is the scale γ and the shift β"
    return at_most(0.0, table.mu_and_sigma_are_learned, "share of μ and σ that is not", note)


@statistics.claim(
    "standardizes",
    "Normalized activations are (A − μ)/σ, μ and σ being mean and standard deviation over the samples.",
    criterion="relative difference at most 1e-10 from batch normalization, without eps",
)
def _(table):
    note = "the formula for σ has H where A is meant"
    return at_most(1e-10, table.standardizes, "largest relative difference", note)


@statistics.claim(
    "one-pair-per-neuron",
    "Statistics are taken per feature: each neuron of a dense layer has a μ and a σ of its own.",
    criterion="as many means as neurons",
)
def _(table):
    return at_most(0.0, table.one_pair_per_neuron, "means in excess or missing, as a share")


@statistics.claim(
    "one-pair-per-channel",
    "In a convolutional network there is a single μ and σ per channel.",
    criterion="as many means as channels",
)
def _(table):
    return at_most(0.0, table.one_pair_per_channel, "means in excess or missing, as a share")


@statistics.claim(
    "averages-for-inference",
    "In training an exponentially weighted average of μ is kept, for use in inference.",
    criterion="relative difference of the running mean from it at most 1e-10",
)
def _(table):
    return at_most(1e-10, table.averages_for_inference, "largest relative difference")


@statistics.claim(
    "batch-of-1-variance-0",
    "A batch of one item has itself for its mean, and the variance 0.",
    criterion="both exactly",
)
def _(table):
    return at_most(0.0, table.batch_of_1_variance_0, "distance of mean and variance from that")


@statistics.claim(
    "small-kernel-more-data",
    "The smaller the kernel, the more activations there are to take statistics of.",
    criterion="no padding, as the draft names none: kernel 3 over kernel 7 on 16×16 maps gives 14² over 10² positions",
)
def _(table):
    return at_most(0.0, table.small_kernel_more_data, "relative distance of the ratio from that")


@statistics.claim(
    "not-with-padding",
    "With the usual padding, half the kernel, the number of activations does not depend on the kernel.",
    criterion="as many positions at kernel 3 as at kernel 7",
    by="notes",
)
def _(table):
    return at_most(0.0, table.not_with_padding, "relative difference of the numbers")
