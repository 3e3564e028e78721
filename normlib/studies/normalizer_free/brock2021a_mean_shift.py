"""Brock, De & Smith (2021): the mean that all inputs share, predicted, removed by the weights, and brought back by the border."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullLocator

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.probes import signal_propagation
from normlib.studies.common.looks import INK, PAPER, median_and_band, norm_color, note, subplots
from normlib.studies.normalizer_free.brock2021a_predicted import Predicted, he_weights, scaled_weights
from normlib.studies.normalizer_free.brock2021a_spp import network

MEASURES = ["squared_mean", "variance", "residual_variance"]
SHOWN = {"none": "nothing, He's weights", "nf_he": "NF, He's weights", "nf_ws": "NF, scaled WS"}

mean_shift = Study(
    "brock2021a.mean_shift",
    item="section 4.2",
    title="The mean shift is a correlation of inputs: predicted, removed by centered weights, and brought back by the border",
    kind="init",
    vary={"arm": list(SHOWN), "padding": ["circular", "zeros"]},
    quick={"stages": [2, 2], "width": 16, "side": 16, "images": 8},
    laptop={"stages": [3, 3, 3], "width": 64, "side": 32, "images": 16},
    full={"stages": [3, 3, 3], "width": 128, "side": 32, "images": 64},
    seeds={"quick": 1, "laptop": 8, "full": 8},
)


@mean_shift.trial
def _(c, seed):
    net = network(c.arm, c.stages, c.width, seed, c.padding).to(c.device)
    noise = torch.randn(c.images, 3, c.side, c.side, generator=torch.Generator().manual_seed(1_000 + seed)).to(c.device)
    found = signal_propagation(net, noise, training=True)
    return {"block": list(range(1, sum(c.stages) + 1)), **{column: found[column] for column in MEASURES}}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def _predicted(table: pd.DataFrame, arm: str, padding: str = "circular") -> list[Predicted]:
    """Predict the blocks of an arm at the sizes of the table."""
    stages = list(table.stages.iloc[0])
    if arm == "nf_ws":
        return scaled_weights(stages, int(table.side.iloc[0]), padding == "zeros")
    return he_weights(stages, books=arm == "nf_he")


def _arm(table: pd.DataFrame, arm: str, column: str, padding: str = "circular") -> pd.DataFrame:
    """Return a column as one row a seed and one column a block."""
    runs = table[(table.arm == arm) & (table.padding == padding)]
    return runs.pivot(index="seed", columns="block", values=column)


def _over_prediction(table: pd.DataFrame, arm: str, column: str, padding: str = "circular") -> pd.Series:
    """Return measured over predicted, the mean over the blocks, of each seed."""
    said = [getattr(one, column) for one in _predicted(table, arm, padding)]
    return (_arm(table, arm, column, padding) / said).mean(axis=1)


@mean_shift.draw
def _(table):
    figure, axes = subplots(1, 3, height=3.1)
    blocks = sorted(table.block.unique())
    markers = {"squared_mean": "^", "variance": "o", "residual_variance": "s"}
    for ax, (arm, title) in zip(axes, SHOWN.items(), strict=True):
        shown = {"none": MEASURES[:2], "nf_he": MEASURES, "nf_ws": MEASURES[2:]}[arm]
        color = norm_color("scaled_weight" if arm == "nf_ws" else "none")
        for padding in ["circular", "zeros"] if arm == "nf_ws" else ["circular"]:
            said = _predicted(table, arm, padding)
            runs = table[(table.arm == arm) & (table.padding == padding)]
            for column in shown:
                hollow = padding == "zeros" or column == "squared_mean"
                style = {"linestyle": "none", "marker": markers[column], "markersize": 5, "err_style": "bars"}
                median_and_band(ax, runs, "block", column, color=color, mfc=PAPER if hollow else color, **style)  # type: ignore[arg-type]
                ax.plot(blocks, [getattr(one, column) for one in said], color=INK, linewidth=0.9)
        ax.set(title=title, xlabel="block")
        ax.set_xticks(blocks)
    for ax in axes[:2]:
        ax.set(yscale="log")
        ax.yaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel("moments of the channels")
    axes[2].set(ylim=(0, 1.25))
    note(axes[0], "△ squared mean\n● variance", 0.04, 0.84)
    note(axes[1], "■ variance of\n   the branch", 0.04, 0.04)
    note(axes[2], "filled: no border\nhollow: zero padding\nlines: predicted", 0.04, 0.04)
    he = _over_prediction(table, "nf_he", "residual_variance")
    share = (_arm(table, "nf_ws", "squared_mean") / _arm(table, "nf_ws", "variance")).max(axis=1)
    zeros, circular = (_arm(table, "nf_ws", "residual_variance", padding).median() for padding in ("zeros", "circular"))
    he_share = (_arm(table, "nf_he", "squared_mean") / _arm(table, "nf_he", "variance")).median()
    return Drawing(
        figure,
        caption="Noise through untrained bottlenecks, every branch added with the factor 1, beside predictions (lines). With He's "
        f"weights and the books of NF the squared mean is {number(he_share.iloc[0])} times the variance after the first block and "
        f"{number(he_share.iloc[-1])} times after the last, and the branch puts out {number(he.median())} times the predicted "
        f"variance (mean over blocks). With scaled weight standardization the squared mean is at most {number(share.median())} of "
        f"the variance, and the branch of the last block puts out {number(circular.iloc[-1])} where maps have no border and "
        f"{number(zeros.iloc[-1])} with zero padding.",
        alt="Three panels against the block: squared mean and variance without norm, the same and the branch's variance for NF "
        "with He's weights, and the branch's variance for scaled weights with two paddings; lines are predictions.",
    )


@mean_shift.claim(
    "compounds",
    "Without centered weights every channel takes on a mean that all inputs share, and it compounds with depth.",
    criterion="in the NF network with He's weights, without border, the squared mean over the variance after the last block is at "
    "least 1.5 times that after the first",
)
def _(table):
    share = _arm(table, "nf_he", "squared_mean") / _arm(table, "nf_he", "variance")
    return judge_effect("growth of squared mean / variance", share.iloc[:, -1] / share.iloc[:, 0], claimed=(1.5, np.inf), null=1)


@mean_shift.claim(
    "kernel-branch",
    "The arc-cosine kernel predicts what is left of the variance of an NF branch with He's weights.",
    criterion="the variance of the branch over the predicted one, mean over the blocks, lies in 0.85 to 1.15, without border",
    by="notes",
)
def _(table):
    ratio = _over_prediction(table, "nf_he", "residual_variance")
    return judge_effect("measured / predicted", ratio, claimed=(0.85, 1.15), null=np.nan)


@mean_shift.claim(
    "kernel-share",
    "It predicts how much of the mean square of a block's output is variance, with the books and without.",
    criterion="variance / (variance + squared mean) over the predicted share, mean over the blocks, without border, lies in "
    "0.85 to 1.15 for the NF network with He's weights and for the one without norms and books: the farther from 1 counts",
    by="notes",
)
def _(table):
    ratios = []
    for arm in ("nf_he", "none"):
        share = np.array([one.variance / (one.variance + one.squared_mean) for one in _predicted(table, arm)])
        variance, mean = _arm(table, arm, "variance"), _arm(table, arm, "squared_mean")
        ratios.append((variance / (variance + mean) / share).mean(axis=1))
    farther = ratios[0].where((ratios[0] - 1).abs() > (ratios[1] - 1).abs(), ratios[1])
    said = f"{number(ratios[0].median())} with the books, {number(ratios[1].median())} without"
    return judge_effect("measured / predicted share", farther, claimed=(0.85, 1.15), null=np.nan, note=said)


@mean_shift.claim(
    "removed",
    "Scaled weight standardization removes the mean shift.",
    criterion="without border the squared mean after any block is at most 5 % of the variance: the largest of the blocks counts",
)
def _(table):
    share = (_arm(table, "nf_ws", "squared_mean") / _arm(table, "nf_ws", "variance")).max(axis=1)
    return judge_effect("largest squared mean / variance", share, claimed=(0, 0.05), null=0.05)


@mean_shift.claim(
    "unit-branch",
    "With it a branch puts out variance 1.",
    criterion="the variance of the branch, mean over the blocks, lies in 0.95 to 1.05, without border",
)
def _(table):
    ratio = _over_prediction(table, "nf_ws", "residual_variance")
    return judge_effect("variance of the branch", ratio, claimed=(0.95, 1.05), null=np.nan)


@mean_shift.claim(
    "border",
    "Zero padding takes from the variance of a branch what the missing taps of its 3×3 filter make up, and the loss compounds.",
    criterion="the variance with zero padding over that without border, the same weights, over what the first-order rule says, "
    "mean over the blocks, lies in 0.95 to 1.05",
    by="notes",
)
def _(table):
    zeros, circular = (_arm(table, "nf_ws", "residual_variance", padding) for padding in ("zeros", "circular"))
    said = [one.residual_variance for one in _predicted(table, "nf_ws", "zeros")]
    ratio = (zeros / circular / said).mean(axis=1)
    return judge_effect("measured loss / predicted", ratio, claimed=(0.95, 1.05), null=np.nan)
