"""Zhang, Dauphin & Ma (2019): how far one step of gradient descent moves a residual network, against its depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import ResNet
from normlib.networks.initialization import make_initializer
from normlib.residual import fixup_factor
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, GRAY, ORANGE, PINK, SKY, VERMILION, median_and_band, subplots

ARMS = {  # norm, residual, bias of the convolutions; how it is called, color, marker
    "none": ("none", "sum", False, "no norm", GRAY, "o"),
    "batch": ("batch", "sum", False, "batch norm", BLUE, "s"),
    "zeros": ("none", "fixup", False, "last layers 0", ORANGE, "^"),
    "fixup": ("none", "fixup", False, "Fixup", VERMILION, "D"),
    "fixup_bias": ("none", "fixup", True, "Fixup, biases", PINK, "v"),
    "rezero": ("none", "rezero", False, "ReZero", SKY, "x"),
}
HEADS = ["drawn", "zero"]
UNITS = {"basic": 2, "bottleneck": 3}  # weight layers in a branch, m
MOVE = 1e-7  # length of the step as a share of the length of all parameters: its effect is linear, in float64

update = Study(
    "zhang2019fixup.update",
    item="§3",
    title="How far does one step move the function of a deep residual network?",
    kind="init",
    vary={"arm": list(ARMS), "unit": list(UNITS), "head": HEADS, "blocks": [4, 16, 64]},
    quick={"data": "digits", "pool": 2, "images": 8, "width": 4, "blocks": [2, 6]},
    laptop={"data": "fashion-mnist", "pool": 4, "images": 32, "width": 8},
    full={"data": "cifar10", "pool": 4, "images": 64, "width": 16, "blocks": [4, 16, 64, 256]},
)


def network(c: Config, channels: int, seed: int) -> ResNet:
    """Build the residual network of an arm in float64, one stage of `c.blocks` blocks; all arms draw the same weights."""
    norm, residual, bias, *_ = ARMS[c.arm]
    net = ResNet(
        [c.blocks], c.width, unit=c.unit, in_channels=channels, norm=norm, residual=residual, bias=bias, seed=seed
    ).double()
    with torch.no_grad():
        if c.arm == "zeros":  # undo rule 2: the layers before the last as He's rule drew them
            for block in net.blocks:
                for layer in _convolutions(block.get_submodule("branch"))[:-1]:
                    layer.weight.div_(fixup_factor(c.blocks, UNITS[c.unit]))
        head = make_initializer("lecun")(
            net.head.get_parameter("weight"), torch.Generator().manual_seed(seed)
        )  # the same at every depth
        if c.head == "zero":
            head.zero_()
    return net.to(c.device)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


def change_per_rate(net: nn.Module, x: Tensor, y: Tensor, parts: Sequence[str] = ("all",)) -> list[float]:
    """Return how far one small step of gradient descent on a batch moves the outputs: root mean square, per unit of the rate.

    Args:
        net: any network.
        x: the batch.
        y: its classes.
        parts: for each number, what takes the step: "all" layers, or the "branches" and what joins them.
    """
    named = dict(net.named_parameters())
    before = net(x)
    gradients = dict(zip(named, torch.autograd.grad(cross_entropy(before, y), list(named.values())), strict=True))
    steps = {"all": gradients, "branches": {name: g for name, g in gradients.items() if of_branches(name)}}
    return [_change(net, x, before.detach(), steps[part]) for part in parts]


def of_branches(name: str) -> bool:
    """Tell whether a parameter is in a residual branch or in its join, not in a shortcut."""
    return name.startswith("blocks.") and ".shortcut." not in name


@torch.no_grad()
def _change(net: nn.Module, x: Tensor, before: Tensor, step: dict[str, Tensor]) -> float:
    named = dict(net.named_parameters())
    start = {name: named[name].clone() for name in step}
    length, steepness = (float(torch.stack([t.norm() for t in some.values()]).norm()) for some in (start, step))
    if steepness == 0:
        return 0.0
    rate = MOVE * length / steepness
    for name, gradient in step.items():
        named[name].sub_(gradient, alpha=rate)
    moved = net(x) - before
    for name, value in start.items():
        named[name].copy_(value)
    return float(moved.square().mean().sqrt()) / rate


@update.trial
def _(c, seed):
    images = load(c).pooled(c.pool).standardized().subset(c.images, None, seed)
    net = network(c, images.shape[0], seed)
    whole, branches = change_per_rate(net, images.x_train.double(), images.y_train, ["all", "branches"])
    return {"change": whole, "by_branches": branches}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def changes(table, arm: str, column: str, head: str = "drawn"):
    """Return a change per unit of the rate: a row a seed, columns of unit and number of blocks."""
    return side_by_side(table[table.arm == arm], ["unit", "blocks"], column, head=head)


def at_depth(table, arm: str, column: str, place: int):
    """Return the change at one of the depths, counted from the shallowest: a row a seed, a column a unit."""
    return changes(table, arm, column).xs(sorted(table.blocks.unique())[place], axis=1, level="blocks")


def deepest_over_shallowest(table, arm: str, column: str):
    """Return the change of the deepest network over that of the shallowest: a row a seed, a column a unit."""
    return at_depth(table, arm, column, -1) / at_depth(table, arm, column, 0)


def powers(table, arm: str):
    """Return p in "the branches' change goes as the number of blocks to the power p", at the two largest depths."""
    small, large = sorted(table.blocks.unique())[-2:]
    return np.log(at_depth(table, arm, "by_branches", -1) / at_depth(table, arm, "by_branches", -2)) / np.log(large / small)


def factors(table, arm: str):
    """Return the factor by which the change grows at each block, at the two largest depths."""
    small, large = sorted(table.blocks.unique())[-2:]
    return (at_depth(table, arm, "change", -1) / at_depth(table, arm, "change", -2)) ** (1 / (large - small))


@update.draw
def _(table):
    figure, axes = subplots(1, 3, height=3.5, sharey=True)
    panels = [
        ("basic", "drawn", "by_branches", "branches of 2 layers"), ("bottleneck", "drawn", "by_branches", "branches of 3 layers"),
        ("basic", "zero", "change", "all layers, head 0"),
    ]  # fmt: skip
    depths = sorted(table.blocks.unique())
    for ax, (unit, head, column, title) in zip(axes, panels, strict=True):
        for arm, (*_, label, color, marker) in ARMS.items():
            runs = table[(table.arm == arm) & (table.unit == unit) & (table["head"] == head)]
            median_and_band(ax, runs, "blocks", column, color=color, marker=marker, label=label)
        ax.set(xscale="log", yscale="log", xlabel="blocks $L$")
        ax.set_title(title, fontsize=9.5)
        ax.set_xticks(depths, [str(depth) for depth in depths])
        ax.minorticks_off()
    shown = table[(table.arm != "none") & (table["head"] == "drawn")]
    axes[0].set_ylim(shown.by_branches.min() / 3, 3 * shown.change.max())
    axes[0].set_ylabel("change per unit of the rate")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8.5, handletextpad=0.3, columnspacing=1.2)
    grown = {arm: deepest_over_shallowest(table, arm, "by_branches").median() for arm in ARMS}
    said = ", ".join(f"{number(grown[a].basic)} and {number(grown[a].bottleneck)} {w}" for a, w in WORDS.items())
    none = factors(table, "none").median()
    return Drawing(
        figure,
        caption=f"What one small step of gradient descent on {table.images.iloc[0]} images does to the outputs of an untrained "
        "network: root mean square, per unit of the learning rate. **Left, middle** The branches alone take the step, and the head "
        f"is as drawn. From {depths[0]} to {depths[-1]} blocks the change grows, in branches of two layers and of three, by the "
        f"factors {said}. Without norm it leaves the panels: all layers together move the outputs by {number(none.basic)} and "
        f"{number(none.bottleneck)} times as much with every block. **Right** All layers take the step, and the head is 0, as in "
        "Fixup: nothing but the head moves. Batch norm's statistics are those of the same images.",
        alt="Change of a network's outputs by one gradient step against its number of blocks, log axes, for six ways to build a "
        "residual network. Panels: branches of two layers, of three layers, and all layers under a zero head.",
    )


WORDS = {
    "fixup": "under Fixup", "zeros": "if only the last layers are zero", "fixup_bias": "if the convolutions have biases",
    "rezero": "with ReZero", "batch": "with batch norm",
}  # fmt: skip


def _farthest(values, center: float = 1.0):
    """Return for each seed that unit's number that lies farthest from the center."""
    return values.apply(lambda row: row.iloc[int((row - center).abs().to_numpy().argmax())], axis=1)


