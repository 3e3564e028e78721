"""Lubana, Dick and Tanaka (2021), stable forward propagation: the variance of activations, block after block, before training."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from torch import nn

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.probes import signal_propagation
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import GRAY, INK, norm_color, note, subplots
from normlib.studies.unified.growth import arms, fits, in_words, measured, reflected_walk
from normlib.studies.unified.ten import FULL, LAPTOP, QUICK, TEN, cnn, normalizer, resnet

NETWORKS = {"plain": "no shortcuts", "v1": "version 1", "v2": "version 2", "v1 skipinit": "", "v2 skipinit": ""}
ACTIVATIONS = [key for key, one in TEN.items() if not one.parametric]
PARAMETRIC = [key for key, one in TEN.items() if one.parametric]
FOUR = ["batch", "layer", "instance", "group"]  # those that the draft lists
STYLES = {"frn": "--", "variance": ":", "evonorm_b0": "-.", "evonorm_s0": (0, (1, 3))}
HALF_GAUSSIAN = (math.pi - 1) / math.pi  # the variance that He's weights make of the ReLU of a standard normal

forward = Study(
    "lubana2021.forward",
    item="stable forward propagation",
    title="In residual networks norms of activations add variance in each block, norms of weights multiply it",
    kind="init",
    vary={"network": list(NETWORKS), "norm": ["none", *TEN]},
    quick={**QUICK, "blocks": 3, "batch": 16},
    laptop={**LAPTOP, "layers": 20, "width": 32, "blocks": 9, "batch": 32},
    full={**FULL, "layers": 20, "width": 32, "batch": 256},
)


@forward.trial
def _(c, seed):
    images, _ = images_for(c, seed)
    version, _, skip = c.network.partition(" ")
    if version == "plain":
        net, each = cnn(c, images, c.norm, seed), c.layers
        layers = [f"blocks.{at}" for at in range(c.layers)]
    else:
        net, each = resnet(c, images, c.norm, seed, int(version[1]), skip or "sum"), c.blocks
        layers = [f"blocks.{at}" for at in range(3 * c.blocks)]
    x = images.x_train[: c.batch]
    return {
        "block": list(range(1, len(layers) + 1)),
        "stage": [at // each + 1 for at in range(len(layers))],
        "variance": signal_propagation(net, x, layers, training=True)["variance"],
        "circular": signal_propagation(without_borders(net), x, layers, training=True)["variance"],
    }


def without_borders(network: nn.Module) -> nn.Module:
    """Let every convolution wrap around the map in place of padding it with zeros; in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    return network


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def closed_forms(table: pd.DataFrame) -> pd.DataFrame:
    """Return slopes of batch norm over their closed forms, without borders: a row a seed, a column a version."""
    walk = reflected_walk(table[table.network == "v1"].groupby("stage").block.nunique().max() + 1)[1:]
    forms = {"v1": np.polyfit(np.arange(len(walk)), walk, 1)[0], "v2": HALF_GAUSSIAN}
    return pd.DataFrame({key: fits(table, key, "batch", "circular").slope / form for key, form in forms.items()})


