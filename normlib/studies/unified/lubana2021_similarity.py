"""How alike a random network makes its images, and how fast its training starts: ten normalizers in four networks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import nn

from normlib.data import Dataset
from normlib.lab import Config, Drawing, Judgement, Study, bootstrap_interval, judge_effect, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import INK, norm_color, subplots
from normlib.studies.unified.labels import Point, write_names
from normlib.studies.unified.properties import observed, one_batch, properties, rank_correlation
from normlib.studies.unified.ten import FULL, LAPTOP, QUICK, TEN, cnn, normalizer, resnet

NETWORKS = {"plain 10": (10, 1), "plain 10, wide": (10, 2), "plain 20": (20, 1), "residual": (0, 1)}  # layers, times width
MARKERS = {"plain 10": "o", "plain 10, wide": "s", "plain 20": "^", "residual": "D"}
SHORT = {
    "batch": "batch", "layer": "layer", "instance": "instance", "group": "group", "frn": "FRN", "variance": "variance",
    "evonorm_b0": "EvoNorm-B0", "evonorm_s0": "EvoNorm-S0", "weight": "weight", "scaled_weight": "scaled weight",
}  # fmt: skip

similarity = Study(
    "lubana2021.similarity",
    item="Fig 5; seed 002",
    title="Networks that make their images alike start more slowly, and instance norm is slow without doing so",
    kind="train",
    vary={"network": list(NETWORKS), "norm": list(TEN)},
    quick={**QUICK, "network": ["plain 10", "residual"], "blocks": 1, "steps": 3, "batch": 32, "measured": 32, "rate": 0.05},
    laptop={**LAPTOP, "train": 2_048, "width": 8, "blocks": 2, "steps": 60, "batch": 32, "measured": 64, "rate": 0.05},
    full={**FULL, "steps": 10_000, "batch": 256, "measured": 256, "rate": 0.1},
)


def build(c: Config, images: Dataset, network: str, norm: str, seed: int) -> nn.Module:
    """Build one of `NETWORKS` with one normalizer."""
    layers, wider = NETWORKS[network]
    if not layers:
        return resnet(c, images, norm, seed)
    return cnn(Config({**c, "width": wider * c.width}, c.device), images, norm, seed, layers)


@similarity.trial
def _(c, seed):
    images, _ = images_for(c, seed)
    net = build(c, images, c.network, c.norm, seed)
    start = properties(net, *one_batch(images, c.measured, seed))
    return {**start, **observed(net, images, steps=c.steps, rate=c.rate, seed=seed, batch=c.batch)}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def over_all(table: pd.DataFrame, column: str = "cosine") -> pd.Series:
    """Return, for each seed, the rank correlation of a property with the speed over all networks and normalizers."""
    return pd.Series({seed: rank_correlation(runs[column], runs.speed) for seed, runs in table.groupby("seed")})


def within(table: pd.DataFrame, column: str = "cosine") -> pd.DataFrame:
    """Return the rank correlation over the normalizers of one network: a row a seed, a column a network."""
    groups = table.groupby(["seed", "network"], sort=False)
    found = {key: rank_correlation(runs[column], runs.speed) for key, runs in groups}
    return pd.Series(found).unstack().reindex(columns=[name for name in NETWORKS if name in set(table.network)])


def _said(samples: pd.Series) -> str:
    low, high = bootstrap_interval(samples)
    return f"{number(samples.median())} [{number(low)}, {number(high)}]" if len(samples) > 1 else number(samples.median())


@similarity.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=3.6, sharex=True, sharey=True, width_ratios=[1, 1])
    middle = table.groupby(["network", "norm"], sort=False)[["cosine", "speed"]].median().reset_index()
    for row in middle.itertuples():
        color = norm_color(normalizer(row.norm).spec)
        left.plot(row.cosine, row.speed, MARKERS[row.network], color=color, mfc="none")
    for network, marker in MARKERS.items():
        if network in set(middle.network):
            left.plot([], [], marker, color=INK, mfc="none", label=network)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8.5)
    mean = middle.groupby("norm", sort=False)[["cosine", "speed"]].mean()
    points = [Point(row.cosine, row.speed, SHORT[key], norm_color(normalizer(key).spec)) for key, row in mean.iterrows()]
    for point in points:
        right.plot(point.x, point.y, "o", color=point.color)
    left.set(title="each network", xlabel="mean cosine before training", ylabel="mean training accuracy")
    right.set(title="mean over the networks", xlabel="mean cosine before training")
    write_names(right, points)
    every, each = over_all(table), within(table)
    inside = ", ".join(f"{_said(each[name])} {name}" for name in each)
    c = table.iloc[0]
    return Drawing(
        figure,
        caption="Rank correlation of the cosine between images, before training, with the mean accuracy over the training that "
        f"follows (median over seeds and interval): {_said(every)} over all networks; within one network {inside}. "
        f"All runs have one rate, as in the paper; here it is {number(c.rate)}. {c.steps:.0f} steps; "
        f"{c.batch:.0f} images per update and per statistic "
        f"of the norms that share one; the cosine is of {c.measured:.0f} images and whole last maps. "
        "The residual networks are of version 1, with an activation behind the addition.",
        alt="Two scatter plots of mean training accuracy against mean cosine between images at initialization: ten normalizers "
        "in several networks, and the mean of each normalizer with its name.",
    )


@similarity.claim(
    "over-all",
    "Over normalizers and networks together, a higher cosine between images before training goes with a slower training.",
    criterion="Spearman's correlation of the mean cosine of the last maps before training with the mean accuracy over training, "
    "over all networks and normalizers, at one rate for all as in the paper: −0.5 or less",
)
def _(table) -> Judgement:
    return judge_effect("rank correlation over all networks", over_all(table), claimed=(-1, -0.5), null=0)


@similarity.claim(
    "within",
    "Within each single network the normalizers with a higher cosine train more slowly too.",
    criterion="Spearman's correlation over the ten normalizers of one network is −0.3 or less in each: the largest counts",
)
def _(table) -> Judgement:
    each = within(table)
    said = ", ".join(f"{_said(each[name])} {name}" for name in each)
    largest = each.max(axis=1, skipna=False)
    return judge_effect("rank correlation, largest over the networks", largest, claimed=(-1, -0.3), null=0, note=said)


@similarity.claim(
    "centered",
    "The relation does not rest on the mean feature of an image alone: it holds for centered features.",
    criterion="the correlation over all, with the cosine taken after each image's own mean over its features is subtracted: "
    "−0.5 or less",
    by="notes",
)
def _(table) -> Judgement:
    found = over_all(table, "centered")
    return judge_effect("rank correlation, centered", found, claimed=(-1, -0.5), null=0)


@similarity.claim(
    "instance-outlier",
    "In the deepest plain network instance norm trains more slowly than its cosine says.",
    criterion="in the plain network of 20 layers (10 at quick) its place by accuracy, 1 for the fastest, is at least two "
    "behind its place by cosine, 1 for the lowest",
    by="notes",
)
def _(table) -> Judgement:
    network = "plain 20" if "plain 20" in set(table.network) else "plain 10"
    places = {
        column: side_by_side(table, "norm", column, network=network).mul(sign).rank(axis=1).instance
        for column, sign in (("cosine", 1), ("speed", -1))
    }
    return judge_effect("places behind", places["speed"] - places["cosine"], claimed=(2, np.inf), null=0)
