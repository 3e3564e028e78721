"""Citations as a reader of plain Markdown meets them: authors, year, and a link to the work itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pybtex.backends.plaintext import Backend
from pybtex.database import BibliographyData, Entry, Person, parse_string
from pybtex.exceptions import PybtexError
from pybtex.richtext import Text

from normlib.errors import NormlibError, unknown

PLAIN = Backend()
ARXIV = re.compile(r"(?:arXiv:|arxiv\.org/abs/)\s*(?P<id>\d{4}\.\d{4,5}|[a-z-]+/\d{7})", re.IGNORECASE)


@dataclass(frozen=True)
class Bibliography:
    """The works of `references.bib`."""

    entries: dict[str, Entry] = field(default_factory=dict)
    name: str = "references.bib"

    @classmethod
    def read(cls, path: Path) -> Bibliography:
        """Read a BibTeX file.

        Raises:
            NormlibError: the file is missing or cannot be parsed.
        """
        if not path.is_file():
            raise NormlibError(f"there is no bibliography {path}; citations are looked up in it")
        try:
            data: BibliographyData = parse_string(path.read_text(encoding="utf-8"), "bibtex")
        except PybtexError as error:
            raise NormlibError(f"{path} is not valid BibTeX: {error}") from error
        return cls(dict(data.entries.items()), path.name)

    def textual(self, keys: list[str]) -> str:
        """Write works into a sentence: "LeCun et al. (1998)", each linked."""
        cited = [_linked(entry, f"{authors(entry)} ({year(entry)})") for entry in self._all(keys)]
        return " and ".join(filter(None, [", ".join(cited[:-1]), cited[-1]]))

    def parenthetical(self, keys: list[str]) -> str:
        """Write works in brackets: "(Glorot and Bengio, 2010; He et al., 2015)", each linked."""
        return "(" + "; ".join(_linked(entry, f"{authors(entry)}, {year(entry)}") for entry in self._all(keys)) + ")"

    def authors(self, keys: list[str]) -> str:
        """Write the authors alone."""
        return ", ".join(_linked(entry, authors(entry)) for entry in self._all(keys))

    def year(self, keys: list[str]) -> str:
        """Write the year alone."""
        return ", ".join(_linked(entry, year(entry)) for entry in self._all(keys))

    def listed(self, keys: list[str]) -> str:
        """Write a list of works with authors, year, title and link, sorted by author and year."""
        entries = sorted(self._all(sorted(set(keys))), key=lambda entry: (authors(entry).casefold(), year(entry)))
        return "\n".join(
            f"- {_everyone(entry)} ({year(entry)}). {_linked(entry, _plain(entry.fields['title']))}." for entry in entries
        )

    def _all(self, keys: list[str]) -> list[Entry]:
        for key in keys:
            if key not in self.entries:
                raise unknown("citation", key, self.entries, f"Add it to {self.name}.")
        return [self.entries[key] for key in keys]


def authors(entry: Entry) -> str:
    """Name the authors of a work as a citation does: one, two, or the first and "et al."."""
    people = _people(entry)
    names = [_last_name(person) for person in people]
    if not names:
        return _plain(entry.fields.get("organization") or entry.fields["title"])
    if names[-1] == "others" or len(names) > 2:
        return f"{names[0]} et al."
    return " and ".join(names)


def year(entry: Entry) -> str:
    """Return the year of a work, or "n.d."."""
    return str(entry.fields.get("year", "n.d."))


def url(entry: Entry) -> str | None:
    """Return where a work can be read: its DOI, its page at arXiv, or its URL, in that order."""
    if doi := entry.fields.get("doi"):
        return "https://doi.org/" + re.sub(r"^(https?://(dx\.)?doi\.org/|doi:)", "", doi).replace("\\_", "_")
    if entry.fields.get("archiveprefix", "arXiv").lower() == "arxiv" and (eprint := entry.fields.get("eprint")):
        return f"https://arxiv.org/abs/{eprint.removeprefix('arXiv:')}"
    if address := entry.fields.get("url"):
        return str(address).replace("\\_", "_").replace("\\%", "%")
    match = ARXIV.search(" ".join(str(entry.fields.get(name, "")) for name in ("journal", "note", "howpublished")))
    return f"https://arxiv.org/abs/{match['id']}" if match else None


def _people(entry: Entry) -> list[Person]:
    return entry.persons.get("author") or entry.persons.get("editor") or []


def _last_name(person: Person) -> str:
    return _plain(" ".join([*person.prelast_names, *person.last_names]))


def _everyone(entry: Entry) -> str:
    names = [_whole_name(person) for person in _people(entry)]
    if not names:
        return authors(entry)
    if names[-1] == "others":
        return ", ".join(names[:-1]) + " et al."
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _whole_name(person: Person) -> str:
    given = [*person.first_names, *person.middle_names]
    return " ".join(filter(None, [_plain(" ".join(given)), _last_name(person), _plain(" ".join(person.lineage_names))]))


def _plain(latex: Any) -> str:
    """Turn LaTeX into text: accents become letters, grouping braces go."""
    return " ".join(Text.from_latex(str(latex)).render(PLAIN).replace("\N{NO-BREAK SPACE}", " ").split())


def _title(entry: Entry) -> str:
    title = _plain(entry.fields["title"])
    return _linked(entry, title) + ("" if title.endswith((".", "?", "!")) else ".")


def _linked(entry: Entry, text: str) -> str:
    where = url(entry)
    return f"[{text}]({where.replace('(', '%28').replace(')', '%29')})" if where else text
