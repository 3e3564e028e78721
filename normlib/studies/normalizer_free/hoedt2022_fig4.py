"""Hoedt, Hochreiter and Klambauer (2022), figure 4: signal propagation without and with batch normalization."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.studies.common.looks import note, subplots
from normlib.studies.normalizer_free.bottlenecks import (
    PADDINGS,
    QUANTITIES,
    STAGES,
    curves,
    factors,
    first_blocks,
    measured,
    panel,
    predicted,
    published,
    setup_in_words,
    stages_marked,
)

QUICK = {"width": 16, "side": 64, "samples": 4}
LAPTOP = {"width": 64, "side": 224, "samples": 8}
FULL = {"width": 64, "side": 224, "samples": 256}

figure4 = Study(
    "hoedt2022.fig4",
    item="Fig 4",
    title="Without normalization the variance multiplies; batch norm adds the same in each block and starts anew in each stage",
    kind="init",
    vary={"arm": ["none", "batch"], "padding": PADDINGS},
    quick=QUICK,
    laptop=LAPTOP,
    full=FULL,
)


@figure4.trial
def _(c, seed):
    return measured(c, seed)


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def to_published(table, arm: str, quantity: str):
    """Return the mean over blocks of |measured / published − 1|, zero padding: a row a seed."""
    return (curves(table, arm, quantity) / published(arm, quantity) - 1).abs().mean(axis=1)


def to_form(table, arm: str, quantity: str):
    """Return the largest |measured / closed form − 1| over the blocks, circular padding: a row a seed."""
    return (curves(table, arm, quantity, "circular") / predicted(arm)[quantity] - 1).abs().max(axis=1)


def unevenness(table):
    """Return how far what a block adds to the variance is from the mean of its stage, relative to it; the largest, a row a seed."""
    lines, apart = curves(table, "batch", "variance"), []
    for start, count in zip([1, *first_blocks()], STAGES, strict=True):
        added = lines.loc[:, start : start + count - 1].diff(axis=1).iloc[:, 1:]
        apart.append(added.div(added.mean(axis=1), axis=0).sub(1).abs().max(axis=1))
    return np.maximum.reduce(apart)


def square_growth(table):
    """Return the factor per block of the mean square without norm, circular padding: a row a seed."""
    square = curves(table, "none", "squared_mean", "circular") + curves(table, "none", "variance", "circular")
    return (square.iloc[:, -1] / square.iloc[:, 0]) ** (1 / (square.shape[1] - 1))


@figure4.draw
def _(table):
    figure, axes = subplots(2, 3, height=2.3, sharex=True)
    for top, bottom, (quantity, symbol) in zip(*axes, QUANTITIES.items(), strict=True):
        for padding in PADDINGS:
            for arm in ("none", "batch"):
                panel(top, table, arm, quantity, padding, form=padding == "zeros")
            panel(bottom, table, "batch", quantity, padding, form=padding == "zeros")
        top.set(yscale="log", title=symbol)
        bottom.set(xlabel="block", ylim=(0, None))
        for ax in (top, bottom):
            stages_marked(ax)
    axes[0, 0].set_ylabel("both (log)")
    axes[1, 0].set_ylabel("BN alone")
    axes[0, 0].legend(loc="upper left", fontsize=8.5, handletextpad=0.1)
    axes[1, 2].set_ylim(0, 1)
    note(axes[1, 2], "×: the post\nline: closed form\nhollow: circular padding", 0.05, 0.05, fontsize=8.5)
    plain = curves(table, "none", "variance").median()
    slope = curves(table, "batch", "residual_variance").median()
    return Drawing(
        figure,
        caption=f"{setup_in_words(table)}. Channel moments over images and positions, mean over channels: squared mean and "
        "variance behind each block, variance at the end of its branch; vertical lines: stages. Without a norm the variance "
        f"goes from {number(plain.iloc[0])} to {number(plain.iloc[-1])}; under BN a branch puts out {number(slope.min())} to "
        f"{number(slope.max())} in every block (closed form: 1 − 1/π = {number(1 - 1 / np.pi)}). BN's variance is "
        f"{number(100 * to_published(table, 'batch', 'variance').median())} % from the published curve in the mean over blocks "
        "(zero padding), and with circular padding never more than "
        f"{number(100 * to_form(table, 'batch', 'variance').median())} % from the closed form.",
        alt="Six panels against sixteen blocks: squared mean, variance, residual variance. Top, log axis, without norm growing "
        "exponentially and with batch norm. Bottom, batch norm alone: saw-teeth and a constant. Crosses: published.",
    )


@figure4.claim(
    "exponential",
    "Without normalization the variance grows exponentially with the blocks.",
    criterion="zero padding, no norm: variance behind a block over that behind the block before, the smallest of the fifteen; at "
    "least 1.5 (linear growth would come down to 16/15)",
)
def _(table):
    steps = factors(curves(table, "none", "variance"))
    post = _published_steps()
    said = f"largest {number(steps.max(axis=1).median())}; published {number(post.min())} to {number(post.max())}"
    return judge_effect("factor per block, smallest", steps.min(axis=1), claimed=(1.5, np.inf), null=1, note=said)


def _published_steps() -> np.ndarray:
    curve = published("none", "variance")
    return curve[1:] / curve[:-1]


@figure4.claim(
    "linear",
    "With batch normalization the variance grows linearly inside a stage.",
    criterion="zero padding: what a block adds to the variance differs from the mean over its stage by at most 10 %; the largest "
    "difference",
)
def _(table):
    return judge_effect("largest relative difference", unevenness(table), claimed=(0, 0.1), null=np.nan)


@figure4.claim(
    "reset",
    "At the transition to a new stage the variance is reset.",
    criterion="zero padding, BN: variance behind the first block of stages 2 to 4 over that behind the last block before: the "
    "largest of the three; at most 0.6 (closed forms: 0.5, 0.4, 0.29)",
)
def _(table):
    drops = factors(curves(table, "batch", "variance"))[first_blocks()]
    return judge_effect("variance, first block / last block before, largest", drops.max(axis=1), claimed=(0, 0.6), null=1)


@figure4.claim(
    "closed-form",
    "Behind batch norm and He's weights a branch adds 1 − 1/π to the variance, and a projected shortcut brings as much.",
    criterion="circular padding: variance within 5 % of the closed form behind every block; the largest deviation",
    by="notes",
)
def _(table):
    said = f"squared mean: {number(to_form(table, 'batch', 'squared_mean').median())}"
    effect = "largest relative deviation of the variance"
    return judge_effect(effect, to_form(table, "batch", "variance"), claimed=(0, 0.05), null=np.nan, note=said)


@figure4.claim(
    "doubling",
    "What doubles at each block without a norm is the mean square, squared mean plus variance.",
    criterion="circular padding, no norm: factor per block of the mean square from block 1 to block 16 between 1.9 and 2.1",
    by="notes",
)
def _(table):
    lines = curves(table, "none", "variance", "circular")
    alone = ((lines.iloc[:, -1] / lines.iloc[:, 0]) ** (1 / (lines.shape[1] - 1))).median()
    said = f"variance alone: {number(alone)}; predicted {number(_predicted_growth())}"
    return judge_effect("mean square, factor per block", square_growth(table), claimed=(1.9, 2.1), null=1, note=said)


def _predicted_growth() -> float:
    line = predicted("none").variance
    return float((line.iloc[-1] / line.iloc[0]) ** (1 / (len(line) - 1)))


@figure4.claim(
    "published",
    "The post's curve of batch norm can be measured again.",
    criterion="zero padding, noise as in the post's figure: variance within 3 % of the published curve in the mean over 16 blocks",
    by="notes",
)
def _(table):
    said = f"squared mean: {number(to_published(table, 'batch', 'squared_mean').median())}"
    distance = to_published(table, "batch", "variance")
    return judge_effect("mean relative distance of the variance", distance, claimed=(0, 0.03), null=np.nan, note=said)
