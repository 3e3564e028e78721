"""Yang, Pennington, Rao, Sohl-Dickstein & Schoenholz (2019): growth against the number of values in a statistic."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.ticker import NullLocator

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.networks import MLP, StridedConvNet
from normlib.probes import gradient_growth, growth_factor, record_activations
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.looks import INK, PAPER, median_and_band, norm_color, note, subplots

INIT = {"identity": "lecun", "relu": "he"}
NAMES = {"identity": "linear", "relu": "ReLU"}
SKIPPED = 3  # layers at each end
RELU = (math.pi / (math.pi - 1)) ** 0.5

explosion = Study(
    "yang2019.explosion",
    item="gradient explosion",
    title="Few values in a statistic make gradients grow, whether examples or positions; the scale of the weights does not",
    kind="init",
    vary={
        "norm": ["batch", "instance"],
        "activation": ["identity", "relu"],
        "count": [4, 9, 16, 64, 256],
        "scale": [0.1, 1.0, 10.0],
    },
    quick={"count": [4, 64], "width": 128, "channels": 16, "samples": 4, "depth": 10},
    laptop={"width": 512, "channels": 64, "samples": 8, "depth": 24},
    full={"width": 2048, "channels": 256, "samples": 16, "depth": 40},
)


def stack(c, seed):
    """Return blocks of weights, norm and activation, and noise for them: `c.count` values for each statistic.

    Batch norm stands in a dense network and takes `c.count` examples; instance norm stands behind 3×3 convolutions on maps of
    `c.count` positions. All weights are multiplied by `c.scale`.
    """
    draw = torch.Generator().manual_seed(seed)
    if c.norm == "batch":
        sizes, init = [c.width] * (c.depth + 2), INIT[c.activation]
        net: MLP | StridedConvNet = MLP(sizes, c.activation, "batch", init, bias=False, seed=seed)
        x = torch.randn(c.count, c.width, generator=draw)
    else:
        side, plan = math.isqrt(c.count), [c.channels] * c.depth
        net = StridedConvNet(
            plan, in_channels=c.channels, norm="instance", activation=c.activation, init=INIT[c.activation], seed=seed
        )
        x = torch.randn(c.samples, c.channels, side, side, generator=draw)
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.dim() > 1):
            parameter.mul_(c.scale)
    return net.blocks.to(c.device), x.to(c.device), torch.randn(x.shape, generator=draw).to(c.device)


@explosion.trial
def _(c, seed):
    blocks, x, sent = stack(c, seed)
    names = [f"{index}.layer" for index in range(c.depth)]
    squares = gradient_growth(blocks, lambda out, sent: (out * sent).sum(), x, sent, names, training=True)["squared_norm"]
    middle = names[c.depth // 2]
    sums = record_activations(blocks, x, [middle], training=True)[middle]
    axes = [0] if c.norm == "batch" else [2, 3]
    return {"growth": growth_factor(squares[SKIPPED:-SKIPPED]).value ** 0.5, "sigma": float(sums.std(axes, correction=0).mean())}


@explosion.draw
def _(table):
    figure, axes = subplots(1, 2, height=3.4, sharey=True)
    counts = np.geomspace(table["count"].min(), table["count"].max(), 100)
    ticks = sorted(table["count"].unique())
    for ax, norm, title in zip(axes, ("batch", "instance"), ("batch norm, dense", "instance norm, 3×3 convolutions"), strict=True):
        ax.plot(counts, ((counts - 2) / (counts - 3)) ** 0.5, color=INK, linewidth=1)
        ax.axhline(RELU, color=INK, linewidth=0.8, linestyle=":")
        for activation, face in (("relu", norm_color(norm)), ("identity", PAPER)):
            for scale, marker in zip(sorted(table.scale.unique()), ("v", "o", "^"), strict=True):
                runs = table[(table.norm == norm) & (table.activation == activation) & (table.scale == scale)]
                median_and_band(
                    ax,
                    runs,
                    "count",
                    "growth",
                    color=norm_color(norm),
                    linestyle="none",
                    marker=marker,
                    mfc=face,
                    markersize=5,
                    err_style="bars",
                )
        ax.set(xscale="log", title=title)
        ax.set_xticks(ticks, [str(tick) if norm == "batch" else f"{math.isqrt(tick)}×{math.isqrt(tick)}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    axes[0].set(xlabel="examples in a batch", ylabel="growth of the gradient per layer")
    axes[1].set(xlabel="positions in a map")
    note(axes[0], "filled: ReLU, hollow: linear\n▼ weights × 0.1, ● × 1, ▲ × 10\nline: √((B − 2)/(B − 3))", 0.25, 0.76)
    scales = [table.scale.min(), table.scale.max()]
    found = _wide(table, "growth").median()
    least, most = table["count"].min(), table["count"].max()
    dense, maps = found["batch"], found["instance"]
    sigma = _wide(table, "sigma").median()["batch", "relu", most]
    return Drawing(
        figure,
        caption="A random gradient sent back through random layers before training; noise as input, no updates. The statistic "
        f"batch is the number of examples on the left, one map on the right. With {least} values growth per layer is "
        f"{number(dense['identity', least, 1.0])} under batch norm and {number(maps['identity', least, 1.0])} under instance norm "
        f"for linear layers, {number(dense['relu', least, 1.0])} and {number(maps['relu', least, 1.0])} with ReLU. Weights at "
        f"{scales[0]:g} and {scales[1]:g} times the usual scale give, with ReLU and batches of {most}, σ = "
        f"{number(sigma[scales[0]])} and {number(sigma[scales[1]])}, and a growth of {number(dense['relu', most, scales[0]])} and "
        f"{number(dense['relu', most, scales[1]])} (dotted: {number(RELU)}).",
        alt="Two panels, batch norm by examples and instance norm by positions: growth per layer falls as values increase, to 1 "
        "for linear and about 1.2 for ReLU layers. Markers for three weight scales nearly coincide.",
    )


def _wide(table, value):
    return side_by_side(table, ["norm", "activation", "count", "scale"], value).sort_index(axis=1)


@explosion.claim(
    "weight-scale",
    "No choice of the variance of the weights avoids the explosion under batch norm.",
    criterion="ReLU, largest batch: growth per layer at least 1.05 with weights × 0.1, × 1 and × 10; the smallest of the three",
)
def _(table):
    growth = _wide(table, "growth")["batch"]["relu"][table["count"].max()]
    return judge_effect("least growth per layer", growth.min(axis=1), claimed=(1.05, np.inf), null=1)


@explosion.claim(
    "sigma",
    "The gradient grows because each layer divides it by σ, and σ is below 1 at the start.",
    criterion="then a σ that is a hundred times smaller makes it grow more: growth per layer with weights × 0.1 is at least 1.05 "
    "times that with weights × 10; batch norm, ReLU, largest batch",
    by="seed002",
)
def _(table):
    growth, sigma = (_wide(table, value)["batch"]["relu"][table["count"].max()] for value in ("growth", "sigma"))
    note = f"σ is {number(sigma[0.1].median())} and {number(sigma[10.0].median())}"
    return judge_effect("growth, weights × 0.1 / × 10", growth[0.1] / growth[10.0], claimed=(1.05, np.inf), null=np.nan, note=note)


@explosion.claim(
    "four-values",
    "With four examples in a batch each linear layer doubles the squared gradient, as (B − 2)/(B − 3) says.",
    criterion="batch norm, linear, batches of 4, weights × 1: squared growth per layer between 1.9 and 2.1",
    by="notes",
)
def _(table):
    growth = _wide(table, "growth")["batch"]["identity"][4][1.0]
    return judge_effect("squared growth per layer", growth**2, claimed=(1.9, 2.1), null=1)


@explosion.claim(
    "maps",
    "Instance norm on maps of k×k makes the gradient grow as batch norm does in batches of k².",
    criterion="growth per layer behind 3×3 convolutions within 10 % of that of the dense layer, at every k, linear and ReLU, "
    "weights × 1; the largest distance",
    by="notes",
)
def _(table):
    growth = _wide(table, "growth").xs(1.0, axis=1, level="scale")
    apart = (growth["instance"] / growth["batch"] - 1).abs()
    activation, count = apart.median().idxmax()
    note = f"largest with {NAMES[activation]} layers, {count} values"
    return judge_effect("largest relative distance", apart.max(axis=1), claimed=(0, 0.1), null=np.nan, note=note)
