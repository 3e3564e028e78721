"""Turns what `show` and `claims_table` put into a notebook into the figures, tabs and verdicts of a page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

from docutils import nodes

from normlib.book.pages.figures import figure_nodes
from normlib.book.pages.ledger import ledger_nodes
from normlib.book.pages.links import claims_page, links_of
from normlib.book.pages.markup import badge, link, parsed, sentence, separated
from normlib.book.pages.scoreboard import scoreboard_nodes
from normlib.book.pages.shown import remember
from normlib.book.payload import MIME_TYPE, OVERVIEW_MIME_TYPE, ClaimLine, Shown, StudyPage
from normlib.lab.style import dark

OVERVIEWS = {"claims": ledger_nodes, "figures": figure_nodes, "scoreboard": scoreboard_nodes}


class FigureRenderer:
    """The plug-in of MyST-NB for the two kinds of output of this package."""

    mime_priority_overrides: ClassVar[Sequence[tuple[str, str, int | None]]] = [
        ("*", MIME_TYPE, 1),
        ("*", OVERVIEW_MIME_TYPE, 1),
    ]

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        """Render a study or an overview of all as nodes; leave every other type to others."""
        if data.mime_type == MIME_TYPE:
            return _study_nodes(renderer, StudyPage.from_json(data.content), data.line or 0)
        if data.mime_type == OVERVIEW_MIME_TYPE:
            return OVERVIEWS[data.content["view"]](renderer, data.content["studies"], data.line or 0)
        return None


def _study_nodes(renderer: Any, page: StudyPage, line: int) -> list[nodes.Element]:
    images = {shown.record: _write_images(renderer, page, shown) for shown in (page.shown, page.live) if shown}
    remember(renderer.renderer.sphinx_env, page, images[page.shown.record])
    first = _figure(page, page.shown, images[page.shown.record][0], name=page.anchor)
    if page.live:
        second = _figure(page, page.live, images[page.live.record][0], name=None)
        text = _tabs([(f"Recorded at {page.shown.preset}", first), (f"Measured in this build ({page.live.preset})", second)])
    else:
        text = first
    found = parsed(renderer, text + "\n\n" + _verdict_list(page), line)
    figures = [figure for node in found for figure in node.findall(nodes.figure)]
    for figure, shown in zip(figures, [s for s in (page.shown, page.live) if s], strict=True):
        _add_dark_twin(figure, *images[shown.record])
        figure.append(_legend(renderer, page, shown))
        if shown is page.live:
            figure.parent.replace(figure, _unnumbered(figure))
    return found


def _write_images(renderer: Any, page: StudyPage, shown: Shown) -> tuple[str, str]:
    """Write the light and the dark image and return where they are."""
    paths = []
    for theme, svg in (("light", shown.svg), ("dark", dark(shown.svg))):
        digest = hashlib.sha256(svg.encode()).hexdigest()[:8]
        name = f"{page.anchor}-{shown.preset}-{theme}-{digest}.svg"
        paths.append(renderer.write_file([name], svg.encode(), overwrite=True))
    return paths[0], paths[1]


def _figure(page: StudyPage, shown: Shown, image: str, name: str | None) -> str:
    named = [f":name: {name}"] if name else []
    stale = "\n\n*The code has changed since these records were made.*" if not shown.fresh else ""
    options = [f":alt: {shown.alt}", ":class: only-light", ":figclass: study", *named]
    return "\n".join([f"```{{figure}} {image}", *options, "", shown.caption + stale, "```"])


def _tabs(items: list[tuple[str, str]]) -> str:
    inner = "\n\n".join(f"::::{{tab-item}} {label}\n{text}\n::::" for label, text in items)
    return f":::::{{tab-set}}\n{inner}\n:::::"


def _verdict_list(page: StudyPage) -> str:
    if not page.claims:
        return ""
    entries = "\n".join(f"- {badge(c.verdict)} {c.statement} *{_measured(c)}* {claims_page(c.anchor)}" for c in page.claims)
    return f":::{{div}} verdicts\n{entries}\n:::"


def _measured(claim: ClaimLine) -> str:
    """Write what was measured as one sentence, with its note."""
    return sentence(f"{claim.effect}; {claim.note}" if claim.note else claim.effect) or "Not measured yet."


def _add_dark_twin(figure: nodes.figure, light: str, night: str) -> None:
    """Put the dark image beside the light one, in one box, since the caption must stay the second part of a figure."""
    image = next(iter(figure.findall(nodes.image)))
    twin = image.deepcopy()
    image["uri"] = light
    twin["uri"], twin["classes"] = night, ["only-dark"]
    box = nodes.container("", image.deepcopy(), twin, classes=["themed"])
    image.parent.replace(image, box)


def _unnumbered(figure: nodes.figure) -> nodes.container:
    """Turn the figure of the live run into a plain box, so that it takes no number from the figures of the chapter."""
    image, caption, legend = figure.children
    return nodes.container(
        "",
        image,
        nodes.paragraph("", "", *caption.children),
        nodes.container("", *legend.children, classes=["legend"]),
        classes=["study"],
    )


def _legend(renderer: Any, page: StudyPage, shown: Shown) -> nodes.legend:
    """Say below the caption where the numbers come from, and link to code, record and notebook."""
    links = [link(label, target, "study-link") for label, target in links_of(renderer.renderer.sphinx_env, page, shown)]
    return nodes.legend("", nodes.paragraph("", "", nodes.Text(f"{sentence(shown.provenance)} "), *separated(links)))
