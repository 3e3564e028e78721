"""The names of the works that are cited, as short as a list can have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from normlib.book.notebooks.citations import Bibliography, authors, year


def short_names(env: Any) -> dict[str, str]:
    """Return authors and year of every work of the bibliography by its key: "LeCun et al. (1998)"."""
    found: dict[str, str] = {}
    for name in env.config.bibtex_bibfiles:
        entries = Bibliography.read(Path(env.srcdir) / name).entries
        found |= {key: f"{authors(entry)} ({year(entry)})" for key, entry in entries.items()}
    return found
