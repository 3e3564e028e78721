"""Notes in Korean on Lubana, Dick and Tanaka (the draft `seed002`): signals in random networks."""

from __future__ import annotations

import torch

from normlib.lab import Drawing, Study, judge_effect
from normlib.layers import batch_norm, layer_norm
from normlib.studies.common.statements import normal, ranges, through_network, verdict_counts
from normlib.weights import scaled_weight_standardization, weight_norm

INFINITY = float("inf")
SAID = {
    "batch-norm-adds-evenly": (0.8, 1.25),
    "layer-norm-adds-evenly": (0.8, 1.25),
    "weight-norms-explode": (2.0, INFINITY),
    "inputs-stay-apart": (1.5, INFINITY),
}
WIDTH = 64
EXPONENTIAL = 16  # the same ratio for a variance that grows by √2 a block

signals = Study(
    "seed002.signals",
    item="Stable forward, informative forward",
    title="Random networks: with norms of activations residual streams grow evenly and inputs stay apart",
    kind="init",
    vary={},
    quick={},
    laptop={},
    full=None,
    seeds={"quick": 3, "laptop": 7},
)


@signals.trial
def _(c, seed):
    gains = torch.full((WIDTH, 1), 2**0.5, dtype=torch.float64)
    by_norm_of_weights = [
        added(identity, lambda weight: weight_norm(weight, gains), seed),
        added(identity, lambda weight: scaled_weight_standardization(weight, gains), seed),
    ]
    return {
        "batch_norm_adds": added(batch_norm, identity, seed),
        "layer_norm_adds": added(lambda stream: layer_norm(stream, [WIDTH]), identity, seed),
        "weight_norms_add": min(by_norm_of_weights),
        "cosines": mean_cosine(identity, seed) / mean_cosine(batch_norm, seed),
    }


def identity(x):
    """Leave signals or weights as they are."""
    return x


def added(normalize, normalize_weight, seed, blocks=12, width=WIDTH):
    """Add residual branches W relu(normalize(x)) to a stream; compare what the last four and the first four add to its variance."""
    stream, *draws = normal(seed, blocks + 1, width, width)
    variances = [stream.var(0, correction=0).mean()]
    for draw in draws:
        weight = normalize_weight((2 / width) ** 0.5 * draw)
        stream = stream + normalize(stream).relu() @ weight.T
        variances.append(stream.var(0, correction=0).mean())
    return float((variances[-1] - variances[-5]) / (variances[4] - variances[0]))


def mean_cosine(normalize, seed):
    """Return the mean cosine between the activations of different items after 30 layers."""
    hidden = through_network(normalize, seed, depth=30).signals[-1].relu()
    directions = hidden / hidden.norm(dim=1, keepdim=True)
    return float((directions @ directions.T).fill_diagonal_(0).sum()) / (len(hidden) * (len(hidden) - 1))


@signals.draw
def _(table):
    return Drawing(
        ranges(signals, table, SAID),
        caption="ReLU networks before training. Rows on norms: what the last four of twelve residual blocks add to the "
        "variance, over what the first four add; 1 is linear growth. The row on inputs: how alike they are after 30 layers, "
        f"without a norm over with batch norm. Gray: what the notes say. {verdict_counts(signals, table)} statements hold.",
        alt="Four rows on a log axis of a ratio, one for each statement on signals, with intervals. Gray bars mark what is said.",
    )


@signals.claim(
    "batch-norm-adds-evenly",
    "In residual networks with batch normalization the variance of the activations grows linearly with depth.",
    criterion="of 12 blocks the last four add as much as the first four to the variance over items, within a factor of 1.25 (our "
    "bound); growth by √2 a block would make it 16",
)
def _(table):
    effect = "variance added, last four blocks / first four"
    return judge_effect(effect, table.batch_norm_adds, claimed=SAID["batch-norm-adds-evenly"], null=EXPONENTIAL)


@signals.claim(
    "layer-norm-adds-evenly",
    "So it does with other norms of activations, here layer normalization.",
    criterion="of 12 blocks the last four add as much as the first four to the variance over items, within a factor of 1.25 (our "
    "bound); growth by √2 a block would make it 16",
)
def _(table):
    effect = "variance added, last four blocks / first four"
    note = "far from exponential, and somewhat less than linear"
    return judge_effect(effect, table.layer_norm_adds, claimed=SAID["layer-norm-adds-evenly"], null=EXPONENTIAL, note=note)


@signals.claim(
    "weight-norms-explode",
    "Norms of parameters do not have this property.",
    criterion="weight norm and scaled weight standardization: of 12 blocks the last four add at least twice as much as the first "
    "four (our bound)",
)
def _(table):
    effect = "variance added, last four blocks / first four, the smaller of the two"
    return judge_effect(effect, table.weight_norms_add, claimed=SAID["weight-norms-explode"], null=1)


@signals.claim(
    "inputs-stay-apart",
    "With depth the activations of different inputs become alike; batch normalization keeps them diverse.",
    criterion="after 30 layers the mean cosine between items is at least 1.5 times as large without a norm (our bound)",
)
def _(table):
    return judge_effect("mean cosine, no norm / batch norm", table.cosines, claimed=SAID["inputs-stay-apart"], null=1)
