"""The one style in which every drawing is made.

Figures are drawn in a light theme; `dark` turns the finished SVG into its dark twin by exchanging the three theme colors. So a
drawing uses `INK`, `PAPER` and `GRID` (the defaults here) and never plain black or white.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

INK = "#1f2328"
PAPER = "#fefefe"
GRID = "#d9dcdf"
DARK = {INK: "#e4e6e8", PAPER: "#121212", GRID: "#3a4048"}

# After Okabe & Ito: told apart with any kind of color vision, on light and on dark ground.
BLUE, ORANGE, GREEN, PINK = "#2a7ab9", "#d98200", "#009e73", "#c46a9c"
SKY, VERMILION, OLIVE, GRAY = "#4aa8d8", "#d55e00", "#9a8f00", "#808488"
COLORS = [BLUE, VERMILION, GREEN, ORANGE, PINK, SKY, OLIVE, GRAY]

STYLE: Any = {
    **{f"{part}.facecolor": PAPER for part in ("figure", "axes", "savefig")},
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "normlib",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def to_svg(figure: Figure) -> str:
    """Write a figure as SVG that is the same on every run."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def dark(svg: str) -> str:
    """Exchange the theme colors of an SVG for those of the dark page."""
    for light, night in DARK.items():
        svg = svg.replace(light, night)
    return svg
