"""What the studies of the drafts share: numbers to test a statement on, verdicts, and the drawing of one dot a statement.

A draft says many things, each settled by one number: a column of the trial, named as the claim. An exact statement is measured
as a distance from what is said: 0 means "exactly so". One about random networks is measured as a ratio: 1 means "no effect".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from normlib.lab import Judgement, Study, Verdict, judge_identity, number
from normlib.lab.claims import SUPERSCRIPT
from normlib.studies.common.looks import BLUE, GRAY, GRID, INK, VERMILION, WIDTH

SMALLEST = 1e-17  # where a distance of exactly zero is drawn
ROW = 0.3  # inches
WORDS = {"mu": "μ", "sigma": "σ", "gaussian": "Gaussian"}
VERDICT_COLORS = {Verdict.REPRODUCED: BLUE, Verdict.NOT_REPRODUCED: VERMILION}
LEGEND = {BLUE: "● holds", VERMILION: "● does not hold", GRAY: "● in part, or open"}
LEGEND_PLACES = (0, 65, 175)  # points


# ---------------------------------------------------------------------------------------------------------------------------
# Numbers to test a statement on
# ---------------------------------------------------------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> Tensor:
    """Draw standard normal numbers in float64 from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(measured: Tensor | float, said: Tensor | float) -> float:
    """Return the largest difference, relative to the largest number on either side: 0 for equal, at most 2.

    Example:
        >>> gap(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0]))
        0.5
    """
    measured, said = (torch.as_tensor(side, dtype=torch.float64) for side in (measured, said))
    scale = float(torch.maximum(measured.abs().max(), said.abs().max()))
    return float((measured - said).abs().max()) / scale if scale else 0.0


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass left: a number for each hidden layer, the lowest first."""

    weights: list[Tensor]
    signals: list[Tensor]
    weight_gradients: list[Tensor]
    signal_gradients: list[Tensor]

    def growth(self, first: int = 2) -> float:
        """Return the factor by which the gradient of the signal grows per layer on its way down to layer `first`."""
        top, bottom = self.signal_gradients[-1].norm(), self.signal_gradients[first - 1].norm()
        return float((bottom / top) ** (1 / (len(self.signals) - first)))


def through_network(
    normalize: Callable[[Tensor], Tensor], seed: int, depth: int = 20, width: int = 64, gain: float = 2**0.5
) -> Pass:
    """Send a batch of noise up through ReLU layers of random weights, and the gradient of a cross-entropy back.

    Args:
        normalize: what is done to the summed inputs (items, units) of each hidden layer; they are the `signals`.
        seed: of weights and inputs.
        depth: number of hidden layers.
        width: number of inputs, of units in each hidden layer, of items in the batch, and of classes.
        gain: standard deviation of the weights times the root of the width; He's initialization by default.
    """
    draws = normal(seed, depth + 2, width, width)
    weights = [(gain / width**0.5 * draw).requires_grad_() for draw in draws[2:]]
    signals, hidden = [], draws[0]
    for weight in weights:
        signals.append(normalize(hidden @ weight))
        hidden = signals[-1].relu()
    loss = F.cross_entropy(hidden @ draws[1] / width**0.5, torch.arange(width))
    found = torch.autograd.grad(loss, [*weights, *signals])
    signals, weights = ([tensor.detach() for tensor in tensors] for tensors in (signals, weights))
    return Pass(weights, signals, list(found[:depth]), list(found[depth:]))


# ---------------------------------------------------------------------------------------------------------------------------
# Verdicts and drawings
# ---------------------------------------------------------------------------------------------------------------------------


def at_most(tolerance: float, distances: pd.Series[float], effect: str, note: str = "") -> Judgement:
    """Judge an exact statement by the seed that is furthest from it."""
    said = f"tolerance {number(tolerance)}"
    return judge_identity(effect, float(distances.max(skipna=False)), tolerance, f"{said}; {note}" if note else said)


def dots(study: Study, table: pd.DataFrame) -> Figure:
    """Draw each statement's distance from what is measured, in the color of its verdict."""
    found = _judged(study, table)
    order = sorted(found, key=lambda slug: (found[slug].verdict is not Verdict.REPRODUCED, found[slug].value))
    figure, axes = _rows(order, found)
    for row, slug in enumerate(order):
        value, color = found[slug].value, _color(found[slug])
        at = max(value, SMALLEST)
        axes.plot([SMALLEST, at], [row, row], color=color, linewidth=1)
        axes.plot(at, row, "o", color=color, markersize=6)
        _beside(axes, row, "0" if value == 0 else number(value), color)
    axes.set(xscale="log", xlim=(SMALLEST / 3, 30), xlabel="distance from what is said")
    axes.xaxis.set_major_locator(FixedLocator([SMALLEST, 1e-12, 1e-8, 1e-4, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _power(x)))
    axes.xaxis.set_minor_locator(NullLocator())
    return figure


def ranges(study: Study, table: pd.DataFrame, said: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw each statement's ratio with its interval over the range that is said, on a log axis."""
    found = _judged(study, table)
    order = sorted(found, key=lambda slug: found[slug].verdict is not Verdict.REPRODUCED)
    figure, axes = _rows(order, found)
    values = [bound for j in found.values() for bound in (j.value, j.low or j.value, j.high or j.value) if bound > 0]
    low, high = min(*values, 0.5) / 1.6, max(*values, 2.0) * 1.6
    for row, slug in enumerate(order):
        judgement, (start, end) = found[slug], said[slug]
        color = _color(judgement)
        axes.plot([max(start, low), min(end, high)], [row, row], color=GRID, linewidth=9, solid_capstyle="butt", zorder=1)
        axes.plot([judgement.low or judgement.value, judgement.high or judgement.value], [row, row], color=color, zorder=2)
        axes.plot(judgement.value, row, "o", color=color, markersize=6, zorder=3)
        _beside(axes, row, number(judgement.value), color)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlim=(low, high), xlabel="measured ratio; gray: what is said")
    ticks = [tick for tick in (0.01, 0.1, 0.5, 1, 2, 5, 10, 100, 1e3, 1e4, 1e5) if low < tick < high]
    axes.set_xticks(ticks, [number(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    return figure


def verdict_counts(study: Study, table: pd.DataFrame) -> str:
    """Say in words how many of the draft's own statements hold; those of the notes beside it do not count."""
    held = [claim.function(table).verdict is Verdict.REPRODUCED for claim in study.claims if claim.by == study.source]
    return f"{sum(held)} of {len(held)}"


def _judged(study: Study, table: pd.DataFrame) -> dict[str, Judgement]:
    return {claim.slug: claim.function(table) for claim in study.claims}


def _rows(order: list[str], found: Mapping[str, Judgement]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 0.8 + ROW * len(order)))
    axes = figure.subplots()
    axes.set_yticks(range(len(order)), [_label(slug) for slug in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    seen = [color for color in LEGEND if color in map(_color, found.values())]
    for place, color in zip(LEGEND_PLACES, seen, strict=False):
        said, offset = LEGEND[color], (place, 5)
        axes.annotate(said, (0, 1), offset, xycoords="axes fraction", textcoords="offset points", color=color, fontsize=9)
    return figure, axes


def _label(slug: str) -> str:
    return " ".join(WORDS.get(word, word) for word in slug.split("-"))


def _power(distance: float) -> str:
    if distance <= SMALLEST:
        return "0"
    return "1" if distance == 1 else "10" + str(round(math.log10(distance))).translate(SUPERSCRIPT)


def _beside(axes: Axes, row: int, text: str, color: str) -> None:
    axes.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center", color=color, fontsize=9)


def _color(judgement: Judgement) -> str:
    return VERDICT_COLORS.get(judgement.verdict, GRAY)
