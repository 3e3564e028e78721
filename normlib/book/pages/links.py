"""Where a figure's links lead: its code at the commit of the build, the record it was drawn from, its notebook in Colab."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from normlib.book.payload import Shown, StudyPage
from normlib.book.site import Site
from normlib.lab.provenance import git_state

RECORDS = "records"


def links_of(env: Any, page: StudyPage, shown: Shown) -> list[tuple[str, str]]:
    """Return the label and target of each link below a figure."""
    site = Site.read()
    commit = git_state()[0] or site.branch
    first, last = page.code_lines
    notebook = f"{env.docname}.ipynb"
    return [
        ("code", site.code_url(page.code_path, commit, (first, last))),
        ("record", relative(env.docname, f"{RECORDS}/{shown.record}")),
        ("Colab", site.colab_url(notebook, commit)),
    ]


def relative(docname: str, target: str) -> str:
    """Write the way from a page to a file of the site."""
    depth = len(PurePosixPath(docname).parents) - 1
    return "../" * depth + target


def claims_page(anchor: str) -> str:
    """Write the link to a claim's entry in the ledger."""
    return f"{{ref}}`criterion <{anchor}>`"
