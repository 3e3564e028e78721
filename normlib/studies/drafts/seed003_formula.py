"""A short review of batch normalization (the draft `seed003`): its formula, and what its parameters can do."""

from __future__ import annotations

import torch

from normlib.lab import Drawing, Study
from normlib.layers import BatchNorm, batch_norm
from normlib.studies.common.statements import at_most, dots, gap, normal, verdict_counts

formula = Study(
    "seed003.formula",
    item="How it works",
    title="The short review on the formula of batch norm: it holds, and what it restores depends on whose mean is meant",
    kind="exact",
    vary={},
    quick={},
    laptop={},
    full=None,
)


@formula.trial
def _(c, seed):
    x = 2 + 3 * normal(seed, 32, 4)
    mean, deviation = x.mean(0), x.var(0, correction=0).sqrt()
    return {
        "normalizes_by_the_batch": gap((x - mean) / deviation, BatchNorm(4, eps=1e-12).double()(x).detach()),
        "sigmoid_held_linear": not_linear(),
        "restores_the_input": gap(batch_norm(x, deviation, mean, eps=0.0), x),
        "restores_other_batches": gap(not_restored(seed, batch=64), (1.5 / 64) ** 0.5),
    }


def not_linear():
    """Return the share of the variance of sigmoid(x), x standard normal, that the best straight line does not explain."""
    x = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    return 1 - float(torch.corrcoef(torch.stack([x, x.sigmoid()]))[0, 1] ** 2)


def not_restored(seed, batch):
    """Set scale and shift to the population's values; return the typical change of an input, in its standard deviations."""
    x = 2 + 3 * normal(seed, 1_000, batch, 1)
    scale, shift = torch.tensor([3.0], dtype=x.dtype), torch.tensor([2.0], dtype=x.dtype)
    y = torch.stack([batch_norm(one, scale, shift, eps=0.0) for one in x])
    return float((y - x).square().mean().sqrt() / 3)


@formula.draw
def _(table):
    return Drawing(
        dots(formula, table),
        caption="What the short review says of the formula. A dot is the distance between what is said and what is measured, "
        f"relative to the larger of the two. {verdict_counts(formula, table)} statements of the draft hold. The row on other "
        "batches is ours: parameters stay while batches change, and what comes back then is off by √(1.5/m).",
        alt="A dot for each of four statements on the formula of batch norm, on a log axis of the distance from what is said.",
    )


@formula.claim(
    "normalizes-by-the-batch",
    "Each feature is normalized by the mean and the variance of the mini-batch.",
    criterion="in training, relative difference of the formula from batch normalization at most 1e-10, without eps",
)
def _(table):
    note = "in evaluation running statistics take their place; the review ends before it comes to use"
    return at_most(1e-10, table.normalizes_by_the_batch, "largest relative difference", note)


@formula.claim(
    "sigmoid-held-linear",
    "Without scale and shift, normalized inputs would hold a sigmoid in its linear regime.",
    criterion="for standard normal inputs a straight line leaves at most 5 % (our bound) of the outputs' variance unexplained",
)
def _(table):
    return at_most(0.05, table.sigmoid_held_linear, "share of the variance that is not linear")


@formula.claim(
    "restores-the-input",
    "If scale and shift learn the values √Var[x] and E[x], the original activations come back.",
    criterion="relative difference at most 1e-10, mean and variance being those of the batch, as the review defines them",
)
def _(table):
    return at_most(1e-10, table.restores_the_input, "largest relative difference")


@formula.claim(
    "restores-other-batches",
    "Scale and shift stay as batches change: at the population's values, activations come back within √(1.5/m) of their spread.",
    criterion="root mean square difference of output and input within 10 % of √(1.5/m), batches of m = 64 normal numbers",
    by="notes",
)
def _(table):
    return at_most(0.1, table.restores_other_batches, "relative distance from √(1.5/64)")
