"""Which page shows which study: noted while chapters are read, gathered by the pages that are read after them.

The ledger, the scoreboard and the page of figures measure and judge nothing. They repeat what the chapters show, so they cannot
say anything else, and cost nothing to make.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

from normlib.book.pages.freshness import is_overview
from normlib.book.payload import StudyPage
from normlib.studies import STUDIES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """A study as one page shows it, without its drawings, and the light and the dark image of it."""

    docname: str
    study: StudyPage
    images: tuple[str, str]


@dataclass(frozen=True)
class Chapter:
    """A page that shows studies: its name, its title up to the colon with its number, and the studies in their order."""

    docname: str
    title: str
    places: tuple[Place, ...]

    @property
    def slug(self) -> str:
        """The last part of the page's name, for links that filter."""
        return self.docname.rpartition("/")[2]


def remember(env: Any, study: StudyPage, images: tuple[str, str]) -> None:
    """Note that the page that is being read shows a study."""
    bare = replace(study, shown=replace(study.shown, svg=""), live=None)
    _shown(env).setdefault(env.docname, []).append(Place(env.docname, bare, images))


def forget(app: Sphinx, env: Any, docname: str) -> None:
    """Drop what a page has shown before it is read anew."""
    _shown(env).pop(docname, None)


def read_overviews_last(app: Sphinx, env: Any, docnames: list[str]) -> None:
    """Read the pages that gather from others after these, and whenever one of these is read."""
    if docnames:
        overviews = _overviews(app)
        docnames[:] = [name for name in docnames if name not in overviews] + overviews


def reread_after_removal(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Have the pages that gather from others read anew when a page has gone."""
    return _overviews(app) if removed else []


def chapters(env: Any, studies: Iterable[str] | None = None) -> list[Chapter]:
    """List the pages that show studies, in the order of the table of contents, and warn of studies that are on no page.

    Args:
        env: the build environment of Sphinx.
        studies: ids of the studies wanted; all that there are by default.
    """
    wanted = list(STUDIES if studies is None else studies)
    found = []
    for docname in _in_order(env):
        places = tuple(place for place in _shown(env)[docname] if place.study.id in wanted)
        if places:
            found.append(Chapter(docname, _title(env, docname), places))
    missing = set(wanted) - {place.study.id for chapter in found for place in chapter.places}
    for study in sorted(missing):
        logger.warning('no page shows the study %s; add show("%s") to a chapter', study, study, location=env.docname)
    return found


def _shown(env: Any) -> dict[str, list[Place]]:
    if not hasattr(env, "normlib_shown"):
        env.normlib_shown = {}
    return env.normlib_shown


def _overviews(app: Sphinx) -> list[str]:
    paths = {name: Path(app.env.doc2path(name)) for name in sorted(app.env.found_docs)}
    return [name for name, path in paths.items() if path.suffix == ".md" and is_overview(path.read_text(encoding="utf-8"))]


def _in_order(env: Any) -> list[str]:
    shown = _shown(env)
    listed = [name for name in dict.fromkeys(_contents(env.external_site_map, env.external_site_map.root)) if name in shown]
    return listed + sorted(shown.keys() - set(listed))


def _contents(site_map: Any, document: Any) -> Iterator[str]:
    yield document.docname
    for name in document.child_files():
        yield from _contents(site_map, site_map[name])


def _title(env: Any, docname: str) -> str:
    title = env.titles[docname].astext().partition(":")[0]
    number = env.metadata[docname].get("chapter")
    return f"{number}. {title}" if number else title
