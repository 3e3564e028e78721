"""Notes on normalization (the draft `seed004`): what they say of layer and group normalization."""

from __future__ import annotations

from normlib.lab import Drawing, Study
from normlib.layers import LayerNorm, group_norm, layer_norm
from normlib.studies.common.statements import at_most, dots, gap, normal, verdict_counts

flavors = Study(
    "seed004.flavors",
    item="Layer Norm, Group Normalization",
    title="The notes on layer and group norm: statements on whole samples hold, those on maps do not",
    kind="exact",
    vary={},
    quick={},
    laptop={},
    full=None,
)


@flavors.trial
def _(c, seed):
    a = 1 + normal(seed, 8, 12) * normal(seed + 1, 8, 1)
    maps = normal(seed, 4, 6, 6, 5) + 2 * normal(seed + 1, 1, 6, 1, 1)
    by_channels = standardized(maps.unflatten(1, (3, 2)), [2, 3, 4]).flatten(1, 2)
    by_rows = standardized(maps.unflatten(2, (3, 2)), [3, 4]).flatten(2, 3)
    return {
        "layer_norm_by_sample": gap(standardized(a, [1]), layer_norm(a, [12], eps=0.0)),
        "a_pair_per_channel": gap(standardized(maps, [2, 3]), group_norm(maps, 1, eps=0.0)),
        "averages_for_inference": by_averages(seed),
        "groups_split_a_sample": gap(by_channels, group_norm(maps, 3, eps=0.0)),
        "groups_split_a_map": gap(by_rows, group_norm(maps, 3, eps=0.0)),
        "no_issue_at_batch_1": gap(group_norm(maps[:1], 1), group_norm(maps, 1)[:1]),
    }


def standardized(x, axes):
    """Standardize over some axes, written out."""
    return (x - x.mean(axes, keepdim=True)) / x.std(axes, correction=0, keepdim=True)


def by_averages(seed):
    """Compare layer normalization in evaluation with the same sample normalized by averages over 200 earlier ones."""
    earlier, a = (1 + normal(s, n, 12) * normal(s + 1, n, 1).exp() for s, n in ((seed, 200), (seed + 2, 8)))
    mean, spread = earlier.mean(1).mean(), earlier.std(1, correction=0).mean()
    return gap((a - mean) / spread, LayerNorm(12, eps=0.0).double().eval()(a).detach())


@flavors.draw
def _(table):
    return Drawing(
        dots(flavors, table),
        caption="What the notes say of layer and group normalization. A dot is the distance between what is said and what is "
        f"measured, relative to the larger of the two. {verdict_counts(flavors, table)} statements of the draft hold: those on "
        "whole samples. The row on batches of one is ours.",
        alt="A dot for each of six statements on layer and group norm, on a log axis of the distance from what is said.",
    )


@flavors.claim(
    "layer-norm-by-sample",
    "Layer normalization takes one μ and one σ over the features of each single sample, for all neurons of a layer.",
    criterion="relative difference at most 1e-10 from that, written out",
)
def _(table):
    return at_most(1e-10, table.layer_norm_by_sample, "largest relative difference")


@flavors.claim(
    "a-pair-per-channel",
    "In convolutional networks layer normalization has one μ and one σ for each input channel.",
    criterion="relative difference from the layer norm of maps, one group over all channels and positions, at most 1e-6",
)
def _(table):
    return at_most(1e-6, table.a_pair_per_channel, "largest relative difference", "that is instance normalization")


@flavors.claim(
    "averages-for-inference",
    "For inference layer normalization can use running averages of its statistics, as batch normalization does.",
    criterion="the outputs differ from those of layer normalization by at most 5 % (our bound), samples of unequal scale",
)
def _(table):
    note = "each sample brings its statistics along, in evaluation too"
    return at_most(0.05, table.averages_for_inference, "largest relative difference", note)


@flavors.claim(
    "groups-split-a-sample",
    "Group normalization takes its statistics over subsets of the features of one sample.",
    criterion="with groups of neighboring channels at all positions: relative difference at most 1e-10",
)
def _(table):
    return at_most(1e-10, table.groups_split_a_sample, "largest relative difference")


@flavors.claim(
    "groups-split-a-map",
    "The groups are parts of a feature map, so that statistics follow its spatial structure.",
    criterion="three groups, each a third of the rows of a map: relative difference at most 1e-6",
)
def _(table):
    note = "groups split the channels; every position of a channel shares its group's statistics"
    return at_most(1e-6, table.groups_split_a_map, "largest relative difference", note)


@flavors.claim(
    "no-issue-at-batch-1",
    "At batch size 1 nothing is left that groups could mitigate further: layer normalization does not depend on the batch.",
    criterion="layer normalization of a sample, alone and in a batch: relative difference at most 1e-10",
    by="notes",
)
def _(table):
    return at_most(1e-10, table.no_issue_at_batch_1, "largest relative difference")
