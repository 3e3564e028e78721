"""Taking a bundle in: what of it is new here, what fits the studies as they are, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from normlib.errors import NormlibError, unknown
from normlib.lab.exchange.bundles import Bundle, Finding, Line, plain
from normlib.lab.exchange.unpacking import read_bundle
from normlib.lab.records.record import Record
from normlib.lab.records.store import Store
from normlib.lab.study import PRESETS, Study

REFUSED = ("damaged", "foreign", "unknown")
"""Faults for which a bundle is refused as a whole, unless the sound rest is asked for."""


class RefusedBundleError(NormlibError):
    """A bundle with lines that are damaged or do not belong; nothing of it was taken. `findings` holds them all."""

    def __init__(self, message: str, findings: list[Finding]) -> None:
        super().__init__(message)
        self.findings = findings


@dataclass(frozen=True)
class Intake:
    """What `take` did: the records that are new in the store, and what was left out."""

    bundle: Bundle
    taken: list[Record]
    findings: list[Finding]

    def count(self, fault: str) -> int:
        """Return how many lines were left out for one fault."""
        return sum(finding.fault == fault for finding in self.findings)


def take(
    source: Path | str, store: Store, studies: Mapping[str, Study], *, keep_sound: bool = False, stale: bool = False
) -> Intake:
    """Verify a bundle, then append what is new to the store; a second time changes nothing.

    Beside what `read_bundle` finds, a line may be *unknown* (a study or a preset that this normlib has not), *stale* (measured by
    other code than the study's code here, or at settings that the preset has no more) or a *duplicate* (the trial has a finished
    record in the growing folder, or earlier in the bundle).

    Args:
        source: the bundle.
        store: where the records go.
        studies: every study by its id.
        keep_sound: take the sound lines of a bundle that has damaged, foreign or unknown ones.
        stale: take stale records as well.

    Raises:
        NormlibError: the file is no bundle.
        RefusedBundleError: a line is damaged, foreign or unknown, and `keep_sound` was not asked for; nothing was written.
    """
    bundle = read_bundle(source)
    findings = list(bundle.findings)
    fitting = []
    for line in bundle.lines:
        finding = misfit(line, studies)
        if finding is None or (stale and finding.fault == "stale"):
            fitting.append(line)
        if finding is not None and not (stale and finding.fault == "stale"):
            findings.append(finding)
    refused = [f for f in findings if f.fault in REFUSED]
    if refused and not keep_sound:
        raise RefusedBundleError(_refusal(source, refused, len(fitting)), findings)
    added = store.append_all([line.record for line in fitting])
    taken = [line.record for line, new in zip(fitting, added, strict=True) if new]
    there = "its trial has a finished record already"
    findings += [Finding("duplicate", x.member, x.line, there) for x, new in zip(fitting, added, strict=True) if not new]
    return Intake(bundle, taken, findings)


def misfit(line: Line, studies: Mapping[str, Study]) -> Finding | None:
    """Tell why a sound record does not fit the studies of this normlib: a study that is unknown, code that has moved on."""
    record = line.record

    def found(fault: str, reason: str) -> Finding:
        return Finding(fault, line.member, line.line, reason)

    if record.study not in studies:
        return found("unknown", str(unknown("study", record.study, studies)))
    study = studies[record.study]
    if record.preset not in study.presets():
        return found("unknown", str(unknown(f"preset of {study.id}", record.preset, PRESETS)))
    if study.is_fresh(record):
        return None
    moved = record.code != study.code(record.config)
    return found("stale", "it was measured by other code than there is here" if moved else "the preset has no such settings")


def _refusal(source: Path | str, refused: list[Finding], sound: int) -> str:
    lines = [f"{source} was refused and nothing was written:", *(f"  {text}" for text in summary(refused))]
    way_out = f"Take the {sound} sound records with --keep-sound, or ask" if sound else "Ask"
    return "\n".join([*lines, f"{way_out} for the bundle again."])


def summary(findings: list[Finding]) -> list[str]:
    """Write findings for a reader, one line for each member, fault and reason, with the numbers of the lines.

    Names and reasons come from the bundle: what is no printable character is escaped.

    Example:
        >>> summary([Finding("stale", "a.jsonl", n, "other code") for n in (1, 2, 3, 7)])
        ['a.jsonl:1-3,7: stale, other code']
    """
    groups: dict[tuple[str, str, str], list[int]] = {}
    for finding in findings:
        lines = groups.setdefault((finding.member, finding.fault, finding.reason), [])
        lines += [] if finding.line is None else [finding.line]
    return [f"{plain(member)}{_ranges(lines)}: {fault}, {plain(reason)}" for (member, fault, reason), lines in groups.items()]


def _ranges(lines: list[int]) -> str:
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(lines)), key=lambda pair: pair[1] - pair[0])]
    return (":" if runs else "") + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
