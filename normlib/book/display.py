"""What chapters call: `show("lecun1998.rates")` measures live, then shows the best records there are, with verdicts."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from normlib.book.payload import MIME_TYPE, TABLE_MIME_TYPE, ClaimLine, StudyPage, study_page
from normlib.errors import NormlibError
from normlib.lab import Store, run
from normlib.lab.results import best_records, ledger
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
    live = _live(study_id, store, live_preset) if best.preset != live_preset else None
    _display_study(study_page(best, live))


def _live(study_id: str, store: Store, preset: str) -> Any:
    try:
        return best_records(get_study(study_id), store, preset)
    except NormlibError:
        return None


def scoreboard() -> None:
    """Count the verdicts on all claims of the book, by chapter's source."""
    lines = [ClaimLine.of(row) for row in ledger(Store.default(), map(get_study, STUDIES))]
    counts = Counter(line.verdict for line in lines)
    rows = [f"| {verdict} | {count} |" for verdict, count in counts.most_common()]
    _display_markdown("\n".join(["| verdict | claims |", "|---|---:|", *rows, f"| **all** | **{len(lines)}** |"]))


def claims_table(studies: Iterable[str] | None = None) -> None:
    """Show the ledger: every claim with its criterion, what was measured, and the verdict."""
    lines = [ClaimLine.of(row) for row in ledger(Store.default(), map(get_study, studies or STUDIES))]
    if os.environ.get(IN_BOOK):
        _display({TABLE_MIME_TYPE: {"claims": [asdict(line) for line in lines]}, "text/plain": f"{len(lines)} claims"})
    else:
        _display_markdown(_verdicts(lines))


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
