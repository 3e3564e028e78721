"""Where a figure's links lead: its code at the commit of the build, the record it was drawn from, its notebook in Colab."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlencode

from normlib.book.payload import CodePlace, Shown, StudyPage
from normlib.book.site import Site
from normlib.lab.code.provenance import git_state

RECORDS = "records"
LEDGER, FIGURES = "claims", "figures"


def links_of(env: Any, page: StudyPage, shown: Shown) -> list[tuple[str, str]]:
    """Return the label and target of each link below a figure."""
    notebook = Site.read().colab_url(f"{env.docname}.ipynb", _commit())
    links = [("code", code_link(page.code)), ("record", record_link(env, shown)), ("Colab", notebook)]
    if beside(env.docname, FIGURES) in env.found_docs:
        links.append(("permalink", f"{FIGURES}.html#{page.anchor}"))
    return links


def code_link(place: CodePlace) -> str:
    """Write the link to a stretch of code at the commit of the build."""
    return Site.read().code_url(place.path, _commit(), place.lines)


def record_link(env: Any, shown: Shown) -> str:
    """Write the link from the page that is being read to the records of a figure."""
    return relative(env.docname, f"{RECORDS}/{shown.record}")


def relative(docname: str, target: str) -> str:
    """Write the way from a page to a file of the site."""
    depth = len(PurePosixPath(docname).parents) - 1
    return "../" * depth + target


def beside(docname: str, name: str) -> str:
    """Name the page of that name in the folder of another."""
    return str(PurePosixPath(docname).with_name(name))


def filtered(**choices: str) -> str:
    """Write the link from a page beside the ledger to the ledger, filtered.

    Example:
        >>> filtered(verdict="not resolved", source="lecun1998")
        'claims.html?verdict=not+resolved&source=lecun1998'
    """
    return f"{LEDGER}.html" + (f"?{urlencode(choices)}" if choices else "")


def claims_page(anchor: str) -> str:
    """Write the link to a claim's entry in the ledger."""
    return f"{{ref}}`criterion <{anchor}>`"


def _commit() -> str:
    return git_state()[0] or Site.read().branch
