"""What a page needs to know of a study: plain data, made where the study runs, read by whatever displays it."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from normlib.lab import Store, Study
from normlib.lab.claims import Judgement, number
from normlib.lab.reading.results import Found, LedgerRow, NoRecordsError, best_records, duration, provenance_line
from normlib.lab.style import to_svg

MIME_TYPE = "application/vnd.normlib.study+json"
OVERVIEW_MIME_TYPE = "application/vnd.normlib.overview+json"
VERDICT_MARKS = {
    "reproduced": "success",
    "direction only": "info",
    "not resolved": "muted",
    "not reproduced": "danger",
    "needs larger scale": "warning",
    "no records yet": "light",
    "records incomplete": "light",
}


@dataclass(frozen=True)
class Shown:
    """One set of records, drawn."""

    preset: str
    svg: str
    caption: str
    alt: str
    provenance: str
    record: str
    fresh: bool


@dataclass(frozen=True)
class CodePlace:
    """A stretch of code: its file in the repository, its first and last line."""

    path: str
    lines: tuple[int, int]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CodePlace:
        """Read plain data back."""
        return cls(data["path"], (data["lines"][0], data["lines"][1]))


@dataclass(frozen=True)
class ClaimLine:
    """One claim with its verdict, in words."""

    id: str
    anchor: str
    statement: str
    criterion: str
    by: str
    verdict: str
    effect: str
    estimate: str
    interval: str
    note: str
    provenance: str
    code: CodePlace | None = None

    @classmethod
    def of(cls, row: LedgerRow) -> ClaimLine:
        """Put a row of the ledger into words."""
        claim, judgement = row.claim, row.judgement
        return cls(
            id=claim.id,
            anchor=claim.anchor,
            statement=claim.statement,
            criterion=claim.criterion,
            by=claim.by,
            verdict=row.verdict,
            effect=str(judgement) if judgement else "",
            estimate=f"{judgement.effect}: {number(judgement.value)}" if judgement else "",
            interval=_interval(judgement) if judgement else "",
            note=judgement.note if judgement else "",
            provenance=provenance_line(row.found) if row.found else "",
            code=code_place(claim.function),
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ClaimLine:
        """Read plain data back."""
        return cls(**{**data, "code": CodePlace.from_json(data["code"]) if data["code"] else None})

    @property
    def slug(self) -> str:
        """The claim's name within its study."""
        return self.id.partition("/")[2]


def _interval(judgement: Judgement) -> str:
    if judgement.low is None or judgement.high is None:
        return ""
    return f"{number(judgement.low)} to {number(judgement.high)}"


@dataclass(frozen=True)
class Cost:
    """What the records of one preset took on one device."""

    preset: str
    device: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.preset} {duration(self.seconds)} ({self.device})"


@dataclass(frozen=True)
class StudyPage:
    """A study as a page shows it: the best records there are, the live ones beside them, and the verdicts."""

    id: str
    title: str
    item: str
    source: str
    code: CodePlace
    shown: Shown
    live: Shown | None
    claims: list[ClaimLine] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The stable name of the figure, for example "fig-lecun1998-rates"."""
        return "fig-" + self.id.replace(".", "-").replace("_", "-")

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a notebook's output."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StudyPage:
        """Read `to_json` back."""
        return cls(
            **{
                **data,
                "code": CodePlace.from_json(data["code"]),
                "shown": Shown(**data["shown"]),
                "live": Shown(**data["live"]) if data["live"] else None,
                "claims": [ClaimLine.from_json(line) for line in data["claims"]],
                "costs": [Cost(**cost) for cost in data["costs"]],
            }
        )


def study_page(found: Found, live: Found | None, store: Store | None = None) -> StudyPage:
    """Draw the records and judge the claims; with a store, say also what each preset cost."""
    study = found.study
    place = code_place(study.trial_function)
    assert place, "a trial is a function of a module"
    return StudyPage(
        id=study.id,
        title=study.title,
        item=study.item,
        source=study.source,
        code=place,
        shown=_drawn(found),
        live=_drawn(live) if live else None,
        claims=[ClaimLine.of(LedgerRow(claim, judgement, found)) for claim, judgement in found.judge()],
        costs=costs(study, store) if store else [],
    )


def _drawn(found: Found) -> Shown:
    drawing = found.drawing()
    return Shown(
        preset=found.preset,
        svg=to_svg(drawing.figure),
        caption=drawing.caption,
        alt=drawing.alt,
        provenance=provenance_line(found),
        record=f"{found.study.id}/{found.preset}.jsonl",
        fresh=found.fresh,
    )


def code_place(function: Callable[..., Any]) -> CodePlace | None:
    """Find where a function of the package is written, decorators included; None for what has no source."""
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        return None
    return CodePlace(function.__module__.replace(".", "/") + ".py", (first, first + len(lines) - 1))


def costs(study: Study, store: Store) -> list[Cost]:
    """Add up the recorded seconds of each preset, per device."""
    found = []
    for preset in study.presets():
        try:
            records = best_records(study, store, preset).records
        except NoRecordsError:
            continue
        seconds: dict[str, float] = defaultdict(float)
        for record in records:
            seconds[record.device] += record.seconds
        found += [Cost(preset, device, spent) for device, spent in sorted(seconds.items())]
    return found
