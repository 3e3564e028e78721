"""The third question of the draft: do weights and books do without normalization in networks that are no plain ResNets?"""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.networks import DenseNet, PlainConvNet, ViT
from normlib.networks.densenet import DenseLayer
from normlib.probes import channel_power, reduce_activations
from normlib.residual import expected_variances
from normlib.residual.join import Scale
from normlib.studies.common.arms import images_for, population_accuracy, side_by_side
from normlib.studies.common.looks import GRAY, INK, OLIVE, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
from normlib.studies.normalizer_free.tricks import BATCH, RECIPE, SCHEDULE, TRICKS, fit, resnet
from normlib.training import Update, train
from normlib.training.history import History
from normlib.weights import activation_gain

NAMES = {"plain": "plain", "dense": "DenseNet", "depthwise": "depthwise", "vit": "ViT"}
NETWORKS = list(NAMES)
ARM = ["network", "way"]
USUAL = {"plain": "batch", "dense": "batch", "depthwise": "batch", "vit": "layer"}
WAYS = {"norm": "o", "nf": "D", "none": "^"}  # and their markers
ALPHA = 0.2
WITHIN = 2.0  # points of test accuracy that still count as the same
# The rate that the grid of an arm stands around, by a pilot of one seed on held-out images.
AROUND = {
    "plain": {"norm": 0.2, "nf": 0.02, "none": 0.06},
    "dense": {"norm": 0.3, "nf": 0.06, "none": 0.06},
    "depthwise": {"norm": 0.6, "nf": 0.6, "none": 0.2},
    "vit": {"norm": 6e-3, "nf": 0.01, "none": 0.01},
}

other = Study(
    "seed000.other_architectures",
    item="question 3",
    title="Can this also work for other architectures? A plain net, a DenseNet, depthwise convolutions, a vision transformer",
    kind="train",
    vary={"network": NETWORKS, "way": list(WAYS), "multiple": [0.1, 0.3, 1.0, 3.0]},
    quick={
        "data": "digits", "train": 512, "validation": 128, "test": 128, "depth": 5, "width": 8, "layers": [1, 1], "growth": 4,
        "stages": [1, 1], "group_size": 1, "patch": 4, "dim": 16, "blocks": 1, "batch": 32, "steps": 8, "multiple": [1.0],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 3_072, "validation": 512, "test": 1_000, "depth": 10, "width": 16,
        "layers": [2, 2, 2], "growth": 8, "stages": [1, 1, 1], "group_size": 1, "patch": 7, "dim": 32, "blocks": 3,
        "batch": 32, "steps": 100,
    },
    full={
        "data": "cifar10", "validation": 5_000, "depth": 20, "width": 64, "layers": [12, 12, 12], "growth": 12,
        "stages": [3, 3, 3], "group_size": 1, "patch": 4, "dim": 192, "blocks": 6, "batch": BATCH, "steps": 20_000,
        "multiple": [0.03, 0.1, 0.3, 1.0, 3.0],
    },
)  # fmt: skip


