"""The scoreboard: how many claims got which verdict, by chapter and source; each number leads to those claims."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes

from normlib.book.pages.ledger import by_source, counts
from normlib.book.pages.links import filtered
from normlib.book.pages.shown import chapters
from normlib.book.pages.works import short_names
from normlib.book.payload import ClaimLine


def scoreboard_nodes(renderer: Any, studies: list[str] | None, line: int) -> list[nodes.Element]:
    """Write the table: all claims, then each chapter, and below it its sources."""
    env = renderer.renderer.sphinx_env
    names = short_names(env)
    rows: list[tuple[str, str, dict[str, str], list[ClaimLine]]] = []
    for chapter in chapters(env, studies):
        chosen = {"chapter": chapter.slug}
        sources = {by: [claim for _, claim in entries] for by, entries in by_source(chapter, names).items()}
        rows.append(("chapter", chapter.title, chosen, [claim for claims in sources.values() for claim in claims]))
        rows += [("source", names[by], {**chosen, "source": by}, claims) for by, claims in sources.items()]
    everything = [claim for kind, _, _, claims in rows if kind == "chapter" for claim in claims]
    rows.insert(0, ("all", "All claims", {}, everything))
    return [nodes.raw("", _table(rows, list(counts(everything))), format="html")]


def _table(rows: list[tuple[str, str, dict[str, str], list[ClaimLine]]], verdicts: list[str]) -> str:
    """Write the table with its roles spelled out: a phone shows it as blocks, and a browser forgets them then."""
    head = "".join(f'<th role="columnheader" scope="col">{escape(name)}</th>' for name in ["Claims of", *verdicts, "all"])
    body = "".join(_row(*row, verdicts) for row in rows)
    return (
        f'<table class="scoreboard" role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table>'
    )


def _row(kind: str, name: str, chosen: dict[str, str], claims: list[ClaimLine], verdicts: list[str]) -> str:
    found = counts(claims)
    cells = "".join(_cell(verdict, found.get(verdict, 0), {"verdict": verdict, **chosen}, name) for verdict in verdicts)
    total = _cell("all", len(claims), chosen, name)
    return f'<tr role="row" class="{kind}"><th role="rowheader" scope="row">{escape(name)}</th>{cells}{total}</tr>'


def _cell(label: str, count: int, chosen: dict[str, str], name: str) -> str:
    if not count:
        return f'<td role="cell" class="none" data-label="{escape(label)}">0</td>'
    spoken = f"{count} {'in all' if label == 'all' else label}, {name}"
    anchor = f'<a href="{escape(filtered(**chosen))}" aria-label="{escape(spoken)}">{count}</a>'
    return f'<td role="cell" data-label="{escape(label)}">{anchor}</td>'