@forward.draw
def _(table):
    figure, axes = subplots(2, 3, height=2.5, sharex="col")
    for (top, bottom), network in zip(axes.T, ["plain", "v1", "v2"], strict=True):
        for key in ACTIVATIONS:
            _curve(top, table, network, key)
        for key in ["none", *PARAMETRIC]:
            _curve(bottom, table, network, key)
            if network != "plain":
                _curve(bottom, table, f"{network} skipinit", key, linestyle="--", label=None)
        top.set_title(NETWORKS[network], fontsize=9.5)
        top.set_ylim(0, None)
        bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        bottom.set(yscale="log", xlabel="layer" if network == "plain" else "block")
        for ax in (top, bottom):
            _stages(ax, table[table.network == network])
    _closed(axes, table)
    axes[0, 0].set_ylabel("variance")
    axes[1, 0].set_ylabel("variance (log)")
    note(axes[1, 2], "dashed:\nSkipInit", 0.03, 0.97, va="top", fontsize=8.5)
    handles = [line for ax in (axes[0, 0], axes[1, 0]) for line in ax.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, handlelength=1.7, columnspacing=1.2)
    off = closed_forms(table).median()
    linear = measured(table, arms(["v1", "v2"], ACTIVATIONS), "slope").median()
    factors = measured(table, arms(["v1", "v2"], PARAMETRIC), "factor")
    trunk = fits(table, "v1 skipinit", "weight").factor.median()
    borders = fits(table, "plain", "scaled_weight", "circular").factor.median()
    return Drawing(
        figure,
        caption="Variance over samples and positions, the mean over channels, before training. **Top** Norms of activations: "
        "level without shortcuts, with zero padding. "
        f"In a residual network they add between {number(linear.min())} and {number(linear.max())} a "
        "block, and each stage starts anew. Blue dots: batch norm without borders (circular padding); thin lines: its closed "
        f"forms, of which the measured slopes are {number(off.v1)} times (version 1) and {number(off.v2)} times (version 2). "
        "**Bottom** No norm, and norms of weights: without shortcuts the variance falls; olive dots: scaled weight "
        f"standardization without borders, by a factor of {number(borders)} a layer. In a residual network it multiplies "
        f"by these factors a block: {in_words(factors)}. With SkipInit (dashed) it is level inside a stage, except under weight "
        f"norm in version 1, where it multiplies by {number(trunk)}. The thin line doubles. One forward pass with {_batch(table)} "
        "images, which are the statistic batch too.",
        alt="Six panels of variance against layer or block: plain network, residual versions 1 and 2. Top, eight norms of "
        "activations on linear axes. Bottom, no norm and two norms of weights on log axes, with and without SkipInit.",
    )


def _batch(table) -> int:
    return int(table.batch.iloc[0])


def _curve(ax, table, network, key, **options) -> None:
    """Draw the median over seeds, a line for each stage."""
    style = {"color": norm_color(TEN[key].spec if key in TEN else key), "linestyle": STYLES.get(key, "-"), "lw": 1.3}
    style |= {"label": normalizer(key).name.replace("standardization", "std."), **options}
    for _, stage in table[(table.network == network) & (table.norm == key)].groupby("stage"):
        middle = stage.groupby("block").variance.median()
        ax.plot(middle.index, middle, **style)
        style["label"] = None


def _stages(ax, table) -> None:
    """Mark where a stage begins."""
    for start in table.groupby("stage").block.min()[1:]:
        ax.axvline(start - 0.5, color=GRAY, lw=0.6, alpha=0.5)


def _closed(axes, table) -> None:
    """Draw two norms without borders as dots, closed forms of batch norm, and the line that doubles."""
    axes[0, 0].axhline(HALF_GAUSSIAN / 2, color=INK, lw=0.8)
    walk = {"v1": lambda count: reflected_walk(count + 1)[1:], "v2": lambda count: HALF_GAUSSIAN * np.arange(2, count + 2)}
    for ax, (network, form) in zip(axes[0, 1:], walk.items(), strict=True):
        runs = table[(table.network == network) & (table.norm == "batch")]
        for number_of_stage, stage in runs.groupby("stage"):
            dots = _dots(ax, stage, "batch")
            curve = np.array(form(len(dots)))
            if network == "v2" and number_of_stage == 1:  # this stage starts at the first convolution, which sees the images
                curve += dots.iloc[0] - curve[0]
            ax.plot(dots.index, curve, color=INK, lw=0.8)
    _dots(axes[1, 0], table[(table.network == "plain") & (table.norm == "scaled_weight")], "scaled_weight")
    scaled = table[(table.network == "v2") & (table.norm == "scaled_weight")].groupby("block").variance.median()
    axes[1, 2].plot(scaled.index, scaled.iloc[0] * 2.0 ** (scaled.index - 1), color=INK, lw=0.8)


def _dots(ax, runs, norm: str) -> pd.Series:
    """Draw the variances without borders."""
    dots = runs.groupby("block").circular.median()
    ax.plot(dots.index, dots, "o", color=norm_color(norm), ms=2.5)
    return dots


