"""The small parts that pages are put together from: Markdown as nodes, verdicts, links, an HTML element with data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from docutils import nodes

from normlib.book.payload import VERDICT_MARKS


class Article(nodes.container):
    """A self-contained entry of a list, with values that the filter of the page reads."""


def visit_article(writer: Any, node: Article) -> None:
    """Write the opening tag with the data as attributes."""
    data = {f"data-{name}": value for name, value in node.get("data", {}).items()}
    writer.body.append(writer.starttag(node, node.get("tag", "article"), **data))


def depart_article(writer: Any, node: Article) -> None:
    """Write the closing tag."""
    writer.body.append(f"</{node.get('tag', 'article')}>\n")


class Heading(nodes.TextElement):
    """A heading of the level given, which Sphinx does not take for a section."""


def visit_heading(writer: Any, node: Heading) -> None:
    """Write the opening tag."""
    writer.body.append(writer.starttag(node, f"h{node['level']}", ""))


def depart_heading(writer: Any, node: Heading) -> None:
    """Write the closing tag."""
    writer.body.append(f"</h{node['level']}>\n")


def parsed(renderer: Any, text: str, line: int) -> list[nodes.Element]:
    """Turn Markdown into nodes, as if it stood on the page."""
    holder = nodes.Element()
    with renderer.renderer.current_node_context(holder):
        renderer.renderer.nested_render_text(text, line)
    return [child for child in holder.children if isinstance(child, nodes.Element)]


def inline(renderer: Any, text: str, line: int) -> list[nodes.Node]:
    """Turn one paragraph of Markdown into the nodes within it."""
    return [node for paragraph in parsed(renderer, text, line) for node in paragraph.children]


def fields(rows: Sequence[tuple[str, Sequence[nodes.Node]]]) -> nodes.definition_list:
    """List terms with what is said of each; a term without anything is left out."""
    items = [
        nodes.definition_list_item("", nodes.term("", name), nodes.definition("", nodes.paragraph("", "", *content)))
        for name, content in rows
        if content
    ]
    return nodes.definition_list("", *items, classes=["fields"])


def heading(text: str, level: int) -> Heading:
    """Make a heading that is no section of its own."""
    return Heading("", text, level=level)


def link(label: str, target: str, *classes: str) -> nodes.reference:
    """Link to an address, or to a file of the site."""
    return nodes.reference("", label, refuri=target, internal=not target.startswith("http"), classes=list(classes))


def separated(links: Sequence[nodes.Node], mark: str = " · ") -> list[nodes.Node]:
    """Put a mark between nodes."""
    return [part for number, node in enumerate(links) for part in ([nodes.Text(mark)] if number else []) + [node]]


def badge(verdict: str) -> str:
    """Write a verdict as the Markdown of a badge."""
    return f"{{bdg-{VERDICT_MARKS[verdict]}}}`{verdict}`"


def sentence(text: str) -> str:
    """Write a text as one sentence: a capital unless it starts with a symbol, and a full stop."""
    first = text[:1].upper() if text[:1].isascii() else text[:1]
    return f"{first}{text[1:].rstrip('.')}." if text else ""
