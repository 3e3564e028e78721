"""Bundles: what is written is what is read, and every fault is named with its place."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_files import DATE, NAME, Members, forged, manifest, members_of, pack

from normlib.errors import NormlibError
from normlib.lab import Record, RecordWarning, Store
from normlib.lab.exchange.bundles import BUNDLE_SCHEMA, MANIFEST, Finding, write_bundle
from normlib.lab.exchange.unpacking import read_bundle
from normlib.lab.records.record import SCHEMA

Make = Callable[..., Record]


# -- writing -------------------------------------------------------------------------------------------------------------


def test_lines_travel_byte_for_byte(bundle: Path, store: Store, make_record: Make) -> None:
    members = members_of(bundle)
    assert members[NAME] == store.path("toy.record", "quick").read_bytes()
    manifest = json.loads(members[MANIFEST])
    assert (manifest["bundle"], manifest["created"]) == (BUNDLE_SCHEMA, DATE)
    assert manifest["members"] == [
        {
            "name": NAME, "study": "toy.record", "preset": "quick", "lines": 3,
            "sha256": hashlib.sha256(members[NAME]).hexdigest(),
        }
    ]  # fmt: skip
    found = read_bundle(bundle)
    assert (found.records, found.findings) == ([make_record(seed=seed) for seed in range(3)], [])
    assert found.manifest.lines == 3


def test_the_same_records_and_date_give_the_same_bytes(bundle: Path, tmp_path: Path, store: Store) -> None:
    write_bundle(tmp_path / "again.zip", store, ["toy.record", "toy.record", "toy.absent"], ["full", "quick"], DATE)
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_failed_and_replaced_and_damaged_lines_stay_at_home(tmp_path: Path, store: Store, make_record: Make) -> None:
    path = store.path("toy.record", "quick")
    store.append(make_record(seed=0, status="failed", reason="no luck", table={}))
    store.append(make_record(seed=1))
    newer = forged(make_record(seed=2).to_line().encode(), schema=SCHEMA + 1)
    path.write_bytes(path.read_bytes() + newer + b"\n" + make_record(seed=1, device="later").to_line().encode())
    with pytest.warns(RecordWarning, match=r"quick\.jsonl:3: skipped, .* update normlib"):
        manifest = write_bundle(tmp_path / "b.zip", store, ["toy.record"], ["quick"])
    assert manifest.lines == 1
    assert [r.device for r in read_bundle(tmp_path / "b.zip").records] == ["later"]


def test_records_that_came_with_the_code_stay_out(bundle: Path, tmp_path: Path, store: Store) -> None:
    with pytest.raises(NormlibError, match=r"no records to export in .*own"):
        write_bundle(tmp_path / "b.zip", Store(tmp_path / "own", [store.folder]), ["toy.record"], ["quick"])


def test_a_bundle_that_cannot_be_written_leaves_nothing(bundle: Path, tmp_path: Path, store: Store) -> None:
    for target in (tmp_path / "absent" / "b.zip", tmp_path):
        with pytest.raises(NormlibError, match="could not be written to"):
            write_bundle(target, store, ["toy.record"], ["quick"])
    assert not list(tmp_path.glob("*.part"))


def test_a_path_of_any_letters_and_a_huge_line(tmp_path: Path, make_record: Make) -> None:
    store = Store(tmp_path / "Ergebnisse ü λ")
    record = make_record(table={"x": list(range(300_000))}, notes={"text": "η\u2028√"})
    store.append(record)
    write_bundle(tmp_path / "bündel 层.zip", store, ["toy.record"], ["quick"])
    assert read_bundle(tmp_path / "bündel 层.zip").records == [record]


# -- what is no bundle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "it has no manifest.json"),
        ({"records/toy.record/quick.jsonl": b""}, "it has no manifest.json"),
        ({MANIFEST: b"{"}, "cannot be used: JSONDecodeError"),
        ({MANIFEST: b"[" * 100_000}, "cannot be used"),
        ({MANIFEST: b"\xff"}, "cannot be used: UnicodeDecodeError"),
        ({MANIFEST: b"[]"}, "cannot be used: TypeError"),
        ({MANIFEST: manifest(bundle=BUNDLE_SCHEMA + 1)}, "schema 2, this normlib reads up to 1: update normlib"),
        ({MANIFEST: manifest(bundle="one")}, "cannot be used: TypeError"),
        ({MANIFEST: manifest(created="gone")}, "cannot be used: TypeError.*created"),
        ({MANIFEST: manifest(members=[{"name": "x"}])}, "cannot be used: TypeError"),
        (
            {MANIFEST: manifest(members=[{"name": 3, "study": "", "preset": "", "lines": 0, "sha256": ""}])},
            "wrong type",
        ),
    ],
)
def test_a_zip_that_is_no_bundle_is_told(tmp_path: Path, members: Members, reason: str) -> None:
    with pytest.raises(NormlibError, match=reason):
        read_bundle(pack(tmp_path / "b.zip", members))


def test_a_file_that_is_no_zip_is_told(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("not a zip")
    (tmp_path / "empty.zip").write_bytes(b"")
    (tmp_path / "half.zip").write_bytes(bundle.read_bytes()[:300])
    for name in ("text.zip", "empty.zip", "half.zip"):
        with pytest.raises(NormlibError, match=f"{name} is no bundle of records"):
            read_bundle(tmp_path / name)
    for name in ("absent.zip", ""):
        with pytest.raises(NormlibError, match="could not be read"):
            read_bundle(tmp_path / name)


def test_a_bundle_without_records_is_sound_and_empty(tmp_path: Path) -> None:
    found = read_bundle(pack(tmp_path / "b.zip", {MANIFEST: manifest()}))
    assert (found.records, found.findings) == ([], [])


# -- lines that are damaged or foreign -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "fault", "reason"),
    [
        (lambda line: line.replace(b'"x":[1.0,2.0]', b'"x":[1.0,3.0]'), "damaged", "changed after it was written"),
        (lambda line: line[:50], "damaged", "Unterminated|delimiter|Expecting"),
        (lambda line: b"", "damaged", "Expecting value"),
        (lambda line: b"[]", "damaged", "not a record"),
        (lambda line: b"\xff\xfe", "damaged", "decode"),
        (lambda line: b"[" * 100_000, "damaged", "recursion"),
        (lambda line: forged(line, seed=9), "damaged", "its key does not fit"),
        (lambda line: forged(line, seed="one"), "damaged", "its seed is 'one'"),
        (lambda line: forged(line, table=[]), "damaged", "items"),
        (lambda line: forged(line, status="failed"), "damaged", "its status is 'failed'"),
        (lambda line: forged(line, colour="red"), "damaged", "colour"),
        (lambda line: forged(line, schema=SCHEMA + 1), "foreign", "update normlib"),
    ],
)
def test_a_bad_line_is_named(changed: Callable[..., Path], edit: Any, fault: str, reason: str) -> None:
    found = read_bundle(changed(edit))
    assert [line.line for line in found.lines] == [1, 3]
    [finding] = found.findings
    assert (finding.fault, finding.member, finding.line) == (fault, NAME, 2)
    assert re.search(reason, finding.reason)
    assert str(finding).startswith(f"{NAME}:2: {fault}, ")


def test_a_line_of_another_study_is_foreign(changed: Callable[..., Path], make_record: Make) -> None:
    other = make_record(study="toy.other").to_line().strip().encode()
    [finding] = read_bundle(changed(lambda _: other)).findings
    assert finding == Finding("foreign", NAME, 2, "it is a record of toy.other at quick")
