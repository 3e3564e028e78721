"""Hoedt, Hochreiter and Klambauer (2022), figure 5: signal propagation of a normalizer-free network beside batch normalization."""

from __future__ import annotations

import numpy as np
import pandas as pd

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.studies.common.looks import INK, note, subplots
from normlib.studies.normalizer_free.bottlenecks import (
    PADDINGS,
    QUANTITIES,
    curves,
    measured,
    panel,
    predicted,
    published,
    setup_in_words,
    stages_marked,
)

FLOOR = 1e-4  # squared means below are drawn there

figure5 = Study(
    "hoedt2022.fig5",
    item="Fig 5",
    title="The scaling of NF stops the growth, centered weights remove the mean, and zero padding takes variance",
    kind="init",
    vary={"arm": ["batch", "batch_after", "nf_he", "nf_scaled"], "padding": PADDINGS},
    quick={"width": 16, "side": 64, "samples": 4},
    laptop={"width": 64, "side": 224, "samples": 8},
    full={"width": 64, "side": 224, "samples": 256},
)


@figure5.trial
def _(c, seed):
    return measured(c, seed)


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def off_one(table: pd.DataFrame, padding: str) -> pd.Series:
    """Return the largest |residual variance − 1| of NF with scaled weight standardization over the blocks: one number a seed."""
    return (curves(table, "nf_scaled", "residual_variance", padding) - 1).abs().max(axis=1)


def apart(table: pd.DataFrame, baseline: str, padding: str = "circular") -> pd.Series:
    """Return the largest relative distance of the variance of NF with scaled weights from that of a baseline: one number a seed."""
    ratio = curves(table, "nf_scaled", "variance", padding) / curves(table, baseline, "variance", padding)
    return (ratio - 1).abs().max(axis=1)


def mean_share(table: pd.DataFrame, arm: str, padding: str = "zeros") -> pd.DataFrame:
    """Return squared mean over variance: a row a seed, a column a block."""
    return curves(table, arm, "squared_mean", padding) / curves(table, arm, "variance", padding)


def off_form(table: pd.DataFrame, quantity: str) -> pd.Series:
    """Return the mean over blocks of |measured / predicted − 1| for NF with He's weights, circular padding: one number a seed."""
    return (curves(table, "nf_he", quantity, "circular") / predicted("nf_he")[quantity] - 1).abs().mean(axis=1)


@figure5.draw
def _(table):
    figure, axes = subplots(2, 3, height=2.4, sharex=True, sharey="col")
    drawn = table.assign(squared_mean=table.squared_mean.clip(lower=FLOOR))
    for row, arms in zip(axes, (("batch", "nf_he"), ("batch", "batch_after", "nf_scaled")), strict=True):
        for ax, quantity in zip(row, QUANTITIES, strict=True):
            for arm in arms:
                hollow = arm not in ("batch", "batch_after")
                form = arm != "nf_scaled" and not (arm == "batch_after" and quantity == "squared_mean")
                panel(ax, drawn, arm, quantity, form=form)
                if hollow:
                    panel(ax, drawn, arm, quantity, "circular", form=False)
            stages_marked(ax)
    for ax, (quantity, symbol) in zip(axes[0], QUANTITIES.items(), strict=True):
        ax.set_title(symbol)
        ax.set(yscale="log") if quantity == "squared_mean" else ax.set_ylim(0, 1.45 if quantity == "residual_variance" else 8.8)
    for ax in axes[1]:
        ax.set_xlabel("block")
    axes[1, 0].set_ylim(FLOOR / 2, None)
    axes[0, 0].set_ylabel("He's weights")
    axes[1, 0].set_ylabel("scaled WS")
    for ax in axes[:, 1]:
        ax.legend(loc="upper left", fontsize=8, handletextpad=0.1, labelspacing=0.2)
    note(axes[0, 0], "×: the post\nline: closed form\nhollow: circular", 0.05, 0.05, fontsize=8.5, color=INK)
    zeros, circular = (curves(table, "nf_scaled", "residual_variance", padding).median().iloc[-1] for padding in PADDINGS)
    he = curves(table, "nf_he", "squared_mean").median()
    return Drawing(
        figure,
        caption=f"{setup_in_words(table)}. Squared mean and variance behind each block, variance at the end of its branch before "
        "it is scaled and added; NF with α = 1. **Top** With He's weights the squared mean of NF is "
        f"{number(he.min())} to {number(he.max())}, that of BN at most "
        f"{number(curves(table, 'batch', 'squared_mean').median().max())}. "
        f"**Bottom** With scaled weight standardization (WS) it is at most "
        f"{number(curves(table, 'nf_scaled', 'squared_mean').median().max())}. The last branch puts out {number(zeros)} with "
        f"zero padding and {number(circular)} with circular padding (the post: 0.90). With circular padding NF's variance is at "
        f"most {number(100 * apart(table, 'batch_after').median())} % from BN behind ReLU with weights of variance 1/N, and up to "
        f"{number(100 * apart(table, 'batch').median())} % from BN before ReLU.",
        alt="Six panels against sixteen blocks: squared mean, variance, residual variance. Top, batch norm and NF with He's "
        "weights. Bottom, two orders of batch norm and NF with scaled weight standardization, two paddings. Crosses: published.",
    )


