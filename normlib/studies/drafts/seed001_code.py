"""Reading notes on three papers (the draft `seed001`): what its two classes compute.

The classes are written anew here as functions of what they compute: which axes, which variance, where eps stands, along which axis
the scale acts. What they do as modules is taken from the gallery of faults.
"""

from __future__ import annotations

import torch

from normlib.gallery.running import GraphInBuffers, LateBuffers, check_graph_in_buffers, check_late_buffers
from normlib.lab import Drawing, Study
from normlib.layers import batch_norm, layer_norm
from normlib.studies.common.statements import at_most, dots, gap, normal, verdict_counts

code = Study(
    "seed001.code",
    item="the two classes",
    title="Do the two classes of the reading notes compute batch and layer normalization?",
    kind="exact",
    vary={},
    quick={},
    laptop={},
    full=None,
)


@code.trial
def _(c, seed):
    gain, bias = normal(seed + 1, 5), normal(seed + 2, 5)
    vectors, maps, summed = 1 + 2 * normal(seed, 32, 5), 1 + 2 * normal(seed, 16, 5, 5, 5), normal(seed, 8, 4)
    return {
        "batch_norm_of_vectors": gap(drafted_batch_norm(vectors, gain, bias), batch_norm(vectors, gain, bias, eps=1e-6)),
        "takes_maps": refused_maps(seed),
        "batch_norm_of_maps": gap(drafted_batch_norm(maps, gain, bias), batch_norm(maps, gain, bias, eps=1e-6)),
        "layer_norm_of_4": gap(drafted_layer_norm(summed), layer_norm(summed, [4], eps=0.0)),
        "too_wide_in_evaluation": gap(spread_in_evaluation(seed, batch=4), (4 / 3) ** 0.5),
        "loses_its_statistics": 1 - check_late_buffers(LateBuffers) / 2,
        "keeps_every_graph": 1 - check_graph_in_buffers(GraphInBuffers),
    }


def drafted_batch_norm(x, gain, bias):
    """Do what the class does in training: statistics over axis 0 alone, scale and shift along the last axis."""
    mean, var = x.mean(0, keepdim=True), x.var(0, correction=0, keepdim=True)
    return gain * (x - mean) / (var + 1e-6).sqrt() + bias


def drafted_layer_norm(x):
    """Do what the class does at its start: the unbiased standard deviation, and eps beside it."""
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


def refused_maps(seed):
    """Return the share of map widths from 1 to 8 at which the class, made for three features, raises an error."""
    refused = 0
    for width in range(1, 9):
        try:
            drafted_batch_norm(normal(seed, 8, 3, width, width), torch.ones(3), torch.zeros(3))
        except RuntimeError:
            refused += 1
    return refused / 8


def spread_in_evaluation(seed, batch):
    """Return the spread of outputs in evaluation: data of variance 1, the running variance what its average tends to."""
    running = normal(seed, 50_000, batch).var(1, correction=0).mean()
    return float(running.rsqrt())


@code.draw
def _(table):
    return Drawing(
        dots(code, table),
        caption="The two classes of the reading notes against the layers that they stand for. A dot is the distance between what "
        f"is said and what is measured. {verdict_counts(code, table)} statements of the draft hold: on vectors the class is batch "
        "normalization. The rows on evaluation, lost statistics and kept graphs are ours; they are faults that do occur.",
        alt="A dot for each of seven statements on the code of the reading notes, on a log axis of the distance from what is said.",
    )


@code.claim(
    "batch-norm-of-vectors",
    "The first class is batch normalization: in training, on vectors.",
    criterion="relative difference at most 1e-10 from batch normalization with the same eps",
)
def _(table):
    return at_most(1e-10, table.batch_norm_of_vectors, "largest relative difference")


@code.claim(
    "takes-maps",
    "The first class takes input of the shape [batch, features, ...], as its comment says.",
    criterion="no error for maps of width 1 to 8 with three features",
)
def _(table):
    note = "scale and shift have one number per feature and are spread along the last axis"
    return at_most(0.0, table.takes_maps, "share of the widths that raise an error", note)


@code.claim(
    "batch-norm-of-maps",
    "The first class is batch normalization on maps, where it runs.",
    criterion="relative difference at most 1e-6 from batch normalization with the same eps, five features on 5×5 maps",
)
def _(table):
    note = "each position has statistics of its own, and the scale acts along the width"
    return at_most(1e-6, table.batch_norm_of_maps, "largest relative difference", note)


@code.claim(
    "layer-norm-of-4",
    "The second class computes the layer normalization that the notes write down, σ² being the mean over H units.",
    criterion="relative difference at most 1e-4, eps left out on the other side, in a layer of 4 units",
)
def _(table):
    note = "it divides by H − 1; the outputs shrink by √((H − 1)/H), which matters in narrow layers only"
    return at_most(1e-4, table.layer_norm_of_4, "largest relative difference", note)


@code.claim(
    "too-wide-in-evaluation",
    "The first class averages the biased variance, so outputs are too wide in evaluation: by √(m/(m − 1)) after batches of m.",
    criterion="standard deviation of the outputs within 2 % of √(4/3), batches of 4, data of variance 1",
    by="notes",
)
def _(table):
    return at_most(0.02, table.too_wide_in_evaluation, "relative distance of the standard deviation from √(4/3)")


@code.claim(
    "loses-its-statistics",
    "Buffers that the first call registers, as in the first class, are lost: a fresh layer cannot load what a trained one saved.",
    criterion="a fresh layer's state has neither of the two running statistics",
    by="notes",
)
def _(table):
    return at_most(0.0, table.loses_its_statistics, "share of the running statistics that find their place")


@code.claim(
    "keeps-every-graph",
    "A running average of batches that are not detached, as in the first class, holds on to the graph of every step.",
    criterion="the running mean asks for a gradient after a batch",
    by="notes",
)
def _(table):
    return at_most(0.0, table.keeps_every_graph, "0 if the running mean asks for a gradient, else 1")