@update.claim(
    "independent",
    "Under Fixup one step of gradient descent moves the function by about as much at any depth.",
    criterion="head as drawn: the change of the deepest network over that of the shallowest lies between 1/2 and 2, for branches "
    "of two and of three layers, with a step of all layers and with one of the branches alone: of the four the one farthest from 1 "
    "counts, on a log scale",
)
def _(table):
    logs = pd.concat([np.log(deepest_over_shallowest(table, "fixup", column)) for column in ("change", "by_branches")], axis=1)
    ratios = np.exp(_farthest(logs, 0.0))
    return judge_effect("change, deepest / shallowest, the one farthest from 1", ratios, claimed=(0.5, 2), null=np.nan)


@update.claim(
    "explodes",
    "Without normalization the change grows exponentially with depth.",
    criterion="no norm, He's weights, head as drawn, a step of all layers: between the two largest depths the change grows by a "
    "factor of at least 1.5 a block, for both branches: the smaller factor counts",
)
def _(table):
    smaller = factors(table, "none").min(axis=1, skipna=False)
    return judge_effect("factor per block without norm, smaller of two", smaller, claimed=(1.5, np.inf), null=1)


@update.claim(
    "factor-needed",
    "Zeros in the last layers of the branches are not enough: without the factor the change by the branches grows as their number.",
    criterion="last layers zero, the others as He drew them, head as drawn, a step of the branches alone: between the two largest "
    "depths the change goes as depth to a power between 0.7 and 1.1, for both branches: the power farther from 1 counts",
)
def _(table):
    return judge_effect("power of the depth, farther from 1", _farthest(powers(table, "zeros")), claimed=(0.7, 1.1), null=0)


@update.claim(
    "biases-undo",
    "A bias for each channel at the end of every branch undoes what Fixup's factor does.",
    criterion="Fixup in convolutions with biases, head as drawn, a step of the branches alone: between the two largest depths the "
    "change goes as depth to a power of at least 0.5, for both branches: the smaller power counts",
    by="notes",
)
def _(table):
    smaller = powers(table, "fixup_bias").min(axis=1, skipna=False)
    return judge_effect("power of the depth with biases, smaller of two", smaller, claimed=(0.5, np.inf), null=0)


@update.claim(
    "head-alone",
    "With Fixup's head of zeros the first step moves the function by exactly as much at any depth.",
    criterion="Fixup, head 0, branches of two layers, a step of all layers: largest relative difference between depths, over "
    "seeds, at most 0.000001",
    by="notes",
)
def _(table):
    found = changes(table, "fixup", "change", "zero")["basic"]
    error = float((found.max(axis=1) / found.min(axis=1) - 1).max(skipna=False))
    return judge_identity("largest relative difference of the change", error, 1e-6)
