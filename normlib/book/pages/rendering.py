"""Turns what `show` and `claims_table` put into a notebook into the figures, tabs and verdicts of a page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

from docutils import nodes

from normlib.book.pages.links import claims_page, links_of
from normlib.book.payload import MIME_TYPE, TABLE_MIME_TYPE, VERDICT_MARKS, ClaimLine, Shown, StudyPage
from normlib.lab.style import dark


class FigureRenderer:
    """The plug-in of MyST-NB for the two kinds of output of this package."""

    mime_priority_overrides: ClassVar[Sequence[tuple[str, str, int | None]]] = [("*", MIME_TYPE, 1), ("*", TABLE_MIME_TYPE, 1)]

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        """Render a study or a table of claims as nodes; leave every other type to others."""
        if data.mime_type == MIME_TYPE:
            return _study_nodes(renderer, StudyPage.from_json(data.content), data.line or 0)
        if data.mime_type == TABLE_MIME_TYPE:
            claims = [ClaimLine(**line) for line in data.content["claims"]]
            return _parsed(renderer, "\n\n".join(_ledger_entry(claim) for claim in claims), data.line or 0)
        return None


def _study_nodes(renderer: Any, page: StudyPage, line: int) -> list[nodes.Element]:
    images = {shown.record: _write_images(renderer, page, shown) for shown in (page.shown, page.live) if shown}
    first = _figure(page, page.shown, images[page.shown.record][0], name=page.anchor)
    if page.live:
        second = _figure(page, page.live, images[page.live.record][0], name=None)
        text = _tabs([(f"Recorded at {page.shown.preset}", first), (f"Measured in this build ({page.live.preset})", second)])
    else:
        text = first
    found = _parsed(renderer, text + "\n\n" + _verdict_list(page), line)
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
    entries = "\n".join(f"- {_badge(c)} {c.statement} *{_measured(c)}* {claims_page(c.anchor)}" for c in page.claims)
    return f":::{{div}} verdicts\n{entries}\n:::"


def _badge(claim: ClaimLine) -> str:
    return f"{{bdg-{VERDICT_MARKS[claim.verdict]}}}`{claim.verdict}`"


def _measured(claim: ClaimLine) -> str:
    """Write what was measured as one sentence, with its note."""
    text = f"{claim.effect}; {claim.note}" if claim.note else claim.effect
    first = text[:1].upper() if text[:1].isascii() else text[:1]
    return f"{first}{text[1:].rstrip('.')}." if text else "Not measured yet."


def _ledger_entry(claim: ClaimLine) -> str:
    """Write one claim of the ledger: statement and verdict first, criterion and numbers below."""
    return (
        f"({claim.anchor})=\n"
        f":::{{div}} ledger-entry\n"
        f"{_badge(claim)} **{claim.statement}** {{cite:p}}`{claim.by}`\n\n"
        f"**Criterion.** {claim.criterion[:1].upper()}{claim.criterion[1:].rstrip('.')}.\n\n"
        f"**Measured.** {_measured(claim)}\n\n"
        f"*{_source(claim)}* Study {{ref}}`{claim.id.partition('/')[0]} <fig-{_slug(claim)}>`\n"
        f":::"
    )


def _source(claim: ClaimLine) -> str:
    return f"{claim.provenance[0].upper()}{claim.provenance[1:]}." if claim.provenance else "No records."


def _slug(claim: ClaimLine) -> str:
    return claim.id.partition("/")[0].replace(".", "-").replace("_", "-")


def _parsed(renderer: Any, text: str, line: int) -> list[nodes.Element]:
    holder = nodes.Element()
    with renderer.renderer.current_node_context(holder):
        renderer.renderer.nested_render_text(text, line)
    return [child for child in holder.children if isinstance(child, nodes.Element)]


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
    line = nodes.paragraph("", "", nodes.Text(f"{shown.provenance[0].upper()}{shown.provenance[1:]}. "))
    for number, (label, target) in enumerate(links_of(renderer.renderer.sphinx_env, page, shown)):
        if number:
            line += nodes.Text(" · ")
        line += nodes.reference("", label, refuri=target, classes=["study-link"])
    return nodes.legend("", line)
