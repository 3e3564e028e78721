"""Glorot & Bengio (2010): what the initial weights do to signals and gradients, and which layers saturate in training."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ticker import NullFormatter
from torch import nn

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.networks import MLP
from normlib.probes import activation_statistics, gradient_statistics
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, COLORS, INK, VERMILION, median_and_band, note, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.training import accuracy, log_steps, train

# ---------------------------------------------------------------------------------------------------------------------------
# Figs 6-8: a tanh network before training, layer by layer
# ---------------------------------------------------------------------------------------------------------------------------

SCHEMES = {"glorot_standard": ("standard", VERMILION), "glorot_normalized": ("normalized", BLUE)}
SHRINK = 3**-0.5  # per layer, in the linear regime: standard weights have variance 1 / (3 fan_in)

init = Study(
    "glorot2010.init",
    item="Figs 6–8",
    title="Signals and back-propagated gradients shrink layer by layer, gradients of weights do not",
    kind="init",
    vary={"init": list(SCHEMES)},
    quick={"data": "digits", "train": 300, "width": 256, "depth": 5},
    laptop={"data": "fashion-mnist", "train": 300, "width": 1000, "depth": 5},
    full={"data": "cifar10", "train": 300, "width": 1000, "depth": 5},
)


@init.trial
def _(c, seed):
    images = load(c, seed).standardized().flat()
    x, y = images.x_train, images.y_train
    sizes = [x.shape[1], *[c.width] * c.depth, images.classes]
    net = MLP(sizes, activation="tanh", init=c.init, seed=seed).to(c.device)
    signals = activation_statistics(net, x, nn.Tanh)
    gradients = gradient_statistics(net, F.cross_entropy, x, y)
    layers = range(1, c.depth + 1)
    chance = 1 / images.classes  # the first outputs are near zero, so the error of an output is ±p or 1 − p with p = 1 / classes
    into_top = np.sqrt(images.classes * (chance - chance**2) / (3 * c.width))
    return {
        "layer": list(layers),
        "signal": signals["std"],
        "gradient": [std * len(x) for std in gradients["gradient_std"][: c.depth]],  # of one image's loss, not of the mean
        "weight_gradient": gradients["weight_gradient_std"][: c.depth],
        "signal_predicted": [float(x.square().mean().sqrt()) * SHRINK**layer for layer in layers],
        "gradient_predicted": [into_top * SHRINK ** (c.depth - layer) for layer in layers],
    }


@init.draw
def _(table):
    figure, axes = subplots(1, 3, height=2.7)
    names = {"signal": "activations", "gradient": "back-propagated gradients", "weight_gradient": "gradients of weights"}
    for ax, (column, title) in zip(axes, names.items(), strict=True):
        for scheme, (label, color) in SCHEMES.items():
            arm = table[table.init == scheme]
            median_and_band(ax, arm, "layer", column, color=color, label=label, marker="o")
            if scheme == "glorot_standard" and column != "weight_gradient":
                closed = arm.groupby("layer")[f"{column}_predicted"].median()
                ax.plot(closed.index, closed, "--", color=INK, linewidth=1, label="$1/\\sqrt{3}$ per layer")
        ax.set(yscale="log", xlabel="hidden layer", xticks=sorted(table.layer.unique()), ylim=_decades(table[column]))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_title(title, fontsize=9.5)
    axes[0].set_ylabel("standard deviation")
    axes[0].legend(loc="lower left", fontsize=8)
    down, back = _per_layer(table, "signal").median(), _per_layer(table, "gradient").median()
    ratio = _first_to_last(table, "glorot_standard").median()
    return Drawing(
        figure,
        caption="A tanh network before training. With the standard initialization, $U[\\pm 1/\\sqrt{n}]$, activations change by a "
        f"factor of {number(down)} per layer upward and back-propagated gradients by {number(back)} per layer downward; the linear "
        "theory (dashed, nothing fitted) says $1/\\sqrt{3} = 0.577$. The two cancel in the gradient of the weights: layer 1 "
        f"over the top hidden layer is {number(ratio)}. So the weights' gradients do not show that the signal is fading.",
        alt="Three panels against the hidden layer, log scale: standard deviation of activations, of back-propagated gradients and "
        "of weight gradients, for the standard and the normalized initialization, with the closed form dashed.",
    )


def _decades(values):
    """Return limits of a log axis: two and a half decades around the values, so that slopes compare across the panels."""
    middle = np.log10(values).agg(["min", "max"]).mean()
    return 10 ** (middle - 1.25), 10 ** (middle + 1.25)


def _by_layer(table, scheme, column):
    """Return one row per seed, one column per layer."""
    return table[table.init == scheme].pivot_table(index="seed", columns="layer", values=column)


def _per_layer(table, column, scheme="glorot_standard"):
    """Return for each seed the geometric mean factor per layer, in the direction in which the signal travels.

    Layer 1 is left out: its inputs are the largest, so that tanh bends them.
    """
    rows = _by_layer(table, scheme, column)
    second, top = rows[2], rows[rows.columns[-1]]
    ratio = top / second if column == "signal" else second / top
    return ratio ** (1 / (len(rows.columns) - 2))


def _first_to_last(table, scheme):
    rows = _by_layer(table, scheme, "weight_gradient")
    return rows[1] / rows[rows.columns[-1]]


@init.claim(
    "signal",
    "With the standard initialization the activations shrink from layer to layer, by about 1/√3 as long as tanh is nearly linear.",
    criterion="the mean factor per layer, from layer 2 to the top hidden layer, lies within 10 % of 0.577",
)
def _(table):
    return judge_effect("factor per layer", _per_layer(table, "signal"), claimed=(0.9 * SHRINK, 1.1 * SHRINK), null=1)


@init.claim(
    "gradient",
    "With the standard initialization the back-propagated gradients shrink on their way down, again by about 1/√3 per layer.",
    criterion="the mean factor per layer, from the top hidden layer to layer 2, lies within 10 % of 0.577",
)
def _(table):
    return judge_effect("factor per layer", _per_layer(table, "gradient"), claimed=(0.9 * SHRINK, 1.1 * SHRINK), null=1)


@init.claim(
    "normalized",
    "The normalized initialization keeps signals and back-propagated gradients much more alike across layers.",
    criterion="the factor per layer is at least 0.8 for both, for every seed (1 would be no change)",
)
def _(table):
    worst = np.minimum(*[_per_layer(table, column, "glorot_normalized") for column in ("signal", "gradient")])
    return judge_effect("smaller of the two factors per layer", worst, claimed=(0.8, 1.25), null=SHRINK)


@init.claim(
    "weight-gradient",
    "The gradients of the weights have nearly the same size in every layer, even where the back-propagated gradients shrink.",
    criterion="standard deviation in layer 1 over that in the top hidden layer within 20 % of 1, for both initializations; "
    "no effect would be that it shrinks as the back-propagated gradient does",
)
def _(table):
    ratios = [_first_to_last(table, scheme) for scheme in SCHEMES]
    furthest = np.where(np.abs(ratios[0] - 1) > np.abs(ratios[1] - 1), *ratios)
    shrunk = SHRINK ** (table.layer.max() - 1)
    return judge_effect("layer 1 / top hidden layer, the initialization further from 1", furthest, claimed=(0.8, 1.2), null=shrunk)


# ---------------------------------------------------------------------------------------------------------------------------
# Figs 2 and 3: which layers saturate while the network learns
# ---------------------------------------------------------------------------------------------------------------------------

saturation = Study(
    "glorot2010.saturation",
    item="Figs 2, 3",
    title="The top logistic layer falls to zero as soon as training starts",
    kind="train",
    vary={"activation": ["logistic", "tanh"], "rate": [0.03, 0.1, 0.3, 1.0]},
    quick={"data": "digits", "pool": 1, "width": 100, "depth": 4, "steps": 500, "batch": 10, "points": 20, "rate": [0.3]},
    laptop={"data": "fashion-mnist", "pool": 2, "width": 200, "depth": 4, "steps": 2_000, "batch": 10, "points": 30},
    full={"data": "mnist", "pool": 1, "width": 1000, "depth": 4, "steps": 5_000, "batch": 10, "points": 40, "rate": [0.1, 1.0]},
)
WATCHED = 300  # held-out images whose activations are watched; as many as in the paper
EARLY = 500  # "the first few hundred steps"
UNITS = {"logistic": nn.Sigmoid, "tanh": nn.Tanh}


@saturation.trial
def _(c, seed):
    images = load(c).pooled(c.pool).standardized().flat()
    images = images.split_validation(len(images.x_train) // 6, seed)
    sizes = [images.shape[0], *[c.width] * c.depth, images.classes]
    net = MLP(sizes, activation=c.activation, init="glorot_standard", seed=seed).to(c.device)
    held_out = images.x_test[torch.randperm(len(images.x_test))[:WATCHED].to(c.device)]

    def probe(step, model):
        found = activation_statistics(model, held_out, UNITS[c.activation], percentiles=[98])
        return {"layer": list(range(1, c.depth + 1)), "mean": found["mean"], "std": found["std"], "p98": found["p98"]}

    steps = log_steps(c.steps + 1, c.points)
    run = train(
        net, images.x_train, images.y_train,
        steps=c.steps, batch_size=c.batch, rate=c.rate, seed=seed, probe=probe, probe_steps=steps,
    )  # fmt: skip
    if run.diverged_at is not None:
        raise Diverged(f"loss is not finite at step {run.diverged_at}", **run.probes)
    return {**run.probes, "validation": accuracy(net, images.x_test, images.y_test, statistics="eval")}


@saturation.draw
def _(table):
    table, rates = tuned(table, ["activation"], "validation")
    figure, axes = subplots(1, 2, height=3.1)
    top = table.layer.max()
    for ax, (activation, column) in zip(axes, {"logistic": "mean", "tanh": "p98"}.items(), strict=True):
        for layer, color in zip(sorted(table.layer.unique()), COLORS, strict=False):
            arm = table[(table.activation == activation) & (table.layer == layer)]
            name = "top hidden layer" if layer == top else f"layer {layer}"
            median_and_band(ax, arm.assign(step=arm.step + 1), "step", column, color=color, label=name)
            if activation == "logistic" and layer == top:
                spread = arm.groupby("step")[["mean", "std"]].median()
                for edge in (spread["mean"] - spread["std"], spread["mean"] + spread["std"]):
                    ax.plot(edge.index + 1, edge, ":", color=color, linewidth=1)
        ax.set(xscale="log", xlabel="step + 1")
    axes[0].set(ylim=(-0.2, 1.02), ylabel="mean activation", title="logistic")
    axes[1].set(ylim=(-0.2, 1.02), ylabel="98th percentile of activations", title="tanh")
    axes[1].legend(loc="lower left", ncols=2, fontsize=8)
    note(axes[0], "dotted: top layer ± standard deviation", 0.02, 0.02, fontsize=8.5)
    fall, below, tanh = _fall(table), _below(table)["mean"], _final_percentiles(table).median()
    right = table.groupby(["activation", "seed"]).validation.first().groupby("activation").median()
    return Drawing(
        figure,
        caption=f"Logistic units: within {EARLY} steps the mean of the top hidden layer falls from 0.5 to {number(fall.median())}, "
        f"while the means of the layers below lie between {number(below.min())} and {number(below.max())}. Tanh units: at the end "
        f"the 98th percentile is {number(tanh.iloc[0])} in layer 1 and {number(tanh.iloc[-1])} in the top hidden layer. "
        f"Learning rates, chosen on validation images: {rates_in_words(rates)}; validation accuracy at the end "
        f"{100 * right['logistic']:.0f} % (logistic) and {100 * right['tanh']:.0f} % (tanh).",
        alt="Two panels against training steps, log axis, one line per hidden layer: mean activation of the logistic network, and "
        "98th percentile of activations of the tanh network.",
    )


def _early(table):
    return table[(table.activation == "logistic") & (table.step <= EARLY)]


def _fall(table):
    """Return for each seed the lowest mean of the top logistic layer early in training."""
    early = _early(table)
    return early[early.layer == early.layer.max()].groupby("seed")["mean"].min()


def _below(table):
    """Return the rows of the other logistic layers until the top layer is lowest."""
    early = _early(table)
    is_top = early.layer == early.layer.max()
    lowest = early[is_top].sort_values("mean").groupby("seed").step.first()
    return early[~is_top & (early.step <= early.seed.map(lowest))]


def _final_percentiles(table):
    """Return the 98th percentile at the last step of the tanh network: one row per seed, one column per layer."""
    arm = table[(table.activation == "tanh") & (table.step == table.step.max())]
    return arm.pivot_table(index="seed", columns="layer", values="p98")


@saturation.claim(
    "top-layer",
    "In a logistic network with four hidden layers the mean of the top hidden layer falls to near zero soon after the start.",
    criterion=f"at the tuned rate it falls to 0.1 or less within {EARLY} steps; no effect would be that it stays at 0.5",
)
def _(table):
    fall = _fall(tuned(table, ["activation"], "validation")[0])
    return judge_effect("lowest mean of the top hidden layer", fall, claimed=(0.0, 0.1), null=0.5)


@saturation.claim(
    "lower-layers",
    "Meanwhile the layers below stay near 0.5, where the logistic function is linear.",
    criterion="until the top layer's mean is lowest, no mean of a lower layer moves further than 0.1 from 0.5",
)
def _(table):
    below = _below(tuned(table, ["activation"], "validation")[0])
    moved = (below["mean"] - 0.5).abs()
    layer = below.layer[moved.idxmax()]
    return judge_effect(
        "largest distance of a lower layer's mean from 0.5",
        moved.groupby(below.seed).max(),
        claimed=(0.0, 0.1),
        null=0.1,
        note=f"layer {layer} moves furthest, to {number(below['mean'][moved.idxmax()])}",
    )


@saturation.claim(
    "tanh-order",
    "With tanh units and the standard initialization layer 1 saturates first and the top hidden layer last.",
    criterion="at the tuned rate the 98th percentile of layer 1 exceeds that of the top hidden layer by at least 0.05 at the end",
)
def _(table):
    rows = _final_percentiles(tuned(table, ["activation"], "validation")[0])
    gap = rows[rows.columns[0]] - rows[rows.columns[-1]]
    return judge_effect("98th percentile, layer 1 less top hidden layer", gap, claimed=(0.05, 1.0), null=0)
