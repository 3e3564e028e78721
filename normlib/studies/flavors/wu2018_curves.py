"""Wu & He (2018), Fig. 4 and Table 1: ways to normalize one convolutional network, and none."""

from __future__ import annotations

from typing import Any

import numpy as np

from normlib.lab import Diverged, Drawing, Study, judge_effect
from normlib.studies.common.arms import first_at, images_for, side_by_side
from normlib.studies.common.looks import median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.flavors.convnets import BATCH, MEASURED_AT_ONCE, convnet, errors, fit
from normlib.training import accuracy

NAMES = {
    "batch:ghost=32": "batch", "group:size=8": "group", "layer": "layer", "instance:affine=True": "instance",
    "instance": "bare instance", "weight": "weight", "none": "none",
}  # fmt: skip
BATCH_NORM, GROUP, LAYER, INSTANCE, BARE, WEIGHT, NONE = NAMES
STYLES: dict[str, dict[str, Any]] = {NONE: {"linestyle": "--", "zorder": 5}, BARE: {"linestyle": ":"}}
LOOKS = 8  # how often errors are measured in a run, at even distances
SAMPLE = 1_000  # training images that these errors are measured on

curves = Study(
    "wu2018.curves",
    item="Fig 4, Table 1",
    title="Batch, group, layer, instance and weight normalization in one convolutional network",
    kind="train",
    vary={"norm": list(NAMES), "rate": [0.02, 0.06, 0.2, 0.6, 1.8]},
    quick={
        "data": "digits", "pool": 1, "train": 600, "validation": 100, "depth": 5, "width": 16, "epochs": 3, "rate": [0.1],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 3_600, "validation": 600, "test": 4_000, "depth": 6, "width": 32,
        "epochs": 4,
    },
    full={"data": "cifar10", "pool": 1, "validation": 5_000, "depth": 10, "width": 64, "epochs": 30},
)  # fmt: skip


