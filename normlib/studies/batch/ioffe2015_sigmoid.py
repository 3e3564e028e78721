"""Ioffe & Szegedy (2015), Batch Normalization, section 4.2.2: a deep convolutional network of sigmoids."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.networks import VGG
from normlib.probes import channel_power, reduce_activations, unit_activity
from normlib.studies.common.arms import images_for, population_accuracy, side_by_side
from normlib.studies.common.looks import INK, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.training import accuracy, train

NAMES = {"none": "no BN", "batch": "BN"}
MOMENTUM = 0.9
PROBED = 256  # training images in the batch that the probes see

sigmoid = Study(
    "ioffe2015.sigmoid",
    item="Fig 3, BN-x5-Sigmoid",
    title="A deep network of sigmoids, with and without batch normalization: is it saturation that keeps one from learning?",
    kind="train",
    vary={"norm": ["none", "batch"], "rate": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
    quick={
        "data": "digits", "train": 600, "init": "lecun", "width": 1 / 16, "batch": 32, "steps": 40, "population": 96,
        "rate": [0.03, 0.3],
    },
    laptop={
        "data": "fashion-mnist", "train": 6_000, "test": 2_000, "pool": 2, "init": "lecun", "width": 1 / 8, "batch": 32,
        "steps": 400, "population": 512,
    },
    full={"data": "cifar10", "init": "lecun", "width": 1 / 2, "batch": 32, "steps": 4_000, "population": 2_048},
)  # fmt: skip


def states(model: nn.Module, x: Tensor, when: str) -> dict[str, list[float]]:
    """Measure each layer of sigmoids on a batch, in float64: the share of saturated values, and how much the images differ.

    Args:
        model: a network with `nn.Sigmoid` layers; batch norms take the statistics of this batch.
        x: images.
        when: goes into the names of the columns.

    Returns:
        Columns with one entry a layer: the share of values within 0.05 of 0 or 1, and the root of the variance between images
        of a channel's mean over positions, averaged over channels.
    """
    model, x = copy.deepcopy(model).double(), x.double()
    between = reduce_activations(model, x, lambda maps: channel_power(maps).between ** 0.5, nn.Sigmoid, training=True)
    saturated = unit_activity(model, x, nn.Sigmoid, training=True, bounds=(0, 1))["saturation"]
    return {f"saturation_{when}": saturated, f"difference_{when}": list(between.values())}


@sigmoid.trial
def _(c, seed):
    tune, whole = images_for(c, seed)
    shape = {"width": c.width, "in_channels": tune.shape[0], "classes": tune.classes}
    net = VGG(11, **shape, norm=c.norm, activation="logistic", init=c.init, seed=seed).to(c.device)
    start = states(net, tune.x_train[:PROBED], "start")
    run = train(
        net, tune.x_train, tune.y_train,
        steps=c.steps, batch_size=c.batch, rate=c.rate, schedule="linear", momentum=MOMENTUM, seed=seed,
    )  # fmt: skip
    layers = {"layer": list(range(1, 1 + len(net.blocks))), **start}
    if run.diverged_at is not None:
        lost = dict.fromkeys(("validation", "running_validation", "test_accuracy"), np.nan)
        gone = dict.fromkeys(("saturation_end", "difference_end"), [np.nan] * len(net.blocks))
        raise Diverged(f"loss is not finite at step {run.diverged_at}", **layers, **gone, **lost)
    end = states(net, tune.x_train[:PROBED], "end")
    population = tune.x_train[: c.population].split(c.batch)
    return {
        **layers,
        **end,
        "validation": population_accuracy(net, population, tune.x_test, tune.y_test),
        "running_validation": accuracy(net, tune.x_test, tune.y_test, statistics="eval"),
        "test_accuracy": population_accuracy(net, population, whole.x_test, whole.y_test),
    }


@sigmoid.draw
def _(table):
    figure, axes = subplots(1, 3, height=2.9)
    best, rates = tuned(table, ["norm"], "validation")
    for norm, name in NAMES.items():
        color, arm = norm_color(norm), best[best.norm == norm]
        median_and_band(axes[0], table[table.norm == norm], "rate", "validation", color=color, label=name, marker="o")
        median_and_band(axes[1], arm, "layer", "difference_start", color=color, linestyle="--")
        median_and_band(axes[1], arm, "layer", "difference_end", color=color)
        median_and_band(axes[2], arm, "layer", "saturation_end", color=color, marker="o")
    fastest = table[(table.norm == "none") & (table.rate == table.rate.max())]
    median_and_band(axes[2], fastest, "layer", "saturation_end", color=norm_color("none"), linestyle=":", marker="o")
    note(axes[2], f"dotted: no BN, rate {table.rate.max():g}", 0.04, 0.6, fontsize=8.5)
    axes[0].axhline(0.1, color=INK, linewidth=0.8, linestyle=":")
    axes[0].set(xscale="log", ylim=(0, 1), xlabel="learning rate", title="held-out accuracy")
    ladder = sorted(table.rate.unique())
    axes[0].set_xticks(ladder, [f"{rate:g}" if place % 2 == 0 else "" for place, rate in enumerate(ladder)])
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].legend(loc="upper right")
    axes[1].set(yscale="log", xlabel="layer", title="how images differ")
    axes[2].set(ylim=(-0.02, 1.02), xlabel="layer", title="saturated share")
    note(axes[1], "dashed: before training", 0.04, 0.04, fontsize=8.5)
    for ax in axes:
        ax.title.set_fontsize(9.5)
        if ax is not axes[0]:
            ax.set_xticks(sorted(table.layer.unique()))
    final = best.groupby("norm").test_accuracy.median()
    top = best[best.layer == best.layer.max()].groupby("norm").difference_start.median()
    share = best.groupby("norm").saturation_end.mean()
    above = fastest[fastest.layer == table.layer.max()].saturation_end.median()
    return Drawing(
        figure,
        caption=f"Eight convolutions, each with a sigmoid. Without BN the test accuracy is {final['none']:.0%} at the rate that "
        f"validation chose (chance, dotted: 10 %), with BN {final['batch']:.0%}; rates: {rates_in_words(rates, NAMES)}. Middle: "
        "standard deviation of a channel between images, before (dashed) and after training; in the top layer it starts at "
        f"{number(top['none'])} without BN and at {number(top['batch'])} with it. Right: values within 0.05 of 0 or 1 after "
        f"training, over all layers {share['none']:.1%} without BN and {share['batch']:.1%} with it; without BN at the top "
        f"rate, {above:.0%} in the top layer. BN's statistics are re-estimated after training (Alg. 2).",
        alt="Three panels for a sigmoid network with and without batch normalization: accuracy against learning rate; standard "
        "deviation between images against layer, log scale, before and after training; share of saturated values against layer.",
    )


def chosen(table: pd.DataFrame, value: str, layer: int | None = None) -> pd.DataFrame:
    """Return one row a seed, one column a norm, at the rate that validation chose; of one layer, or what is the same in all."""
    best, _ = tuned(table, ["norm"], "validation")
    return side_by_side(best if layer is None else best[best.layer == layer], "norm", value)


@sigmoid.claim(
    "chance",
    "Without batch normalization a deep network of sigmoids stays at chance.",
    criterion="test accuracy without BN between 0.05 and 0.15 at the rate that validation chose (chance is 0.1)",
)
def _(table):
    plain = table[table.norm == "none"].validation.max()
    said = f"the highest accuracy on held-out images, over all rates and seeds, is {number(plain)}"
    plain = chosen(table, "test_accuracy")["none"]
    return judge_effect("test accuracy without BN", plain, claimed=(0.05, 0.15), null=np.nan, note=said)


@sigmoid.claim(
    "learns",
    "With batch normalization the same network learns (the paper, on ImageNet: 69.8 %, against 1/1000 without).",
    criterion="test accuracy with BN at least 0.5, at the rate that validation chose",
)
def _(table):
    running = chosen(table, "running_validation").batch.median()
    said = f"with running averages in place of Alg. 2, on held-out images: {number(running)}"
    return judge_effect("test accuracy with BN", chosen(table, "test_accuracy").batch, claimed=(0.5, 1), null=0.1, note=said)


@sigmoid.claim(
    "saturation",
    "Saturation is not what separates them: the network without batch normalization is at chance also at rates where no more "
    "of its values are saturated than in the network that learns.",
    criterion="per seed, the smallest share of saturated values after training over the rates, without BN, less the share with BN "
    "at its chosen rate: at most 0.01",
    by="notes",
)
def _(table):
    shares = table[table.norm == "none"].groupby(["seed", "rate"]).saturation_end.mean()
    best, _ = tuned(table, ["norm"], "validation")
    learned = best[best.norm == "batch"].groupby("seed").saturation_end.mean()
    top = table[(table.norm == "none") & (table.layer == table.layer.max()) & (table.rate == table.rate.max())].saturation_end
    said = f"at the highest rate the share in the top layer, without BN, is {number(top.median())}"
    gap = shares.groupby("seed").min() - learned
    return judge_effect("share of saturated values, without BN less with BN", gap, claimed=(-1, 0.01), null=np.nan, note=said)


@sigmoid.claim(
    "alike",
    "What separates them stands before the first step: without batch normalization the images are all but alike in the top layer.",
    criterion="per seed, standard deviation between images in the top layer before training, without BN over with BN: at most 0.01",
    by="notes",
)
def _(table):
    top = chosen(table, "difference_start", table.layer.max())
    return judge_effect("difference of images, without BN over with BN", top["none"] / top.batch, claimed=(0, 0.01), null=1)


@sigmoid.claim(
    "quarter",
    "Each layer of sigmoids leaves at most a quarter of what distinguishes the images: the sigmoid's slope is at most 1/4.",
    criterion="without BN, before training: mean factor per layer from the first layer to the top at most 1/4",
    by="notes",
)
def _(table):
    first, top = (chosen(table, "difference_start", layer)["none"] for layer in (1, table.layer.max()))
    factor = (top / first) ** (1 / (table.layer.max() - 1))
    return judge_effect("factor per layer", factor, claimed=(0, 0.25), null=1)
