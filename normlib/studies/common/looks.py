"""What the drawings of all studies share: one color per normalizer, one width, medians with their bands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normlib.lab import bootstrap_interval
from normlib.lab.style import BLUE, COLORS, GRAY, GREEN, GRID, INK, OLIVE, ORANGE, PAPER, PINK, SKY, VERMILION

NORM_COLORS = {
    "none": GRAY, "batch": BLUE, "layer": VERMILION, "group": GREEN, "instance": ORANGE, "rms": PINK, "weight": SKY,
    "scaled_weight": OLIVE,
}  # fmt: skip

WIDTH = 6.6
"""Width of a full figure, in inches; at this width the text is as large as the page's own."""


def subplots(rows: int = 1, columns: int = 1, height: float = 2.9, **options: Any) -> tuple[Figure, Any]:
    """Make a figure in the book's style; `height` is that of one row, in inches. Axes come as an array if more than one.

    The figure is made without pyplot, so nothing stays open behind it.
    """
    figure = Figure(figsize=(WIDTH, height * rows))
    return figure, figure.subplots(rows, columns, **options)


def norm_color(spec: str) -> str:
    """Return the color that a normalizer has in the whole book."""
    return NORM_COLORS.get(spec.partition(":")[0], INK)


def median_and_band(axes: Axes, table: pd.DataFrame, x: str, y: str, *, color: str, label: str | None = None, **line: Any) -> None:
    """Draw the median over seeds with its bootstrap 95 % interval as a band (no band for a single seed)."""
    finite = table[np.isfinite(table[y].astype(float))]
    if finite.empty:
        return
    errorbar = bootstrap_interval if finite.seed.nunique() > 1 else None
    options = {"estimator": "median", "errorbar": errorbar, "legend": False, "mec": color, **line}
    labels = axes.get_xlabel(), axes.get_ylabel()
    sns.lineplot(finite, x=x, y=y, color=color, label=label, ax=axes, **options)
    axes.set(xlabel=labels[0], ylabel=labels[1])


def note(axes: Axes, text: str, x: float, y: float, **options: Any) -> None:
    """Write a short remark into a plot, at axes coordinates unless told otherwise."""
    axes.text(x, y, text, **{"transform": axes.transAxes, "color": INK, "fontsize": 9, **options})


__all__ = [
    "BLUE", "COLORS", "GRAY", "GREEN", "GRID", "INK", "OLIVE", "ORANGE", "PAPER", "PINK", "SKY", "VERMILION", "WIDTH",
    "median_and_band", "norm_color", "note", "subplots",
]  # fmt: skip