@figure5.claim(
    "scaling",
    "The scaling of NF by itself, with He's weights, brings the variance back to the saw-teeth of batch normalization.",
    criterion="zero padding: variance of NF with He's weights over that of BN, or its inverse, at most 2 behind every block "
    "(without a norm and without the scaling the ratio reaches thousands); the largest",
)
def _(table):
    ratio = np.log2(curves(table, "nf_he", "variance") / curves(table, "batch", "variance")).abs().max(axis=1)
    curve = np.log2(published("nf_he", "variance") / published("batch", "variance"))
    said = f"published {number(2 ** np.abs(curve).max())}"
    return judge_effect("variance, NF / BN or inverse, largest", 2**ratio, claimed=(1, 2), null=np.nan, note=said)


@figure5.claim(
    "wrong-mean",
    "With He's weights the mean of the normalizer-free network is not that of batch normalization.",
    criterion="zero padding: squared mean of NF with He's weights over that of BN at least 2 behind every block; the smallest",
)
def _(table):
    ratio = (curves(table, "nf_he", "squared_mean") / curves(table, "batch", "squared_mean")).min(axis=1)
    said = f"published {number((published('nf_he', 'squared_mean') / published('batch', 'squared_mean')).min())}"
    return judge_effect("squared mean, NF / BN, smallest", ratio, claimed=(2, np.inf), null=1, note=said)


@figure5.claim(
    "centered",
    "Centering and scaling the weights removes this mean.",
    criterion="zero padding: squared mean of NF with scaled weight standardization at most 5 % of its variance behind every block; "
    "the largest",
)
def _(table):
    shares = mean_share(table, "nf_scaled").max(axis=1)
    said = f"with He's weights at least {number(mean_share(table, 'nf_he').min(axis=1).median())}"
    return judge_effect("squared mean / variance, largest", shares, claimed=(0, 0.05), null=np.nan, note=said)


@figure5.claim(
    "unit-branches",
    "Branches with scaled weights put out a variance of 1.",
    criterion="zero padding, as in the post's figure: residual variance within 0.1 of 1 in every block, as its curve is; the "
    "largest distance",
)
def _(table):
    said = f"circular padding: {number(off_one(table, 'circular').median())}"
    return judge_effect("|residual variance − 1|, largest", off_one(table, "zeros"), claimed=(0, 0.1), null=np.nan, note=said)


@figure5.claim(
    "order",
    "What is left between NF and the post's baseline is the order of the baseline: NF imitates ReLU, BN, convolution.",
    criterion="circular padding: variance of NF with scaled weights within 6 % of BN behind ReLU with weights of variance 1/N, "
    "behind every block; the largest distance (books and stem differ by 5 %: the pooling puts out 1.05, the books say 1)",
    by="notes",
)
def _(table):
    zeros = apart(table, "batch_after", "zeros").median()
    said = f"from BN before ReLU: {number(apart(table, 'batch').median())}; with zero padding {number(zeros)}"
    return judge_effect("largest relative distance", apart(table, "batch_after"), claimed=(0, 0.06), null=np.nan, note=said)


@figure5.claim(
    "kernel",
    "How wrong the mean is with He's weights follows from the arc-cosine kernel.",
    criterion="circular padding: squared mean and variance of NF with He's weights within 10 % of the recursion in the mean over "
    "blocks; the larger of the two",
    by="notes",
)
def _(table):
    both = pd.DataFrame({quantity: off_form(table, quantity) for quantity in ("squared_mean", "variance")})
    said = f"squared mean {number(both.squared_mean.median())}, variance {number(both.variance.median())}"
    return judge_effect("mean relative distance, larger of two", both.max(axis=1), claimed=(0, 0.1), null=np.nan, note=said)


@figure5.claim(
    "published",
    "The post's curve of NF with centered weights can be measured again.",
    criterion="zero padding, noise as in the post's figure: variance within 3 % of the published curve in the mean over 16 blocks",
    by="notes",
)
def _(table):
    distance = (curves(table, "nf_scaled", "variance") / published("nf_scaled", "variance") - 1).abs().mean(axis=1)
    he = (curves(table, "nf_he", "variance") / published("nf_he", "variance") - 1).abs().mean(axis=1).median()
    said = f"NF with He's weights: {number(he)}"
    return judge_effect("mean relative distance of the variance", distance, claimed=(0, 0.03), null=np.nan, note=said)
