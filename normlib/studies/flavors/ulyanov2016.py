"""Ulyanov, Vedaldi & Lempitsky (2016), Instance Normalization: the contrast of an image, taken out, and missed where it counts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import InstanceNorm
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import GRAY, INK, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.studies.flavors.convnets import convnet, fit
from normlib.training import accuracy

CIRCULAR, ON_IMAGE = "instance, circular padding", "none, instance norm on the image"
ARMS = {
    "none": "none", "batch": "batch", "layer": "layer", "group:size=8": "group", "instance": "instance",
    CIRCULAR: "instance (circular)", ON_IMAGE: "instance (image only)",
}  # fmt: skip
FACTORS = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0]  # of the pixels
SHIFTS = [-0.5, -0.25, 0.0, 0.25, 0.5]  # added to the pixels; 1 is the range from the darkest to the brightest
LEVELS = {"contrast": [0.5, 0.71, 1.0, 1.41], "brightness": [-0.75, -0.25, 0.25, 0.75]}  # what the labels of two tasks say
CHANCE = 25  # percent
CENTER = {"none": 0.02, "batch": 0.2, "layer": 0.06, "group:size=8": 0.06, "instance": 1.8, CIRCULAR: 1.2, ON_IMAGE: 0.06}
STEPS = [0.333, 1, 3]  # what each arm tries: so many times the rate above

contrast = Study(
    "ulyanov2016.contrast",
    item="§2; what follows from it for classifiers",
    title="Instance norm takes the contrast out of an image, also where it is asked for",
    kind="train",
    vary={"task": ["class", *LEVELS], "norm": list(ARMS), "step": STEPS},
    quick={
        "data": "digits", "train": 600, "test": 200, "moved": 100, "validation": 100, "pool": 1, "depth": 4, "width": 8,
        "epochs": 3, "step": [1], "norm": ["batch", "instance", CIRCULAR, ON_IMAGE],
    },
    laptop={
        "data": "fashion-mnist", "train": 2_500, "test": 1_000, "moved": 400, "validation": 500, "pool": 2, "depth": 5,
        "width": 16, "epochs": 5,
    },
    full={
        "data": "fashion-mnist", "train": 12_000, "test": 5_000, "moved": 5_000, "validation": 2_000, "pool": 1, "depth": 6,
        "width": 32, "epochs": 8,
    },
)  # fmt: skip


def prepared(c: Config, seed: int) -> tuple[Dataset, Dataset]:
    """Return the images to tune on and those to test on.

    Classes come with pixels that are divided by one number and not centered. So padding with zeros goes on with the dark
    background, and to multiply pixels is to multiply inputs. In the other two tasks each image has mean 0 and deviation 1,
    and is then multiplied by its level, or has it added; the level is its label.
    """
    found = load(c).pooled(c.pool)
    if c.task == "class":
        scale = found.x_train.std(correction=0)
        images = replace(found, x_train=found.x_train / scale, x_test=found.x_test / scale)
    else:
        (x_train, y_train), (x_test, y_test) = leveled(c.task, found.x_train, seed), leveled(c.task, found.x_test, seed + 1000)
        images = replace(found, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, classes=len(LEVELS[c.task]))
    return images.split_validation(c.validation, seed), images


def leveled(task: str, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Standardize each image, then give it one of four contrasts or brightnesses at random; return images and levels."""
    labels = torch.randint(len(LEVELS[task]), (len(x),), generator=torch.Generator().manual_seed(seed)).to(x.device)
    level = torch.tensor(LEVELS[task], device=x.device)[labels].view(-1, 1, 1, 1)
    plain = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), correction=0, keepdim=True)
    return (plain * level if task == "contrast" else plain + level), labels


