"""Lubana, Dick & Tanaka (2021): how alike the features of different images are, by the size of the groups of channels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import normalize

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import StridedConvNet
from normlib.probes import mean_cosine, ranks, record_activations
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import INK, median_and_band, norm_color, note, subplots
from normlib.studies.unified.ten import FULL, LAPTOP, QUICK, plan

groups = Study(
    "lubana2021.groups",
    item="similarity by group size; Ω(√(width / group size))",
    title="The larger the group, the more alike are the features of different images",
    kind="init",
    vary={"layers": [10, 20], "width": [16, 32, 64]},
    quick={**QUICK, "batch": 64, "width": [8, 16], "layers": [5, 10]},
    laptop={**LAPTOP, "batch": 64, "width": [16, 32, 64], "layers": [10, 20]},
    full={**FULL, "batch": 256, "width": [32, 64, 128, 256], "layers": [10, 20, 40]},
)
BATCH = 0  # stands for batch normalization in the column `size`, whose statistics are of one channel and all samples


def sizes(width: int) -> list[int]:
    """Return the group sizes to compare: 1 (instance norm), 2, 4, … `width` (layer norm), and `BATCH`."""
    return [2**power for power in range(width.bit_length()) if width % 2**power == 0] + [BATCH]


def compressed(features: Tensor) -> Tensor:
    """Return N vectors of N entries with the inner products of N samples, from which all measures follow at less cost."""
    rows = features.flatten(1).double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    return vectors * values.clamp(min=0).sqrt()


def likeness(features: Tensor) -> dict[str, float]:
    """Return the paper's two measures of a layer's outputs, one row a sample, and a rank after centering.

    Returns:
        `cosine`: the mean over pairs of samples. `stable`: N / λmax of the matrix of cosines. `centered`: the participation ratio
        of the features less their means over the samples. `plain`: the participation ratio of the features as they are.
    """
    features = compressed(features)
    return {
        "cosine": mean_cosine(features),
        "stable": ranks(normalize(features))["stable_rank"],
        "centered": ranks(features, "features")["participation_ratio"],
        "plain": ranks(features)["participation_ratio"],
    }


@groups.trial
def _(c, seed):
    images = load(c).pooled(c.get("pool", 1)).standardized()
    chosen = torch.randperm(len(images.x_train), generator=torch.Generator().manual_seed(seed))[: c.batch]
    x = images.x_train[chosen.to(images.x_train.device)]
    halved = plan(c.layers, c.width, c.get("strides", 4))[1]
    rows = []
    for size in sizes(c.width):
        norm = "batch" if size == BATCH else f"group:size={size}"
        net = StridedConvNet([c.width] * c.layers, halved, images.shape[0], images.classes, norm, init="he", seed=seed).to(c.device)
        outputs = record_activations(net, x, nn.ReLU, training=True)
        rows += [{"size": size, "layer": at, **likeness(output)} for at, output in enumerate(outputs.values(), 1)]
    return pd.DataFrame(rows).to_dict("list")


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def last(table):
    """Return the rows of the last layers."""
    return table[table.layer == table.layers]


def largest(table):
    """Return the last layers of the deepest networks of the largest width, a row a seed, by group size."""
    return side_by_side(last(table), "size", "cosine", width=table.width.max(), layers=table.layers.max())


def slopes(table, y: str, x) -> pd.Series:
    """Return the least-squares slope of log `y` on log `x(rows)`, for each seed."""
    return table.groupby("seed")[list(table)].apply(lambda runs: np.polyfit(np.log(x(runs)), np.log(runs[y]), 1)[0])


def against_the_law(table) -> pd.Series:
    """Return the slopes of the stable rank of group norm against √(width / group size) in the deepest networks."""
    runs = last(table)
    runs = runs[(runs["size"] != BATCH) & (runs.layers == runs.layers.max())]
    return slopes(runs, "stable", lambda r: (r.width / r["size"]) ** 0.5)


def bound(table):
    """Return N / (1 + (N − 1) × the mean cosine), which the stable rank cannot exceed."""
    return table.batch / (1 + (table.batch - 1) * table.cosine)


@groups.draw
def _(table):
    figure, ((by_size, by_depth), (law, centered)) = subplots(2, 2, height=2.7)
    width, deep = int(table.width.max()), table.layers.max()
    wide, ends = table[table.width == width], last(table)
    depths = sorted(table.layers.unique())[-2:]
    arms = {1: ("instance", "1"), 8: ("group", "8"), width: ("layer", f"{width} (layer)"), BATCH: ("batch", "batch norm")}
    for layers, style in zip(depths, (":", "-"), strict=True):
        runs = last(wide)[last(wide).layers == layers]
        grouped, batch = runs[runs["size"] != BATCH], runs[runs["size"] == BATCH]
        line = {"marker": "o", "linestyle": style, "color": norm_color("group"), "label": f"{layers} layers"}
        median_and_band(by_size, grouped, "size", "cosine", **line)
        by_size.axhline(batch.cosine.median(), color=norm_color("batch"), linestyle=style)
        median_and_band(centered, grouped, "size", "centered", **line)
        centered.axhline(batch.centered.median(), color=norm_color("batch"), linestyle=style)
    for size, (norm, label) in arms.items():
        runs = wide[(wide["size"] == size) & (wide.layers == deep)]
        median_and_band(by_depth, runs, "layer", "cosine", color=norm_color(norm), label=label)
    runs = ends[(ends.layers == deep) & (ends["size"] != BATCH)]
    runs = runs.assign(law=(runs.width / runs["size"]) ** 0.5)
    for each, marker in zip(sorted(table.width.unique()), "^sovD", strict=False):
        one = runs[runs.width == each]
        median_and_band(law, one, "law", "stable", color=norm_color("group"), marker=marker, label=f"width {each}")
    x = np.array([1, width**0.5])
    law.plot(x, x, "--", color=INK, linewidth=1)
    law.annotate("the law", (x[1], x[1]), (-8, -3), textcoords="offset points", ha="right", fontsize=9, color=INK)
    law.legend(loc="upper left", fontsize=8.5)
    by_size.legend(loc="lower right", fontsize=8.5)
    by_depth.legend(loc="best", fontsize=8.5, ncols=2, title="channels in a group", title_fontsize=8.5)
    ticks = [size for size in sizes(width) if size != BATCH]
    for axes in (by_size, centered):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="channels in a group")
    by_size.set(ylabel="mean cosine, last layer", ylim=(0, 1.02))
    by_depth.set(xlabel="layer", ylabel="mean cosine", ylim=(0, 1.02))
    law.set(xscale="log", yscale="log", xlabel="√(width / group size)", ylabel="stable rank, last layer")
    powers = [2**power for power in range(int(np.log2(x[1])) + 1)]
    for axis in (law.xaxis, law.yaxis):
        axis.set_major_locator(FixedLocator(powers))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    centered.set(ylabel="rank $r$ of the rest, last layer", ylim=(0, None))
    note(by_size, "batch norm", 0.03, 0.03, color=norm_color("batch"))
    ends = largest(table).median()
    deepest = last(wide)[last(wide).layers == deep].groupby("size")
    stable, rest = deepest.stable.median(), deepest.centered.median()
    return Drawing(
        figure,
        caption=f"Untrained ReLU networks of width {width}, {table.batch.max()} images in one statistic batch, no SGD. After "
        f"{deep} layers the mean cosine between the features of two images is {number(ends[1])} with one channel a group, "
        f"{number(ends[width])} with all in one group (layer norm), and {number(ends[BATCH])} with batch norm. "
        f"**Lower left** The stable rank goes from {number(stable[width])} to {number(stable[1])} while $\\sqrt{{width/size}}$ "
        f"goes from 1 to {number(width**0.5)}: fitted slope {number(against_the_law(table).median())} instead of 1. "
        f"**Lower right** Less the mean over images, the features have the rank $r$ = {number(rest[1])} with one channel a group, "
        f"{number(rest[width])} with layer norm, {number(rest[BATCH])} with batch norm.",
        alt="Four panels: mean cosine against group size, rising; against depth for four norms; stable rank against the root of "
        "width over group size, far below a dashed reference line; rank after centering against group size.",
    )


@groups.claim(
    "rises-with-size",
    "The larger the groups of group normalization, the more alike are the features of different samples.",
    criterion="Spearman correlation of group size and mean cosine at the last layer at least 0.9, smallest over all networks",
)
def _(table):
    runs = last(table)[last(table)["size"] != BATCH]
    each = runs.groupby(["seed", "width", "layers"])[["size", "cosine"]].apply(lambda r: spearmanr(r["size"], r.cosine).statistic)
    wide = each.xs(table.width.max(), level="width").median()
    said = f"median over all networks {number(each.median())}, over those of the largest width {number(wide)}"
    return judge_effect("smallest Spearman correlation", each.groupby("seed").min(), claimed=(0.9, 1), null=0, note=said)


def deeper(table, size: int) -> pd.Series:
    """Return the mean cosine in the deepest networks less that in the shallowest, last layers, largest width."""
    cosines = side_by_side(last(table), "layers", "cosine", width=table.width.max(), size=size)
    return cosines[table.layers.max()] - cosines[table.layers.min()]


@groups.claim(
    "layer-norm-deepens",
    "With layer normalization the features of different samples become more alike with depth.",
    criterion="mean cosine at the last layer, deepest less shallowest network, largest width: at least 0.02",
)
def _(table):
    return judge_effect("difference of mean cosines", deeper(table, table.width.max()), claimed=(0.02, np.inf), null=0)


@groups.claim(
    "batch-norm-flat",
    "With batch normalization the similarity at the last layer hardly depends on depth.",
    criterion="mean cosines at the last layers of the deepest and the shallowest network less than 0.05 apart, largest width",
    by="notes",
)
def _(table):
    return judge_effect("distance of mean cosines", deeper(table, BATCH).abs(), claimed=(0, 0.05), null=np.nan)


@groups.claim(
    "one-number",
    "Stable rank and mean cosine c carry one piece of information: of N samples the rank is N / (1 + (N − 1) c).",
    criterion="relative distance at most 5 % at the last layer of every network, every seed",
    by="notes",
)
def _(table):
    runs = last(table)
    return judge_identity("largest relative distance", float((1 - runs.stable / bound(runs)).abs().max(skipna=False)), 0.05)


@groups.claim(
    "law",
    "The law of the bound, √(width / group size), does not describe the stable rank of networks with ReLU.",
    criterion="slope of log stable rank on log √(width / group size) below 0.5, where the law says 1; all widths, deepest networks",
    by="notes",
)
def _(table):
    return judge_effect("slope", against_the_law(table), claimed=(-np.inf, 0.5), null=1)


@groups.claim(
    "root-of-width",
    "With batch normalization the features in front of the classifier have a rank of at least the order √width, measured by r.",
    criterion="slope of log r on log width at least 0.4, r the participation ratio at the last layer of the deepest networks",
    by="seed002",
)
def _(table):
    runs = last(table)[(last(table)["size"] == BATCH) & (last(table).layers == table.layers.max())]
    said = "proved for linear layers and an average over depth; these have ReLU"
    return judge_effect("slope", slopes(runs, "plain", lambda r: r.width), claimed=(0.4, np.inf), null=0, note=said)
