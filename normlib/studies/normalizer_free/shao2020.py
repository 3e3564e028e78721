"""Shao et al. (2020): what share each branch has in the signal that leaves a residual network, and what is left of the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import ResNet
from normlib.probes import channel_power, record_activations
from normlib.residual import Join, rescale_coefficients
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.looks import BLUE, GRAY, GREEN, INK, OLIVE, ORANGE, median_and_band, subplots
from normlib.studies.normalizer_free.tricks import TRICKS

ARMS = {  # of TRICKS, and the norm that goes with it
    "none": (GRAY, "o"), "batch": (BLUE, "s"), "scaled_sum": (ORANGE, "v"), "skipinit_root": (GREEN, "^"), "nf_he": (OLIVE, "D"),
    "rescale": (INK, "x"),
}  # fmt: skip
NAMES = {arm: TRICKS[arm].name for arm in ARMS} | {"none": "sum", "nf_he": "NF"}

rescale = Study(
    "shao2020.rescale",
    item="the rescaled sum",
    title="Equal shares for all branches: what the coefficients of a residual network do to its signal",
    kind="init",
    vary={"trick": list(ARMS)},
    quick={"blocks": 8, "width": 16, "side": 4, "images": 16},
    laptop={"blocks": 32, "width": 64, "side": 8, "images": 16},
    full={"blocks": 64, "width": 256, "side": 8, "images": 64},
    seeds={"quick": 1, "laptop": 5, "full": 5},
)


def terms(blocks: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Return what the output of residual blocks is the sum of: the input and each branch, times all factors on their way up."""
    branches = list(record_activations(blocks, x, [f"{at}.branch" for at in range(len(blocks))], training=True).values())
    parts = [x]
    for block, branch in zip(blocks, branches, strict=True):
        join = block.join
        assert isinstance(join, Join)
        gain = 1.0 if join.gain is None else float(join.gain.detach())
        parts = [join.shortcut_scale * part for part in parts] + [join.branch_scale * gain * branch]
    return parts


def power(x: Tensor) -> float:
    """Return the mean square of all values."""
    return float(x.double().square().mean())


