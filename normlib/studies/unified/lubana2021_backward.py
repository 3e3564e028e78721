"""Lubana, Dick & Tanaka (2021), stable backward propagation: the gradient at every layer of networks before training."""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from matplotlib.ticker import FixedLocator, NullLocator

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.probes import gradient_growth, growth_factor
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import INK, PAPER, median_and_band, norm_color, subplots
from normlib.studies.unified.ten import FULL, LAPTOP, QUICK, TEN, cnn, normalizer, plan

RELU = (math.pi / (math.pi - 1)) ** 0.5  # growth per layer under batch norm in wide layers and large batches
SIZES = {"instance": 1, "group:size=2": 2, "group:size=4": 4, "group:size=8": 8, "group:size=16": 16, "layer": np.inf}
SAMPLES = ["layer", "instance", "group", "frn"]  # statistics within a single sample, and nothing else to them
LINES = ["instance", "frn", "batch", "group:size=4", "layer", "none"]
FEW = ["none", "batch", "layer", "instance", "group", "frn", "evonorm_s0", "weight", "group:size=4"]
STYLES = {"frn": "--", "group:size=4": "--", "none": ":"}

backward = Study(
    "lubana2021.backward",
    item="stable backward propagation",
    title="The larger the groups, the less the gradient grows on its way back; small maps add to it under instance norm",
    kind="init",
    vary={"norm": ["none", *TEN, *[key for key in SIZES if ":" in key]], "layers": [10, 20], "strides": [1, 3]},
    quick={**QUICK, "norm": FEW, "layers": [10, 20], "strides": [1, 2], "batch": 16},
    laptop={**LAPTOP, "layers": [10, 20], "strides": [1, 3], "width": 32, "batch": 64},
    full={**FULL, "layers": [10, 20, 40], "strides": [2, 4], "batch": 256},
)


