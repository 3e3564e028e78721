"""Wu & He (2018), Fig. 6: what the last convolution puts out over training, without norm, with batch and with group norm."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.probes import reduce_activations
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import PAPER, WIDTH, median_and_band, norm_color
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
from normlib.studies.flavors.convnets import BATCH, convnet, errors, fit
from normlib.training.history import log_steps

NAMES = {"none": "none", "batch:ghost=32": "batch", "group:size=8": "group"}
NONE, BATCH_NORM, GROUP = NAMES
PERCENTILES = [1, 20, 80, 99]
COLUMNS = [f"p{percent}" for percent in PERCENTILES]
SAMPLE = 256  # training images that the outputs are taken of
LEARNED = 60  # percent of error: above it a network has not learned, and its range is not drawn
LOOKS = 24  # about how often, denser at the start

percentiles = Study(
    "wu2018.percentiles",
    item="Fig 6",
    title="What the last convolution puts out over training, without norm, with batch norm, with group norm",
    kind="train",
    vary={"norm": list(NAMES), "rate": [0.006, 0.02, 0.06, 0.2, 0.6]},
    quick={
        "data": "digits", "pool": 1, "train": 500, "validation": 100, "depth": 8, "width": 16, "epochs": 3, "rate": [0.02, 0.06],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 3_000, "validation": 600, "test": 4_000, "depth": 10, "width": 32, "epochs": 4,
    },
    full={"data": "cifar10", "pool": 1, "validation": 5_000, "depth": 14, "width": 64, "epochs": 30},
)  # fmt: skip


def spread(values: Tensor) -> dict[str, float]:
    """Return the percentiles of all entries: of all images, channels and positions."""
    levels = torch.tensor(PERCENTILES, dtype=torch.float64, device=values.device) / 100
    found = values.double().flatten().quantile(levels).tolist()
    return dict(zip(COLUMNS, found, strict=True))


@percentiles.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = convnet(c, tune, c.norm, seed)
    last = f"blocks.{len(net.blocks) - 1}.layer"  # the convolution, before its norm and the ReLU
    steps = int(c.epochs * (len(tune.x_train) // BATCH))

    def measure(step, model):
        return reduce_activations(model, tune.x_train[:SAMPLE], spread, [last], training=True)[last, "output"]

    when = log_steps(steps + 1, LOOKS)
    run = fit(net, tune, epochs=c.epochs, rate=c.rate, seed=seed, probe=measure, probe_steps=when)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **run.probes)
    return {**run.probes, **errors(net, tune, images)}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def at_rates(table):
    """Return the runs with each arm at its best rate, those with all at the rate of the arm without norm, and the best rates."""
    own, rates = tuned(table, ["norm"], "held_out_error", low=True)
    return own, table[table.rate == rates[NONE]], rates


def ranges(runs, at=-1):
    """Return the distance from the 1st to the 99th percentile: a row a seed, a column an arm.

    Args:
        runs: each arm at one rate.
        at: -1 after the last step, 0 before the first.
    """
    step = runs.groupby(["norm", "seed"]).step.transform("max" if at else "min")
    ends = runs[(runs.step == step) | runs.step.isna()]
    return side_by_side(ends.assign(range=ends.p99 - ends.p1), "norm", "range").reindex(columns=list(NAMES))


def wider(values):
    """Return, for each seed, the number of the network without norm over the larger of those with norm."""
    return values[NONE] / values[[BATCH_NORM, GROUP]].max(axis=1, skipna=False)


@percentiles.draw
def _(table):
    own, common, rates = at_rates(table)
    figure = Figure(figsize=(WIDTH, 4.9))
    axes = figure.subplot_mosaic("aabbcc;dddeee")
    for panel, (norm, name) in zip("abc", NAMES.items(), strict=True):
        _bands(axes[panel], own[own.norm == norm].dropna(subset=["step"]), norm)
        axes[panel].set_title(f"{name}, rate {number(rates[norm])}", fontsize=9.5)
        axes[panel].set(xlabel="step", ylim=_limits(own))
        if norm != NONE:
            axes[panel].set_yticklabels([])
    axes["a"].set_ylabel("output")
    ends = _ends(table)
    for panel, column in (("d", "range"), ("e", "held_out_error")):
        for norm in NAMES:
            arm = ends[ends.norm == norm]
            median_and_band(axes[panel], arm, "rate", column, color=norm_color(norm), marker="o", mfc=PAPER)
            chosen = arm[arm.rate == rates[norm]]
            axes[panel].plot(rates[norm], chosen[column].median(), "o", color=norm_color(norm), markersize=8, zorder=5)
        axes[panel].set(xscale="log", xlabel="learning rate")
        axes[panel].set_xticks(sorted(table.rate.unique()), [number(rate) for rate in sorted(table.rate.unique())])
        axes[panel].xaxis.set_minor_locator(NullLocator())
    axes["d"].set(yscale="log", title="1st to 99th percentile, at the end")
    axes["d"].set_yticks([3, 10, 30], ["3", "10", "30"])
    axes["d"].yaxis.set_minor_locator(NullLocator())
    highest = ends.groupby(["norm", "rate"]).held_out_error.median().max() if len(ends) else LEARNED
    axes["e"].set(title="held-out error (%)", ylim=(0, 1.25 * highest))
    end, one = ranges(own).median(), ranges(common).median()
    at_edge = [NAMES[norm] for norm in at_ends(table, ["norm"], rates)]
    return Drawing(
        figure,
        caption=f"What the last convolution puts out, before norm and ReLU; {BATCH} images per update, batch statistics over 32. "
        f"**Top** Its 1st, 20th, 80th and 99th percentile over training, each network at its own rate. From the 1st to the 99th it "
        f"is {number(end[NONE])} at the end without norm, {number(end[BATCH_NORM])} with batch and {number(end[GROUP])} with group "
        f"norm; at one rate for all, {number(rates[NONE])}, it is {number(one[NONE])}, {number(one[BATCH_NORM])} and "
        f"{number(one[GROUP])}. **Bottom** That range, and the error on held-out images, against the rate; filled: the rate "
        f"chosen, left out: rates with a median error above {LEARNED} %. Medians over seeds; "
        f"rates by held-out images{ends_in_words(at_edge)}.",
        alt="Top: percentiles of the last convolution's output against the step without norm, with batch norm and with group norm. "
        "Bottom: the range from the 1st to the 99th percentile and the held-out error against the learning rate.",
    )


def _bands(ax, arm, norm):
    """Draw the percentiles of one arm over training, medians over seeds, the outer pair and the inner one filled."""
    middle, color = arm.groupby("step")[COLUMNS].median(), norm_color(norm)
    ax.fill_between(middle.index, middle.p1, middle.p99, color=color, alpha=0.2, linewidth=0)
    ax.fill_between(middle.index, middle.p20, middle.p80, color=color, alpha=0.35, linewidth=0)
    for column in COLUMNS:
        ax.plot(middle.index, middle[column], color=color, linewidth=1.3)


def _limits(runs):
    middle = runs.groupby(["norm", "step"])[["p1", "p99"]].median()
    return 1.05 * middle.p1.min(), 1.05 * middle.p99.max()


def _ends(table):
    """Return the last row of each run with its range, at the rates at which an arm learns."""
    rows = table.dropna(subset=["step"]).sort_values("step").groupby(["norm", "rate", "seed"], as_index=False).last()
    error = rows.held_out_error.fillna(100).groupby([rows.norm, rows.rate]).transform("median")
    return rows.assign(range=rows.p99 - rows.p1)[error <= LEARNED]


# ---------------------------------------------------------------------------------------------------------------------------
# What is claimed
# ---------------------------------------------------------------------------------------------------------------------------

RANGE = "distance from the 1st to the 99th percentile of the last convolution's output, before norm and ReLU, at the end"


@percentiles.claim(
    "wider",
    "Without normalization the outputs of the last convolution spread at least twice as wide as with batch or group normalization.",
    criterion=f"{RANGE}, each arm at its own rate: without norm over the larger of the two with norm, at least 2",
)
def _(table):
    ratio = wider(ranges(at_rates(table)[0]))
    return judge_effect("range without norm / with norm, own rates", ratio, claimed=(2, np.inf), null=1)


@percentiles.claim(
    "alike",
    "Batch and group normalization behave alike.",
    criterion=f"{RANGE}, each arm at its own rate: batch over group between 1/2 and 2",
)
def _(table):
    found = ranges(at_rates(table)[0])
    return judge_effect("range with batch / with group norm", found[BATCH_NORM] / found[GROUP], claimed=(0.5, 2), null=np.nan)


@percentiles.claim(
    "control",
    "Normalization is what controls the distribution of these outputs: without it they widen by a larger factor.",
    criterion="the range at the end over that before the first step, each arm at its own rate: the factor without norm is above "
    "the larger of the two factors with norm",
)
def _(table):
    own = at_rates(table)[0]
    growth = ranges(own) / ranges(own, 0)
    said = ", ".join(f"{NAMES[norm]} × {number(growth[norm].median())}" for norm in NAMES)
    return judge_effect("growth without norm / with norm", wider(growth), claimed=(1, np.inf), null=1, note=said)


@percentiles.claim(
    "one-rate",
    "The difference in spread is not one of learning rates: it is there at one rate for all, too.",
    criterion="as `wider`, all arms at the rate that suits the network without norm",
    by="notes",
)
def _(table):
    ratio = wider(ranges(at_rates(table)[1]))
    return judge_effect("range without norm / with norm, one rate", ratio, claimed=(2, np.inf), null=1)


@percentiles.claim(
    "scale-is-free",
    "With batch normalization a higher rate makes these outputs at least twice as wide, and the network errs less than the one "
    "without normalization all the same.",
    criterion="the range at the highest rate over that at the own rate is at least 2; a seed in which the test error at the "
    "highest rate is not below that of the network without norm at its own rate counts as 0",
    by="notes",
)
def _(table):
    own = at_rates(table)[0]
    high = table[table.rate == table.rate.max()]
    better = side_by_side(high, "norm", "test_error")[BATCH_NORM] < side_by_side(own, "norm", "test_error")[NONE]
    ratio = (ranges(high)[BATCH_NORM] / ranges(own)[BATCH_NORM]).where(better, 0)
    said = f"the range there is {number(ranges(high)[BATCH_NORM].median())}"
    return judge_effect("range with batch norm, highest rate / own rate", ratio, claimed=(2, np.inf), null=1, note=said)


@percentiles.claim(
    "group-better",
    "In a deep network without shortcuts group normalization has a lower error than batch normalization.",
    criterion="test error at the end, each arm at its own rate: batch norm is above group norm (in the paper, for VGG-16, by 0.4 "
    "points)",
)
def _(table):
    error = side_by_side(at_rates(table)[0], "norm", "test_error")
    return judge_effect("points of error, batch minus group", error[BATCH_NORM] - error[GROUP], claimed=(0, np.inf), null=0)
