"""Wu & He (2018), Table 3: how many groups, from layer to instance normalization."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import NullLocator

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import median_and_band, norm_color, subplots
from normlib.studies.common.tuning import tuned
from normlib.studies.flavors.convnets import BATCH, convnet, errors, fit

GROUPS = [1, 2, 4, 8, 16, 32]
WIDTH = 32  # channels of every layer, so that 32 groups hold one channel each
INTERIOR = [2, 4, 8]  # at least two groups, and at least four channels in each

groups = Study(
    "wu2018.groups",
    item="Table 3",
    title="How many groups? From layer normalization at one end to instance normalization at the other",
    kind="train",
    vary={"norm": [f"group:groups={count}" for count in GROUPS], "rate": [0.02, 0.06, 0.2, 0.6, 1.8]},
    quick={
        "data": "digits", "pool": 1, "train": 600, "validation": 100, "depth": 5, "width": WIDTH, "epochs": 2, "rate": [0.1],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 3_600, "validation": 600, "test": 4_000, "depth": 6, "width": WIDTH,
        "epochs": 4,
    },
    full={"data": "cifar10", "pool": 1, "validation": 5_000, "depth": 10, "width": WIDTH, "epochs": 30},
)  # fmt: skip


@groups.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = convnet(c, tune, c.norm, seed)
    run = fit(net, tune, epochs=c.epochs, rate=c.rate, seed=seed)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}")
    return errors(net, tune, images)


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def count(norm: str) -> int:
    """Return the number of groups in a spec."""
    return int(norm.partition("groups=")[2])


def kept(table):
    """Return the runs at each arm's best rate on held-out images, with their number of groups, and these rates."""
    runs, rates = tuned(table, ["norm"], "held_out_error", low=True)
    return runs.assign(groups=runs.norm.map(count)), {count(norm): rate for norm, rate in rates.items()}


def final(table, column="test_error"):
    """Return the errors in percent at the end: a row a seed, a column a number of groups."""
    return side_by_side(kept(table)[0], "groups", column)


def widest(errors):
    """Return, seed by seed, the difference of the two columns whose medians differ most over seeds, the larger first."""
    order = errors.median().sort_values().index
    return errors[order[-1]] - errors[order[0]]


@groups.draw
def _(table):
    runs, rates = kept(table)
    figure, axes = subplots(1, 2, height=3.0, gridspec_kw={"width_ratios": [1.6, 1]})
    for column, style, label in (("test_error", "-", "test images"), ("train_error", "--", "training images")):
        median_and_band(axes[0], runs, "groups", column, color=norm_color("group"), linestyle=style, marker="o", label=label)
    axes[0].plot(runs.groups, runs.test_error, "o", color=norm_color("group"), mfc="none", markersize=4, alpha=0.8)
    for ends, name in ((1, "layer"), (WIDTH, "instance")):
        value = runs[runs.groups == ends].test_error.median()
        axes[0].plot(ends, value, "o", color=norm_color(name), markersize=8, zorder=5)
        side = "left" if ends == 1 else "right"
        axes[0].annotate(
            f"{name} norm", (ends, value), (0, 9), textcoords="offset points", ha=side, color=norm_color(name), fontsize=9
        )
    axes[0].set(xscale="log", xlabel="groups (channels a group)", ylabel="error (%)", title="each at its own rate")
    axes[0].set_xticks(GROUPS, [f"{g}\n({WIDTH // g})" for g in GROUPS])
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].margins(y=0.16)
    axes[0].legend(loc="best")
    every = table.assign(groups=table.norm.map(count))
    for g in GROUPS:
        arm = every[every.groups == g]
        name = {1: "layer", WIDTH: "instance"}.get(g, "group")
        median = arm.groupby("rate").held_out_error.median()
        axes[1].plot(median.index, median, color=norm_color(name), alpha=1 if name != "group" else 0.6, linewidth=1.4)
        if g in rates:
            axes[1].plot(rates[g], median[rates[g]], "o", color=norm_color(name), markersize=5)
    tried = sorted(table.rate.unique())
    axes[1].set(xscale="log", xlabel="learning rate", title="held-out images")
    axes[1].set_xticks(tried, [number(rate) for rate in tried])
    axes[1].xaxis.set_minor_locator(NullLocator())
    error = final(table)
    at = error.median()
    edge = [str(g) for g, rate in sorted(rates.items()) if len(tried) > 1 and rate in (tried[0], tried[-1])]
    ended = f" At an end of these rates: {', '.join(edge)}." if edge else ""
    chosen = ", ".join(f"{number(rate)} for {g}" for g, rate in sorted(rates.items()))
    return Drawing(
        figure,
        caption=f"A network with {WIDTH} channels in every layer, {BATCH} images per update; no statistic goes beyond an image. "
        f"Median test error in percent: {at[1]:.1f} with one group, {', '.join(f'{at[g]:.1f}' for g in INTERIOR)} with "
        f"{', '.join(map(str, INTERIOR))}, {at[16]:.1f} with two channels a group, {at[WIDTH]:.1f} with one. "
        f"**Left** Against the number of groups; open circles are seeds. **Right** Against the learning rate. Rate by "
        f"number of groups: {chosen}.{ended}",
        alt="Left: test and training error against the number of groups, with layer norm at one end and instance norm at the "
        "other. Right: held-out error against the learning rate, one line for each number of groups.",
    )


# ---------------------------------------------------------------------------------------------------------------------------
# What is claimed
# ---------------------------------------------------------------------------------------------------------------------------

SETTING = "test error at the end, each number of groups at its own rate"


@groups.claim(
    "layer-worse",
    "One group for all channels, which is layer normalization, has a higher error than several groups.",
    criterion=f"{SETTING}: one group is above each of {', '.join(map(str, INTERIOR))} groups, the worst of which counts",
)
def _(table):
    error = final(table)
    gap = error[1] - error[INTERIOR].max(axis=1, skipna=False)
    return judge_effect("points of error, one group minus the worst of 2, 4 and 8", gap, claimed=(0, np.inf), null=0)


@groups.claim(
    "instance-worst",
    "One channel a group, which is instance normalization, has the highest error of all.",
    criterion=f"{SETTING}: one channel a group is above every other number of groups, the worst of which counts",
)
def _(table):
    error = final(table)
    gap = error[WIDTH] - error[[g for g in GROUPS if g != WIDTH]].max(axis=1, skipna=False)
    return judge_effect("points of error, one channel a group minus the worst other", gap, claimed=(0, np.inf), null=0)


@groups.claim(
    "two-channels",
    "Two channels a group are enough for a lower error than that of instance normalization, which has one.",
    criterion=f"{SETTING}: one channel a group is above two",
)
def _(table):
    error = final(table)
    gap = error[WIDTH] - error[WIDTH // 2]
    return judge_effect("points of error, one channel a group minus two", gap, claimed=(0, np.inf), null=0)


@groups.claim(
    "interior-flat",
    "Between the ends the number of groups hardly matters: errors differ by less than a point.",
    criterion=f"{SETTING}: of {', '.join(map(str, INTERIOR))} groups, the two whose medians differ most are less than one point "
    "apart",
)
def _(table):
    gap = widest(final(table)[INTERIOR])
    said = f"the pair furthest apart is {said_pair(table)}"
    return judge_effect("points of error, largest difference in the interior", gap, claimed=(-np.inf, 1), null=np.nan, note=said)


def said_pair(table):
    """Name the two numbers of groups that `widest` compares."""
    order = final(table)[INTERIOR].median().sort_values().index
    return f"{order[-1]} and {order[0]} groups"