@curves.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = convnet(c, tune, c.norm, seed)
    steps = int(c.epochs * (len(tune.x_train) // BATCH))

    def measure(step, model):
        seen = tune.x_train[:SAMPLE], tune.y_train[:SAMPLE]
        found = {"seen": seen, "held_out": (tune.x_test, tune.y_test)}
        return {
            "epoch": step / steps * c.epochs,
            **{
                name: 100 * (1 - accuracy(model, x, y, statistics="eval", batch_size=MEASURED_AT_ONCE))
                for name, (x, y) in found.items()
            },
        }

    when = [round(steps * (look + 1) / LOOKS) for look in range(LOOKS)]
    run = fit(net, tune, epochs=c.epochs, rate=c.rate, seed=seed, probe=measure, probe_steps=when)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **run.probes)
    return {**run.probes, **errors(net, tune, images)}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def kept(table):
    """Return the runs at each arm's best rate, and these rates: the lowest final error on held-out images counts."""
    return tuned(table, ["norm"], "held_out_error", low=True)


def final(table, column="test_error"):
    """Return the final errors in percent at each arm's rate: a row a seed, a column an arm."""
    return side_by_side(kept(table)[0], "norm", column)


def first_reach(table, arm, rival):
    """Return, for each seed, at which share of the run an arm is down to the training error that its rival ends with."""
    runs = kept(table)[0]
    ends = final(table, "train_error")[rival]
    found = []
    for seed, goal in ends.items():
        run = runs[(runs.norm == arm) & (runs.seed == seed)].sort_values("epoch")
        found.append(np.nan if np.isnan(goal) else first_at(run.epoch / run.epoch.max(), -run.seen, -goal))
    return np.array(found)


@curves.draw
def _(table):
    runs, rates = kept(table)
    figure, axes = subplots(1, 3, height=3.0, gridspec_kw={"width_ratios": [1.2, 1.2, 1]})
    for norm in NAMES:
        arm = runs[runs.norm == norm]
        for ax, column in zip(axes, ("seen", "held_out"), strict=False):
            style = STYLES.get(norm, {"linewidth": 1.5})
            median_and_band(ax, arm, "epoch", column, color=norm_color(norm), errorbar=None, **style)
    shown = runs.groupby(["norm", "epoch"])[["seen", "held_out"]].median()
    high, low = np.nanpercentile(shown, 97), np.nanmin(shown)
    for ax, title in zip(axes, ("training images", "held-out images"), strict=False):
        ax.set(xlabel="epoch", title=title, ylim=(0.85 * low, 1.05 * high))
    axes[0].set_ylabel("error (%)")
    scores = final(table).reindex(columns=list(NAMES))
    for row, norm in enumerate(NAMES):
        values = scores[norm].dropna()
        axes[2].plot(values, np.full(len(values), row), "o", color=norm_color(norm), mfc="none", markersize=4)
        axes[2].plot(values.median(), row, "|", color=norm_color(norm), markersize=16, mew=2.5)
    axes[2].set_yticks(range(len(NAMES)), list(NAMES.values()))
    for label, norm in zip(axes[2].get_yticklabels(), NAMES, strict=True):
        label.set_color(norm_color(norm))
    axes[2].set(xlabel="error (%)", title="test images", ylim=(len(NAMES) - 0.5, -0.5))
    axes[2].grid(False, axis="y")
    ends, train = scores.median(), final(table, "train_error").median()
    said = ", ".join(f"{NAMES[norm]} {ends[norm]:.1f}" for norm in ends.sort_values().index)
    at_edge = [NAMES[norm] for norm in at_ends(table, ["norm"], rates)]
    return Drawing(
        figure,
        caption=f"{BATCH} images per update; batch norm takes its statistics over 32 of them. Test error in percent at the end, "
        f"the median over seeds: {said}. Batch norm errs on {train[BATCH_NORM]:.1f} % of its training images, group norm on "
        f"{train[GROUP]:.1f} %. **Left, middle** Error over training, in eval mode, the median over seeds; dotted: instance norm "
        "without scale and shift. **Right** A circle a seed, a bar the median. "
        f"Learning rate, by held-out images: {rates_in_words(rates, NAMES)}{ends_in_words(at_edge)}.",
        alt="Error against the epoch on training and on held-out images for batch, group, layer, weight and two forms of instance "
        "normalization, and none; beside it the test errors at the end, one row for each.",
    )


# ---------------------------------------------------------------------------------------------------------------------------
# What is claimed
# ---------------------------------------------------------------------------------------------------------------------------

SETTING = "test error at the end, each arm at its own rate, 32 images per batch statistic"


@curves.claim(
    "batch-group",
    "Group normalization has an error that is slightly higher than that of batch normalization.",
    criterion=f"{SETTING}: group norm is above batch norm, by at most one point (in the paper it is 0.5)",
)
def _(table):
    error = final(table)
    return judge_effect("points of error, group minus batch", error[GROUP] - error[BATCH_NORM], claimed=(0, 1), null=0)


@curves.claim(
    "group-layer",
    "Group normalization has a lower error than layer normalization.",
    criterion=f"{SETTING}: layer norm, over channels and positions, is above group norm with 8 channels a group",
)
def _(table):
    error = final(table)
    return judge_effect("points of error, layer minus group", error[LAYER] - error[GROUP], claimed=(0, np.inf), null=0)


@curves.claim(
    "layer-instance",
    "Layer normalization has a lower error than instance normalization.",
    criterion=f"{SETTING}: instance norm is above layer norm",
)
def _(table):
    error = final(table)
    return judge_effect("points of error, instance minus layer", error[INSTANCE] - error[LAYER], claimed=(0, np.inf), null=0)


@curves.claim(
    "scale-and-shift",
    "Without a learned scale and shift for each channel, instance normalization has an error that is higher by a point or more.",
    criterion=f"{SETTING}: bare instance norm minus instance norm, at least 1",
    by="notes",
)
def _(table):
    error = final(table)
    return judge_effect("points of error, bare minus instance", error[BARE] - error[INSTANCE], claimed=(1, np.inf), null=0)


@curves.claim(
    "training-error",
    "Group normalization has a lower training error than batch normalization.",
    criterion="error on the training images at the end, in eval mode, each arm at its own rate: batch norm is above group norm",
)
def _(table):
    error = final(table, "train_error")
    return judge_effect("points of error, batch minus group", error[BATCH_NORM] - error[GROUP], claimed=(0, np.inf), null=0)


@curves.claim(
    "layer-speeds-up",
    "In convolutional networks layer normalization speeds training up over no normalization.",
    criterion="each at its own rate, layer norm is down to the training error with which the network without norm ends after at "
    "most 0.9 of the run; errors are measured eight times",
    by="ba2016",
)
def _(table):
    share = first_reach(table, LAYER, NONE)
    return judge_effect("share of the run until the final training error of none", share, claimed=(0, 0.9), null=1)


@curves.claim(
    "batch-first",
    "In convolutional networks batch normalization outperforms layer normalization and no normalization.",
    criterion=f"{SETTING}: the better of layer norm and no norm is above batch norm",
    by="ba2016",
)
def _(table):
    error = final(table)
    rest = np.minimum(error[LAYER], error[NONE])
    return judge_effect(
        "points of error, better of layer and none minus batch", rest - error[BATCH_NORM], claimed=(0, np.inf), null=0
    )