def build(c: Config, images: Dataset, seed: int) -> nn.Module:
    """Build the network of an arm: with its usual norm, with standardized weights and books, or with nothing."""
    key = "batch" if c.way == "norm" else c.way
    trick = TRICKS[key]
    channels, side, _ = images.shape
    shared = {"in_channels": channels, "classes": images.classes, "norm": trick.norm, "init": trick.init, "seed": seed}
    if c.network == "plain":
        return PlainConvNet(c.depth, c.width, image_size=side, **shared).to(c.device)  # type: ignore
    if c.network == "dense":
        return DenseNet(c.layers, c.growth, bias=trick.bias, **shared).to(c.device)  # type: ignore
    if c.network == "depthwise":
        narrow = Config({**c, "width": c.width // 4}, c.device)  # it is six times as wide inside
        return resnet(narrow, images, key, seed, unit="inverted")
    return transformer(c, images, seed).to(c.device)


def transformer(c: Config, images: Dataset, seed: int) -> ViT:
    """Build the transformer of an arm; the normalizer-free one keeps books over its sublayers."""
    channels, side, _ = images.shape
    norm = {"norm": "layer", "nf": "scaled_weight:gain=identity", "none": "none"}[c.way]
    net = ViT(
        side, c.patch, c.dim, c.blocks, 4, 2.0, channels, images.classes, norm=norm,
        init="lecun" if c.way == "nf" else "glorot_normalized", seed=seed,
    )  # fmt: skip
    if c.way == "nf":
        sublayers = [sublayer for block in net.blocks for sublayer in (block.attention, block.mlp)]
        for sublayer, book in zip(sublayers, expected_variances([len(sublayers)], ALPHA), strict=True):
            sublayer.before, sublayer.inside = Scale(1 / book.beta), Scale(ALPHA)  # type: ignore
        for block in net.blocks:  # the other linear layers take in no activation
            block.mlp.branch.activation = nn.Sequential(block.mlp.branch.activation, Scale(activation_gain("gelu")))  # type: ignore
    return net


def passed_on(net: nn.Module, x: Tensor) -> list[float]:
    """Return the variance of what each layer or branch puts out before training, over that of what the stem puts out.

    The stem is the first convolution, or the embedding of patches with their positions. A layer is a convolution of the plain net,
    a branch what a DenseNet appends or a residual network adds, before its factor. The books expect 1 for each.
    """
    if isinstance(net, ViT):
        names = [f"blocks.{at}.{part}.branch" for at in range(len(net.blocks)) for part in ("attention", "mlp")]
        stem, axis = channel_power(net.embed(x).detach(), -1).variance, -1
        found = reduce_activations(net, x, lambda t: channel_power(t, axis).variance, names, training=True)
        return [value / stem for value in found.values()]
    if isinstance(net, PlainConvNet):
        names = [f"blocks.{at}.layer" for at in range(len(net.blocks))]
    else:
        inner = [at for at, part in enumerate(net.blocks) if not isinstance(net, DenseNet) or isinstance(part, DenseLayer)]  # type: ignore
        names = ["stem", *(f"blocks.{at}.branch" for at in inner)]
    stem, *others = reduce_activations(net, x, lambda t: channel_power(t).variance, names, training=True).values()
    return [value / stem for value in others]


def learn(net: nn.Module, images: Dataset, c: Config, rate: float, seed: int) -> History:
    """Train in place: networks of convolutions by the recipe of the chapter, the transformer by AdamW on the same schedule."""
    if c.network != "vit":
        return fit(net, images, steps=c.steps, rate=rate, seed=seed, batch=c.batch)
    return train(
        net, images.x_train, images.y_train, steps=c.steps, batch_size=c.batch, rate=rate, schedule=SCHEDULE, weight_decay=0.05,
        update=Update(optimizer="adamw", decay="weights"), seed=seed,
    )  # fmt: skip


@other.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net, rate = build(c, tune, seed), c.multiple * AROUND[c.network][c.way]
    ratios = passed_on(net, tune.x_train[:256])
    columns = {"rate": rate, "place": [(at + 1) / len(ratios) for at in range(len(ratios))], "passed": ratios}
    history = learn(net, tune, c, rate, seed)
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}", **columns)
    batches = tune.x_train.split(c.batch)[:16]
    parts = {"held_out": (tune.x_test, tune.y_test), "accuracy": (images.x_test, images.y_test)}
    return {**columns, **{name: 100 * population_accuracy(net, batches, *part) for name, part in parts.items()}}


def points(table, way: str, other_way: str):
    """Return test accuracy one way less another, in points, each at its own rate: a row a seed, a column a network."""
    scores = side_by_side(tuned(table, ARM, "held_out")[0], ["way", "network"], "accuracy")
    return (scores[way] - scores[other_way])[NETWORKS]


def steps_off(table):
    """Return the mean over NF's layers of the logarithm to base 2 of `passed_on`, 0 by the books: a row a seed."""
    runs = table[(table.way == "nf") & (table.multiple == table.multiple.iloc[0])]
    return np.log2(runs.passed).groupby([runs.seed, runs.network]).mean().unstack("network")[NETWORKS]


def _said(columns) -> str:
    return ", ".join(f"{NAMES[name]} {number(columns[name].median())}" for name in columns)


def called(network: str, way: str) -> str:
    """Return the name of an arm of a network."""
    return {"norm": "LN" if network == "vit" else "BN", "nf": "NF", "none": "nothing"}[way]


@other.draw
def _(table):
    rates = tuned(table, ARM, "held_out")[1]
    scores = side_by_side(tuned(table, ARM, "held_out")[0], ["way", "network"], "accuracy")
    first = table[table.multiple == table.multiple.iloc[0]]
    figure, (upper, lower) = subplots(2, 4, height=2.1, sharey="row")
    for top, bottom, (network, name) in zip(upper, lower, NAMES.items(), strict=True):
        top.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        for place, (way, marker) in enumerate(WAYS.items()):
            color = {"norm": norm_color(USUAL[network]), "nf": OLIVE, "none": GRAY}[way]
            if way != "norm":  # behind a norm the next layer is given variance 1, whatever this one puts out
                arm = first[(first.network == network) & (first.way == way)]
                median_and_band(top, arm, "place", "passed", color=color, marker=marker, ms=3)
            column = scores[way, network].dropna()
            bottom.plot([place] * len(column), column, marker, color=color, mfc="none")
            bottom.plot([place - 0.25, place + 0.25], [column.median()] * 2, color=color)
        top.set(yscale="log", xlabel="share of depth", xlim=(-0.05, 1.08), xticks=[0, 1], title=name)
        bottom.set(xlim=(-0.6, 2.6))
        bottom.set_xticks(range(3), [called(network, way) for way in WAYS], fontsize=8.5)
    upper[0].set_ylabel("variance put out\n(stem: 1)")
    lower[0].set_ylabel("test accuracy (%)")
    note(upper[1], "NF", 0.05, 0.05, color=OLIVE)
    note(upper[1], "nothing", 0.95, 0.05, ha="right", color=GRAY)
    ends = [f"{NAMES[network]} {called(network, way)}" for network, way in at_ends(table, ARM, rates)]
    told = "; ".join(f"{name} {', '.join(number(rates[network, way]) for way in WAYS)}" for network, name in NAMES.items())
    return Drawing(
        figure,
        caption="**Top** Variance of what each layer or branch puts out before training, on images, over that of the stem; "
        f"the books expect 1 (dotted). NF, geometric mean over layers: {_said(2 ** steps_off(table))}. **Bottom** Test accuracy "
        f"after {table.steps.iloc[0]} updates of {table.batch.iloc[0]} images, for BN the statistic batch, too; each seed, the "
        f"median as a line. Its norm less NF, in points: {_said(points(table, 'norm', 'nf'))}. Rates by held-out images, for norm, "
        f"NF, nothing: {told}{ends_in_words(ends)}. Convolutions: {RECIPE}. ViT: AdamW, weight decay 0.05, the same schedule. "
        "Statistics of BN re-estimated after training.",
        alt="Four columns: plain net, DenseNet, depthwise residual net, vision transformer. Top: variance of layer outputs against "
        "depth, normalizer-free and with nothing. Bottom: test accuracy with the usual norm, normalizer-free, with nothing.",
    )


WORKS = {
    "plain": "Batch norm can be removed from a plain convolutional network, too: standardized weights lose less than two points.",
    "dense": "Batch norm can be removed from a DenseNet, too: standardized weights lose less than two points.",
    "depthwise": "Batch norm can be removed from a depthwise residual network, too: NF loses less than two points.",
    "vit": "Layer norm can be removed from a vision transformer, too: standardized weights and books lose less than two points.",
}


def judge_works(table, network: str):
    """Judge whether NF keeps within the margin of the network's usual norm."""
    lost = points(table, "norm", "nf")[network]
    ahead = f"NF less nothing: {number(points(table, 'nf', 'none')[network].median())}"
    return judge_effect(
        f"points of test accuracy, {called(network, 'norm')} less NF", lost, claimed=(-np.inf, WITHIN), null=WITHIN, note=ahead
    )


for _network, _statement in WORKS.items():
    other.claim(
        _network, _statement,
        criterion=f"each at its best rate, test accuracy of {called(_network, 'norm')} less that of NF, below two points",
    )(partial(judge_works, network=_network))  # fmt: skip


@other.claim(
    "better-than-nothing",
    "In all four networks standardized weights, and books where there are sums, do better than nothing.",
    criterion="each at its best rate, test accuracy of NF less that of the network with nothing, above 0 in each of the four: the "
    "smallest of the four counts",
    by="notes",
)
def _(table):
    ahead = points(table, "nf", "none")
    said, smallest = _said(ahead), ahead.min(axis=1, skipna=False)
    return judge_effect("points, NF less nothing, smallest of four", smallest, claimed=(0, np.inf), null=0, note=f"medians: {said}")


@other.claim(
    "books",
    "Before training, layers and branches with standardized weights put out the variance that the books expect, within a factor of "
    "two, in all four networks.",
    criterion="geometric mean over layers of the variance put out, over that of the stem, on images: between 1/2 and 2 in "
    "each of the four; the logarithm to base 2 of the one furthest from 1 counts",
    by="notes",
)
def _(table):
    off = steps_off(table)
    said, furthest = _said(2**off), off.abs().max(axis=1, skipna=False)
    return judge_effect(
        "factors of 2 off the books, the network furthest from them", furthest, claimed=(0, 1), null=1, note=f"medians: {said}"
    )
