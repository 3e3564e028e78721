"""Where a study stands: which trials have fresh records, which lack them, on what devices, and what to run next."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from statistics import median
from typing import Any

from normlib.lab.records import Record, Store
from normlib.lab.study import Study

STATES = ("fresh", "stale", "failed", "missing")


class Want(IntEnum):
    """How much the book lacks of a study at one preset; the least number is the most wanted."""

    UNMEASURED = 0
    STALE = 1
    INCOMPLETE = 2
    NOTHING = 3


@dataclass(frozen=True)
class Standing:
    """How far one study is at one preset.

    Each trial that the preset asks for is in one of four states: *fresh* (it has a finished record by the code as it is), else
    *stale* (by other code), else *failed* (it raised when it was last tried), else *missing*.

    Args:
        study: the study's id.
        preset: the preset.
        wanted: the number of trials that the preset asks for, the sum of the four states.
        fresh: trials with a fresh record.
        stale: trials with records of other code only.
        failed: trials that failed.
        missing: trials without any record.
        diverged: how many of the fresh ones diverged.
        other: finished records that the preset does not ask for: more seeds, settings that it has no more.
        devices: number of fresh records on each device.
        seconds: time spent on the fresh records.
        trial_seconds: the median time of a trial, by the records there are, fresh or stale; None if there are none.
    """

    study: str
    preset: str
    wanted: int
    fresh: int
    stale: int
    failed: int
    missing: int
    diverged: int
    other: int
    devices: dict[str, int]
    seconds: float
    trial_seconds: float | None

    @property
    def left(self) -> int:
        """The number of trials that a run would run."""
        return self.wanted - self.fresh

    @property
    def measured(self) -> bool:
        """Whether there is any finished record."""
        return self.trial_seconds is not None


def standing(study: Study, preset: str, records: Iterable[Record], device: str | None = None) -> Standing:
    """Sort the trials of a preset by the records there are.

    Args:
        study: the study.
        preset: one of its presets.
        records: what there is, of this study at this preset.
        device: look only at records whose device has this in its name, in any case.
    """
    records = [r for r in records if device is None or device.lower() in r.device.lower()]
    states: dict[str, str] = {}
    fresh = []
    for record in records:
        is_fresh = record.status != "failed" and study.is_fresh(record)
        state = "fresh" if is_fresh else "failed" if record.status == "failed" else "stale"
        trial = _trial(record.config, record.seed)
        states[trial] = min(state, states.get(trial, state), key=STATES.index)
        fresh += [record] if is_fresh else []
    trials = {_trial(*trial) for trial in study.trials(preset)}
    count = Counter(states.get(trial, "missing") for trial in trials)
    times = [record.seconds for record in records if record.status != "failed"]
    return Standing(
        study.id, preset, len(trials), count["fresh"], count["stale"], count["failed"], count["missing"],
        diverged=sum(r.status == "diverged" and _trial(r.config, r.seed) in trials for r in fresh),
        other=len({t for t, state in states.items() if state != "failed"} - trials),
        devices=dict(sorted(Counter(r.device for r in fresh).items())),
        seconds=round(sum(r.seconds for r in fresh), 3),
        trial_seconds=median(times) if times else None,
    )  # fmt: skip


def _trial(config: dict[str, Any], seed: int) -> str:
    return json.dumps([config, seed], sort_keys=True)


def survey(studies: Iterable[Study], store: Store, presets: Iterable[str], device: str | None = None) -> list[Standing]:
    """Tell where each study stands at each of the presets that it has."""
    presets = list(presets)
    return [standing(s, p, store.read(s.id, p), device) for s in studies for p in presets if p in s.presets()]


def want(standings: Iterable[Standing], preset: str) -> Want:
    """Tell how much the book lacks of a study at a preset.

    Args:
        standings: one study at every preset that it has.
        preset: the preset that is to be run.

    Returns:
        UNMEASURED if there is no finished record at any preset, STALE if trials of this preset have records of other code only,
        INCOMPLETE if trials failed or were never run, else NOTHING.
    """
    standings = list(standings)
    here = next((s for s in standings if s.preset == preset), None)
    if here is None or here.left == 0:
        return Want.NOTHING
    if not any(s.measured for s in standings):
        return Want.UNMEASURED
    return Want.STALE if here.stale else Want.INCOMPLETE


def most_wanted(standings: Iterable[Standing], preset: str) -> list[str]:
    """Order studies for `normlib run --pending`: what the book lacks most comes first.

    First what was never measured, then what older code measured, then what lacks trials, then what lacks nothing. Within each, the
    cheap come before the dear, by the time that is left to compute. The time of a trial is known from the records of the preset,
    else from those of the next smaller or larger one; studies whose time is not known come last, in the order they came in.

    Args:
        standings: every study at every preset that it has (`survey`).
        preset: the preset that is to be run; studies that lack it are left out.

    Returns:
        The ids of studies.
    """
    studies: dict[str, list[Standing]] = {}
    for one in standings:
        studies.setdefault(one.study, []).append(one)
    having = [s for s, rows in studies.items() if any(row.preset == preset for row in rows)]
    return sorted(having, key=lambda s: (want(studies[s], preset), _or_infinite(cost(studies[s], preset))))


def cost(standings: Iterable[Standing], preset: str) -> float | None:
    """Estimate the seconds of computing that a study's preset still takes, or None where nothing tells."""
    standings = list(standings)
    place = {s.preset: i for i, s in enumerate(standings)}
    near = sorted((s for s in standings if s.measured), key=lambda s: abs(place[s.preset] - place[preset]))
    if not near or near[0].trial_seconds is None:
        return None
    return standings[place[preset]].left * near[0].trial_seconds


def _or_infinite(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
