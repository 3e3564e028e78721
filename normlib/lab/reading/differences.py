"""Two sets of records of one study side by side: what differs, by how much, and whether a verdict changes with it.

Trials are matched by configuration and seed. For each configuration and column the difference is told relative to the first set,

    d = median over rows of (b − a) / |a|,    a, b: medians over the seeds that both sets have,

with the bootstrap interval of d over those seeds. Two sets agree if the interval holds 0. An exact study has nothing to average:
there each number must be the other's to float tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlib.lab.claims import MINIMUM_SEEDS, bootstrap_interval
from normlib.lab.records import Record
from normlib.lab.study import Study

RELATIVE, ABSOLUTE = 1e-4, 1e-6
"""Float tolerance: records hold five digits of numbers that are mostly single precision."""
DRAWS = 500

SAME, AGREES, DIFFERS, FEW = "same", "agrees", "differs", "too few seeds"


@dataclass(frozen=True)
class Difference:
    """One column at one configuration, in two sets of records.

    Args:
        config: the configuration.
        column: the column's name, or "status" for how the trials ended.
        seeds: the number of seeds that both sets have.
        relative: the relative difference d, NaN for texts and for columns of different lengths.
        low: lower end of the interval of d over seeds, None where there is none to give.
        high: upper end.
        largest: the largest relative difference of the medians over rows, without its sign.
        outcome: "same" (equal as recorded), "agrees", "differs", or "too few seeds" (they differ, and fewer than three seeds
            cannot tell whether by chance).
    """

    config: dict[str, Any]
    column: str
    seeds: int
    relative: float
    low: float | None
    high: float | None
    largest: float
    outcome: str


@dataclass(frozen=True)
class VerdictPair:
    """One claim as each set of records judges it; None where a set is too incomplete to judge."""

    claim: str
    first: str | None
    second: str | None

    @property
    def changed(self) -> bool:
        """Whether the verdicts differ."""
        return self.first != self.second


@dataclass(frozen=True)
class Comparison:
    """One study at one preset in two sets of records: how many trials each alone has, and what those of both say."""

    study: str
    preset: str
    matched: int
    only_first: int
    only_second: int
    differences: list[Difference]
    verdicts: list[VerdictPair]


def compare(study: Study, preset: str, first: Iterable[Record], second: Iterable[Record]) -> Comparison:
    """Compare two sets of records of one study at one preset.

    Failed trials are left out. Of several records of one trial the fresh ones come before the stale ones, then the newest counts.

    Args:
        study: the study, which judges the claims.
        preset: its preset.
        first: the records that differences are relative to.
        second: the records compared with them.
    """
    a, b = _by_trial(study, first), _by_trial(study, second)
    arms: dict[str, list[tuple[Record, Record]]] = {}
    for trial in a:
        if trial in b:
            arms.setdefault(json.dumps(a[trial].config, sort_keys=True), []).append((a[trial], b[trial]))
    differences = [d for pairs in arms.values() for d in _differences(pairs, study.kind == "exact")]
    only = len(a.keys() - b.keys()), len(b.keys() - a.keys())
    matched = len(a.keys() & b.keys())
    return Comparison(study.id, preset, matched, *only, differences, _verdicts(study, list(a.values()), list(b.values())))


def _by_trial(study: Study, records: Iterable[Record]) -> dict[str, Record]:
    usable = [record for record in records if record.status != "failed"]
    usable.sort(key=lambda record: (study.is_fresh(record), record.start))
    return {json.dumps([record.config, record.seed], sort_keys=True): record for record in usable}


def _verdicts(study: Study, first: list[Record], second: list[Record]) -> list[VerdictPair]:
    a, b = _judged(study, first), _judged(study, second)
    return [VerdictPair(claim.id, a.get(claim.id), b.get(claim.id)) for claim in study.claims]


def _judged(study: Study, records: list[Record]) -> dict[str, str]:
    try:
        return {claim.id: judgement.verdict.value for claim, judgement in study.judge(records)}
    except Exception:  # incomplete or older records, and what a claim makes of them, raise anything
        return {}


def _differences(pairs: Sequence[tuple[Record, Record]], exact: bool) -> list[Difference]:
    """Compare one configuration column by column."""
    config = pairs[0][0].config
    names = dict.fromkeys(name for a, b in pairs for name in (*a.table, *b.table))
    found = [_difference(config, name, [(a.table.get(name), b.table.get(name)) for a, b in pairs], exact) for name in names]
    if any(a.status != b.status for a, b in pairs):
        found.append(_unlike(config, "status", len(pairs)))
    return found


def _difference(config: dict[str, Any], column: str, pairs: list[tuple[Any, Any]], exact: bool) -> Difference:
    seeds = len(pairs)
    if all(_equal(a, b) for a, b in pairs):
        return Difference(config, column, seeds, 0.0, 0.0, 0.0, 0.0, SAME)
    if any(x is None for pair in pairs for x in pair):  # a column that one set lacks
        return _unlike(config, column, seeds)
    try:
        values = np.array([[np.ravel(x).astype(float) for x in pair] for pair in pairs])  # seeds, two sets, rows
    except (ValueError, TypeError):  # texts, columns of different lengths
        return _unlike(config, column, seeds)
    a, b = values[:, 0], values[:, 1]
    relative = relative_difference(np.median(a, axis=0), np.median(b, axis=0))
    middle, largest = float(np.median(relative)), float(np.abs(relative).max())
    if exact:
        agrees = np.allclose(b, a, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
        return Difference(config, column, seeds, middle, None, None, largest, AGREES if agrees else DIFFERS)
    if seeds < MINIMUM_SEEDS:
        return Difference(config, column, seeds, middle, None, None, largest, FEW)
    low, high = _interval(a, b)
    return Difference(config, column, seeds, middle, low, high, largest, AGREES if low <= 0 <= high else DIFFERS)


def _unlike(config: dict[str, Any], column: str, seeds: int) -> Difference:
    return Difference(config, column, seeds, float("nan"), None, None, float("nan"), DIFFERS)


def _equal(a: Any, b: Any) -> bool:
    """Tell whether two columns are equal as recorded; "not a number" equals itself."""
    return json.dumps(a) == json.dumps(b)


def relative_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (b − a) / |a|: 0 where both are equal (or both not a number), infinite where nothing else can be said.

    Example:
        >>> relative_difference(np.array([2.0, 0.0, 0.0, np.inf]), np.array([1.0, 0.0, 3.0, np.inf])).tolist()
        [-0.5, 0.0, inf, 0.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (b - a) / np.abs(a)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio))


def _interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Bootstrap d over seeds, the two values of a seed together."""

    def statistic(seeds: np.ndarray, axis: int) -> np.ndarray:
        picks = seeds.astype(int)  # draws, seeds
        relative = relative_difference(np.median(a[picks], axis=axis), np.median(b[picks], axis=axis))
        return np.median(relative, axis=1)

    return bootstrap_interval(np.arange(len(a)), statistic, draws=DRAWS)