@backward.trial
def _(c, seed):
    images, _ = images_for(c, seed)
    some = slice(seed * c.batch, (seed + 1) * c.batch)
    x, y, names = images.x_train[some], images.y_train[some], [f"blocks.{index}.layer" for index in range(c.layers)]
    squares = gradient_growth(cnn(c, images, c.norm, seed), F.cross_entropy, x, y, names, training=True)["squared_norm"]
    return {
        "layer": list(range(1, c.layers + 1)),
        "map": map_sizes(c.layers, c.strides, images.shape[-1]),
        "gradient": [(square / squares[-1]) ** 0.5 for square in squares],
        "growth": growth_factor(squares[c.layers // 5 : -1]).value ** 0.5,
    }


def map_sizes(layers, strides, size):
    """List the width of the map that each convolution of the plan puts out, for images of a size."""
    halved, sizes = plan(layers, 1, strides)[1], []
    for layer in range(layers):
        size = -(-size // 2) if layer in halved else size
        sizes.append(size)
    return sizes


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def of_growth(table, layers=20, strides=None):
    """Return the growth per layer: a row a seed, a column a norm; by default where the last maps are smallest."""
    return side_by_side(table, "norm", "growth", layers=layers, strides=table.strides.max() if strides is None else strides)


def of_sizes(table):
    """Return `of_growth` of the group sizes alone, from one channel to all."""
    growth = of_growth(table)
    return growth[[key for key in SIZES if key in growth]]


def _last_map(table, strides):
    return int(table[table.strides == strides]["map"].min())


@backward.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=4.4)
    small, large = table.strides.max(), table.strides.min()
    ends = {strides: f"{_last_map(table, strides)}×{_last_map(table, strides)}" for strides in (small, large)}
    deep = table[(table.layers == 20) & (table.strides == small)]
    for key in (key for key in LINES if key in set(deep.norm)):
        runs, style = deep[deep.norm == key], STYLES.get(key, "-")
        name = normalizer(key).name.replace("group:size=4", "groups of 4 channels")
        median_and_band(left, runs, "layer", "gradient", color=norm_color(key), marker="", linestyle=style, label=name)
    left.set(yscale="log", xlabel="layer, of 20", ylabel="norm of the gradient, relative to layer 20", xticks=[1, 5, 10, 15, 20])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=1.8)
    growth = {strides: of_growth(table, strides=strides).median() for strides in (small, large)}
    others = [key for key in ("none", *TEN) if key not in SIZES and key in growth[small]]
    rows = [key for key in SIZES if key in growth[small]] + sorted(others, key=lambda key: -growth[small][key])
    for row, key in enumerate(rows):
        place = row + (key not in SIZES)
        right.plot([growth[s][key] for s in (small, large)], [place] * 2, color=norm_color(key), linewidth=1)
        right.plot(growth[large][key], place, "o", color=norm_color(key), markerfacecolor=PAPER)
        right.plot(growth[small][key], place, "o", color=norm_color(key))
    sizes = {1: "instance norm, 1 channel", np.inf: "layer norm, all channels"}
    names = [sizes.get(SIZES[key], f"groups of {SIZES[key]}") if key in SIZES else normalizer(key).name for key in rows]
    names = [name.replace("scaled weight standardization", "scaled weight std.") for name in names]
    right.set_yticks([row + (key not in SIZES) for row, key in enumerate(rows)], names, fontsize=8)
    right.set(ylim=(len(rows) + 0.6, -0.8), xlabel="growth per layer")
    right.set_title(f"filled: maps end at {ends[small]}\nhollow: at {ends[large]}", fontsize=9)
    right.axvline(1, color=INK, linewidth=0.8, linestyle="--")
    right.axvline(RELU, color=INK, linewidth=0.8, linestyle=":")
    right.grid(False, axis="y")
    right.xaxis.set_major_locator(FixedLocator([0.8, 1, 1.2, 1.4, 1.6, 1.8]))
    right.xaxis.set_minor_locator(NullLocator())
    ratio = side_by_side(deep[deep.layer == 1], "norm", "gradient").median()
    found = growth[small]
    return Drawing(
        figure,
        caption="Networks without shortcuts before training, cross-entropy on images; a statistic batch of "
        f"{table.batch.max()}, no updates. Left: on its way back through 20 layers the norm of the gradient grows "
        f"{number(ratio['instance'])} times under instance norm, {number(ratio['batch'])} times under batch norm, "
        f"{number(ratio['layer'])} times under layer norm. Right: growth per layer in 20 layers without the lowest fifth and the "
        f"last one, by group size and for the other normalizers: {number(found['instance'])} with one channel, "
        f"{number(found['layer'])} with all, {number(found['batch'])} for batch norm (dotted: {number(RELU)}, the value for wide "
        f"layers). Where the last maps are {ends[large]} instance norm has {number(growth[large]['instance'])}.",
        alt="Left: norm of the gradient against the layer on a log axis; instance norm rises steepest toward the input, layer "
        "norm is flat. Right: growth per layer of 15 normalizers as dots, filled for small and hollow for large last maps.",
    )


@backward.claim(
    "group-size",
    "The larger the groups of channels that share a statistic, the less the gradient grows.",
    criterion="20 layers, smallest last maps: growth per layer at each group size, from one channel to all, over that at the next "
    "larger size; the smallest of these ratios is above 1",
)
def _(table):
    growth = of_sizes(table).to_numpy()
    return judge_effect("smallest ratio of neighbors", (growth[:, :-1] / growth[:, 1:]).min(axis=1), claimed=(1, np.inf), null=1)


@backward.claim(
    "instance-most",
    "Of all normalizers the gradient grows most under instance norm.",
    criterion="20 layers, smallest last maps: growth per layer under instance norm over the largest among the other nine and no "
    "norm is above 1",
)
def _(table):
    growth = of_growth(table)
    others = growth[[key for key in ("none", *TEN) if key != "instance" and key in growth]]
    note = f"the largest of the others: {normalizer(others.median().idxmax()).name}"
    ratio = growth.instance / others.max(axis=1)
    return judge_effect("instance norm / largest other", ratio, claimed=(1, np.inf), null=1, note=note)


@backward.claim(
    "layer-norm",
    "Under layer norm the gradient does not explode.",
    criterion="20 layers, smallest last maps: growth per layer at most 1.02",
)
def _(table):
    return judge_effect("growth per layer, layer norm", of_growth(table).layer, claimed=(0, 1.02), null=np.nan)


@backward.claim(
    "depth",
    "Under batch norm and under instance norm the growth from the last layer to the first is larger in deeper networks.",
    criterion="gradient at the first layer over that at the last, smallest last maps: with 20 layers over with 10, the smaller "
    "of the two norms is above 1",
)
def _(table):
    first = table[(table.layer == 1) & (table.strides == table.strides.max())]
    total = side_by_side(first, ["layers", "norm"], "gradient")
    deeper = total[20][["batch", "instance"]] / total[10][["batch", "instance"]]
    note = ", ".join(f"{key} norm {number(deeper[key].median())}" for key in deeper)
    return judge_effect("ratio at 20 layers / at 10", deeper.min(axis=1), claimed=(1, np.inf), null=1, note=note)


@backward.claim(
    "single-sample",
    "Norms within a single sample make gradients explode (the draft: can), every one of them.",
    criterion="20 layers, smallest last maps: layer, instance and group norm and filter response norm all grow by 5 % per layer or "
    "more, our bound; the smallest of the four",
    by="seed002",
)
def _(table):
    growth = of_growth(table)
    note = f"{number(growth.batch.median())} under batch norm, which normalizes across samples"
    return judge_effect("least growth per layer", growth[SAMPLES].min(axis=1), claimed=(1.05, np.inf), null=1, note=note)


@backward.claim(
    "factor",
    "In these networks, too, batch norm has the growth of wide dense layers, √(π/(π − 1)) = 1.211 per layer.",
    criterion="20 layers, smallest last maps: growth per layer within 3 % of 1.211, without the lowest fifth and the last layer",
    by="notes",
)
def _(table):
    return judge_effect("growth per layer, batch norm", of_growth(table).batch, claimed=(0.97 * RELU, 1.03 * RELU), null=1)


@backward.claim(
    "small-maps",
    "What instance norm grows beyond batch norm it owes to the small maps at the end.",
    criterion="20 layers: of the logarithm of growth under instance norm over growth under batch norm, at least half is gone where "
    "the last maps are larger",
    by="notes",
)
def _(table):
    small, large = (of_growth(table, strides=strides) for strides in (table.strides.max(), table.strides.min()))
    excess, left = np.log(small.instance / small.batch), np.log(large.instance / large.batch)
    return judge_effect("share that is gone", 1 - left / excess, claimed=(0.5, np.inf), null=0)
