"""Claims and verdicts: an effect, an interval, and what they say of a statement whose criterion was fixed before the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd

MINIMUM_SEEDS = 3
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Verdict(str, Enum):
    """What the measurements say of a claim."""

    REPRODUCED = "reproduced"
    DIRECTION = "direction only"
    UNRESOLVED = "not resolved"
    NOT_REPRODUCED = "not reproduced"
    LARGER_SCALE = "needs larger scale"


@dataclass(frozen=True)
class Judgement:
    """The outcome for one claim.

    Args:
        effect: what was measured, in words ("largest stable rate × λmax / 2").
        value: the estimate, in the unit that `effect` names.
        low: lower end of the interval, or None where there is none to give.
        high: upper end.
        verdict: what it says of the claim.
        note: one sentence more, where the verdict needs it.
    """

    effect: str
    value: float
    low: float | None
    high: float | None
    verdict: Verdict
    note: str = ""

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{number(self.low)}, {number(self.high)}]"
        return f"{self.effect}: {number(self.value)}{interval}"


@dataclass(frozen=True)
class Claim:
    """A statement of a source in our words, the criterion fixed before the run, and the function that judges it."""

    study: str
    slug: str
    statement: str
    criterion: str
    by: str
    function: Callable[[pd.DataFrame], Judgement]

    @property
    def id(self) -> str:
        """Name the claim in the whole book, for example "lecun1998.rates/bias"."""
        return f"{self.study}/{self.slug}"

    @property
    def anchor(self) -> str:
        """The claim's stable link within the page of claims."""
        return "claim-" + self.id.replace(".", "-").replace("/", "-").replace("_", "-")


def number(value: float) -> str:
    """Write a number with three significant digits where that is short, else with two and a power of ten."""
    if not np.isfinite(value):
        return {np.inf: "∞", -np.inf: "−∞"}.get(value, "not a number")
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPT)}".replace("-", "−")
    text = f"{value + 0.0:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    return text.replace("-", "−")


def bootstrap_interval(
    samples: Sequence[float] | np.ndarray,
    statistic: Callable[..., Any] = np.median,
    level: float = 0.95,
    draws: int = 2000,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic over seeds.

    Args:
        samples: one number per seed.
        statistic: a function with an `axis` argument.
        level: coverage that is aimed at. With fewer than six samples the interval is close to their whole range.
        draws: number of resamples, drawn from a fixed seed so that a page does not change between builds.
    """
    values = np.asarray(samples, dtype=float)
    resampled = np.random.default_rng(0).choice(values, (draws, len(values)))
    # No interpolation: between two infinities there is none.
    low, high = np.quantile(statistic(resampled, axis=1), [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def judge_identity(effect: str, error: float, tolerance: float, note: str = "") -> Judgement:
    """Judge an exact statement: the largest error found stays within the tolerance, or the statement is not reproduced."""
    holds = bool(error <= tolerance)
    verdict = Verdict.REPRODUCED if holds else Verdict.NOT_REPRODUCED
    return Judgement(effect, float(error), None, None, verdict, note or f"tolerance {number(tolerance)}")


def judge_effect(
    effect: str,
    samples: Sequence[float] | np.ndarray,
    *,
    claimed: tuple[float, float],
    null: float,
    note: str = "",
    exact: bool = False,
) -> Judgement:
    """Judge an effect measured once per seed against the range that is claimed for it.

    The verdict is *reproduced* if the whole interval lies in the claimed range, *not resolved* if it holds the value that
    means "no effect", *direction only* if it lies on the claimed side of that value but not in the range, *not resolved* again
    if it reaches into the range and out of it, and *not reproduced* if it lies elsewhere. A claimed range that ends at "no
    effect" does not contain it: a tie is not resolved. A sample that is not a number, such as that of a diverged run, leaves the
    verdict *not resolved*.

    Args:
        effect: what the samples are, in words, with the unit.
        samples: one number per seed (differences or ratios of arms that share the seed).
        claimed: the range that counts as reproduced; use infinities for one-sided claims.
        null: the value that means no effect (0 for a difference, 1 for a ratio).
        note: a sentence that goes with the verdict.
        exact: the number has no spread over seeds by construction; one sample is then enough.

    Returns:
        The median with its bootstrap interval; with fewer than three seeds the verdict stays *not resolved*.
    """
    values = np.asarray(samples, dtype=float)
    broken = int(np.isnan(values).sum())
    middle = float(np.median(values)) if len(values) and not broken else float("nan")
    if len(values) < MINIMUM_SEEDS and not exact:
        few = f"{len(values)} seed{'s' if len(values) != 1 else ''}: too few to judge"
        return Judgement(effect, middle, None, None, Verdict.UNRESOLVED, few)
    if broken:
        return Judgement(effect, middle, None, None, Verdict.UNRESOLVED, f"no number for {broken} of {len(values)} seeds")
    low, high = (middle, middle) if exact else bootstrap_interval(values)
    return Judgement(effect, middle, low, high, _verdict(low, high, claimed, null), note)


def _verdict(low: float, high: float, claimed: tuple[float, float], null: float) -> Verdict:
    tie = null in claimed and low <= null <= high
    if claimed[0] <= low and high <= claimed[1] and not tie:
        return Verdict.REPRODUCED
    if low <= null <= high:
        return Verdict.UNRESOLVED
    upward = claimed[0] >= null
    downward = claimed[1] <= null
    if (upward and low > null) or (downward and high < null):
        return Verdict.DIRECTION
    overlaps = low <= claimed[1] and claimed[0] <= high
    return Verdict.UNRESOLVED if overlaps and not tie else Verdict.NOT_REPRODUCED
