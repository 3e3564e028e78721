"""From records to what a reader is told: the best records of a study, where they come from, and the ledger of claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from normlib.errors import NormlibError
from normlib.lab.claims import Claim, Judgement
from normlib.lab.records import Record, Store
from normlib.lab.study import PRESETS, Drawing, Study

NO_RECORDS = "no records yet"
UNUSABLE = "records incomplete"


class NoRecordsError(NormlibError):
    """A study has no records at the presets that were asked for; the message says how to make them."""


@dataclass(frozen=True)
class Found:
    """The records of one study at one preset, all measured by the same code where there are fresh ones."""

    study: Study
    preset: str
    records: list[Record]
    fresh: bool

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len({record.seed for record in self.records})

    @property
    def whole(self) -> bool:
        """Whether every configuration of the preset has a record."""
        return len(self.records) >= len(self.study.trials(self.preset))

    def drawing(self) -> Drawing:
        """Draw the records.

        Raises:
            NormlibError: the records are incomplete or of older code, and the drawing cannot do with them.
        """
        with self._telling():
            return self.study.drawing(self.records)

    def judge(self) -> list[tuple[Claim, Judgement]]:
        """Judge each claim of the study; raises as `drawing` does."""
        with self._telling():
            return self.study.judge(self.records)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except NormlibError:
            raise
        except Exception as error:
            if self.whole and self.fresh:
                raise  # a fault of the study, not of what there is to draw
            state = "of an older version of its code" if self.whole else "incomplete"
            raise NormlibError(
                f"the {self.preset} records of {self.study.id} are {state}, too little to draw or judge "
                f"({type(error).__name__}: {error}); go on with: normlib run {self.study.id} --preset {self.preset}"
            ) from error


def best_records(study: Study, store: Store, preset: str | None = None) -> Found:
    """Find the records to show: of the preset named, else full, else laptop, else quick.

    Whole and fresh ones come first, whole and stale ones next, incomplete ones last.

    Raises:
        NoRecordsError: there are none; the message says how to make them.
    """
    presets = [preset] if preset else [p for p in reversed(PRESETS) if p in study.presets()]
    found = [f for p in presets if (f := _found(study, store, p)) is not None]
    if not found:
        wanted = f"--preset {preset}" if preset else "--preset quick"
        raise NoRecordsError(
            f"{study.id} has no records at {preset or 'any preset'}; make them with: normlib run {study.id} {wanted}"
        )
    return max(found, key=lambda f: (f.whole, f.fresh))


def _found(study: Study, store: Store, preset: str) -> Found | None:
    if preset not in study.presets():
        study.configurations(preset)  # raises, naming the presets there are
    records = [r for r in store.read(study.id, preset) if r.status != "failed"]
    fresh = [r for r in records if study.is_fresh(r)]
    if fresh:
        return Found(study, preset, fresh, fresh=True)
    if not records:
        return None
    newest = max(records, key=lambda r: r.start)
    same = [r for r in records if r.commit == newest.commit]
    return Found(study, preset, same, fresh=False)


def provenance_line(found: Found) -> str:
    """Say where the numbers come from: preset, data, seeds, device, time, date, and whether the code has moved on since."""
    records = found.records
    parts = [f"preset {found.preset}", *_data_names(records)]
    parts.append(f"{found.seeds} seed{'s' if found.seeds != 1 else ''}")
    parts += sorted({record.device for record in records})
    parts.append(f"{duration(sum(record.seconds for record in records))} of computing")
    parts.append(max(record.start for record in records)[:10])
    diverged = sum(record.status == "diverged" for record in records)
    if diverged:
        parts.append(f"{diverged} of {len(records)} runs diverged")
    if not found.whole:
        parts.append(f"incomplete: {len(records)} of {len(found.study.trials(found.preset))} runs")
    if not found.fresh:
        parts.append("measured by an older version of this code")
    return ", ".join(parts)


def _data_names(records: Iterable[Record]) -> list[str]:
    data = [r.notes["data"] for r in records if "data" in r.notes]
    return sorted({d["name"] + ("" if d.get("official", True) else " (not the official files)") for d in data})


def duration(seconds: float) -> str:
    """Write a time as a reader would."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class LedgerRow:
    """A claim, how it was judged (None without records), and by which records."""

    claim: Claim
    judgement: Judgement | None
    found: Found | None

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.judgement:
            return self.judgement.verdict.value
        return UNUSABLE if self.found else NO_RECORDS


def ledger(store: Store, studies: Iterable[Study]) -> list[LedgerRow]:
    """Judge every claim of the studies by the best records there are."""
    rows = []
    for study in studies:
        try:
            found = best_records(study, store)
        except NoRecordsError:
            rows += [LedgerRow(claim, None, None) for claim in study.claims]
            continue
        try:
            rows += [LedgerRow(claim, judgement, found) for claim, judgement in found.judge()]
        except NormlibError:
            rows += [LedgerRow(claim, None, found) for claim in study.claims]
    return rows