@rescale.trial
def _(c, seed):
    trick = TRICKS[c.trick]
    norm = trick.norm if c.trick == "batch" else "none"
    shape: dict[str, Any] = {"padding_mode": "circular", "norm": norm, "residual": trick.residual}
    blocks = ResNet([c.blocks], c.width, init="he", seed=seed, **shape).blocks.to(c.device)
    x = torch.randn(c.images, c.width, c.side, c.side, generator=torch.Generator().manual_seed(seed)).to(c.device)
    stream = [x, *record_activations(blocks, x, [str(at) for at in range(c.blocks)], training=True).values()]
    parts = terms(blocks, x)
    return {
        "layer": list(range(c.blocks + 1)),  # 0: the input
        "power": [power(values) for values in stream],
        "share": [power(part) / power(stream[-1]) for part in parts],
        "mean_share": [channel_power(values).squared_mean / power(values) for values in stream],
        "gap": float((sum(parts) - stream[-1]).abs().max() / stream[-1].abs().max()),
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def at_layer(table, column: str, layer: int):
    """Return a column after a block, 0 for the input: a row a seed, a column a trick."""
    return side_by_side(table[table.layer == layer], "trick", column)


def growth(table):
    """Return the mean square behind the last block over that of the input: a row a seed, a column a trick."""
    return at_layer(table, "power", table.layer.max()) / at_layer(table, "power", 0)


def late_over_early(table):
    """Return the summed shares of the branches in the upper half over those in the lower: a row a seed, a column a trick."""
    branches, middle = table[table.layer > 0], table.layer.max() // 2
    sums = branches.assign(late=branches.layer > middle).groupby(["seed", "trick", "late"]).share.sum().unstack()
    return (sums[True] / sums[False]).unstack()


def shares_by_formula(blocks: int) -> list[float]:
    """Return what RescaleNet's coefficients make of branches of equal variance: the input's share, and each branch's."""
    shares = [1.0]
    for a, b in rescale_coefficients(blocks):
        shares = [a**2 * share for share in shares] + [b**2]
    return shares


@rescale.draw
def _(table):
    figure, (left, middle, right) = subplots(1, 3, height=3.4)
    blocks = int(table.layer.max())
    inside = []
    for arm, (color, marker) in ARMS.items():
        runs = table[table.trick == arm]
        every = max(1, blocks // 8)
        look: dict[str, Any] = {"color": color, "marker": marker, "markevery": every}
        median_and_band(left, runs, "layer", "power", label=NAMES[arm], **look)
        median_and_band(middle, runs[runs.layer > 0], "layer", "share", **look)
        median_and_band(right, runs, "layer", "mean_share", **look)
        if arm != "none":
            inside.append(runs.power.max())
    for ax in (left, middle, right):
        ax.set_xticks([0, blocks // 2, blocks])
    left.set(yscale="log", xlabel="block", ylabel="mean square of the stream", ylim=(0.5, 2 * max(inside)))
    middle.set(yscale="log", xlabel="block", ylabel="share of its branch in the output", ylim=(3e-4, 2))
    right.set(xlabel="block", ylabel="share of the channel means", ylim=(0, 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8.5, columnspacing=1.2)
    grown, halves, input_share = growth(table).median(), late_over_early(table).median(), at_layer(table, "share", 0).median()
    means = at_layer(table, "mean_share", blocks).median()
    return Drawing(
        figure,
        caption=f"{blocks} blocks before training, He's weights, Gaussian noise for input; batch norm's statistics are those of "
        f"the {table.images.iloc[0]} images. **Left** RescaleNet multiplies the mean square by {number(grown.rescale)}, SkipInit's "
        f"$1/\\sqrt L$ by {number(grown.skipinit_root)}, NF by {number(grown.nf_he)}, the sum by {number(grown['none'])} (beyond "
        "the panel). **Middle** What each branch makes up of the output. The upper half of the branches has "
        f"{number(halves.rescale)} times what the lower half has in RescaleNet, {number(halves.batch)} times with batch norm; the "
        f"input keeps {number(input_share.rescale)} of the output in RescaleNet, {number(input_share.nf_he)} in "
        f"NF, {number(input_share.batch)} with batch norm. "
        f"**Right** Nobody centers here: the means of the channels grow to {number(means.rescale)} of the mean square in "
        f"RescaleNet, to {number(means['none'])} with the plain sum.",
        alt="Three panels against the block, for six ways to join branches. Mean square of the stream, share of each branch in the "
        "output, and share of the channel means in the mean square.",
    )


@rescale.claim(
    "flat",
    "RescaleNet's coefficients keep the variance of the signal at initialization.",
    criterion="mean square behind the last block over that of the input, which is the variance over draws of the weights, between "
    "0.8 and 1.25",
)
def _(table):
    ratios = growth(table)["rescale"]
    return judge_effect("mean square, output / input, RescaleNet", ratios, claimed=(0.8, 1.25), null=np.nan)


@rescale.claim(
    "equal-by-formula",
    "By the coefficients, all branches contribute equally to the variance of the output.",
    criterion="branches of equal variance: largest distance of any share from 1 / (2L - 1), times 2L - 1, at most 1e-12",
)
def _(table):
    blocks = int(table.layer.max())
    shares = np.array(shares_by_formula(blocks)[1:])
    return judge_identity("largest relative distance from equal shares", float(abs(shares * (2 * blocks - 1) - 1).max()), 1e-12)


@rescale.claim(
    "equal-measured",
    "In a RescaleNet of random weights the upper half of the branches has as large a share in the output as the lower half.",
    criterion="mean squares of the branches' terms, upper half over lower half, between 0.8 and 1.25",
)
def _(table):
    ratios = late_over_early(table)
    others = ", ".join(f"{NAMES[arm]} {number(ratios[arm].median())}" for arm in ("none", "scaled_sum", "skipinit_root"))
    return judge_effect(
        "share, upper half / lower half, RescaleNet", ratios["rescale"], claimed=(0.8, 1.25), null=np.nan, note=f"others: {others}"
    )


@rescale.claim(
    "not-alone",
    "Equal shares are no privilege of RescaleNet: batch norm on the branches gives them, and the books of NF do.",
    criterion="shares of the upper half of the branches over those of the lower half between 0.8 and 1.25 for both: the ratio "
    "farther from 1 counts",
    by="notes",
)
def _(table):
    logs = np.log(late_over_early(table)[["batch", "nf_he"]])
    farther = np.exp(logs.apply(lambda row: row.iloc[int(row.abs().to_numpy().argmax())], axis=1))
    return judge_effect("share, upper / lower half, farther from 1", farther, claimed=(0.8, 1.25), null=np.nan)


@rescale.claim(
    "half-the-input",
    "In RescaleNet the input keeps about half of the mean square of the output.",
    criterion="share of the input's term in the mean square of the output between 0.4 and 0.6",
    by="notes",
)
def _(table):
    shares = at_layer(table, "share", 0)
    said = ", ".join(f"{NAMES[arm]} {number(shares[arm].median())}" for arm in ("batch", "nf_he", "scaled_sum"))
    return judge_effect(
        "share of the input, RescaleNet", shares["rescale"], claimed=(0.4, 0.6), null=np.nan, note=f"others: {said}"
    )


@rescale.claim(
    "means-grow",
    "The coefficients keep the mean square but not its kind: without centering a part of it turns into means of channels.",
    criterion="behind the last block of RescaleNet the channel means hold at least 0.1 of the mean square",
    by="notes",
)
def _(table):
    shares = at_layer(table, "mean_share", table.layer.max())["rescale"]
    return judge_effect("share of the channel means, RescaleNet", shares, claimed=(0.1, np.inf), null=0)
