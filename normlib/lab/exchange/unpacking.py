"""Reading a bundle as something that others wrote: everything in it is verified, and nothing is unpacked to a path."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from normlib.errors import NormlibError
from normlib.lab.exchange.bundles import BUNDLE_SCHEMA, MANIFEST, MEMBER, Bundle, Finding, Line, Manifest, Member, plain
from normlib.lab.records.record import SCHEMA, UNUSABLE, Record
from normlib.lab.table import check_columns

LARGEST = 1 << 26
"""Bytes that one member may unpack to; the records of the whole book have a fiftieth of that."""
LARGEST_MANIFEST = 1 << 20
MOST_FINDINGS = 1000
"""Faults after which the rest of a member is not read."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
UNREADABLE = (KeyError, ValueError, EOFError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error)
KINDS: dict[str, tuple[type, ...]] = {
    "study": (str,), "preset": (str,), "config": (dict,), "seed": (int,), "code": (str,), "status": (str,),
    "reason": (str, type(None)), "table": (dict,), "device": (str,), "dtype": (str,), "start": (str,), "seconds": (int, float),
    "peak_mb": (int, float), "commit": (str, type(None)), "dirty": (bool,), "versions": (dict,), "notes": (dict,),
    "schema": (int,),
}  # fmt: skip
"""What each field of a record may be."""


def read_bundle(source: Path | str) -> Bundle:
    """Read a bundle and verify it against itself: digests of the members, checksums and keys of the lines, names, schemas.

    Two faults are told apart. *damaged*: it is not what was written (a digest or a checksum that does not fit, a member that the
    manifest names and the file lacks). *foreign*: it is sound and does not belong (a newer schema, another study than the
    member's, a member that the manifest does not name, a name that leads out of the bundle).

    What a hostile file can cost is bounded: a member is read up to 64 MiB, to the number of lines that the manifest gives it,
    and to its thousandth fault.

    Raises:
        NormlibError: the file is no bundle at all, or its manifest cannot be used.
    """
    try:
        with zipfile.ZipFile(source) as file:
            manifest = _read_manifest(source, file)
            bundle = Bundle(manifest, [], _strays(manifest, file))
            for member in {member.name: member for member in manifest.members}.values():
                _read_member(file, member, bundle)
            return bundle
    except OSError as error:
        raise NormlibError(f"the bundle {source} could not be read: {error}") from error
    except (NotImplementedError, RuntimeError, *UNREADABLE) as error:
        why = plain(str(error))
        raise NormlibError(f"{source} is no bundle of records: {why}; `normlib export FILE` writes one") from error


def _read_manifest(source: Path | str, file: zipfile.ZipFile) -> Manifest:
    if MANIFEST not in file.namelist():
        raise NormlibError(f"{source} is no bundle of records: it has no {MANIFEST}; `normlib export FILE` writes one")
    try:
        body = json.loads(_content(file, MANIFEST, LARGEST_MANIFEST))
        if body["bundle"] > BUNDLE_SCHEMA:
            raise NormlibError(
                f"{source} is a bundle of schema {body['bundle']}, this normlib reads up to {BUNDLE_SCHEMA}: update normlib"
            )
        members = [Member(**member) for member in body.pop("members")]
        if not all(isinstance(m.name, str) and type(m.lines) is int and isinstance(m.sha256, str) for m in members):
            raise ValueError("a member's name, lines or sha256 has the wrong type")
        return Manifest(**body, members=members)
    except (TypeError, RecursionError, *UNREADABLE) as error:
        why = plain(f"{type(error).__name__}: {error}")
        raise NormlibError(f"the {MANIFEST} of {source} cannot be used: {why}") from error


def _strays(manifest: Manifest, file: zipfile.ZipFile) -> list[Finding]:
    """Name the members that the manifest does not, and those that there are twice."""
    named = {MANIFEST, *(member.name for member in manifest.members)}
    twice = [name for name, count in Counter(file.namelist()).items() if count > 1]
    twice += [name for name, count in Counter(member.name for member in manifest.members).items() if count > 1]
    return [
        *(Finding("foreign", name, None, "the manifest does not name it") for name in file.namelist() if name not in named),
        *(Finding("damaged", name, None, "the bundle holds this name twice") for name in twice),
    ]


