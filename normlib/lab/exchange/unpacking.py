"""Reading a bundle as something that others wrote: everything in it is verified, and nothing is unpacked to a path."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from normlib.errors import NormlibError
from normlib.lab.exchange.bundles import BUNDLE_SCHEMA, MANIFEST, MEMBER, Bundle, Finding, Line, Manifest, Member
from normlib.lab.records.record import SCHEMA, UNUSABLE, Record

LARGEST = 1 << 30
"""Bytes that one member may unpack to; the records of the whole book have a fiftieth of that."""
UNREADABLE = (KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def read_bundle(source: Path | str) -> Bundle:
    """Read a bundle and verify it against itself: digests of the members, checksums and keys of the lines, names, schemas.

    Two faults are told apart. *damaged*: it is not what was written (a digest or a checksum that does not fit, a member that the
    manifest names and the file lacks). *foreign*: it is sound and does not belong (a newer schema, another study than the
    member's, a member that the manifest does not name, a name that leads out of the bundle).

    Raises:
        NormlibError: the file is no bundle at all, or its manifest cannot be used.
    """
    try:
        with zipfile.ZipFile(source) as file:
            manifest = _read_manifest(source, file)
            bundle = Bundle(manifest, [], _strays(manifest, file))
            for member in manifest.members:
                _read_member(file, member, bundle)
            return bundle
    except OSError as error:
        raise NormlibError(f"the bundle {source} could not be read: {error}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise NormlibError(f"{source} is no bundle of records: {error}; `normlib export FILE` writes one") from error


def _read_manifest(source: Path | str, file: zipfile.ZipFile) -> Manifest:
    if MANIFEST not in file.namelist():
        raise NormlibError(f"{source} is no bundle of records: it has no {MANIFEST}; `normlib export FILE` writes one")
    try:
        body = json.loads(_content(file, MANIFEST))
        if body["bundle"] > BUNDLE_SCHEMA:
            raise NormlibError(
                f"{source} is a bundle of schema {body['bundle']}, this normlib reads up to {BUNDLE_SCHEMA}: update normlib"
            )
        members = [Member(**member) for member in body.pop("members")]
        if not all(isinstance(m.name, str) and isinstance(m.lines, int) and isinstance(m.sha256, str) for m in members):
            raise ValueError("a member's name, lines or sha256 has the wrong type")
        return Manifest(**body, members=members)
    except (TypeError, RecursionError, *UNREADABLE) as error:
        raise NormlibError(f"the {MANIFEST} of {source} cannot be used: {type(error).__name__}: {error}") from error


def _strays(manifest: Manifest, file: zipfile.ZipFile) -> list[Finding]:
    """Name the members that the manifest does not, and those that there are twice."""
    named = {MANIFEST, *(member.name for member in manifest.members)}
    twice = [name for name, count in Counter(file.namelist()).items() if count > 1]
    twice += [name for name, count in Counter(member.name for member in manifest.members).items() if count > 1]
    return [
        *(Finding("foreign", name, None, "the manifest does not name it") for name in file.namelist() if name not in named),
        *(Finding("damaged", name, None, "the bundle holds this name twice") for name in twice),
    ]


def _read_member(file: zipfile.ZipFile, member: Member, bundle: Bundle) -> None:
    def find(fault: str, reason: str, line: int | None = None) -> None:
        bundle.findings.append(Finding(fault, member.name, line, reason))

    parts = MEMBER.fullmatch(member.name)
    if parts is None:
        return find("foreign", "its name is none of a file of records (records/STUDY/PRESET.jsonl); it was not read")
    try:
        content = _content(file, member.name)
    except UNREADABLE as error:
        return find("damaged", f"it could not be read: {error}")
    if hashlib.sha256(content).hexdigest() != member.sha256:
        find("damaged", "its SHA-256 is not the one in the manifest: it was changed after it was written")
    lines = content.split(b"\n")
    if torn := lines.pop():
        find("damaged", f"it is torn ({len(torn)} bytes)", len(lines) + 1)
    for number, line in enumerate(lines, start=1):
        try:
            record = _record(line)
        except UNUSABLE as error:
            find("foreign" if _is_newer(line) else "damaged", str(error), number)
            continue
        if (record.study, record.preset) != (parts["study"], parts["preset"]):
            find("foreign", f"it is a record of {record.study} at {record.preset}", number)
        else:
            bundle.lines.append(Line(member.name, number, record))
    return None


def _content(file: zipfile.ZipFile, name: str) -> bytes:
    """Unpack one member into memory, up to a size that no bundle has."""
    with file.open(name) as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it unpacks to more than {LARGEST >> 20} MiB")
    return content


def _record(line: bytes) -> Record:
    """Read a line, and verify what `Record.from_line` takes on trust: the key and the kinds of the fields."""
    record = Record.from_line(line.decode("utf-8"))
    kinds: dict[str, type | tuple[type, ...]] = {
        "study": str, "preset": str, "config": dict, "seed": int, "code": str, "table": dict, "device": str, "start": str,
        "seconds": (int, float), "versions": dict, "notes": dict,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(getattr(record, name), kind):
            raise ValueError(f"its {name} is {getattr(record, name)!r}")
    if record.status not in ("ok", "diverged"):
        raise ValueError(f"its status is {record.status!r}, not ok or diverged")
    if json.loads(line)["key"] != record.key:
        raise ValueError("its key does not fit its content")
    return record


def _is_newer(line: bytes) -> bool:
    try:
        return int(json.loads(line)["schema"]) > SCHEMA
    except UNUSABLE:
        return False
