"""Brock, De & Smith (2021), table 1: accuracy with batch norm and without, with extra regularization and without."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import GRAY, INK, norm_color, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
from normlib.studies.normalizer_free.tricks import FULL, LAPTOP, QUICK, RECIPE, fit, resnet
from normlib.surgery import reestimate_statistics
from normlib.training import evaluate

ARMS = {"batch": norm_color("batch"), "nf_zero": norm_color("scaled_weight"), "nf": norm_color("scaled_weight")}
ARMS |= {"skipinit": GRAY, "fixup": GRAY}
NAMES = {"batch": "BN", "nf_zero": "NF (SkipInit at 0)", "nf": "NF", "skipinit": "SkipInit", "fixup": "Fixup"}
EXTRA = {"without": {}, "with": {"drop_path": 0.1, "dropout": 0.25}}  # stochastic depth at the last block; dropout before the head
FACES = {"without": "none", "with": "full"}
SMOOTHING = 0.1  # of the labels, in every arm
BATCHES = 10  # batches of training images that the statistics of BN are re-estimated from

table1 = Study(
    "brock2021a.accuracy",
    item="Table 1",
    title="Is batch norm's lead a lead in regularization?",
    kind="train",
    vary={"trick": list(ARMS), "extra": list(EXTRA), "rate": [0.03, 0.1, 0.3, 1.0]},
    quick={**QUICK, "batch": 48, "steps": 20, "rate": [0.1]},
    laptop={**LAPTOP, "pool": 4, "train": 1_320, "validation": 1_000, "stages": [1, 1, 1], "batch": 32, "steps": 220},
    full={**FULL, "batch": 128, "steps": 10_000},
)


def least_loss(classes: int) -> float:
    """Return the least cross-entropy with smoothed labels: that of a label with itself."""
    other = SMOOTHING / classes
    own = 1 - SMOOTHING + other
    return -own * math.log(own) - (classes - 1) * other * math.log(other)


@table1.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net, loss = resnet(c, tune, c.trick, seed, **EXTRA[c.extra]), f"cross_entropy:smoothing={SMOOTHING}"  # type: ignore[arg-type]
    history = fit(net, tune, steps=c.steps, rate=c.rate, seed=seed, batch=c.batch, loss=loss)
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}")
    if c.trick == "batch":
        reestimate_statistics(net, tune.x_train.split(c.batch)[:BATCHES])
    parts = {"train": (tune.x_train, tune.y_train), "held": (tune.x_test, tune.y_test), "test": (images.x_test, images.y_test)}
    found = {name: evaluate(net, *part, statistics="eval", loss=loss, batch_size=1_000) for name, part in parts.items()}
    return {
        "images": len(tune.x_train),
        "excess": found["train"].loss - least_loss(tune.classes),
        "fitted": 100 * found["train"].accuracy,
        "held_out": 100 * found["held"].accuracy,
        "accuracy": 100 * found["test"].accuracy,
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def chosen(table, column: str = "accuracy"):
    """Return a column, each arm at its rate: a row a seed, a column a pair of regularization and trick."""
    return side_by_side(tuned(table, ["extra", "trick"], "held_out")[0], ["extra", "trick"], column)


@table1.draw
def _(table):
    kept, rates = tuned(table, ["extra", "trick"], "held_out")
    figure, panels = subplots(1, 2, height=3.0, sharey=True)
    for axes, column in zip(panels, ("accuracy", "excess"), strict=True):
        for row, (trick, color) in enumerate(ARMS.items()):
            medians = []
            for extra, face in FACES.items():
                runs = kept[(kept.trick == trick) & (kept.extra == extra)][column].dropna()
                at = row + (0.16 if extra == "with" else -0.16)
                axes.plot(runs, [at] * len(runs), "o", color=color, fillstyle=face, markersize=5)
                axes.plot([runs.median()] * 2, [at - 0.14, at + 0.14], color=color)
                medians.append(runs.median())
            axes.plot(medians, [row - 0.16, row + 0.16], color=color, linewidth=0.8, linestyle=":")
    panels[0].set_yticks(range(len(ARMS)), [NAMES[trick] for trick in ARMS])
    panels[0].set(ylim=(len(ARMS) - 0.4, -0.6), xlabel="test accuracy (%)")
    finite = kept.excess[np.isfinite(kept.excess.astype(float))]
    panels[1].set(xscale="log", xlim=(finite.min() / 1.5, finite.max() * 1.5), xlabel="training loss above its least value")
    panels[1].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panels[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    panels[1].xaxis.set_minor_locator(NullLocator())
    note(panels[0], "hollow: without, filled: with extra regularization", 0, 1.03, fontsize=8.5, color=INK)
    scores, runs = chosen(table), table.iloc[0]
    leads = {extra: scores[extra, "batch"] - scores[extra, "nf_zero"] for extra in EXTRA}
    said = ", ".join(
        f"{NAMES[trick]} {scores['without', trick].median():.1f} and {scores['with', trick].median():.1f} %" for trick in ARMS
    )
    names = {(extra, trick): f"{NAMES[trick]} {extra}" for extra, trick in rates}
    ends = [names[arm] for arm in at_ends(table, ["extra", "trick"], rates)]
    found = ", ".join(f"{NAMES[trick]} {number(rates['without', trick])} and {number(rates['with', trick])}" for trick in ARMS)
    count = int(table.images.dropna().iloc[0])
    passes = runs.steps / (count // runs.batch)
    return Drawing(
        figure,
        caption=f"Test accuracy of BN less that of NF with SkipInit at 0, in points: {_signed(leads['without'])} without extra "
        f"regularization, {_signed(leads['with'])} with it (median and range over seeds). Residual networks after "
        f"{runs.steps} updates on {count} images, {number(passes)} passes; "
        f"{runs.batch} images an update and, for BN, a statistic. Labels are smoothed by {SMOOTHING} everywhere. *Extra* is "
        f"stochastic depth, up to {EXTRA['with']['drop_path']} at the last block, and dropout of {EXTRA['with']['dropout']} before "
        f"the head. **Left** Test accuracy, each seed and the median, without and with extra: {said}. **Right** Smoothed "
        "cross-entropy on the training images after training, nothing dropped, less the least that smoothed labels allow. "
        f"Rates, by held-out images, without and with: {found}{ends_in_words(ends)}. Recipe: {RECIPE}. Statistics of BN "
        "re-estimated after training.",
        alt="Two panels with a row for batch norm, two normalizer-free networks, SkipInit and Fixup, each without and with extra "
        "regularization. Left: test accuracy, seed by seed. Right: excess training loss, log scale.",
    )


def _signed(differences) -> str:
    return f"{number(differences.median())} ({number(differences.min())} to {number(differences.max())})"


@table1.claim(
    "lead",
    "Without extra regularization the network with batch norm is ahead of the normalizer-free one.",
    criterion="each at its best rate, without stochastic depth and dropout: test accuracy of BN less that of NF with SkipInit at "
    "0, above 0",
)
def _(table):
    scores = chosen(table)["without"]
    return judge_effect("points without extra, BN less NF", scores["batch"] - scores["nf_zero"], claimed=(0, np.inf), null=0)


@table1.claim(
    "closes",
    "With stochastic depth and dropout the normalizer-free network is level with batch norm or ahead of it.",
    criterion="each at its best rate, with both: test accuracy of NF with SkipInit at 0 less that of BN, at least −0.5 points",
)
def _(table):
    scores = chosen(table)["with"]
    ahead = scores["nf_zero"] - scores["batch"]
    return judge_effect("points with extra, NF less BN", ahead, claimed=(-0.5, np.inf), null=np.nan)


@table1.claim(
    "helps-more",
    "Stochastic depth and dropout do more for the normalizer-free network than for the one with batch norm.",
    criterion="each at its best rate: what extra regularization adds to the test accuracy of NF with SkipInit at 0, less what it "
    "adds to that of BN, above 0",
)
def _(table):
    scores = chosen(table)
    gains = scores["with"] - scores["without"]
    said = f"NF {number(gains['nf_zero'].median())}, BN {number(gains['batch'].median())}"
    added = gains["nf_zero"] - gains["batch"]
    return judge_effect("points that extra adds, NF less BN", added, claimed=(0, np.inf), null=0, note=said)


@table1.claim(
    "ahead-of-older",
    "The normalizer-free network is ahead of SkipInit and of Fixup, with extra regularization and without.",
    criterion="each at its best rate: test accuracy of NF with SkipInit at 0 less that of SkipInit and of Fixup, with and without; "
    "the smallest of the four differences, above 0",
)
def _(table):
    scores = chosen(table)
    ahead = {(extra, old): scores[extra, "nf_zero"] - scores[extra, old] for extra in EXTRA for old in ("skipinit", "fixup")}
    said = ", ".join(f"{number(difference.median())} {NAMES[old]} {extra}" for (extra, old), difference in ahead.items())
    smallest = np.minimum.reduce(list(ahead.values()))
    return judge_effect("points, NF less the older, smallest of four", smallest, claimed=(0, np.inf), null=0, note=said)


@table1.claim(
    "fit",
    "Without extra regularization the normalizer-free network fits the training images more closely than batch norm.",
    criterion="each at its best rate, without stochastic depth and dropout: training loss above its least value, NF with SkipInit "
    "0 over BN, below 1",
    by="notes",
)
def _(table):
    excess = chosen(table, "excess")["without"]
    return judge_effect("excess training loss, NF / BN", excess["nf_zero"] / excess["batch"], claimed=(0, 1), null=1)


@table1.claim(
    "start-at-zero",
    "Whether the branches of the normalizer-free network start at zero changes its accuracy by less than one point.",
    criterion="each at its best rate: test accuracy of NF less that of NF with SkipInit at 0, with and without extra "
    "regularization: the larger size of the two, below 1",
    by="notes",
)
def _(table):
    scores = chosen(table)
    signed = {extra: scores[extra, "nf"] - scores[extra, "nf_zero"] for extra in EXTRA}
    said = ", ".join(f"{number(difference.median())} {extra}" for extra, difference in signed.items())
    largest = np.maximum.reduce([difference.abs() for difference in signed.values()])
    return judge_effect("points between the two, larger of two", largest, claimed=(0, 1), null=1, note=said)
