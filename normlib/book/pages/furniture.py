"""What every chapter has, written once: where to run it, what it costs, how to cite it, its own references."""

from __future__ import annotations

import datetime
import re
from collections import defaultdict

from normlib.book.pages.freshness import cells_of, studies_of
from normlib.book.site import Site
from normlib.lab import PRESETS, Store
from normlib.lab.code.provenance import git_state
from normlib.lab.reading.results import duration
from normlib.studies import get_study

TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


def opening(body: str, docname: str) -> str:
    """Put the line "run this page" below the title of a chapter."""
    site = Site.read()
    commit = git_state()[0] or site.branch
    line = (
        f"\n:::{{div}} run-line\nRun this page: [open in Colab]({site.colab_url(docname + '.ipynb', commit)}), "
        f"or `make book` on your machine. {cost(body)}\n:::\n"
    )
    return TITLE.sub(lambda match: match[0] + "\n" + line, body, count=1)


def cost(body: str) -> str:
    """Say how long the recorded measurements of a chapter took, per preset and device."""
    store = Store.default()
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for study in studies_of(cells_of(body)):
        for preset in PRESETS[1:]:  # quick ones are measured by the build itself, after this is written
            for record in store.read(study, preset):
                if get_study(study).is_fresh(record):
                    seconds[preset, record.device] += record.seconds
    told = [f"{preset} {duration(spent)} ({device})" for (preset, device), spent in sorted(seconds.items(), key=_order)]
    return f"Computing time of the records it shows: {'; '.join(told)}." if told else ""


def _order(item: tuple[tuple[str, str], float]) -> tuple[int, str]:
    (preset, device), _ = item
    return PRESETS.index(preset), device


def closing(docname: str, body: str) -> str:
    """Write the last sections of a chapter: how to cite it, and the works it cites."""
    site = Site.read()
    title = re.sub(r"[{}$`*]", "", (TITLE.search(body) or ["", docname])[1])
    commit, dirty = git_state()
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    key = re.sub(r"\W+", "", f"normlib{docname.rpartition('/')[2]}")
    entry = [
        f"@incollection{{{key},",
        f"  title     = {{{title}}},",
        f"  author    = {{{{{site.author}}}}},",
        f"  booktitle = {{{site.title}}},",
        f"  year      = {{{today[:4]}}},",
        f"  url       = {{{site.page_url(docname)}}},",
        f"  note      = {{Commit {(commit or 'unknown')[:10]}{', with local changes' if dirty else ''}; built on {today}}}",
        "}",
    ]
    return (
        "\n\n## Cite this chapter\n\n```bibtex\n" + "\n".join(entry) + "\n```\n\n"
        "## References\n\n```{bibliography}\n:filter: docname in docnames\n```\n"
    )


__all__ = ["closing", "cost", "opening"]
