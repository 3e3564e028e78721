"""The page of figures: each under an address that stays when it moves, with its picture, its place, its cost and its verdicts."""

from __future__ import annotations

from typing import Any

from docutils import nodes

from normlib.book.pages.links import LEDGER, code_link, record_link
from normlib.book.pages.markup import Article, badge, fields, heading, inline, link, sentence, separated
from normlib.book.pages.shown import Chapter, Place, chapters
from normlib.book.payload import ClaimLine, StudyPage
from normlib.lab.reading.results import duration


def figure_nodes(renderer: Any, studies: list[str] | None, line: int) -> list[nodes.Element]:
    """Write an entry for every figure, chapter by chapter, in the order in which the chapters show them."""
    parts: list[nodes.Element] = []
    for chapter in chapters(renderer.renderer.sphinx_env, studies):
        group = Article("", heading(chapter.title, 2), tag="section")
        group += [_entry(renderer, chapter, place, line) for place in chapter.places]
        parts.append(group)
    return parts


def _entry(renderer: Any, chapter: Chapter, place: Place, line: int) -> Article:
    study, env = place.study, renderer.renderer.sphinx_env
    where = f"{env.app.builder.get_relative_uri(env.docname, place.docname)}#{study.anchor}"
    title = heading("", 3)
    title += [*inline(renderer, f"{{numref}}`{study.anchor}`", line), nodes.Text(". "), *inline(renderer, study.title, line)]
    rows = [
        ("Shown in", [link(chapter.title, where)]),
        ("After", inline(renderer, f"{{cite:t}}`{study.source}`, {study.item}", line)),
        ("Records", [nodes.Text(sentence(study.shown.provenance))]),
        ("Computing time", [nodes.Text(_cost(study))]),
        ("Command", [nodes.literal("", f"normlib run {study.id} --preset {study.shown.preset}")]),
        ("Verdicts", [_verdict(renderer, claim, line) for claim in study.claims]),
        (
            "Links",
            separated(
                [
                    link("code", code_link(study.code)),
                    link("record", record_link(env, study.shown)),
                    link("permalink", f"#{study.anchor}"),
                ]
            ),
        ),
    ]
    text = nodes.container("", title, fields(rows))
    return Article("", _thumbnail(place, where), text, ids=[study.anchor], classes=["figure-entry", "study"])


def _thumbnail(place: Place, where: str) -> nodes.container:
    """Show the drawing of the chapter, small; it leads to where the figure stands."""
    images = [
        nodes.image(uri=uri, alt=place.study.shown.alt, classes=[f"only-{theme}"], loading="lazy")
        for theme, uri in zip(("light", "dark"), place.images, strict=True)
    ]
    return nodes.container(
        "", nodes.paragraph("", "", nodes.reference("", "", *images, refuri=where, internal=True)), classes=["themed"]
    )


def _cost(study: StudyPage) -> str:
    """Say what each preset took, device by device."""
    devices = {cost.device: [other for other in study.costs if other.device == cost.device] for cost in study.costs}
    told = [f"{', '.join(f'{c.preset} {duration(c.seconds)}' for c in costs)} on {device}" for device, costs in devices.items()]
    return sentence("; ".join(told)) or "Not recorded."


def _verdict(renderer: Any, claim: ClaimLine, line: int) -> nodes.inline:
    """Name a claim, linked to its entry in the ledger, with its verdict."""
    name = link(claim.slug, f"{LEDGER}.html#{claim.anchor}")
    return nodes.inline("", "", name, nodes.Text(" "), *inline(renderer, badge(claim.verdict), line), classes=["verdict"])
