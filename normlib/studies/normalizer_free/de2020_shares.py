"""De & Smith (2020): what share of the signal a residual branch supplies before training, with batch norm and in its place."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.ticker import NullLocator
from torch import Tensor

from normlib.lab import Config, Drawing, Study, judge_effect, number
from normlib.networks import ResNet
from normlib.probes import record_activations
from normlib.residual import rescale_coefficients
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.looks import GREEN, ORANGE, PINK, median_and_band, norm_color, subplots
from normlib.studies.normalizer_free.tricks import TRICKS

LOOKS = {
    "none": (norm_color("none"), "v"), "scaled_sum": (ORANGE, "s"), "batch": (norm_color("batch"), "o"),
    "skipinit_root": (GREEN, "^"), "rescale": (PINK, "D"), "nf": (norm_color("scaled_weight"), "x"),
}  # fmt: skip
CHANNELS = 3  # of the images, which are noise

shares = Study(
    "de2020.shares",
    item="§2, §3",
    title="What share of the variance does a residual branch supply?",
    kind="init",
    vary={"trick": list(LOOKS)},
    quick={"blocks": 8, "width": 16, "side": 6, "images": 16},
    laptop={"blocks": 16, "width": 128, "side": 8, "images": 32},
    full={"blocks": 64, "width": 256, "side": 16, "images": 128},
    seeds={"quick": 1, "laptop": 5, "full": 5},
)


def rule(trick: str, depth: int) -> list[tuple[float, float, bool]]:
    """Return of each block the squared factors of shortcut and branch, and whether the branch divides its input's size out."""
    if trick == "rescale":
        return [(a**2, b**2, False) for a, b in rescale_coefficients(depth)]
    same = {
        "batch": (1, 1, True), "nf": (1, 0.2**2, True), "none": (1, 1, False), "scaled_sum": (0.5, 0.5, False),
        "skipinit_root": (1, 1 / depth, False),
    }  # fmt: skip
    return [same[trick]] * depth


def expected(trick: str, depth: int) -> tuple[list[float], list[float]]:
    """Return the variance behind each block, from 1, and the share of it that its branch supplies: expectations over weights."""
    variance, variances, supplied = 1.0, [], []
    for shortcut, branch, divided in rule(trick, depth):
        added = branch * (1.0 if divided else variance)
        variance = shortcut * variance + added
        variances.append(variance)
        supplied.append(added / variance)
    return variances, supplied


def network(c: Config, seed: int) -> ResNet:
    """Build one stage of blocks on maps that close up at their border, so that no tap of a filter meets padding."""
    trick = TRICKS[c.trick]
    return ResNet(
        [c.blocks], c.width, in_channels=CHANNELS, norm=trick.norm, residual=trick.residual, init=trick.init, bias=trick.bias,
        padding_mode="circular", seed=seed,
    ).to(c.device)  # fmt: skip


def measured(net: ResNet, x: Tensor) -> dict[str, list[float]]:
    """Return mean squares in double precision: behind each block, and of what its branch adds in that and in the last output.

    The stem is linear, so the images are scaled to give its output the mean square 1.
    """
    depth = len(net.blocks)
    names = ["stem", *(f"blocks.{block}" for block in range(depth))]
    x = x / record_activations(net, x, ["stem"], training=True)["stem"].square().mean().sqrt()
    found = [values.double() for values in record_activations(net, x, names, training=True).values()]
    kept = [float(block.join.shortcut_scale) for block in net.blocks]  # type: ignore[union-attr, arg-type]
    added = [float((y - a * x).square().mean()) for x, y, a in zip(found, found[1:], kept, strict=False)]
    variance = [float(y.square().mean()) for y in found[1:]]
    left = [math.prod(a**2 for a in kept[block + 1 :]) for block in range(depth)]
    return {
        "variance": variance,
        "share": [part / whole for part, whole in zip(added, variance, strict=True)],
        "final_share": [part * rest / variance[-1] for part, rest in zip(added, left, strict=True)],
    }