def network_of(c: Config, images: Dataset, seed: int) -> nn.Module:
    """Build the arm's network: norms in every layer, or one on the image alone."""
    spec = c.norm.partition(", ")[0]
    network = convnet(c, images, spec, seed)
    if c.norm == ON_IMAGE:
        return nn.Sequential(InstanceNorm(images.shape[0]), network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and c.norm == CIRCULAR:
            module.padding_mode = "circular"
    return network


def moved(x: Tensor, one: float) -> Iterator[tuple[str, float, Tensor]]:
    """Yield images of another contrast, and of another brightness; `one` is the brightest pixel. Nothing is clipped."""
    for factor in FACTORS:
        yield "contrast", factor, factor * x
    for shift in SHIFTS:
        yield "brightness", shift, x + shift * one


@torch.no_grad()
def logit_change(network: nn.Module, x: Tensor, other: Tensor) -> float:
    """Return how far the logits move from images to changed images, relative to their size, without eps and in float64."""
    exact = copy.deepcopy(network).double().eval()
    for module in exact.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-12  # type: ignore[assignment]
    before, after = exact(x.double()), exact(other.double())
    return float((after - before).norm() / before.norm())


@contrast.trial
def _(c, seed):
    tune, images = prepared(c, seed)
    network = network_of(c, images, seed)
    rate = CENTER[c.norm] * c.step
    run = fit(network, tune, epochs=c.epochs, rate=rate, seed=seed)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", rate=rate, held_out=np.nan)
    x, y = images.x_test, images.y_test
    tests = [("none", 1.0, x)]
    if c.task == "class":
        x, y = x[: c.moved], y[: c.moved]
        tests = list(moved(x, float(x.max())))
    return {
        "rate": rate,
        "held_out": 100 * accuracy(network, tune.x_test, tune.y_test, statistics="eval"),
        "change": [change for change, _, _ in tests],
        "amount": [amount for _, amount, _ in tests],
        "accuracy": [100 * accuracy(network, other, y, statistics="eval") for _, _, other in tests],
        "logits": [logit_change(network, x[:50], other[:50]) if change != "none" else 0.0 for change, _, other in tests],
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table):
    """Keep each arm's runs at its rate for each task, and return those rates."""
    return tuned(table, ["task", "norm"], "held_out")


def lost(kept, factor: float):
    """Return the points of accuracy lost at a factor of the pixels: a row a seed, a column an arm."""
    runs = kept[(kept.task == "class") & (kept.change == "contrast")]
    return side_by_side(runs, "norm", "accuracy", amount=1.0) - side_by_side(runs, "norm", "accuracy", amount=factor)


def read_off(table):
    """Return the accuracy with which an arm tells the levels apart: a row a seed, a column a task and an arm."""
    kept = best(table)[0]
    return side_by_side(kept[kept.task != "class"], ["task", "norm"], "accuracy")


@contrast.draw
def _(table):
    kept, rates = best(table)
    figure, axes = subplots(1, 3, height=3, width_ratios=[1.1, 1.1, 1])
    looks = {norm: {"color": norm_color(norm.partition(",")[0])} for norm in ARMS}
    looks[CIRCULAR] |= {"linestyle": ":"}
    looks[ON_IMAGE] = {"color": INK, "linestyle": "--"}
    for ax, change in zip(axes[:2], LEVELS, strict=True):
        runs = kept[(kept.task == "class") & (kept.change == change)]
        for norm, look in looks.items():
            median_and_band(ax, runs[runs.norm == norm], "amount", "accuracy", **look)
        ax.set(
            ylim=(0, 100),
            xlabel="factor of all pixels" if change == "contrast" else "added to all pixels",
            title=f"{change} changed",
        )
    axes[0].set(xscale="log", xlabel="factor of all pixels", ylabel="test accuracy in percent")
    axes[1].set_xlabel("added to all pixels")
    axes[0].set_xticks([0.125, 0.5, 1, 4], ["1/8", "1/2", "1", "4"])
    axes[0].minorticks_off()
    axes[1].set_yticklabels([])
    found, here = read_off(table), [norm for norm in ARMS if norm in set(table.norm)]
    for row, norm in enumerate(here):
        for task, marker, offset in zip(LEVELS, "os", (-0.16, 0.16), strict=True):
            middle, at = found[task, norm].median(), row + offset
            axes[2].plot([0, middle], [at, at], **looks[norm])
            axes[2].plot(middle, at, marker, ms=5.5, color=looks[norm]["color"], mfc=None if task == "contrast" else "none")
    axes[2].axvline(CHANCE, color=GRAY, linewidth=0.8, linestyle="--")
    axes[2].set(xlim=(0, 105), ylim=(len(here) + 0.3, -0.6), xlabel="right, in percent", title="level asked for")
    axes[2].set_yticks(range(len(here)), [ARMS[norm].replace(" (", "\n(") for norm in here], fontsize=8.5)
    axes[2].yaxis.tick_right()
    for tick, norm in zip(axes[2].get_yticklabels(), here, strict=True):
        tick.set_color(looks[norm]["color"])
    note(axes[2], "● contrast   □ brightness", 0.03, 0.02, fontsize=8)
    used = {norm: rate for (task, norm), rate in rates.items() if task == "class"}
    edges = kept[(kept.task == "class") & kept.step.isin([min(STEPS), max(STEPS)])].norm.unique()
    at_edge = f"; an end of the three for {', '.join(ARMS[norm] for norm in edges)}" if len(edges) else ""
    off = lost(kept, 0.25)
    return Drawing(
        figure,
        caption=f"At a quarter of the pixels' values batch norm loses {number(off['batch'].median())} points of accuracy, instance "
        f"norm {number(off['instance'].median())}. **Right** Asked for the contrast of an image, instance norm is right for "
        f"{number(found['contrast', 'instance'].median())} % of the images, of four levels; asked for its brightness, for "
        f"{number(found['brightness', 'instance'].median())} % with zero padding and "
        f"{number(found['brightness', CIRCULAR].median())} % with circular padding. Statistic batch and SGD batch are both 64; in "
        "evaluation batch norm uses running averages. Nothing is clipped. Each arm has the best of three rates for each task, "
        f"chosen on held-out images; for the classes {rates_in_words(used, ARMS)}{at_edge}.",
        alt="Accuracy of a classifier against the factor of all pixels, and against what is added to them, one line a normalizer; "
        "and how often each normalizer tells four contrasts and four brightnesses of an image apart.",
    )


@contrast.claim(
    "discards",
    "Instance normalization takes the contrast of the image out of the network.",
    criterion="instance norm in every layer, all pixels times 1/8 to 4: the largest relative change of the logits, without eps and "
    "in float64, is at most 1e-6",
)
def _(table):
    runs = table[(table.norm == "instance") & (table.task == "class") & (table.change == "contrast")]
    return judge_identity("largest relative change of the logits", runs.logits.max(skipna=False), 1e-6)


@contrast.claim(
    "batch-keeps-it",
    "Batch normalization in its place leaves the contrast in.",
    criterion="at a quarter of the pixels' values batch norm loses at least 10 points of accuracy more than instance norm, both as "
    "they were trained, with eps",
)
def _(table):
    off = lost(best(table)[0], 0.25)
    return judge_effect("points lost, batch less instance", off["batch"] - off["instance"], claimed=(10, np.inf), null=0)


@contrast.claim(
    "chance",
    "A network with instance norm cannot tell images apart that differ in contrast alone.",
    criterion="four contrasts: the accuracy with instance norm in every layer, and on the image only, is within 4 points of chance "
    "(25 %); the larger distance counts",
    by="notes",
)
def _(table):
    found = read_off(table)["contrast"][["instance", ON_IMAGE]]
    return judge_effect("larger distance from chance, in points", (found - CHANCE).abs().max(axis=1), claimed=(0, 4), null=4)


@contrast.claim(
    "others-can",
    "Without norm and with batch, layer and group norm the same network can.",
    criterion="four contrasts: the least of these accuracies is at least 90 %; chance is 25 %",
    by="notes",
)
def _(table):
    found = read_off(table)["contrast"].drop(columns=["instance", CIRCULAR, ON_IMAGE])
    said = ", ".join(f"{ARMS[norm]} {number(found[norm].median())}" for norm in found)
    return judge_effect("least accuracy, in percent", found.min(axis=1, skipna=False), claimed=(90, 100), null=CHANCE, note=said)


@contrast.claim(
    "borders",
    "Brightness leaks through instance norm at the borders where convolutions pad with zeros.",
    criterion="four brightnesses: the accuracy of instance norm with zero padding exceeds that with circular padding by at least "
    "20 points",
    by="notes",
)
def _(table):
    found = read_off(table)["brightness"]
    said = f"{number(found['instance'].median())} % with zeros, {number(found[CIRCULAR].median())} % circular, chance {CHANCE} %"
    return judge_effect("points, zeros less circular", found["instance"] - found[CIRCULAR], claimed=(20, np.inf), null=0, note=said)
