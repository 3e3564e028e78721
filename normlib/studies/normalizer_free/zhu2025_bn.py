"""Zhu et al. (2025), the appendix: dynamic tanh in the place of batch norm, in a small residual network."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import NullLocator

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.networks import ResNet
from normlib.studies.common.arms import images_for, population_accuracy, side_by_side
from normlib.studies.common.looks import INK, median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.normalizer_free.tricks import BATCH, FULL, LAPTOP, QUICK, RECIPE, fit

NAMES = {"batch": "BN", "layer": "LN", "dyt": "DyT", "none": "nothing"}
LOOKS = {"batch": (norm_color("batch"), "o", "-"), "layer": (norm_color("layer"), "s", "-"), "dyt": (INK, "D", "-")}
LOOKS["none"] = (norm_color("none"), "^", "--")
NEAR = 5.0  # points of held-out accuracy that count as near the best

replaces_bn = Study(
    "zhu2025.replaces_bn",
    item="appendix, batch norm",
    title="Dynamic tanh in the place of batch norm: a residual network of convolutions",
    kind="train",
    vary={"norm": list(NAMES), "rate": [0.01, 0.03, 0.1, 0.3, 1.0]},
    quick={**QUICK, "steps": 30, "rate": [0.1]},
    laptop={**LAPTOP, "stages": [1, 1, 1], "steps": 120},
    full={**FULL, "steps": 20_000},
)


def network(c: Config, images: Dataset, seed: int) -> ResNet:
    """Build the residual network of an arm, version 1: what is compared stands after each convolution, as in the paper."""
    return ResNet(
        c.stages, c.width, version=1, in_channels=images.shape[0], classes=images.classes, norm=c.norm, bias=c.norm == "none",
        seed=seed,
    ).to(c.device)  # fmt: skip


@replaces_bn.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = network(c, tune, seed)
    history = fit(net, tune, steps=c.steps, rate=c.rate, seed=seed)
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}")
    batches = tune.x_train.split(BATCH)[:8]
    parts = {"held_out": (tune.x_test, tune.y_test), "accuracy": (images.x_test, images.y_test)}
    return {name: 100 * population_accuracy(net, batches, *part) for name, part in parts.items()}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def accuracies(table):
    """Return test accuracies in percent, each arm at its rate: a row a seed, a column an arm."""
    return side_by_side(tuned(table, ["norm"], "held_out")[0], "norm", "accuracy")


def largest_rates(table):
    """Return the largest rate within `NEAR` points of an arm's best held-out accuracy: a row a seed, a column an arm."""
    best = table.groupby(["seed", "norm"]).held_out.transform("max")
    return table[table.held_out >= best - NEAR].groupby(["seed", "norm"]).rate.max().unstack("norm")


@replaces_bn.draw
def _(table):
    rates = tuned(table, ["norm"], "held_out")[1]
    figure, (by_rate, tested) = subplots(1, 2, height=2.8)
    scores = accuracies(table)
    for place, (norm, (color, marker, style)) in enumerate(LOOKS.items()):
        arm = table[table.norm == norm]
        median_and_band(by_rate, arm, "rate", "held_out", color=color, marker=marker, linestyle=style, label=NAMES[norm])
        column = scores[norm].dropna()
        tested.plot([place] * len(column), column, marker, color=color, mfc="none")
        tested.plot([place - 0.2, place + 0.2], [column.median()] * 2, color=color)
    ticks = sorted(table.rate.unique())
    by_rate.set(xscale="log", xlabel="learning rate", ylabel="held-out accuracy (%)")
    by_rate.set_xticks(ticks, [number(rate) for rate in ticks])
    by_rate.xaxis.set_minor_locator(NullLocator())
    by_rate.legend(fontsize=8.5)
    tested.set_xticks(range(len(LOOKS)), [NAMES[norm] for norm in LOOKS])
    tested.set(ylabel="test accuracy (%)", xlim=(-0.5, len(LOOKS) - 0.5))
    said = ", ".join(f"{NAMES[norm]} {scores[norm].median():.1f} %" for norm in LOOKS)
    ends = [NAMES[arm] for arm in at_ends(table, ["norm"], rates)]
    return Drawing(
        figure,
        caption=f"A residual network after {table.steps.iloc[0]} updates; {BATCH} images an update and, for BN, a statistic. "
        "**Left** Held-out accuracy against the rate; runs whose loss was not finite are left out. **Right** Test accuracy of "
        f"each seed, its median a line: {said}. Rates, by held-out images: {rates_in_words(rates, NAMES)}{ends_in_words(ends)}. "
        f"Recipe: {RECIPE}. Statistics of BN re-estimated after training.",
        alt="Left: held-out accuracy against the learning rate for a residual network with batch norm, layer norm, dynamic tanh "
        "and nothing after its convolutions. Right: their test accuracies at the chosen rates, seed by seed.",
    )


@replaces_bn.claim(
    "loses",
    "Dynamic tanh does not stand in for batch norm in a convolutional residual network: accuracy falls.",
    criterion="each at its best rate, test accuracy of BN less that of DyT, at least one point",
)
def _(table):
    scores = accuracies(table)
    return judge_effect("points, BN less DyT", scores["batch"] - scores["dyt"], claimed=(1, np.inf), null=0)


@replaces_bn.claim(
    "statistics",
    "Layer norm, whose statistics are of one image, does better than dynamic tanh, which has none.",
    criterion="each at its best rate, test accuracy of LN less that of DyT, above 0",
    by="notes",
)
def _(table):
    scores = accuracies(table)
    note = f"BN less LN: {number((scores['batch'] - scores['layer']).median())}"
    return judge_effect("points, LN less DyT", scores["layer"] - scores["dyt"], claimed=(0, np.inf), null=0, note=note)


@replaces_bn.claim(
    "better-than-nothing",
    "Dynamic tanh does better than nothing in its place.",
    criterion="each at its best rate, test accuracy of DyT less that of the network with nothing but biases, above 0",
    by="notes",
)
def _(table):
    scores = accuracies(table)
    return judge_effect("points, DyT less nothing", scores["dyt"] - scores["none"], claimed=(0, np.inf), null=0)


@replaces_bn.claim(
    "rates",
    "Batch norm withstands larger learning rates than dynamic tanh.",
    criterion="largest rate within 5 points of the arm's own best held-out accuracy, BN over DyT, above 1",
    by="notes",
)
def _(table):
    largest = largest_rates(table)
    return judge_effect("largest usable rate, BN / DyT", largest["batch"] / largest["dyt"], claimed=(1, np.inf), null=1)
