"""What a page needs to know of a study: plain data, made where the study runs, read by whatever displays it."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, field
from typing import Any

from normlib.lab.results import Found, LedgerRow, provenance_line
from normlib.lab.style import to_svg

MIME_TYPE = "application/vnd.normlib.study+json"
TABLE_MIME_TYPE = "application/vnd.normlib.claims+json"
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
class ClaimLine:
    """One claim with its verdict, in words."""

    id: str
    anchor: str
    statement: str
    criterion: str
    by: str
    verdict: str
    effect: str
    note: str
    provenance: str

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
            note=judgement.note if judgement else "",
            provenance=provenance_line(row.found) if row.found else "",
        )


@dataclass(frozen=True)
class StudyPage:
    """A study as a page shows it: the best records there are, the live ones beside them, and the verdicts."""

    id: str
    title: str
    item: str
    source: str
    code_path: str
    code_lines: tuple[int, int]
    shown: Shown
    live: Shown | None
    claims: list[ClaimLine] = field(default_factory=list)

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
                "code_lines": tuple(data["code_lines"]),
                "shown": Shown(**data["shown"]),
                "live": Shown(**data["live"]) if data["live"] else None,
                "claims": [ClaimLine(**line) for line in data["claims"]],
            }
        )


def study_page(found: Found, live: Found | None) -> StudyPage:
    """Draw the records and judge the claims."""
    study = found.study
    first, last = code_lines(found)
    return StudyPage(
        id=study.id,
        title=study.title,
        item=study.item,
        source=study.source,
        code_path=study.module.replace(".", "/") + ".py",
        code_lines=(first, last),
        shown=_drawn(found),
        live=_drawn(live) if live else None,
        claims=[ClaimLine.of(LedgerRow(claim, judgement, found)) for claim, judgement in found.judge()],
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


def code_lines(found: Found) -> tuple[int, int]:
    """Return the first and last line of the trial in its file."""
    lines, first = inspect.getsourcelines(found.study.trial_function)
    return first, first + len(lines) - 1
