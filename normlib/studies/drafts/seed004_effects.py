"""Notes on normalization (the draft `seed004`): what they say batch normalization does to shifts, ranges and updates."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from normlib.lab import Drawing, Study
from normlib.layers import batch_norm
from normlib.studies.common.statements import at_most, dots, gap, normal, verdict_counts

effects = Study(
    "seed004.effects",
    item="BatchNorm",
    title="The notes on what batch norm does: which of two shifts is idle, what is bounded, what is fixed",
    kind="exact",
    vary={},
    quick={},
    laptop={},
    full=None,
)


@effects.trial
def _(c, seed):
    x, bias, ones = normal(seed, 32, 4), normal(seed + 1, 4), torch.ones(4, dtype=torch.float64)
    outlier = torch.cat([torch.full((1, 1), 1e6, dtype=torch.float64), normal(seed, 63, 1)])
    return {
        "learned_shift_is_idle": float((batch_norm(x + bias, ones, ones) - batch_norm(x + bias, ones, 0 * ones)).mean()),
        "bias_below_is_idle": gap(batch_norm(x + 1), batch_norm(x)),
        "range_is_bounded": max(0.0, float(batch_norm(outlier, eps=0.0).abs().max()) / 63**0.5 - 1),
        "updates_of_fixed_size": change_of_the_update(seed),
    }


def change_of_the_update(seed):
    """Multiply the weights below a batch norm by 4; return how much the length of their gradient changes, relatively."""
    x, weight, labels = normal(seed, 32, 6), normal(seed + 1, 6, 4), torch.arange(32) % 4
    gradient = torch.func.grad(lambda w: F.cross_entropy(batch_norm(x @ w, eps=0.0), labels))
    return gap(gradient(4 * weight).norm(), gradient(weight).norm())


@effects.draw
def _(table):
    return Drawing(
        dots(effects, table),
        caption="What the notes say batch normalization does. A dot is the distance between what is said and what is measured. "
        f"{verdict_counts(effects, table)} statements of the draft hold. The row on the bias below is ours: not the learned shift "
        "but that bias is without effect.",
        alt="A dot for each of four statements on the effects of batch norm, on a log axis of the distance from what is said.",
    )


@effects.claim(
    "learned-shift-is-idle",
    "Unless the bias of the layer below is given up, the learned mean of batch normalization has no effect.",
    criterion="the output stays within 1e-10 when the learned shift moves by 1, with a bias below",
)
def _(table):
    note = "the shift is added last; it is the bias below that has no effect"
    return at_most(1e-10, table.learned_shift_is_idle, "change of the output", note)


@effects.claim(
    "bias-below-is-idle",
    "The bias of a layer that batch normalization follows has no effect.",
    criterion="the output stays within 1e-10 when the bias moves by 1",
    by="notes",
)
def _(table):
    return at_most(1e-10, table.bias_below_is_idle, "largest relative change of the output")


@effects.claim(
    "range-is-bounded",
    "Batch normalization bounds the range of the activations of a layer.",
    criterion="before scale and shift: a batch of m = 64 with an outlier of a million exceeds √(m − 1) by at most 1e-10 of it",
)
def _(table):
    note = "scale and shift are free, and the bound grows with the batch"
    return at_most(1e-10, table.range_is_bounded, "excess over √(m − 1)", note)


@effects.claim(
    "updates-of-fixed-size",
    "Batch normalization brings the parameter updates to a fixed magnitude.",
    criterion="the gradient of the weights keeps its length within 1 % (our bound) when the weights are four times as large",
)
def _(table):
    note = "it shrinks as one over the length of the weights: by a factor of 4"
    return at_most(0.01, table.updates_of_fixed_size, "relative change of the gradient's length", note)
