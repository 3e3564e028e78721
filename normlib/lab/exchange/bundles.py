"""Bundles: records that travel, in one zip file, each line byte for byte as it was written.

A bundle holds `records/<study>/<preset>.jsonl` and `manifest.json`, which names the schema of the bundle, who wrote it, and the
size and the SHA-256 of each member. Nothing in it is ever executed or unpacked to a path: members are read as text, line by line.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from normlib.errors import NormlibError
from normlib.lab.code.provenance import git_state
from normlib.lab.records.record import Record
from normlib.lab.records.store import Store, read_lines

BUNDLE_SCHEMA = 1
MANIFEST = "manifest.json"
MEMBER = re.compile(r"records/(?P<study>[\w-]+\.[\w-]+)/(?P<preset>[\w-]+)\.jsonl")


@dataclass(frozen=True)
class Member:
    """What the manifest says of one file of records."""

    name: str
    study: str
    preset: str
    lines: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Who wrote a bundle, when, by which code, and what is in it."""

    bundle: int
    normlib: str
    commit: str | None
    dirty: bool
    created: str
    members: list[Member]

    @property
    def lines(self) -> int:
        """The number of records."""
        return sum(member.lines for member in self.members)


def plain(text: str, longest: int = 500) -> str:
    r"""Make text that others wrote fit to be printed: control characters are escaped, and what is too long is cut.

    Example:
        >>> plain("a\x1b[2Jb é")
        'a\\x1b[2Jb é'
        >>> plain("abcdef", longest=3)
        'abc…'
    """
    start = text[:longest]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in start)
    return shown + ("…" if len(text) > longest else "")


@dataclass(frozen=True)
class Finding:
    """Something that a bundle holds and that was not taken as it is.

    Args:
        fault: "damaged" or "foreign" (found when a bundle is opened), "unknown", "duplicate" or "stale" (when it is taken in).
        member: the member's name in the bundle.
        line: the line, from 1; None where the whole member is meant.
        reason: what is wrong with it.
    """

    fault: str
    member: str
    line: int | None
    reason: str

    def __str__(self) -> str:
        return plain(f"{self.member}{'' if self.line is None else f':{self.line}'}: {self.fault}, {self.reason}")


@dataclass(frozen=True)
class Line:
    """A record whose line is sound, and where it stands in the bundle."""

    member: str
    line: int
    record: Record


@dataclass(frozen=True)
class Bundle:
    """The sound lines of a bundle and everything that is wrong with the rest."""

    manifest: Manifest
    lines: list[Line]
    findings: list[Finding]

    @property
    def records(self) -> list[Record]:
        """The sound records."""
        return [line.record for line in self.lines]


def write_bundle(
    target: Path | str, store: Store, studies: Iterable[str], presets: Iterable[str], created: str | None = None
) -> Manifest:
    """Write the store's own records, without failed trials, into one file; the same records and date give the same bytes.

    The records of the read-only folders stay out: they came with the code. The file appears whole or not at all.

    Args:
        target: the file to write; one that is there is replaced.
        store: where the records are.
        studies: ids of studies.
        presets: names of presets.
        created: date and time to note; now if not given.

    Raises:
        NormlibError: there are no records, or the file cannot be written.
    """
    presets = list(presets)
    files: dict[Member, bytes] = {}
    for study in sorted(set(studies)):
        for preset in sorted(set(presets)):
            newest = {record.key: line for line, record in read_lines(store.path(study, preset)) if record.status != "failed"}
            if newest:
                content = b"".join(line + b"\n" for line in newest.values())
                name = f"records/{study}/{preset}.jsonl"
                files[Member(name, study, preset, len(newest), hashlib.sha256(content).hexdigest())] = content
    if not files:
        raise NormlibError(f"there are no records to export in {store.folder}; name another folder with --results, or run a study")
    manifest = _manifest(list(files), created)
    _write_zip(Path(target), {MANIFEST: _json(asdict(manifest)), **{m.name: content for m, content in files.items()}})
    return manifest


def _manifest(members: list[Member], created: str | None) -> Manifest:
    from normlib import __version__

    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    commit, dirty = git_state()
    return Manifest(BUNDLE_SCHEMA, __version__, commit, dirty, created or now, members)


def _json(body: Any) -> bytes:
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _write_zip(target: Path, members: dict[str, bytes]) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        try:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
                for name, content in members.items():
                    entry = zipfile.ZipInfo(name)  # its date is a constant
                    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
                    file.writestr(entry, content)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise NormlibError(f"the bundle could not be written to {target}: {error}") from error
