"""Hoedt, Hochreiter and Klambauer (2022), moment control: what each way to skip a layer does to mean and variance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from normlib.lab import Config, Drawing, Study, judge_effect, number
from normlib.networks import DenseNet, ResNet
from normlib.networks.blocks import WeightLayers
from normlib.probes import signal_propagation
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.looks import BLUE, GREEN, INK, ORANGE, PINK, VERMILION, note, subplots
from normlib.studies.normalizer_free.kernel import Moments, gate_moments
from normlib.weights import parametrize_weight

SMALL = 0.2  # the factor of the branch
BIAS = -1.0  # of the gate: at its start it lets more of the shortcut through than of the branch
WEIGHTS = {"he": "He's weights", "scaled_weight:gain=relu": "scaled weight standardization"}
JOINS = {
    "sum": ("$x + f$", VERMILION), "scaled_sum": (r"$(x + f)/\sqrt{2}$", ORANGE), "small": (f"$x + {SMALL} f$", BLUE),
    "concat": ("$[x, f]$", GREEN), "gate": ("$(1 - t)\\,x + t f$", PINK),
}  # fmt: skip
RESIDUALS = {"sum": "sum", "scaled_sum": "scaled_sum", "small": f"skipinit:gain={SMALL}", "gate": "sum"}
SUMS = {"sum": (1.0, 1.0), "scaled_sum": (0.5**0.5, 0.5**0.5), "small": (1.0, SMALL)}  # factors of shortcut and branch

moments = Study(
    "hoedt2022.moments",
    item="Skip Connections, Moment Control",
    title="Five ways to skip a layer: a plain sum doubles the mean square, an untrained gate shrinks it, and ReLU moves every mean",
    kind="init",
    vary={"skip": list(JOINS), "weights": list(WEIGHTS)},
    quick={"depth": 8, "width": 32, "growth": 8, "samples": 16, "side": 8},
    laptop={"depth": 20, "width": 96, "growth": 16, "samples": 32, "side": 8},
    full={"depth": 100, "width": 512, "growth": 16, "samples": 256, "side": 16},
)


class Gate(nn.Module):
    """The join of a highway network: t f(x) + (1 − t) x, with t a logistic function of W relu(x) + bias.

    Args:
        width: number of channels.
        weights: draws W.
        weight_norm: of W, as the branches have it; None for none.
    """

    def __init__(self, width: int, weights: WeightLayers, weight_norm: str | None) -> None:
        super().__init__()
        layer = weights(nn.Conv2d, width, width, 1, bias=False)
        self.layer = layer if weight_norm is None else parametrize_weight(layer, weight_norm)

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Mix a shortcut and the output of its branch, channel by channel and position by position."""
        gate = torch.sigmoid(self.layer(shortcut.relu()) + BIAS)
        return gate * branch + (1 - gate) * shortcut


def stack(c: Config, seed: int) -> nn.Sequential:
    """Build `c.depth` blocks whose branches are ReLU, 3×3 convolution, twice (once in a dense layer); maps wrap around."""
    norm = None if c.weights == "he" else c.weights
    if c.skip == "concat":
        return DenseNet([c.depth], c.growth, norm=norm or "none", padding_mode="circular", seed=seed).blocks
    net = ResNet([c.depth], c.width, norm=norm or "none", residual=RESIDUALS[c.skip], padding_mode="circular", seed=seed)
    if c.skip == "gate":
        weights = WeightLayers("he", 1000 + seed)
        for block in net.blocks:
            block.join = Gate(c.width, weights, norm)
    return net.blocks


