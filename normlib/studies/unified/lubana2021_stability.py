"""Speed against stability: what the size of a group does to training, at three rates (Lubana, Dick and Tanaka, 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator
from scipy.stats import spearmanr

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import BLUE, GRAY, GREEN, INK, ORANGE, PINK, VERMILION, median_and_band, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.unified.ten import FULL, LAPTOP, QUICK, cnn
from normlib.studies.unified.training_runs import FAILURE, run_of

SIZES = ["group:size=1", "group:size=4", "group:size=16", "layer"]
NAMES = dict(zip([*SIZES, "batch"], ["1", "4", "16", "all", "batch norm"], strict=True))
LOOKS = dict(zip([*SIZES, "batch"], [(ORANGE, "o"), (GREEN, "^"), (PINK, "D"), (VERMILION, "s"), (BLUE, "x")], strict=True))
PAPER_RATE = 0.1

stability = Study(
    "lubana2021.stability",
    item="speed and stability by group size",
    title="Groups of one channel are slow at every rate, groups of all channels fall behind at high ones",
    kind="train",
    vary={"norm": [*SIZES, "batch"], "rate": [0.01, 0.03, 0.1, 0.3]},
    quick={**QUICK, "train": 256, "layers": 5, "width": 16, "steps": 10, "batch": 32, "rate": [PAPER_RATE]},
    laptop={**LAPTOP, "validation": 512, "test": 1_000, "steps": 64, "batch": 64},
    full={**FULL, "layers": 20, "steps": 10_000, "batch": 256, "rate": [0.01, 0.03, 0.1, 0.3]},
)


@stability.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    return run_of(cnn(c, images, c.norm, seed), images, tests, c, c.rate, seed)


def speeds(table):
    """Return the mean training accuracy over the run, in percent: a row a seed, a column a rate and a normalizer."""
    return 100 * side_by_side(table, ["rate", "norm"], "speed")


def worst_setbacks(table):
    """Return the largest setback over the rates; infinite if a run diverged: a row a seed, a column a normalizer."""
    return side_by_side(table, ["norm", "rate"], "setback").T.groupby("norm").max().T


@stability.draw
def _(table):
    figure, (left, middle, right) = subplots(1, 3, height=3.3)
    runs = table.drop_duplicates(["norm", "rate", "seed"]).assign(speed=lambda runs: 100 * runs.speed)
    finite = runs.setback[np.isfinite(runs.setback)]
    top = 1.15 * max(finite.max(), 0.1) if len(finite) else 1.0
    rates = sorted(runs.rate.unique())
    for key, (color, marker) in LOOKS.items():
        here = runs[runs.norm == key]
        style: dict[str, Any] = {"marker": marker, "markersize": 5}
        median_and_band(left, here, "rate", "speed", color=color, **style)
        median_and_band(middle, here, "rate", "setback", color=color, label=NAMES[key], **style)
        if len(lost := here[here.diverged == 1]):
            middle.plot(lost.rate, [top] * len(lost), "x", color=color, markersize=6, clip_on=False)
    for ax, label in ((left, "training accuracy,\nmean over the run (%)"), (middle, "largest setback of the loss")):
        ax.set(xscale="log", xlabel="learning rate", ylabel=label, ylim=(0, None))
        ax.set_xticks(rates, [number(rate) for rate in rates])
        ax.xaxis.set_minor_locator(NullLocator())
    middle.set_ylim(0, top)
    kept, best = tuned(table, ["norm"], "held_out")
    for source, color, fill in ((runs[runs.rate == PAPER_RATE], INK, "full"), (kept, GRAY, "none")):
        speed = side_by_side(source, "norm", "speed")[SIZES] * (1 if fill == "full" else 100)
        right.plot(range(len(SIZES)), speed.median(), "o-", color=color, fillstyle=fill)
        right.plot(range(len(SIZES)), speed.T, ".", color=color, markersize=3)
    right.set(xlabel="channels in a group", ylim=(0, None), xlim=(-0.4, 3.4))
    right.set_xticks(range(len(SIZES)), [NAMES[key] for key in SIZES])
    note(right, f"filled: rate {PAPER_RATE}\nopen: own rate", 0.97, 0.03, ha="right", fontsize=8)
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=5, title="channels in a group")
    failed = runs[runs.failed == 1].groupby("norm", sort=False).size()
    count = len(runs) // runs.norm.nunique()
    lost = ", ".join(f"{failed.get(key, 0)} with {NAMES[key]}" for key in LOOKS)
    crosses = "; crosses at the upper edge: loss not finite" if runs.diverged.any() else ""
    best = {key: best[key] for key in LOOKS}
    ends = ends_in_words([NAMES[key] for key in at_ends(table, ["norm"], best)])
    return Drawing(
        figure,
        caption=f"Of {count} runs each, over rates and seeds, these fail, by channels in a group: {lost}. A run {FAILURE}. "
        "**Left** Speed. **Middle** The largest rise of the loss (mean over four steps) above the lowest that it had "
        f"been{crosses}. **Right** Speed by the size of the group, at 0.1, and at each size's own, "
        f"chosen on held-out training images: {rates_in_words(best, NAMES)}{ends}. Small dots are seeds. Plain network; SGD batch "
        f"and statistic batch {runs.batch.iloc[0]:g}.",
        alt="Left and middle: mean training accuracy and largest setback of the loss against the learning rate, for four group "
        "sizes and batch norm. Right: mean training accuracy against the group size, at rate 0.1 and at each size's own rate.",
    )


@stability.claim(
    "neither-end",
    "The best size of a group is neither end: it lies between one channel and all of them.",
    criterion="at 0.1, the number of the paper, mean training accuracy over the run: the better of sizes 4 and 16 minus the better "
    "of 1 and all, above 0 points",
)
def _(table):
    speed = speeds(table)[PAPER_RATE]
    gain = speed[SIZES[1:3]].max(axis=1) - speed[[SIZES[0], SIZES[-1]]].max(axis=1)
    own = 100 * side_by_side(tuned(table, ["norm"], "held_out")[0], "norm", "speed")
    tuned_gain = own[SIZES[1:3]].max(axis=1) - own[[SIZES[0], SIZES[-1]]].max(axis=1)
    said = f"at each size's own rate {number(tuned_gain.median())}"
    return judge_effect("points, better middle minus better end", gain, claimed=(0, np.inf), null=0, note=said)


@stability.claim(
    "larger-slower",
    "The larger the group, the slower the training, where the rate is low enough for all.",
    criterion="at the lowest rate, rank correlation over the four sizes of size and mean training accuracy over the run, "
    "at most −0.8",
)
def _(table):
    lowest = table.rate.min()
    speed = speeds(table)[lowest][SIZES]
    ranks = [spearmanr(range(len(SIZES)), row).statistic for row in speed.to_numpy()]
    said = f"rate {number(lowest)}: " + ", ".join(f"{number(speed[key].median())} % with {NAMES[key]}" for key in SIZES)
    return judge_effect("rank correlation of size and speed", ranks, claimed=(-1, -0.8), null=0, note=said)


@stability.claim(
    "smallest-unstable",
    "Training is the less stable the smaller the group: one channel is the worst.",
    criterion="largest setback over the four rates (infinite if a run diverges): with one channel minus the largest of 4, 16 and "
    "all, above 0",
)
def _(table):
    worst = worst_setbacks(table)[SIZES]
    gap = worst[SIZES[0]] - worst[SIZES[1:]].max(axis=1)
    said = ", ".join(f"{number(worst[key].median())} with {NAMES[key]}" for key in SIZES)
    said += "; a run that has learned little has little to lose"
    return judge_effect("setback, one channel minus the largest other", gap, claimed=(0, np.inf), null=0, note=said)


@stability.claim(
    "own-rate",
    "Much of the difference between sizes is one of the rate: at its own rate each, the sizes are at most half as far apart.",
    criterion="range over the four sizes of mean training accuracy over the run, at own rates over that at 0.1, at most 0.5",
    by="notes",
)
def _(table):
    own = side_by_side(tuned(table, ["norm"], "held_out")[0], "norm", "speed")[SIZES]
    common = speeds(table)[PAPER_RATE][SIZES] / 100
    spread = [speed.max(axis=1) - speed.min(axis=1) for speed in (own, common)]
    said = f"{number(100 * spread[0].median())} and {number(100 * spread[1].median())} points"
    return judge_effect("range at own rates / at 0.1", spread[0] / spread[1], claimed=(0, 0.5), null=1, note=said)
