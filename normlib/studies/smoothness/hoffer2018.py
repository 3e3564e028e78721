"""Hoffer et al. (2018), Norm matters: L1 and L-infinity in place of the standard deviation, trained beside batch norm."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.layers.lp import lp_moments
from normlib.probes import record_activations
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import BLUE, ORANGE, VERMILION, median_and_band, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, RECIPE, fit, vgg
from normlib.training import accuracy

L1, MAXIMUM = "lp:p=1,centered=True", "lp:p=inf,centered=True"
ARMS = {"batch": ("BN", BLUE, "o"), L1: ("L1", ORANGE, "s"), MAXIMUM: ("L∞", VERMILION, "^")}
POINTS = 0.5  # of accuracy, what "as good" means here

l1 = Study(
    "hoffer2018.l1",
    item="L1 and L∞ batch norm",
    title="Batch norm with another measure of spread than the standard deviation",
    kind="train",
    vary={"norm": list(ARMS), "rate": [0.06, 0.2, 0.6]},
    quick={**QUICK, "steps": 12, "test": 360, "rate": [0.2, 0.6]},
    laptop={**LAPTOP, "steps": 200, "test": 4_000},
    full=FULL,
)


def against_deviation(values: Tensor) -> dict[str, float]:
    """Compare the scales of L1 and L∞, with the paper's constants, to the standard deviation of each channel.

    Args:
        values: what a norm takes in, shape (N, C, *).

    Returns:
        The median over channels of scale / deviation, as "l1" and "maximum"; channels that never vary are left out.
    """
    deviation = lp_moments(values, 2, centered=True)[1]
    alive = deviation > 0
    scales = {"l1": 1.0, "maximum": math.inf}
    return {name: float((lp_moments(values, p, centered=True)[1][alive] / deviation[alive]).median()) for name, p in scales.items()}


@l1.trial
def _(c: Config, seed: int):
    images, tests = images_for(c, seed)
    net = vgg(c, images, c.norm, seed)
    run = fit(net, images, steps=c.steps, rate=c.rate, seed=seed)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}")
    sums = record_activations(net, images.x_train[:BATCH], nn.Conv2d, training=True).values()
    found = pd.DataFrame([against_deviation(values) for values in sums])
    return {
        "layer": list(range(1, len(found) + 1)),
        **{name: found[name].tolist() for name in found},
        "held_out": accuracy(net, images.x_test, images.y_test, statistics="eval", batch_size=500),
        "accuracy": accuracy(net, tests.x_test, tests.y_test, statistics="eval", batch_size=500),
    }


def difference(table: pd.DataFrame, norm: str) -> pd.Series:
    """Return the test accuracy of an arm less that of batch norm, in points, each at its own rate: one number a seed."""
    scores = side_by_side(tuned(table, ["norm"], "held_out")[0], "norm", "accuracy")
    return 100 * (scores[norm] - scores["batch"])


def of_batch_norm(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the layers of the networks that were trained with batch norm, at its rate."""
    kept = tuned(table, ["norm"], "held_out")[0]
    return kept[kept.norm == "batch"]


def _signed(values: pd.Series) -> str:
    return f"{number(values.median())} ({number(values.min())} to {number(values.max())})"


@l1.draw
def _(table):
    rates = tuned(table, ["norm"], "held_out")[1]
    figure, (scores, scales) = subplots(1, 2, height=3)
    for norm, (label, color, marker) in ARMS.items():
        median_and_band(scores, table[table.norm == norm], "rate", "held_out", color=color, label=label, marker=marker)
    scores.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy")
    scores.set_xticks(sorted(table.rate.unique()), [number(rate) for rate in sorted(table.rate.unique())])
    scores.xaxis.set_minor_locator(NullLocator())
    scores.legend(loc="lower left", fontsize=8.5)
    layers = of_batch_norm(table)
    for norm, name in ((L1, "l1"), (MAXIMUM, "maximum")):
        label, color, marker = ARMS[norm]
        median_and_band(scales, layers, "layer", name, color=color, label=label, marker=marker)
    scales.axhline(1, color=BLUE, linestyle="--")
    scales.set(xlabel="convolution", ylabel="scale / standard deviation", ylim=(0, None), xticks=sorted(layers.layer.unique()))
    note(scales, "dashed: the standard deviation", 0.03, 0.04, fontsize=8.5)
    names = {norm: label for norm, (label, *_) in ARMS.items()}
    ends = ends_in_words([names[norm] for norm in at_ends(table, ["norm"], rates)])
    ratios = layers.groupby("layer")[["l1", "maximum"]].median()
    return Drawing(
        figure,
        caption=f"Test accuracy less that of BN, in points, median and range over seeds: L1 {_signed(difference(table, L1))}, L∞ "
        f"{_signed(difference(table, MAXIMUM))}. P{RECIPE[1:]}, statistics over the same {BATCH}. Left: accuracy on "
        f"held-out images, which chose the rates: {rates_in_words(rates, names)}{ends}. Right: networks trained with BN, what its "
        "layers take in. The scale that L1 or L∞ would divide by, with the paper's constants, over the standard deviation, median "
        f"over channels: L1 {number(ratios.l1.min())} to {number(ratios.l1.max())}, L∞ {number(ratios.maximum.min())} to "
        f"{number(ratios.maximum.max())}.",
        alt="Left: validation accuracy against the learning rate for batch norm, L1 and L-infinity batch norm. Right: scale of L1 "
        "and L-infinity over the standard deviation, by layer, beside a dashed line at one.",
    )


@l1.claim(
    "l1",
    "L1 batch norm, with the constant √(π/2), trains to the accuracy of batch norm.",
    criterion=f"each at its own rate, test accuracy of L1 less that of batch norm between −{POINTS} and {POINTS} points",
)
def _(table):
    return judge_effect("points of accuracy, L1 less BN", difference(table, L1), claimed=(-POINTS, POINTS), null=np.nan)


@l1.claim(
    "maximum",
    "L∞ batch norm, scaled by the largest deviation times a constant, trains to the accuracy of batch norm.",
    criterion=f"each at its own rate, test accuracy of L∞ less that of batch norm between −{POINTS} and {POINTS} points",
)
def _(table):
    return judge_effect("points of accuracy, L∞ less BN", difference(table, MAXIMUM), claimed=(-POINTS, POINTS), null=np.nan)


@l1.claim(
    "constant",
    "With the constant √(π/2), which is right for Gaussian values, the L1 scale stands in for the standard deviation.",
    criterion="networks trained with batch norm, what each norm takes in: L1 scale over standard deviation, median over channels, "
    "between 0.9 and 1.1 in the layer where it is farthest from 1",
)
def _(table):
    layers = of_batch_norm(table)
    farthest = layers.groupby("seed").l1.apply(lambda ratios: ratios.iloc[int(np.argmax(np.abs(ratios - 1)))])
    return judge_effect("L1 scale / deviation, layer farthest from 1", farthest, claimed=(0.9, 1.1), null=np.nan)


@l1.claim(
    "larger-maximum",
    "The constant of L∞ is no such fit: it divides by more than the standard deviation.",
    criterion="the same networks: L∞ scale over standard deviation, median over channels, above 1.1 in every layer (the smallest)",
    by="notes",
)
def _(table):
    smallest = of_batch_norm(table).groupby("seed").maximum.min()
    return judge_effect("L∞ scale / deviation, smallest layer", smallest, claimed=(1.1, np.inf), null=1)