@moments.trial
def _(c, seed):
    channels = 2 * c.growth if c.skip == "concat" else c.width
    x = torch.randn(c.samples, channels, c.side, c.side, generator=torch.Generator().manual_seed(seed)).to(c.device)
    found = signal_propagation(stack(c, seed).to(c.device), x, training=True)
    return {
        "block": list(range(1, c.depth + 1)),
        "squared_mean": found["squared_mean"],
        "variance": found["variance"],
        "square": [m + v for m, v in zip(found["squared_mean"], found["variance"], strict=True)],
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def closed_form(join: str, weights: str, depth: int, growth: int = 16) -> list[Moments]:
    """Return the moments behind each block of a wide stack that takes in a standard normal signal."""

    def layers(signal: Moments, count: int) -> Moments:
        return signal.through(count) if weights == "he" else signal  # as no mean arises, the branch keeps the variance

    now, channels, found = Moments(0.0, 1.0), 2 * growth, []
    for _ in range(depth):
        if join == "concat":
            new = layers(now, 1)
            now = now.times(channels / (channels + growth)).plus(new.times(growth / (channels + growth)))
            channels += growth
        elif join == "gate":
            taken, left, taken_mean, left_mean = gate_moments(BIAS, layers(now, 1))
            branch = layers(now, 2)
            squared_mean = taken_mean * branch.squared_mean + left_mean * now.squared_mean
            now = Moments(squared_mean, taken * branch.square + left * now.square - squared_mean)
        else:
            a, b = SUMS[join]
            now = now.times(a**2).plus(layers(now, 2).times(b**2))
        found.append(now)
    return found


def at_end(table: pd.DataFrame, column: str, weights: str) -> pd.DataFrame:
    """Return a column behind the last block: a row a seed, a column a join."""
    return side_by_side(table[table.block == table.block.max()], "skip", column, weights=weights)


def distance(table: pd.DataFrame) -> pd.DataFrame:
    """Return the largest |log₂| of measured over closed-form variance along the stack: a row a seed, a column an arm."""
    depth, growth = int(table.block.max()), int(table.growth.iloc[0])
    found = {}
    for (join, weights), runs in table.groupby(["skip", "weights"]):
        form = np.array([one.variance for one in closed_form(join, weights, depth, growth)])
        lines = runs.pivot(index="seed", columns="block", values="variance").astype(float)
        found[join, weights] = np.log2(lines / form).abs().max(axis=1)
    return pd.DataFrame(found)


@moments.draw
def _(table):
    figure, axes = subplots(2, 2, height=2.5, sharex=True, sharey="row")
    depth, growth = int(table.block.max()), int(table.growth.iloc[0])
    for (top, bottom), weights in zip(axes.T, WEIGHTS, strict=True):
        for join, (label, color) in JOINS.items():
            runs = table[(table.weights == weights) & (table.skip == join)].groupby("block")[["variance", "squared_mean", "square"]]
            middle, form = runs.median(), closed_form(join, weights, depth, growth)
            share = middle.squared_mean / middle.square
            for ax, values, curve in (
                (top, middle.variance, [m.variance for m in form]),
                (bottom, share, [m.share for m in form]),
            ):
                ax.plot(middle.index, curve, color=INK, lw=0.8)
                ax.plot(values.index, values, "o", ms=3.5, color=color, label=label)
        top.set(yscale="log", title=WEIGHTS[weights])
        bottom.set(xlabel="block", ylim=(-0.05, 1.05))
        bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0, 0].set_ylabel("variance $\\sigma^2$ (log)")
    axes[1, 0].set_ylabel("$\\mu^2 / (\\mu^2 + \\sigma^2)$")
    figure.legend(
        *axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(JOINS), fontsize=9, handletextpad=0.1
    )
    note(axes[1, 1], "lines: closed forms", 0.97, 0.9, ha="right", va="top", fontsize=8.5)
    he, scaled = (at_end(table, "variance", weights).median() for weights in WEIGHTS)
    shares = (at_end(table, "squared_mean", "he") / at_end(table, "square", "he")).median()
    return Drawing(
        figure,
        caption=f"Standard normal maps sent through {depth} untrained blocks; branches of ReLU and 3×3 convolutions, circular "
        f"padding; one forward pass with {int(table.samples.iloc[0])} samples, no statistic in the network, no updates. **Top** "
        "Variance of a channel over samples and positions, mean over channels. Behind the last block it is, with He's weights and "
        f"with scaled weight standardization: sum {number(he['sum'])} and {number(scaled['sum'])}; sum over √2 "
        f"{number(he.scaled_sum)} and {number(scaled.scaled_sum)}; branch times {SMALL:g} {number(he.small)} and "
        f"{number(scaled.small)}; concatenation {number(he.concat)} and {number(scaled.concat)}; gate of bias {number(BIAS)} "
        f"{number(he.gate)} and {number(scaled.gate)}. **Bottom** Share of the squared mean of a channel in its mean square: at "
        f"the end {number(shares.min())} to {number(shares.max())} with He's weights, the same for the sum and the sum "
        "over √2, and none where rows are centered.",
        alt="Four panels against block, He's weights left, scaled weight standardization right. Top, variance on a log axis for "
        "sum, scaled sum, small branch, concatenation, gate. Bottom, share of the squared mean. Closed forms as lines.",
    )


