"""Brock, De & Smith (2021): the signal propagation plot of a residual network of 200 bottlenecks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.networks import ResNet, nf_resnet
from normlib.probes import signal_propagation
from normlib.studies.common.looks import INK, median_and_band, norm_color, note, subplots
from normlib.studies.normalizer_free.brock2021a_predicted import batch_norm_first, he_weights, relu_first

POINTS = 15  # blocks kept of each stage


@dataclass(frozen=True)
class Arm:
    """One network of the plot: what it is called, and its line."""

    name: str
    color: str
    dash: str = "-"


ARMS = {
    "bn_relu": Arm("BN, ReLU, conv", norm_color("batch")),
    "relu_bn": Arm("ReLU, BN, conv", norm_color("batch"), "--"),
    "nf_he": Arm("NF, He's weights", norm_color("none")),
    "nf_ws": Arm("NF, scaled WS", norm_color("scaled_weight")),
    "nf_ws_zeros": Arm("the same, zero padding", norm_color("scaled_weight"), ":"),
}
MEASURES = ["variance", "squared_mean", "residual_variance"]
COLUMNS = {"variance": "variance", "squared_mean": "squared mean", "residual_variance": "variance of the\nbranch's output"}

spp = Study(
    "brock2021a.spp",
    item="Figs 1-2",
    title="Signal propagation: what two orders of batch norm do, and what the networks without it make of that",
    kind="init",
    vary={"arm": list(ARMS)},
    quick={"stages": [4, 4, 4, 4], "width": 8, "side": 16, "images": 16},
    laptop={"stages": [50, 50, 50, 50], "width": 16, "side": 32, "images": 16},
    full={"stages": [50, 50, 50, 50], "width": 64, "side": 32, "images": 64},
)


def network(arm: str, stages: list[int], width: int, seed: int, padding: str = "circular") -> ResNet:
    """Build a network of bottlenecks in which every branch is added with the factor 1.

    Args:
        arm: "bn_relu", "relu_bn", "nf_he", "nf_ws", or "none" for neither norms nor books.
        stages: number of bottlenecks in each stage.
        width: channels inside those of the first stage; they put out four times as many.
        seed: of the weights.
        padding: of every convolution.
    """
    shape = {"width": width, "unit": "bottleneck", "seed": seed, "padding_mode": padding}
    if arm == "nf_ws":
        return nf_resnet(stages, alpha=1.0, **shape)  # type: ignore[arg-type]
    if arm == "relu_bn":
        return ResNet(stages, order="activation-norm", init="lecun", **shape)  # type: ignore[arg-type]
    if arm == "bn_relu":
        return ResNet(stages, init="he", **shape)  # type: ignore[arg-type]
    plain = ResNet(stages, norm="none", init="he", residual="nf:alpha=1" if arm == "nf_he" else "sum", **shape)  # type: ignore[arg-type]
    with torch.no_grad():  # no activation is in front of the stem: rows of mean square length 1
        plain.stem.weight.mul_((len(plain.stem.weight) / plain.stem.weight.square().sum()).sqrt())  # type: ignore
    return plain


@spp.trial
def _(c, seed):
    arm, padded, _ = c.arm.partition("_zeros")
    net = network(arm, c.stages, c.width, seed, "zeros" if padded else "circular").to(c.device)
    noise = torch.randn(c.images, 3, c.side, c.side, generator=torch.Generator().manual_seed(1_000 + seed)).to(c.device)
    found = signal_propagation(net, noise, training=True)
    kept, start = [], 0
    for stage, blocks in enumerate(c.stages, 1):
        for position in np.unique(np.linspace(1, blocks, POINTS).round().astype(int)).tolist():
            kept.append({"stage": stage, "position": position, "block": start + position})
        start += blocks
    rows = pd.DataFrame(kept).to_dict("list")
    return {**rows, **{column: [found[column][block - 1] for block in rows["block"]] for column in MEASURES}}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def _ends(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Return the last block of each stage, a row a seed and stage."""
    runs = table[table.arm == arm]
    return runs[runs.position == runs.groupby("stage").position.transform("max")].sort_values(["seed", "stage"])


