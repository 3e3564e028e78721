"""Wu & He (2018), Table 3: how many groups, from layer to instance normalization."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import NullLocator

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
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


def said_pair(table):
    """Name the two numbers of groups that `widest` compares."""
    order = final(table)[INTERIOR].median().sort_values().index
    return f"{order[-1]} and {order[0]} groups"


def at_one_rate(table):
    """Return the errors with all arms at the rate that suits eight channels a group, and this rate."""
    rate = kept(table)[1][WIDTH // 8]
    runs = table[table.rate == rate]
    return side_by_side(runs.assign(groups=runs.norm.map(count)), "groups", "test_error"), rate


@groups.draw
def _(table):
    runs, rates = kept(table)
    figure, axes = subplots(1, 2, height=3.2)
    for column, style, label in (("test_error", "-", "test images"), ("train_error", "--", "training images")):
        median_and_band(axes[0], runs, "groups", column, color=norm_color("group"), linestyle=style, marker="o", label=label)
    for ends, name in ((1, "layer"), (WIDTH, "instance")):
        axes[0].plot(ends, runs[runs.groups == ends].test_error.median(), "o", color=norm_color(name), markersize=8, zorder=5)
    axes[0].set(xscale="log", xlabel="groups (channels a group)", ylabel="error (%)", title="each at its own rate")
    axes[0].set_xticks(GROUPS, [f"{g}\n({WIDTH // g})" for g in GROUPS])
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].legend(loc="best", fontsize=8.5)
    every = table.assign(groups=table.norm.map(count))
    shades = dict(zip(GROUPS, (1, 0.4, 0.55, 0.75, 1, 1), strict=True))
    labels = {1: "1 group (layer)", WIDTH: f"{WIDTH} (instance)"}
    for g in GROUPS:
        arm = every[every.groups == g]
        color = norm_color({1: "layer", WIDTH: "instance"}.get(g, "group"))
        median = arm.groupby("rate").held_out_error.median()
        axes[1].plot(median.index, median, color=color, alpha=shades[g], linewidth=1.6, label=labels.get(g, f"{g}"))
        axes[1].plot(rates[g], median[rates[g]], "o", color=color, markersize=6, zorder=5)
    tried = sorted(table.rate.unique())
    lowest = every.groupby(["groups", "rate"]).held_out_error.median().min()
    axes[1].set(
        xscale="log", xlabel="learning rate", title="held-out error (%), by rate", ylim=(0.85 * lowest, max(45, 2 * lowest))
    )
    axes[1].set_xticks(tried, [number(rate) for rate in tried])
    axes[1].xaxis.set_minor_locator(NullLocator())
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8.5, columnspacing=1.2)
    error = final(table)
    at = error.median()
    at_edge = [str(g) for g in sorted(at_ends(every, ["groups"], rates))]
    chosen = ", ".join(f"{number(rate)} for {g}" for g, rate in sorted(rates.items()))
    return Drawing(
        figure,
        caption=f"A network with {WIDTH} channels in every layer, {BATCH} images per update; no statistic goes beyond an image. "
        f"Median test error in percent: {at[1]:.1f} with one group, {', '.join(f'{at[g]:.1f}' for g in INTERIOR)} with "
        f"{', '.join(map(str, INTERIOR))}, {at[16]:.1f} with two channels a group, {at[WIDTH]:.1f} with one. "
        f"**Left** Against the number of groups. **Right** Against the learning rate, cut off above; dots: the rates "
        f"chosen. Rate by number of groups: {chosen}{ends_in_words(at_edge)}.",
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


@groups.claim(
    "one-rate",
    "At one learning rate for all, the one that suits eight channels a group, instance normalization has the highest error.",
    criterion="test error at the end, all at the rate chosen for eight channels a group: one channel a group is above every other "
    "number of groups, the worst of which counts",
    by="notes",
)
def _(table):
    error, rate = at_one_rate(table)
    gap = error[WIDTH] - error[[g for g in GROUPS if g != WIDTH]].max(axis=1, skipna=False)
    said = f"rate {number(rate)}; in the paper, too, one rate serves all"
    return judge_effect("points of error, one channel a group minus the worst other", gap, claimed=(0, np.inf), null=0, note=said)
