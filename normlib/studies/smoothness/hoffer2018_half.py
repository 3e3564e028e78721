"""Hoffer et al. (2018), Norm matters: which spreads a statistic in half precision can hold, with squares and without."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from torch import Tensor

from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.common.looks import BLUE, GRID, ORANGE, VERMILION, note, subplots
from normlib.studies.common.statements import normal

LARGEST = 65520.0  # from here on a number rounds to infinity in float16, whose largest is 65504
SCALES = [2.0**k for k in range(-26, 15)]  # standard deviations of the inputs
CLOSE = 0.05  # a statistic is usable within this share of the exact one
STATISTICS = {"variance": ("√variance", BLUE), "l1": ("L1", ORANGE), "maximum": ("L∞", VERMILION)}
SUMS = {"float32": "sums in float32", "float16": "sums in float16"}

half = Study(
    "hoffer2018.half",
    item="half precision",
    title="In half precision the variance overflows long before the L1 norm does",
    kind="exact",
    vary={"statistic": list(STATISTICS), "sums": list(SUMS), "count": [64, 1024, 16_384]},
    quick={"count": [64, 1024]},
    laptop={},
    full=None,
)


def added(values: Tensor, sums: str) -> Tensor:
    """Return the mean of float16 values as float16: added up in float32, or pairwise in float16 before the division."""
    if sums == "float32":
        return values.float().mean().half()
    count = len(values)
    while len(values) > 1:
        values = values[0::2] + values[1::2]
    return values[0] / count


def spread(deviations: Tensor, statistic: str, sums: str) -> float:
    """Return a measure of spread of deviations from the mean, with every product and result rounded to float16.

    Args:
        deviations: float16, shape (m,), m a power of two.
        statistic: "variance" (the root of the mean square), "l1" (the mean of absolute values) or "maximum" (the largest).
        sums: "float32" or "float16", where the m values are added up.
    """
    if statistic == "variance":
        return float(added(deviations * deviations, sums).sqrt())
    return float(deviations.abs().max() if statistic == "maximum" else added(deviations.abs(), sums))


def exact(deviations: Tensor, statistic: str) -> float:
    """Return the same measure of spread in float64."""
    size = deviations.double().abs()
    return float({"variance": size.square().mean().sqrt(), "l1": size.mean(), "maximum": size.max()}[statistic])


def first_overflow(directions: Tensor, statistic: str, sums: str) -> float:
    """Return the scale from which on `spread` of scale times directions is infinite, by bisection between 0.5 and 10⁵."""
    low, high = math.log(0.5), math.log(1e5)
    for _ in range(24):
        middle = (low + high) / 2
        overflows = math.isinf(spread((math.exp(middle) * directions).half(), statistic, sums))
        low, high = (low, middle) if overflows else (middle, high)
    return math.exp(high)


def predicted_overflow(directions: Tensor, statistic: str, sums: str) -> float:
    """Return that scale in closed form: the largest number that is formed on the way reaches 65520.

    An input is formed itself, a square is the square of the largest deviation, and a sum of m values is m times their mean.
    """
    size, count = directions.abs(), len(directions)
    limits = [LARGEST / float(size.max())]
    if statistic == "variance":
        limits.append(math.sqrt(LARGEST) / float(size.max()))
    if sums == "float16" and statistic == "variance":
        limits.append(math.sqrt(LARGEST / (count * float(size.square().mean()))))
    if sums == "float16" and statistic == "l1":
        limits.append(LARGEST / (count * float(size.mean())))
    return min(limits)


@half.trial
def _(c: Config, seed: int):
    directions = normal(seed, c.count).to(c.device)
    directions = directions - directions.mean()
    rounded = [(scale * directions).half() for scale in SCALES]
    found = [spread(values, c.statistic, c.sums) for values in rounded]
    right = [scale * exact(directions, c.statistic) for scale in SCALES]
    overflow, said = (f(directions, c.statistic, c.sums) for f in (first_overflow, predicted_overflow))
    return {
        "scale": SCALES,
        "ratio": [a / b for a, b in zip(found, right, strict=True)],
        "overflow": overflow,
        "overflow_error": abs(overflow / said - 1),
    }


def usable(table: pd.DataFrame, end: str) -> pd.DataFrame:
    """Return the ends of the usable scales about 1: a row a seed, a column a statistic, sums and a count.

    Args:
        table: the runs.
        end: "min" for the smallest scale from which to 1 all are usable, "max" for the largest to which all are.
    """

    def reach(run: pd.DataFrame) -> float:
        run = run.sort_values("scale", ascending=end == "max")
        run = run[run.scale >= 1] if end == "max" else run[run.scale <= 1]
        good = ((run.ratio - 1).abs() <= CLOSE).cummin()
        return float(run.scale[good].iloc[-1]) if good.any() else np.nan

    runs = table.groupby(["seed", "statistic", "sums", "count"])[["scale", "ratio"]].apply(reach)
    return runs.unstack(["statistic", "sums", "count"])


@half.draw
def _(table):
    count = table["count"].max()
    figure, axes = subplots(1, 2, height=3, sharey=True)
    for axis, (sums, title) in zip(axes, SUMS.items(), strict=True):
        for place, (statistic, (label, color)) in enumerate(STATISTICS.items()):
            arm = table[(table.statistic == statistic) & (table.sums == sums) & (table["count"] == count)]
            ratio = arm.groupby("scale").ratio.median()
            shown = ratio[np.isfinite(ratio)]
            axis.plot(shown.index, shown, color=color, label=label, marker="o", markersize=3)
            over = ratio.index[np.isinf(ratio)]
            axis.plot(over, np.full(len(over), 1.5 + 0.12 * place), "x", color=color, markersize=4)
        axis.axhline(1, color=GRID, zorder=0)
        axis.set(xscale="log", ylim=(-0.05, 2), title=title, xlabel="standard deviation of the inputs")
    axes[0].set_ylabel("in float16 / exact")
    note(axes[0], "×: infinite", 0.97, 0.99, ha="right", va="top", fontsize=8.5)
    axes[0].legend(loc="center", fontsize=8.5, bbox_to_anchor=(0.42, 0.3))
    low, high = usable(table, "min").median(), usable(table, "max").median()

    def window(statistic: str, sums: str) -> str:
        return f"{number(low[statistic, sums, count])} to {number(high[statistic, sums, count])}"

    return Drawing(
        figure,
        caption=f"Spread of {count:,} normal deviations in float16 over its exact value. Statistics within {CLOSE:.0%} are usable. "
        f"Left: squares are rounded to float16 and added up in float32. The variance is usable for standard deviations of "
        f"{window('variance', 'float32')}, L1 for {window('l1', 'float32')} (in steps of a factor of two). Right: sums are "
        f"float16 too, added pairwise. Then the variance ends at {number(high['variance', 'float16', count])} and L1 at "
        f"{number(high['l1', 'float16', count])}; L∞, which needs no sum of deviations, at "
        f"{number(high['maximum', 'float16', count])}.",
        alt="Two plots of a statistic in half precision over its exact value against the standard deviation of the inputs: root of "
        "the variance, L1, L-infinity. Crosses mark infinite values. Left sums in float32, right in float16.",
    )


def _between(table: pd.DataFrame, end: str) -> pd.DataFrame:
    ends = usable(table, end)
    return ends["l1"]["float32"] / ends["variance"]["float32"]


@half.claim(
    "large",
    "In half precision the L1 scale is stable where the variance is not.",
    criterion=f"squares in float16, sums in float32: the largest standard deviation up to which L1 is within {CLOSE:.0%} is at "
    "least 10 times that of the variance, at every count (the smallest ratio)",
)
def _(table):
    top = usable(table, "max").median()["variance"]["float32"]
    said = f"the variance ends at standard deviations of {number(top.min())} to {number(top.max())}"
    smallest = _between(table, "max").min(axis=1)
    return judge_effect("largest usable deviation, L1 / variance", smallest, claimed=(10, np.inf), null=1, note=said)


@half.claim(
    "small",
    "Half precision ends for the variance at the small end as well, where squares round to zero.",
    criterion=f"squares in float16, sums in float32: the smallest standard deviation down to which the variance is within "
    f"{CLOSE:.0%} is at least 10 times that of L1, at every count (the smallest ratio)",
    by="notes",
)
def _(table):
    smallest = (1 / _between(table, "min")).min(axis=1)
    return judge_effect("smallest usable deviation, variance / L1", smallest, claimed=(10, np.inf), null=1)


@half.claim(
    "closed-form",
    "A statistic overflows where the largest number formed on its way, a deviation, a square or a sum, reaches 65520.",
    criterion="scale of the inputs at the first overflow against this rule, all statistics, sums and counts: within 1 %",
    by="notes",
)
def _(table):
    return judge_identity("largest relative error of the scale", float(table.overflow_error.max()), 0.01)


@half.claim(
    "sums",
    "L1 is not safe by itself: with sums in float16 it overflows too, long before L∞.",
    criterion="largest count, sums in float16: the largest usable standard deviation of L∞ is at least 100 times that of L1",
    by="notes",
)
def _(table):
    count, ends = table["count"].max(), usable(table, "max")
    ratio = ends["maximum"]["float16"][count] / ends["l1"]["float16"][count]
    said = f"L1 ends at {number(ends['l1']['float16'][count].median())} with {count:,} values"
    return judge_effect("largest usable deviation, L∞ / L1", ratio, claimed=(100, np.inf), null=1, note=said)