@moments.claim(
    "raises",
    "An additive skip connection raises the variance at every block.",
    criterion="plain sum: variance behind a block over that behind the block before, smallest over blocks and over the two kinds "
    "of weights; at least 1.1",
)
def _(table):
    runs = table[table.skip == "sum"].pivot(index=["seed", "weights"], columns="block", values="variance").astype(float)
    factors = (runs / runs.shift(axis=1)).iloc[:, 1:].min(axis=1).unstack()
    said = ", ".join(f"{number(factors[weights].median())} with {WEIGHTS[weights]}" for weights in WEIGHTS)
    return judge_effect("factor per block, smallest", factors.min(axis=1), claimed=(1.1, np.inf), null=1, note=said)


@moments.claim(
    "drifts",
    "It also moves the mean: channels drift away from zero.",
    criterion="plain sum, He's weights: squared mean behind a block over that behind the block before, smallest over blocks; "
    "at least 1.1",
)
def _(table):
    chosen = table[(table.skip == "sum") & (table.weights == "he")]
    runs = chosen.pivot(index="seed", columns="block", values="squared_mean").astype(float)
    share = (at_end(table, "squared_mean", "he") / at_end(table, "square", "he"))["sum"].median()
    factors = (runs / runs.shift(axis=1)).iloc[:, 1:].min(axis=1)
    said = f"behind the last block the squared mean is {number(share)} of the mean square"
    return judge_effect("squared mean, factor per block, smallest", factors, claimed=(1.1, np.inf), null=1, note=said)


@moments.claim(
    "root-two",
    "Dividing the sum by √2 keeps the variance, if the branch keeps it.",
    criterion="scaled weight standardization: variance behind the last block between 0.9 and 1.1 times that of the input",
)
def _(table):
    kept = at_end(table, "variance", "scaled_weight:gain=relu").scaled_sum
    return judge_effect("variance, last block / input", kept, claimed=(0.9, 1.1), null=np.nan)


@moments.claim(
    "root-two-he",
    "With He's weights it does not: the mean square stays, and the mean takes it over.",
    criterion="variance behind the last block at most half of the input's; and the mean square within 20 % of the input's: the "
    "variance counts, infinite if the mean square is not",
    by="notes",
)
def _(table):
    variance, square = (at_end(table, column, "he").scaled_sum for column in ("variance", "square"))
    said = f"mean square {number(square.median())}"
    kept = variance.where((square - 1).abs() <= 0.2, np.inf)
    return judge_effect("variance, last block / input", kept, claimed=(0, 0.5), null=1, note=said)


@moments.claim(
    "bounded",
    "Concatenation and gates need no control against growth: the mean square does not rise.",
    criterion="mean square behind every block at most 1.1 times the input's, for concatenation and for the gate, with either kind "
    "of weights: the largest of the four arms counts",
    by="notes",
)
def _(table):
    runs = table[table.skip.isin(["concat", "gate"])]
    largest = runs.groupby(["seed", "skip", "weights"]).square.max().unstack(["skip", "weights"])
    ends = [number(at_end(table, "square", weights).gate.median()) for weights in WEIGHTS]
    said = f"behind the last gate it is {' and '.join(ends)}: the gate shrinks what passes"
    return judge_effect("mean square, largest", largest.max(axis=1), claimed=(0, 1.1), null=np.nan, note=said)


@moments.claim(
    "closed-form",
    "The variance of all ten stacks follows from the cosine of two samples behind a wide ReLU layer.",
    criterion="|log₂| of measured over closed-form variance at most 0.5 at every block of every arm: the largest counts",
    by="notes",
)
def _(table):
    apart = distance(table)
    join, weights = apart.median().idxmax()
    said = f"largest with {JOINS[join][0]}, {WEIGHTS[weights]}"
    return judge_effect("|log₂ measured / closed form|, largest", apart.max(axis=1), claimed=(0, 0.5), null=np.nan, note=said)
