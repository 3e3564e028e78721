"""Labatie et al. (2021): what is left of a signal that norms without a batch have passed through many layers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import make_norm
from normlib.layers.proxy import proxy_moments
from normlib.layers.shapes import per_channel
from normlib.probes import channel_power
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import GRAY, SKY, VERMILION, subplots
from normlib.weights.standardization import weight_standardization

ARMS = {
    "batch": "batch",
    "instance": "instance",
    "group:size=16": "groups of 16",
    "layer": "layer",
    "layer + weights": "layer, weights\nstandardized",
    "layer + proxy": "layer, proxy",
}
PARTS = {"mean": "channel means", "between": "between images", "within": "within images"}
COLORS = {"mean": VERMILION, "between": SKY, "within": GRAY}
SPREAD = 0.2  # standard deviation of scales about 1, and of shifts about 0
POINTS = 16  # depths that are kept

power = Study(
    "labatie2021.power",
    item="Fig. 2, random networks",
    title="Layer norm lets channels drift to constants; a proxy of the batch holds them",
    kind="init",
    vary={"arm": list(ARMS)},
    quick={"data": "digits", "train": 500, "test": 100, "images": 32, "width": 32, "depth": 24},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 1_000, "test": 100, "images": 64, "width": 128, "depth": 64},
    full={"data": "cifar10", "images": 128, "width": 1024, "depth": 128},
)


@torch.no_grad()
def layer_after_layer(c: Config, arm: str, x: Tensor, seed: int) -> list[dict[str, float]]:
    """Send images through convolution, norm, random scale and shift, ReLU; return the shares of power at some depths.

    The convolutions are 3×3 with periodic padding and weights of He's scale, the same for every arm. The power is that of the
    normalized map before its scale and shift: 1 in all, up to eps.
    """
    source = torch.Generator().manual_seed(seed)
    norm_of_maps, _, extra = arm.partition(" + ")
    norm = make_norm(norm_of_maps, c.width).to(x.device).train()  # a fresh one: scale 1, shift 0
    kept = {*np.geomspace(1, c.depth, POINTS).round().astype(int).tolist()}
    rows = []
    for depth in range(1, c.depth + 1):
        fan_in = 9 * x.shape[1]
        weight = (torch.randn(c.width, x.shape[1], 3, 3, generator=source) * (2 / fan_in) ** 0.5).to(x.device)
        scale, shift = (SPREAD * torch.randn(2, c.width, generator=source)).to(x.device)
        if extra == "weights":
            weight = weight_standardization(weight) * (2 / fan_in) ** 0.5
        y = norm(conv2d(pad(x, (1, 1, 1, 1), mode="circular"), weight))
        if depth in kept:
            mean, between, within = channel_power(y)
            total = mean + between + within
            rows.append({"layer": depth, "mean": mean / total, "between": between / total, "within": within / total})
        x = activated(y, 1 + scale, shift, proxy=extra == "proxy")
    return rows


def activated(y: Tensor, scale: Tensor, shift: Tensor, proxy: bool, proxy_eps: float = 0.03) -> Tensor:
    """Return ReLU of scale · y + shift; with `proxy` less the mean that a normal y would give it, over that deviation."""
    x = (per_channel(scale, y) * y + per_channel(shift, y)).relu()
    if not proxy:
        return x
    nothing = torch.zeros_like(shift)
    mean, variance = proxy_moments(torch.relu, scale, shift, nothing, nothing)
    return (x - per_channel(mean, y)) / (per_channel(variance, y) + proxy_eps).sqrt()


@power.trial
def _(c, seed):
    images, _ = images_for(c, seed)
    rows = layer_after_layer(c, c.arm, images.x_train[: c.images], seed)
    return {column: [row[column] for row in rows] for column in rows[0]}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def deepest(table, part: str):
    """Return the share of a part at the last layer: a row a seed, a column an arm."""
    return side_by_side(table[table.layer == table.layer.max()], "arm", part)


@power.draw
def _(table):
    figure, axes = subplots(2, 3, height=2.1, sharex=True, sharey=True)
    shares = table.groupby(["arm", "layer"])[list(PARTS)].median()
    for place, (ax, (arm, name)) in enumerate(zip(axes.flat, ARMS.items(), strict=True)):
        here = shares.loc[arm]
        parts = here.div(here.sum(axis=1), axis=0)
        ax.stackplot(parts.index, *parts.to_numpy().T, colors=[COLORS[p] for p in PARTS], labels=list(PARTS.values()))
        ax.set(xscale="log", xlim=(1, table.layer.max()), ylim=(0, 1))
        ax.set_title(name.replace("\n", " "), fontsize=9.5)
        ticks = [t for t in (1, 4, 16, 64) if t <= table.layer.max()]
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        if place >= 3:
            ax.set_xlabel("layer")
        if place % 3 == 0:
            ax.set_ylabel("share of power")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    end = deepest(table, "mean").median()
    between = deepest(table, "between").median()
    return Drawing(
        figure,
        caption="Random networks before training, no SGD. The power of each normalized map, before scale and shift, in three "
        f"parts; median of the seeds. At layer {table.layer.max()} the means of the channels hold {number(end['layer'])} of the "
        f"power with layer norm, {number(end['group:size=16'])} with group norm, {number(end['layer + weights'])} with layer "
        f"norm and standardized weights, {number(end['layer + proxy'])} with layer norm and a proxy, none with batch norm. The "
        f"differences between images hold {number(between['batch'])} with batch norm, none with instance norm. Statistic batch "
        f"of batch norm: all {table.images.iloc[0]} images.",
        alt="Six stacked panels, one a norm: shares of power in channel means, between images and within images, against the "
        "layer, for batch, instance, group and layer norm, layer norm with standardized weights, and with a proxy.",
    )


@power.claim(
    "constant-channels",
    "With layer norm, activations become constant in each channel as depth grows.",
    criterion="at the last layer the squared means of the channels are at least 0.9 of the power",
)
def _(table):
    return judge_effect("share of the channel means", deepest(table, "mean")["layer"], claimed=(0.9, 1), null=0)


@power.claim(
    "instances-alike",
    "Instance norm takes out the variability of instance statistics: no power is left between images.",
    criterion="the power between images and that of the means are zero at every layer, within 10⁻⁶ of the power",
)
def _(table):
    runs = table[table.arm == "instance"]
    return judge_identity("largest share, means or between images", float(runs[["mean", "between"]].max().max()), 1e-6)


@power.claim(
    "proxy",
    "Proxy normalization keeps layer norm from this drift, without a batch.",
    criterion="at the last layer the share of the channel means is at most a quarter of that with layer norm alone",
)
def _(table):
    shares = deepest(table, "mean")
    return judge_effect("share, with proxy / without", shares["layer + proxy"] / shares["layer"], claimed=(0, 0.25), null=1)


@power.claim(
    "weights-or-proxy",
    "Standardized weights, which know nothing of scales and shifts, leave at least twice the share of the channel means that "
    "the proxy leaves.",
    criterion="ratio of the shares at the last layer, at least 2",
    by="notes",
)
def _(table):
    shares = deepest(table, "mean")
    note = f"standardized weights {number(shares['layer + weights'].median())}, proxy {number(shares['layer + proxy'].median())}"
    ratio = shares["layer + weights"] / shares["layer + proxy"]
    return judge_effect("share, standardized weights / proxy", ratio, claimed=(2, np.inf), null=1, note=note)


@power.claim(
    "between-images",
    "What batch norm keeps and instance norm cannot is the difference between images: it holds at least a tenth of the power.",
    criterion="with batch norm, at the last layer, share of the power between images at least 0.1",
    by="notes",
)
def _(table):
    return judge_effect("share between images", deepest(table, "between")["batch"], claimed=(0.1, 1), null=0)