def _content(file: zipfile.ZipFile, name: str, largest: int) -> bytes:
    """Unpack one member into memory, up to a size that no bundle has."""
    entry = file.getinfo(name)
    if entry.compress_type not in METHODS:
        raise ValueError(f"it is packed by method {entry.compress_type}; only stored and deflated members are read")
    if entry.file_size > largest:
        raise ValueError(f"it unpacks to more than {largest >> 20} MiB")
    with file.open(entry) as stream:
        return stream.read(entry.file_size + 1)  # with a size, nothing beyond it is unpacked


def _read_member(file: zipfile.ZipFile, member: Member, bundle: Bundle) -> None:
    def find(fault: str, reason: str) -> None:
        bundle.findings.append(Finding(fault, member.name, None, reason))

    if MEMBER.fullmatch(member.name) is None:
        return find("foreign", "its name is none of a file of records (records/STUDY/PRESET.jsonl); it was not read")
    try:
        content = _content(file, member.name, LARGEST)
    except UNREADABLE as error:
        return find("damaged", f"it could not be read: {error}")
    count = content.count(b"\n") + (content[-1:] not in (b"", b"\n"))
    other = f"it has {count} lines, the manifest says {member.lines}"
    if hashlib.sha256(content).hexdigest() != member.sha256:
        find("damaged", "its SHA-256 is not the one in the manifest: it was changed after it was written")
        if count > member.lines:
            return find("damaged", f"{other}: none was read")
    elif count != member.lines:
        find("damaged", other)
    return _read_lines(content, member, bundle)


def _read_lines(content: bytes, member: Member, bundle: Bundle) -> None:
    before = len(bundle.findings)
    for number, line in zip(range(1, member.lines + 1), io.BytesIO(content), strict=False):
        if len(bundle.findings) - before >= MOST_FINDINGS:
            bundle.findings.append(Finding("damaged", member.name, None, f"it was read up to its fault {MOST_FINDINGS}"))
            return
        read = _read_line(line, member.name, number)
        if isinstance(read, Line):
            bundle.lines.append(read)
        else:
            bundle.findings.append(read)


def _read_line(line: bytes, member: str, number: int) -> Line | Finding:
    if not line.endswith(b"\n"):
        return Finding("damaged", member, number, f"it is torn ({len(line)} bytes)")
    try:
        record = _record(line[:-1])
    except (NormlibError, *UNUSABLE) as error:
        return Finding("foreign" if _is_newer(line) else "damaged", member, number, str(error))
    if member != f"records/{record.study}/{record.preset}.jsonl":
        return Finding("foreign", member, number, f"it is a record of {record.study} at {record.preset}")
    return Line(member, number, record)


def _record(line: bytes) -> Record:
    """Read a line, and verify what `Record.from_line` takes on trust, so that nothing can stop the record later.

    These are the kinds of the fields, the columns, the key, and that the record is written again with the same content.
    """
    record = Record.from_line(line.decode("utf-8"))
    for name, kinds in KINDS.items():
        _check_kind(name, getattr(record, name), kinds)
    for name, version in record.versions.items():
        _check_kind(f"version of {name}", version, (str,))
    if record.status not in ("ok", "diverged"):
        raise ValueError(f"its status is {record.status!r}, not ok or diverged")
    check_columns(record.study, {**record.config, "seed": record.seed, "status": record.status}, record.table)
    body, again = json.loads(line), json.loads(record.to_line())
    if body["key"] != record.key:
        raise ValueError("its key does not fit its content")
    if other := sorted(name for name in body.keys() - {"check"} if body[name] != again[name]):
        raise ValueError(f"its {other[0]} is none that a record can hold as it is")
    return record


def _check_kind(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"its {name} is {value!r}")


def _is_newer(line: bytes) -> bool:
    try:
        return bool(json.loads(line)["schema"] > SCHEMA)
    except UNUSABLE:
        return False