@shares.trial
def _(c, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(c.images, CHANNELS, c.side, c.side, generator=generator).to(c.device)
    return {"block": list(range(1, c.blocks + 1)), **measured(network(c, seed), noise)}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def against_expected(table, trick: str):
    """Return the mean over blocks of the share of a branch over its expectation: one number a seed."""
    runs = table[table.trick == trick]
    said = expected(trick, int(runs.block.max()))[1]
    return (runs.share / np.array(said)[runs.block - 1]).groupby(runs.seed).mean()


def growth(table):
    """Return the variance behind the last block over that of the stem, 1: a row a seed, a column a trick."""
    return side_by_side(table[table.block == table.block.max()], "trick", "variance")


@shares.draw
def _(table):
    depth = int(table.block.max())
    blocks = range(1, depth + 1)
    figure, axes = subplots(1, 3, height=3.0)
    for trick, (color, marker) in LOOKS.items():
        runs = table[table.trick == trick]
        variances, supplied = expected(trick, depth)
        left = np.array([a for a, _, _ in rule(trick, depth)])
        final = np.array(supplied) * variances * [left[block + 1 :].prod() for block in range(depth)] / variances[-1]
        for place, column, said in zip(axes, ("variance", "share", "final_share"), (variances, supplied, final), strict=True):
            place.plot(blocks, said, color=color, linewidth=1)
            style = {"linestyle": "none", "marker": marker, "markersize": 4, "mfc": "none" if marker != "x" else color}
            median_and_band(place, runs, "block", column, color=color, label=TRICKS[trick].name, **style)
    ticks = [1, 2, 4, 8, 16, 32, 64]
    for place, title in zip(axes, ("mean square behind a block", "its branch's share of it", "its share at the end"), strict=True):
        place.set(xscale="log", yscale="log", xlabel="block")
        place.set_title(title, fontsize=9.5)
        place.set_xticks([tick for tick in ticks if tick <= depth], [str(tick) for tick in ticks if tick <= depth])
        place.xaxis.set_minor_locator(NullLocator())
    axes[0].set_ylim(0.6, 3e5)
    axes[0].legend(fontsize=8, loc="upper left", ncols=1)
    axes[2].set_ylim(1e-3, 1.2)
    axes[1].set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1], ["0.02", "0.05", "0.1", "0.2", "0.5", "1"])
    axes[1].yaxis.set_minor_locator(NullLocator())
    grown = growth(table).median()
    first, last = (side_by_side(table, "trick", "share", block=block).median() for block in (1, depth))
    return Drawing(
        figure,
        caption=f"Residual networks of {depth} blocks before training; the images are noise, lines are expectations over the "
        f"weights, marks are medians over {table.seed.nunique()} seed(s). **Left** The mean square behind a block, which is the "
        f"variance over draws of the weights: behind the last block {number(grown['none'])} without norm, "
        f"{number(grown['batch'])} with batch norm, {number(grown['skipinit_root'])} with SkipInit. **Middle** What the branch "
        f"supplies: from the first block to the last, batch norm brings it from {number(first['batch'])} to "
        f"{number(last['batch'])}; no norm has {number(first['none'])} and {number(last['none'])}. **Right** What each block "
        f"contributes to the last output. Batch norm takes its statistics from all {table.images.iloc[0]} images.",
        alt="Three panels against the block, six ways to build a residual network: the variance behind the block, the share that "
        "its branch supplies, and its share in the last output, with closed forms as lines.",
    )


@shares.claim(
    "batch",
    "With batch norm, the branch of block l supplies a share 1/(l + 1) of the variance that leaves the block.",
    criterion="measured share of the mean square, which is the variance over draws of the weights, over 1/(l + 1), mean over the "
    "blocks, between 0.9 and 1.1",
)
def _(table):
    return judge_effect("share × (l + 1), mean over blocks", against_expected(table, "batch"), claimed=(0.9, 1.1), null=math.nan)


@shares.claim(
    "half",
    "Without norm every branch supplies half of the variance that leaves the block.",
    criterion="measured share over 1/2, mean over the blocks, between 0.9 and 1.1",
)
def _(table):
    said = f"the variance grows {number(growth(table)['none'].median())}-fold"
    return judge_effect(
        "share × 2, mean over blocks", against_expected(table, "none"), claimed=(0.9, 1.1), null=math.nan, note=said
    )


@shares.claim(
    "bounded",
    "With SkipInit at 1/√L, L blocks multiply the variance by (1 + 1/L) to the power L, which is less than e.",
    criterion="measured growth over (1 + 1/L) to the power L, between 0.85 and 1.15; the statement is about the mean over draws",
)
def _(table):
    depth = int(table.block.max())
    grown = growth(table)["skipinit_root"]
    said = f"growth {number(grown.median())}; e is {number(math.e)}"
    return judge_effect("growth / (1 + 1/L)^L", grown / (1 + 1 / depth) ** depth, claimed=(0.85, 1.15), null=math.nan, note=said)
