"""How runs of training are drawn: curves above, and below them a mark for each run, on a row for each normalizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from normlib.studies.common.looks import GRAY, GRID, INK, median_and_band, norm_color, note, subplots
from normlib.studies.unified.ten import normalizer

NAMED = {"batch": "-", "layer": "-", "instance": "-", "weight": "-", "scaled_weight": "--", "none": ":"}  # in color
SHORT = {"frn": "filter response", "scaled_weight": "scaled weights"}


def name(key: str) -> str:
    """Return the name of a normalizer, as short as a row of a figure needs it."""
    return SHORT.get(key, normalizer(key).name)


def failures_in_words(table: pd.DataFrame) -> str:
    """List the normalizers with failed runs, and how many of these where it is not all; "none" if there are no such."""
    runs = table.drop_duplicates(["norm", "seed"])
    lost = runs[runs.failed == 1].groupby("norm", sort=False).size()
    count = runs.seed.nunique()
    return ", ".join(name(key) + (f" ({n} of {count})" if n < count else "") for key, n in lost.items()) or "none"


def curves_and_speeds(table: pd.DataFrame, panel: str, titles: Mapping[str, str], order: list[str], colored: list[str]) -> Figure:
    """Draw a panel of curves for each level, and below it the mean of each run, failed ones as crosses.

    Args:
        table: records of `run_of`.
        panel: the column that tells the panels apart.
        titles: of the panels, by level.
        order: the normalizers, from top to bottom; those not in the table are left out.
        colored: those drawn in their color, the others pale.
    """
    figure, axes = subplots(2, len(titles), height=2.7, sharey="row", gridspec_kw={"height_ratios": [1, 1.25]})
    table = table.assign(right=100 * table.right, speed=100 * table.speed)
    present = [key for key in order if key in set(table.norm)]
    places = {key: at for at, key in enumerate(reversed(present))}
    for top, bottom, (level, title) in zip(*axes, titles.items(), strict=True):
        here = table[table[panel] == level]
        for key in present:
            bright = key in colored
            style, above = NAMED.get(key, "-") if bright else "-", 3 if bright else 1
            line: dict[str, Any] = {"color": norm_color(key) if bright else GRID, "linestyle": style, "zorder": above}
            median_and_band(top, here[here.norm == key], "step", "right", **line)
            runs = here[here.norm == key].drop_duplicates("seed")
            color = norm_color(key) if bright else GRAY
            bottom.hlines(places[key], 0, runs.speed.median(), color=color, linewidth=1.2, linestyle=style)
            for failed, marker in ((0, "o"), (1, "x")):
                part = runs[runs.failed == failed]
                bottom.plot(part.speed, [places[key]] * len(part), marker, color=INK if failed else color, markersize=5)
        top.set(title=title, xlabel="step", ylim=(0, 100))
        bottom.set(xlim=(0, 1.06 * table.speed.max()), ylim=(-0.9, len(present) - 0.4), xlabel="mean over the run (%)")
        bottom.grid(False, axis="y")
    axes[0, 0].set_ylabel("right in the batch (%)")
    axes[1, 0].set_yticks(list(places.values()), [name(key) for key in places], fontsize=8)
    note(axes[1, -1], "× failed", 0.97, 0.01, ha="right", fontsize=8.5)
    return figure
