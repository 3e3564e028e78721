"""What chapters call: `show("lecun1998.rates")` measures live, then shows the best records there are, with verdicts."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from normlib.book.payload import MIME_TYPE, OVERVIEW_MIME_TYPE, ClaimLine, StudyPage, costs, study_page
from normlib.errors import NormlibError
from normlib.lab import Store, Study, run
from normlib.lab.reading.results import Found, NoRecordsError, best_records, ledger, provenance_line
from normlib.studies import STUDIES, get_study

IN_BOOK = "NORMLIB_BOOK"
LIVE = "NORMLIB_LIVE"
PRESET = "NORMLIB_PRESET"


def show(study_id: str, preset: str | None = None) -> None:
    """Measure a study here, then show its figure, where the numbers come from, and what they say of each claim.

    The live run takes the preset that fits the machine: `$NORMLIB_PRESET`, or quick. What already has a fresh record is
    not run again. `NORMLIB_LIVE=0` runs nothing. The figure shown first is that of the best records there are.

    Args:
        study_id: for example "lecun1998.rates".
        preset: the preset to run live and to show.

    Raises:
        UnknownNameError: there is no such study or preset.
        NormlibError: a trial failed, with its reason.
    """
    study, store = get_study(study_id), Store.default()
    chosen = preset or os.environ.get(PRESET) or "quick"
    live_preset = chosen if chosen in study.presets() or preset else "quick"
    if os.environ.get(LIVE, "1") != "0":
        outcome = run(study, live_preset, store=store)
        if outcome.failures:
            raise NormlibError(f"{study_id} at {live_preset}: " + "; ".join(outcome.failures))
    best = best_records(study, store, preset)
    live = _found(study, store, live_preset) if best.preset != live_preset else None
    _display_study(study_page(best, live, store))


def _found(study: Study, store: Store, preset: str) -> Found | None:
    try:
        return best_records(study, store, preset)
    except NoRecordsError:
        return None


def scoreboard(studies: Iterable[str] | None = None) -> None:
    """Count the verdicts on all claims of the book, by who makes them.

    Args:
        studies: ids of studies; all of them by default.
    """
    if not _left_to_the_book("scoreboard", studies):
        lines = _lines(studies)
        verdicts = [verdict for verdict, _ in Counter(line.verdict for line in lines).most_common()]
        sources = {
            "**all**": lines,
            **{by: [line for line in lines if line.by == by] for by in sorted({line.by for line in lines})},
        }
        rows = [
            [name, str(len(claims)), *(str(sum(line.verdict == verdict for line in claims)) for verdict in verdicts)]
            for name, claims in sources.items()
        ]
        _display_markdown(_table(["source", "claims", *verdicts], rows))


def claims_table(studies: Iterable[str] | None = None) -> None:
    """Show the ledger: every claim with its criterion, what was measured, and the verdict.

    In the book these are the claims of the studies that its pages show, as they were judged there.

    Args:
        studies: ids of studies; all of them by default.
    """
    if not _left_to_the_book("claims", studies):
        _display_markdown(_verdicts(_lines(studies)))


def figures_table(studies: Iterable[str] | None = None) -> None:
    """List every figure: what it shows, where its records come from, what they cost, and the command that makes them.

    Args:
        studies: ids of studies; all of them by default.
    """
    if _left_to_the_book("figures", studies):
        return
    rows = []
    store = Store.default()
    for study in map(get_study, studies or STUDIES):
        try:
            found = best_records(study, store)
            records, command = provenance_line(found), f"`normlib run {study.id} --preset {found.preset}`"
        except NoRecordsError:
            records, command = "no records yet", f"`normlib run {study.id}`"
        rows.append([study.id, study.title, records, "; ".join(map(str, costs(study, store))), command])
    _display_markdown(_table(["figure", "title", "records", "computing time", "command"], rows))


def _left_to_the_book(view: str, studies: Iterable[str] | None) -> bool:
    """Within a build, leave it to the book: it gathers what its chapters have measured and judged already."""
    chosen = list(map(str, studies)) if studies is not None else None
    for study in chosen or ():
        get_study(study)
    if os.environ.get(IN_BOOK):
        _display({OVERVIEW_MIME_TYPE: {"view": view, "studies": chosen}, "text/plain": f"the {view} of the book"})
    return bool(os.environ.get(IN_BOOK))


def _lines(studies: Iterable[str] | None) -> list[ClaimLine]:
    return [ClaimLine.of(row) for row in ledger(Store.default(), map(get_study, studies or STUDIES))]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _display_study(page: StudyPage) -> None:
    if os.environ.get(IN_BOOK):
        _display({MIME_TYPE: page.to_json(), "text/plain": page.shown.caption})
        return
    source = base64.b64encode(page.shown.svg.encode()).decode()
    alt = page.shown.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    _display({"text/html": f'<img alt="{alt}" src="data:image/svg+xml;base64,{source}">', "text/plain": page.shown.alt})
    _display_markdown(f"**{page.id}.** {page.shown.caption}\n\n*{page.shown.provenance}*\n\n{_verdicts(page.claims)}")


def _verdicts(lines: list[ClaimLine]) -> str:
    return "\n".join(f"- **{c.verdict}**: {c.statement} ({c.effect}{'; ' + c.note if c.note else ''})" for c in lines)


def _display_markdown(text: str) -> None:
    _display({"text/markdown": text, "text/plain": text})


def _display(bundle: dict[str, Any]) -> None:
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import display
    except ImportError:
        print(bundle["text/plain"])
        return
    if get_ipython() is None:
        print(bundle["text/plain"])
    else:
        display(bundle, raw=True)
