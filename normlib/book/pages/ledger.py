"""The page of claims: every claim as its chapter judged it, under its own link, with a filter in the browser."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

from docutils import nodes

from normlib.book.pages.links import code_link, record_link
from normlib.book.pages.markup import Article, badge, fields, heading, inline, link, sentence, separated
from normlib.book.pages.shown import Chapter, Place, chapters
from normlib.book.pages.works import short_names
from normlib.book.payload import VERDICT_MARKS, ClaimLine

Claims = list[tuple[Place, ClaimLine]]


def ledger_nodes(renderer: Any, studies: list[str] | None, line: int) -> list[nodes.Element]:
    """Write every claim, by chapter and then by source, below the counts and the filter."""
    env = renderer.renderer.sphinx_env
    found = chapters(env, studies)
    names = short_names(env)
    grouped = [(chapter, by_source(chapter, names)) for chapter in found]
    claims = [claim for _, sources in grouped for entries in sources.values() for _, claim in entries]
    parts: list[nodes.Element] = [nodes.raw("", _filter(found, claims, names), format="html")]
    for chapter, sources in grouped:
        group = Article("", heading(chapter.title, 2), tag="section", classes=["claim-group"])
        for source, entries in sources.items():
            inner = Article("", heading(names[source], 3), tag="section", classes=["claim-group"])
            inner += [_entry(renderer, chapter, place, claim, line) for place, claim in entries]
            group += inner
        parts.append(group)
    return parts


def by_source(chapter: Chapter, names: dict[str, str]) -> dict[str, Claims]:
    """Sort the claims of a chapter by the name of who makes them; those of one source stay in the order of the figures."""
    entries = [(place, claim) for place in chapter.places for claim in place.study.claims]
    sources = sorted({claim.by for _, claim in entries}, key=lambda by: names[by].casefold())
    return {source: [entry for entry in entries if entry[1].by == source] for source in sources}


def counts(claims: list[ClaimLine]) -> dict[str, int]:
    """Count the claims of each verdict, in the order of the scale of verdicts."""
    found = Counter(claim.verdict for claim in claims)
    return {verdict: found[verdict] for verdict in VERDICT_MARKS if found[verdict]}


def _entry(renderer: Any, chapter: Chapter, place: Place, claim: ClaimLine, line: int) -> Article:
    study, env = place.study, renderer.renderer.sphinx_env
    address = link(claim.id, f"#{claim.anchor}", "permalink")
    head = nodes.paragraph("", "", *inline(renderer, badge(claim.verdict), line), nodes.Text(" "), address, classes=["claim-head"])
    statement = nodes.paragraph("", "", *inline(renderer, claim.statement, line), classes=["claim-statement"])
    figure = inline(renderer, f"{{numref}}`{study.anchor}`", line)
    code = [link("code", code_link(claim.code))] if claim.code else []
    tested = [*figure, nodes.Text(f" of {chapter.title}")], code, [link("record", record_link(env, study.shown))]
    rows = [
        ("Claimed by", inline(renderer, f"{{cite:t}}`{claim.by}`", line)),
        ("Criterion", inline(renderer, sentence(claim.criterion), line)),
        ("Measured", inline(renderer, sentence(claim.estimate) or "Not measured yet.", line)),
        ("95 % interval", [nodes.Text(claim.interval)] if claim.interval else []),
        ("Note", inline(renderer, sentence(claim.note), line)),
        ("Tested in", separated([nodes.inline("", "", *part) for part in tested if part])),
        ("Records", [nodes.Text(sentence(claim.provenance) or "None.")]),
    ]
    data = {"verdict": claim.verdict, "chapter": chapter.slug, "source": claim.by}
    entry = Article("", head, statement, fields(rows), classes=["claim"], ids=[claim.anchor], data=data)
    entry["names"] = [claim.anchor.lower()]  # what {ref} finds it by
    renderer.renderer.document.note_explicit_target(entry, entry)
    return entry


def _filter(found: list[Chapter], claims: list[ClaimLine], names: dict[str, str]) -> str:
    """Write the form that the script of the page brings to life, and the line that says what is shown."""
    counted = counts(claims)
    boxes = "".join(
        f'<label><input type="checkbox" name="verdict" value="{escape(verdict)}"> {escape(verdict)} <b>{count}</b></label>'
        for verdict, count in counted.items()
    )
    sources = sorted({claim.by for claim in claims}, key=lambda by: names[by].casefold())
    told = ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
    return (
        '<form class="claim-filter" role="search" aria-label="Filter the claims" hidden>'
        f"<fieldset><legend>Verdict</legend>{boxes}</fieldset>"
        f"{_choice('chapter', [(chapter.slug, chapter.title) for chapter in found])}"
        f"{_choice('source', [(by, names[by]) for by in sources])}"
        '<label>Words <input type="search" name="q" autocomplete="off" placeholder="such as: Hessian"></label>'
        '<button type="reset">Show all</button></form>\n'
        f'<p class="claim-count" role="status">{len(claims)} claim{"s" if len(claims) != 1 else ""}: {escape(told)}.</p>'
    )


def _choice(name: str, options: list[tuple[str, str]]) -> str:
    inner = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<label>{name.capitalize()} <select name="{name}"><option value="">every {name}</option>{inner}</select></label>'
