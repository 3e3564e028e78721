"""Xiong et al. (2020): where layer norm stands in a Transformer, and what passes through the stack before training."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.ticker import NullLocator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import ViT
from normlib.probes import gradient_statistics, reduce_activations
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.looks import BLUE, GREEN, VERMILION, median_and_band, subplots

ORDERS = {"post": ("Post-LN", VERMILION, "s"), "pre": ("Pre-LN", BLUE, "o"), "peri": ("Peri-LN", GREEN, "^")}
SIDE, PATCH, CLASSES = 16, 4, 10  # noise images of 16×16×3 pixels: 16 tokens

order = Study(
    "xiong2020.order",
    item="§3; Kim et al. 2025",
    title="Post-LN, Pre-LN and Peri-LN before training: what grows, and where gradients are large",
    kind="init",
    vary={"order": list(ORDERS), "depth": [3, 6, 12, 24], "scale": [1, 3]},
    quick={"dim": 32, "heads": 4, "batch": 16, "depth": [3, 12]},
    laptop={"dim": 128, "heads": 4, "batch": 32},
    full={"dim": 768, "heads": 12, "batch": 256, "depth": [3, 6, 12, 24, 48]},
    seeds={"quick": 1, "laptop": 5, "full": 5},
)


def stack(placing: str, dim: int, depth: int, heads: int, scale: float, seed: int) -> ViT:
    """Build a Transformer with layer norm in one of three places, the matrices of its blocks drawn `scale` times larger."""
    net = ViT(SIDE, PATCH, dim, depth, heads, classes=CLASSES, norm="layer", order=placing, seed=seed)
    with torch.no_grad():
        for module in net.blocks.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(scale)
    return net


def mean_square(x: Tensor) -> float:
    """Return the mean square of all values."""
    return float(x.double().square().mean())


@order.trial
def _(c, seed):
    net = stack(c.order, c.dim, c.depth, c.heads, c.scale, seed).to(c.device)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(c.batch, 3, SIDE, SIDE, generator=generator).to(c.device)
    y = torch.randint(CLASSES, (c.batch,), generator=generator).to(c.device)
    blocks = [f"blocks.{block}" for block in range(c.depth)]
    power = reduce_activations(net, x, mean_square, blocks, sides=("input", "output"), training=True)
    gradients = gradient_statistics(net, cross_entropy, x, y, [f"{block}.mlp.branch.out" for block in blocks], training=True)
    return {
        "block": list(range(1, c.depth + 1)),
        "before": [power[block, "input"] for block in blocks],
        "stream": [power[block, "output"] for block in blocks],
        "gradient": gradients["weight_gradient_norm"],
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def deepest(table, scale: int = 1):
    """Return the rows of the deepest stacks at one scale of the weights."""
    return table[(table.depth == table.depth.max()) & (table.scale == scale)]


def end_over_start(table):
    """Return the gradient of the last block over that of the first, of the deepest stacks: a row a seed, a column an order."""
    runs = deepest(table)
    last, first = (side_by_side(runs, "order", "gradient", block=block) for block in (runs.depth.max(), 1))
    return last / first


def growth(table):
    """Return the mean square that a block adds in the second half of the deepest stacks over that in the first half."""
    runs = deepest(table)
    depth = int(runs.depth.max())
    start = side_by_side(runs, "order", "before", block=1)
    middle, end = (side_by_side(runs, "order", "stream", block=block) for block in (depth // 2, depth))
    return ((end - middle) / (depth - depth // 2)) / ((middle - start) / (depth // 2))


def exponents(table):
    """Return the slope of log gradient of the last block against log depth: a row a seed, a column an order."""
    last = table[(table.block == table.depth) & (table.scale == 1)].assign(gradient=lambda rows: np.log(rows.gradient))
    wide = side_by_side(last, ["order", "depth"], "gradient")
    depths = np.log(sorted(last.depth.unique()))
    return {placing: np.polyfit(depths, wide[placing].to_numpy().T, 1)[0] for placing in ORDERS}


def swelling(table):
    """Return how many times larger the last mean square is with the larger weights: a row a seed, a column an order."""
    small, large = sorted(table.scale.unique())
    ends = [side_by_side(deepest(table, s), "order", "stream", block=table.depth.max()) for s in (small, large)]
    return ends[1] / ends[0]


@order.draw
def _(table):
    figure, axes = subplots(1, 3, height=2.7)
    for placing, (label, color, marker) in ORDERS.items():
        runs = table[table.order == placing]
        for scale, style in ((1, "-"), (3, ":")):
            median_and_band(axes[0], deepest(runs, scale), "block", "stream", color=color, linestyle=style)
        median_and_band(axes[1], deepest(runs), "block", "gradient", color=color, label=label)
        last = runs[(runs.block == runs.depth) & (runs.scale == 1)]
        median_and_band(axes[2], last, "depth", "gradient", color=color, marker=marker)
    axes[0].set(yscale="log", xlabel="block", ylabel="mean square of the stream")
    axes[0].set_title("dotted: weights × 3", fontsize=9)
    axes[1].set(xlabel="block", ylabel="gradient, last matrix of block", ylim=(0, None))
    axes[1].legend(fontsize=8, loc="upper right")
    depths = sorted(table.depth.unique())
    axes[2].set(xscale="log", xlabel="number of blocks", ylabel="the same, last block", ylim=(0, None))
    axes[2].set_xticks(depths, [str(depth) for depth in depths])
    axes[2].xaxis.set_minor_locator(NullLocator())
    ratios, slopes, swollen = end_over_start(table).median(), exponents(table), swelling(table).median()
    said = ", ".join(f"{number(ratios[placing])} in {ORDERS[placing][0]}" for placing in ORDERS)
    return Drawing(
        figure,
        caption="Untrained Transformers of "
        f"{table.dim.iloc[0]} features on Gaussian noise, Glorot's weights. **Left** Mean square of the tokens after each of "
        f"{table.depth.max()} blocks: flat in Post-LN; in the other two it grows. Weights three times as large multiply the last "
        f"value by {number(swollen.pre)} in Pre-LN and by {number(swollen.peri)} in Peri-LN. **Middle** Gradients: the last "
        f"block's is that of the first times {said}. **Right** The last block's gradient goes as depth to the power "
        f"{number(np.median(slopes['pre']))} in Pre-LN and {number(np.median(slopes['post']))} in Post-LN.",
        alt="Left: mean square of the residual stream by block for three placements of layer norm and two sizes of weights. "
        "Middle: gradient norm by block. Right: gradient norm of the last block against the number of blocks.",
    )


@order.claim(
    "post-large",
    "Before training, gradients near the output are large in Post-LN, and in Pre-LN they are not.",
    criterion="deepest stacks: the gradient of the last block's second MLP matrix, Post-LN over Pre-LN, at least 2",
)
def _(table):
    runs = deepest(table)
    last = side_by_side(runs, "order", "gradient", block=runs.depth.max())
    return judge_effect("last block's gradient, Post-LN / Pre-LN", last["post"] / last["pre"], claimed=(2, np.inf), null=1)


@order.claim(
    "pre-falls",
    "In Pre-LN the gradient of the last block falls with the depth of the stack, as one over its square root.",
    criterion="slope of log gradient against log depth between -0.65 and -0.35: the final norm divides by the root of a mean "
    "square that is linear in depth",
    by="notes",
)
def _(table):
    slopes = exponents(table)
    said = f"Post-LN: {number(np.median(slopes['post']))}"
    return judge_effect("exponent of the depth, Pre-LN", slopes["pre"], claimed=(-0.65, -0.35), null=0, note=said)


@order.claim(
    "post-flat",
    "In Post-LN the mean square of the stream is 1 after every block, whatever the weights.",
    criterion="distance from 1, largest over blocks, depths, scales and seeds, at most 0.001 (the norm's epsilon is 0.00001)",
    by="notes",
)
def _(table):
    distance = float((table[table.order == "post"].stream - 1).abs().max(skipna=False))
    return judge_identity("largest distance of the mean square from 1", distance, 1e-3)


@order.claim(
    "pre-linear",
    "In Pre-LN the stream grows linearly with depth, not exponentially.",
    criterion="deepest stacks: the mean square that a block adds in the second half over that in the first, between 0.5 and 2",
    by="notes",
)
def _(table):
    ratios = growth(table)
    said = f"Peri-LN: {number(ratios['peri'].median())}"
    return judge_effect("added per block, second half / first half", ratios["pre"], claimed=(0.5, 2), null=math.nan, note=said)


@order.claim(
    "peri-bounded",
    "A norm at the end of each sublayer makes the growth of the stream independent of the size of the weights.",
    criterion="deepest stacks: weights three times as large change the last mean square of Peri-LN by a factor of at most 1.5 "
    "either way; that of Pre-LN is noted",
    by="kim2025",
)
def _(table):
    ratios = swelling(table)
    said = f"Pre-LN: {number(ratios['pre'].median())}"
    return judge_effect("last mean square, weights × 3 / × 1", ratios["peri"], claimed=(1 / 1.5, 1.5), null=math.nan, note=said)