@forward.claim(
    "linear",
    "Inside a stage of a residual network the variance grows linearly with the blocks if activations are normalized.",
    criterion="R² of a line through the variances, less R² of a line through their logarithms or 0.9, whichever is larger: "
    "positive for each of the eight norms of activations in versions 1 and 2 (mean over stages); the smallest counts",
)
def _(table):
    chosen = arms(["v1", "v2"], ACTIVATIONS)
    line, exponential = (measured(table, chosen, what) for what in ("line", "exponential"))
    margin = line - exponential.clip(lower=0.9)
    said = f"R² of the line, smallest of sixteen: {number(line.median().min())}; least margin: {_least(margin)}"
    return judge_effect("R² gained by the line", margin.min(axis=1), claimed=(0, np.inf), null=0, note=said)


def _least(margin: pd.DataFrame) -> str:
    network, norm = margin.median().idxmin()
    return f"{normalizer(norm).name} in {network.replace('v', 'version ')}"


@forward.claim(
    "exponential",
    "Under norms of parameters it grows exponentially.",
    criterion="R² of a line through the logarithms of the variances, less R² of a line through the variances or 0.9, whichever is "
    "larger: positive for weight norm and scaled weight standardization in versions 1 and 2; the smallest counts",
)
def _(table):
    chosen = arms(["v1", "v2"], PARAMETRIC)
    line, exponential = (measured(table, chosen, what) for what in ("line", "exponential"))
    margin = exponential - line.clip(lower=0.9)
    said = f"factors: {in_words(measured(table, chosen, 'factor'))}"
    return judge_effect("R² gained by the exponential", margin.min(axis=1), claimed=(0, np.inf), null=0, note=said)


@forward.claim(
    "skipinit",
    "With SkipInit the variance under norms of parameters does not grow exponentially.",
    criterion="a factor of at most 1.05 a block, with the scalars at 0, for scaled weight standardization in versions 1 and 2 and "
    "weight norm in version 2: the largest counts. Weight norm in version 1 is left out, where its corrected ReLU stands behind "
    "the sum; the authors' code has a variant that moves it",
)
def _(table):
    trunk = fits(table, "v1 skipinit", "weight").factor.median()
    factors = measured(table, [("v1 skipinit", "scaled_weight"), *arms(["v2 skipinit"], PARAMETRIC)], "factor")
    said = f"weight norm in version 1: {number(trunk)}"
    return judge_effect("factor per block, largest of three", factors.max(axis=1), claimed=(0, 1.05), null=np.nan, note=said)


@forward.claim(
    "limit",
    "Norms of activations keep the variance in residual networks from growing unchecked, read as: it is bounded.",
    criterion="growth comes to an end: the second half of a stage adds at most half of what the first half adds, for batch, layer, "
    "instance and group norm in versions 1 and 2; the largest ratio counts",
    by="seed002",
)
def _(table):
    halves = measured(table, arms(["v1", "v2"], FOUR), "halves")
    said = f"smallest of eight {number(halves.median().min())}; the draft says further on that growth is linear"
    effect = "variance added, second half / first half, largest of eight"
    return judge_effect(effect, halves.max(axis=1), claimed=(-np.inf, 0.5), null=np.nan, note=said)


@forward.claim(
    "plain",
    "In plain convolutional networks normalizers keep the variance from growing exponentially.",
    criterion="a factor of at most 1.05 a layer for each of the ten in the network without shortcuts: the largest counts",
    by="seed002",
)
def _(table):
    factors = measured(table, arms(["plain"], list(TEN)), "factor")
    without = fits(table, "plain", "none").factor.median()
    said = f"smallest of ten {number(factors.median().min())}; without a normalizer, with He's weights, {number(without)}"
    return judge_effect("factor per layer, largest of ten", factors.max(axis=1), claimed=(0, 1.05), null=np.nan, note=said)


@forward.claim(
    "slope",
    "Under batch norm the slope is that of a wide network with Gaussian sums: (π − 1)/π per block in version 2, and in version 1 "
    "that of a random walk which is reflected at zero.",
    criterion="both slopes within 10 % of these, the mean over stages, with circular padding: the larger deviation counts",
    by="notes",
)
def _(table):
    ratios = closed_forms(table)
    said = f"measured over closed form: version 1 {number(ratios.v1.median())}, version 2 {number(ratios.v2.median())}"
    largest = (ratios - 1).abs().max(axis=1, skipna=False)
    return judge_effect("larger relative deviation", largest, claimed=(0, 0.1), null=np.nan, note=said)
