"""The residual network of the post's two figures, noise for it, what is expected of it, and the curves of one quantity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import nn

from normlib.lab import Config
from normlib.networks import ResNet
from normlib.probes import signal_propagation
from normlib.residual.nf import expected_variances
from normlib.studies.common.looks import BLUE, GRAY, GRID, INK, OLIVE, SKY, VERMILION
from normlib.studies.normalizer_free.hoedt2022_published import PUBLISHED
from normlib.studies.normalizer_free.kernel import HALF_GAUSSIAN, Moments, largest_of
from normlib.weights.gains import activation_gain

STAGES = [3, 4, 6, 3]  # a ResNet-50
QUANTITIES = {"squared_mean": r"$\mu^2$", "variance": r"$\sigma^2$", "residual_variance": r"$\sigma_f^2$"}
PADDINGS = ["zeros", "circular"]


@dataclass(frozen=True)
class Arm:
    """One network of the figures: its name, its color, and what is passed to `ResNet`."""

    name: str
    color: str
    norm: str = "none"
    residual: str = "sum"
    init: str = "he"
    order: str = "norm-activation"


ARMS = {
    "none": Arm("no norm", GRAY),
    "batch": Arm("BN, ReLU, He's weights", BLUE, "batch"),
    "batch_after": Arm("ReLU, BN, weights 1/N", SKY, "batch", init="lecun", order="activation-norm"),
    "nf_he": Arm("NF, He's weights", VERMILION, residual="nf:alpha=1"),
    "nf_scaled": Arm("NF, scaled WS", OLIVE, "scaled_weight:gain=relu", "nf:alpha=1", "lecun"),
}


def network(arm: Arm, width: int, padding: str, seed: int) -> ResNet:
    """Build a pre-activation ResNet of bottlenecks for photographs, before training.

    The norm and activation of the first block stand before the max-pooling of the stem, as the published curves have it: the
    shortcut of that block takes in what the pooling puts out.
    """
    net = ResNet(
        STAGES, width, "bottleneck", stem="imagenet", order=arm.order, norm=arm.norm, init=arm.init, padding_mode=padding,
        seed=seed, residual=arm.residual,
    )  # fmt: skip
    convolution, pooling = net.stem  # type: ignore[misc]
    first = net.blocks[0]
    net.stem, first.before = nn.Sequential(convolution, first.before, pooling), nn.Identity()  # type: ignore[has-type, arg-type]
    return net


def measured(c: Config, seed: int) -> dict[str, list[float]]:
    """Send `c.samples` images of standard normal noise through the network `c.arm` and return its signal propagation."""
    x = torch.randn(c.samples, 3, c.side, c.side, generator=torch.Generator().manual_seed(seed)).to(c.device)
    found = signal_propagation(network(ARMS[c.arm], c.width, c.padding, seed).to(c.device), x, training=True)
    blocks = [position for count in STAGES for position in range(count)]
    stages = [stage for stage, count in enumerate(STAGES) for _ in range(count)]
    return {"block": list(range(1, len(blocks) + 1)), "stage": stages, **{name: found[name] for name in QUANTITIES}}


def predicted(key: str) -> pd.DataFrame:
    """Return the quantities of an arm in closed form, for a wide network without borders: a row a block, from 1.

    The stem's pooling is taken as the largest of nine independent normal numbers. A branch behind batch norm is as if its last
    layer saw the ReLU of a standard normal; without a norm the arc-cosine kernel says what three layers do to a mean.
    """
    pooled, rows = largest_of(9), []
    mean, variance = 1 / math.sqrt(2 * math.pi), HALF_GAUSSIAN / 2  # of the ReLU of a standard normal
    starts = {
        "batch": pooled,
        "batch_after": Moments((math.sqrt(pooled.squared_mean) - mean) ** 2 / variance, pooled.variance / variance),
        "nf_scaled": Moments(0.0, pooled.variance * activation_gain("relu") ** 2),  # its rows are centered
    }
    now = starts.get(key, pooled.times(2))
    for number, book in enumerate(expected_variances(STAGES, alpha=1)):
        start = number == 0  # no ReLU before its first layers
        ready = now.times(1 / book.beta**2) if key.startswith("nf") else now
        if key in ("batch", "batch_after"):
            branch = Moments(1 / math.pi, HALF_GAUSSIAN) if key == "batch" else Moments(0.0, 1.0)
            projected = now.times(2 if key == "batch" else 1) if start else branch
        elif key == "nf_scaled":
            branch = projected = ready
        else:
            branch = ready.times(2).through(2) if start else ready.through(3)
            projected = ready.times(2) if start else ready.through(1)
        now = (projected if book.is_transition else now).plus(branch)
        rows.append((now.squared_mean, now.variance, branch.variance))
    return pd.DataFrame(rows, columns=list(QUANTITIES), index=range(1, len(rows) + 1))


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table, and drawn
# ---------------------------------------------------------------------------------------------------------------------------


def curves(table: pd.DataFrame, arm: str, quantity: str, padding: str = "zeros") -> pd.DataFrame:
    """Return a quantity of an arm: a row a seed, a column a block."""
    runs = table[(table.arm == arm) & (table.padding == padding)]
    return runs.pivot(index="seed", columns="block", values=quantity).astype(float)


def published(arm: str, quantity: str) -> np.ndarray:
    """Return what the post has of an arm, one number a block."""
    return np.array(PUBLISHED[arm][quantity], dtype=float)


def factors(lines: pd.DataFrame) -> pd.DataFrame:
    """Return each block's value over that of the block before, without the first block."""
    return (lines / lines.shift(axis=1)).iloc[:, 1:]


def first_blocks() -> list[int]:
    """Return the numbers of the first blocks of the second and later stages."""
    return [1 + sum(STAGES[:stage]) for stage in range(1, len(STAGES))]


def panel(ax: Axes, table: pd.DataFrame, arm: str, quantity: str, padding: str = "zeros", *, form: bool = True) -> None:
    """Draw an arm: the median over seeds, filled for zero padding, hollow for circular; crosses: the post; line: closed form."""
    middle, color = curves(table, arm, quantity, padding).median(), ARMS[arm].color
    face = color if padding == "zeros" else "none"
    ax.plot(middle.index, middle, "o", ms=3.8, color=color, mfc=face, mew=0.9, label=ARMS[arm].name if padding == "zeros" else None)
    if form:
        line = predicted(arm)[quantity]
        ax.plot(line.index, line, color=INK, lw=0.8)
    if padding == "zeros" and quantity in PUBLISHED.get(arm, {}):
        ax.plot(middle.index, published(arm, quantity), "x", ms=6, mew=0.9, color=INK)


def stages_marked(ax: Axes) -> None:
    """Mark where stages begin."""
    for start in first_blocks():
        ax.axvline(start - 0.5, color=GRID, lw=1.2)
    ax.grid(False, axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def setup_in_words(table: pd.DataFrame) -> str:
    """Say for a caption what was sent through which network."""
    one = table.iloc[0]
    width = "" if one.width == 64 else f" of width {one.width}"
    return (
        f"Pre-activation ResNet-50{width} before training, {one.samples} noise images of {one.side} px in one forward pass: they "
        "are the statistic batch where there is one; no updates, so no SGD batch"
    )
