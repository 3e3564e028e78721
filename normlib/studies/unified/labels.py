"""Names beside the points of a scatter plot, moved apart where they would meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

LETTER, LINE = 0.58, 1.3  # width and height of a letter, as shares of the font size


class Point(NamedTuple):
    """A point with its name."""

    x: float
    y: float
    name: str
    color: str


def write_names(axes: Axes, points: Sequence[Point], size: float = 8.5) -> None:
    """Write each name to the right or left of its point, or a little higher or lower: where it meets the least, inside the axes.

    Call it when all else in the figure is final.
    """
    axes.get_figure().draw_without_rendering()  # type: ignore[union-attr] # so that the axes have their size
    box = axes.get_window_extent()
    scale = 72 / axes.get_figure().dpi  # type: ignore[union-attr]
    width, height = box.width * scale, box.height * scale
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    at = [((p.x - left) / (right - left) * width, (p.y - low) / (high - low) * height) for p in points]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in at]
    for (x, y), point in sorted(zip(at, points, strict=True), key=lambda each: each[0][::-1]):
        length, tall = LETTER * size * len(point.name), LINE * size
        best = None
        for lift in (0.0, 0.6, -0.6, 1.1, -1.1, 1.7, -1.7):
            for side in (1, -1):
                middle, start = y + lift * tall, x + 6 if side > 0 else x - 6 - length
                box_here = (start, middle - tall / 2, start + length, middle + tall / 2)
                outside = max(0.0, -start) + max(0.0, start + length - width)
                cost = sum(_overlap(box_here, other) for other in taken) + 20 * outside + 2 * abs(lift)
                if best is None or cost < best[0]:
                    best = (cost, side, lift * tall, box_here)
        assert best is not None
        _, side, lift, box_here = best
        taken.append(box_here)
        axes.annotate(
            point.name, (point.x, point.y), (6 * side, lift), textcoords="offset points", va="center",
            ha="left" if side > 0 else "right", fontsize=size, color=point.color,
        )  # fmt: skip


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