def _per_seed(rows: pd.DataFrame, values) -> pd.Series:
    """Return the mean of values over the rows of each seed."""
    return pd.Series(values, index=rows.index, dtype=float).groupby(rows.seed).mean()


def _predicted(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Return a closed form at every block of one seed of an arm."""
    blocks = table[table.arm == arm].drop_duplicates("block").sort_values("block")
    if arm == "nf_he":
        stages = blocks.groupby("stage").position.max().tolist()
        whole = he_weights(stages, books=True)
        said = [whole[block - 1] for block in blocks.block]
    else:
        said = [(batch_norm_first if arm == "bn_relu" else relu_first)(position) for position in blocks.position]
    return blocks.assign(**{column: [getattr(one, column) for one in said] for column in COLUMNS})


@spp.draw
def _(table):
    figure, axes = subplots(3, 1, height=1.75, sharex=True)
    for ax, (column, label) in zip(axes, COLUMNS.items(), strict=True):
        for key, arm in ARMS.items():
            for _, stage in table[table.arm == key].groupby("stage"):
                first = stage.stage.iloc[0] == 1
                line = {"linestyle": arm.dash, "linewidth": 1.6, "label": arm.name if first else None}
                median_and_band(ax, stage, "block", column, color=arm.color, **line)  # type: ignore[arg-type]
        for key in ("bn_relu", "relu_bn", "nf_he"):
            for _, stage in _predicted(table, key).groupby("stage"):
                ax.plot(stage.block, stage[column], color=INK, linewidth=0.7, zorder=3)
        ax.set(ylabel=label, ylim=(0, None))
    axes[2].set(xlabel="block", ylim=(0, 1.25))
    axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=3, fontsize=8.5, frameon=False)
    note(axes[2], "thin lines: closed forms", 0.99, 0.04, ha="right", fontsize=8.5)
    ends = {arm: _ends(table, arm).groupby("stage").median(numeric_only=True) for arm in ARMS}
    branch = table.groupby(["arm", "seed"]).residual_variance.mean().groupby("arm").median()
    he, ws = ends["nf_he"], ends["nf_ws"]
    last = {arm: ends[arm].iloc[-1] for arm in ARMS}
    return Drawing(
        figure,
        caption=f"Noise through untrained networks of {table.block.max()} bottlenecks in four stages; train mode, every branch "
        "added with the factor 1, maps that close up at their border unless it says zero padding. The statistic batch is all "
        "images; there is no SGD batch. "
        f"The branch puts out a variance of {number(branch['bn_relu'])} with BN before ReLU and He's weights, "
        f"{number(branch['relu_bn'])} with ReLU before BN and weights of variance 1/fan-in, {number(branch['nf_he'])} in the NF "
        f"network with He's weights and {number(branch['nf_ws'])} with scaled weight standardization (means over blocks). At the "
        f"ends of the stages the squared mean is {number((he.squared_mean / he.variance).min())} to "
        f"{number((he.squared_mean / he.variance).max())} times the variance with He's weights, "
        f"{number((ws.squared_mean / ws.variance).min())} to {number((ws.squared_mean / ws.variance).max())} with scaled weight "
        f"standardization. The last variance is {number(last['nf_ws'].variance)} with it, "
        f"{number(last['nf_ws_zeros'].variance)} with it and zero padding, {number(last['relu_bn'].variance)} with ReLU, BN, conv.",
        alt="Three panels against the block: variance and squared mean of the block's output are saws that fall back at each "
        "stage, and the variance of the branch is level for batch norm. Five networks, with closed forms.",
    )


@spp.claim(
    "saw",
    "With BN before ReLU the variance grows linearly within a stage, by 1 − 1/π a block, and the next stage starts anew.",
    criterion="the variance after the last block of each of the four stages, over (blocks in the stage + 1)(1 − 1/π), mean over "
    "the stages, lies in 0.9 to 1.1",
)
def _(table):
    rows = _ends(table, "bn_relu")
    ratio = _per_seed(rows, rows.variance / [batch_norm_first(at).variance for at in rows.position])
    return judge_effect("variance at the ends of stages / closed form", ratio, claimed=(0.9, 1.1), null=np.nan)


@spp.claim(
    "mean-grows",
    "With BN before ReLU the squared mean of the channels grows as well, by 1/π a block.",
    criterion="the squared mean after the last block of each stage, over (blocks in the stage + 1)/π, mean over the stages, lies "
    "in 0.8 to 1.2",
)
def _(table):
    rows = _ends(table, "bn_relu")
    ratio = _per_seed(rows, rows.squared_mean / [batch_norm_first(at).squared_mean for at in rows.position])
    return judge_effect("squared mean at the ends of stages / closed form", ratio, claimed=(0.8, 1.2), null=np.nan)


@spp.claim(
    "other-order",
    "With ReLU before BN the mean does not grow, and each branch puts out a variance of 1 instead of 0.68.",
    criterion="the branch's variance of this order over that of the other, mean over blocks, lies within 5 % of 1/(1 − 1/π) = "
    "1.467, and the squared mean stays below 1 % of the variance at the end of every stage: the ratio counts, infinite if the "
    "mean does not",
)
def _(table):
    branch = table.groupby(["seed", "arm"]).residual_variance.mean().unstack()
    rows = _ends(table, "relu_bn")
    share = (rows.squared_mean / rows.variance).groupby(rows.seed).max()
    ratio = (branch.relu_bn / branch.bn_relu).where(share < 0.01, np.inf)
    said = 1 / batch_norm_first(1).residual_variance
    largest = f"largest squared mean / variance: {number(share.max())}"
    return judge_effect(
        "branch's variance, ReLU first / BN first", ratio, claimed=(0.95 * said, 1.05 * said), null=np.nan, note=largest
    )


@spp.claim(
    "he-shifts",
    "A normalizer-free network with He's weights does not follow: the squared mean overtakes the variance.",
    criterion="the squared mean over the variance after the last block of a stage, the smallest of the four, is above 1, and the "
    "mean over blocks of the branch's variance is below 0.9: the ratio counts, 0 if the branch is not",
)
def _(table):
    rows = _ends(table, "nf_he")
    ratio = (rows.squared_mean / rows.variance).groupby(rows.seed).min()
    branch = table[table.arm == "nf_he"].groupby("seed").residual_variance.mean()
    return judge_effect(
        "squared mean / variance, smallest of four stages",
        ratio.where(branch < 0.9, 0),
        claimed=(1, np.inf),
        null=1,
        note=f"branch's variance {number(branch.median())}",
    )


@spp.claim(
    "scaled-follows",
    "With scaled weight standardization the plot of a normalizer-free network lies on that of ReLU, BN, convolution.",
    criterion="at the end of every stage variance and squared mean differ from those of ReLU, BN, convolution by less than 20 % of "
    "its variance, without border: the largest of the eight distances counts",
)
def _(table):
    own, other = (_ends(table, arm).set_index(["seed", "stage"]) for arm in ("nf_ws", "relu_bn"))
    far = pd.concat([(own[name] - other[name]).abs() / other.variance for name in ("variance", "squared_mean")], axis=1)
    largest = far.max(axis=1, skipna=False).groupby("seed").max()
    return judge_effect("largest distance / variance", largest, claimed=(0, 0.2), null=0.2)


@spp.claim(
    "padding-falls-below",
    "On maps of 32 × 32 and smaller, zero padding brings the variance of this network below that plot.",
    criterion="with zero padding the variance at the end of the last stage is at most 0.8 times that of ReLU, BN, convolution",
    by="notes",
)
def _(table):
    ratio = _ends(table, "nf_ws_zeros").groupby("seed").variance.last() / _ends(table, "relu_bn").groupby("seed").variance.last()
    return judge_effect("variance at the end / that of ReLU, BN, conv", ratio, claimed=(0, 0.8), null=1)
