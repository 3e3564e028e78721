"""Bundles made to harm: what they cost is bounded, what they say is printed plainly, and nothing of them gets in."""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_files import NAME, forged, manifest, members_of, pack, resealed

from normlib.errors import NormlibError
from normlib.lab.exchange.bundles import MANIFEST, Finding
from normlib.lab.exchange.intake import summary
from normlib.lab.exchange.unpacking import MOST_FINDINGS, read_bundle

# -- members -------------------------------------------------------------------------------------------------------------


def test_a_member_that_was_changed_is_named_and_its_sound_lines_are_still_told_apart(changed: Callable[..., Path]) -> None:
    found = read_bundle(changed(lambda line: line.replace(b'"seed":1', b'"seed":2'), seal=False))
    assert [(f.fault, f.line) for f in found.findings] == [("damaged", None), ("damaged", 2)]
    assert "SHA-256" in found.findings[0].reason
    assert len(found.records) == 2


def test_a_line_that_was_taken_out_is_seen(bundle: Path, tmp_path: Path) -> None:
    members = members_of(bundle)
    members[NAME] = b"".join(members[NAME].splitlines(keepends=True)[:2])
    [finding] = read_bundle(pack(tmp_path / "b.zip", members)).findings
    assert "SHA-256" in finding.reason


def test_a_torn_member_is_named(bundle: Path, tmp_path: Path) -> None:
    members = members_of(bundle)
    members[NAME] = members[NAME][:-20]
    found = read_bundle(pack(tmp_path / "b.zip", resealed(members)))
    assert [(f.fault, f.line) for f in found.findings] == [("damaged", 3)]
    assert "torn" in found.findings[0].reason


def test_a_member_that_is_missing_or_not_named_or_there_twice(bundle: Path, tmp_path: Path) -> None:
    members = members_of(bundle)
    missing = read_bundle(pack(tmp_path / "b.zip", {MANIFEST: members[MANIFEST]}))
    assert [(f.fault, f.member) for f in missing.findings] == [("damaged", NAME)]
    stray = read_bundle(pack(tmp_path / "b.zip", {**members, "extra.txt": b""}))
    assert [(f.fault, f.member) for f in stray.findings] == [("foreign", "extra.txt")]
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(bundle, "a") as file:
        file.writestr(NAME, members[NAME])
    assert "twice" in read_bundle(bundle).findings[0].reason


ESCAPES = [
    "../../evil.jsonl",
    "/etc/evil.jsonl",
    "records/../toy.record/quick.jsonl",
    "records/toy.record/../../x.jsonl",
    "records\\toy.record\\quick.jsonl",
    "records/toy.record/quick.jsonl/",
    "records/toy/quick.jsonl",
    "C:/x.jsonl",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_leads_elsewhere_is_not_read(bundle: Path, tmp_path: Path, name: str) -> None:
    members = members_of(bundle)
    body = json.loads(members.pop(MANIFEST))
    body["members"][0]["name"] = name
    found = read_bundle(pack(tmp_path / "b.zip", {MANIFEST: json.dumps(body).encode(), name: members[NAME]}))
    assert found.records == []
    assert ("foreign", name) in [(f.fault, f.member) for f in found.findings]


def test_a_damaged_archive_is_told(bundle: Path, tmp_path: Path) -> None:
    content = bytearray(bundle.read_bytes())
    with zipfile.ZipFile(bundle) as file:
        start = file.getinfo(NAME).header_offset + 30 + len(NAME)
    for offset in (5, 60, 100):
        content[start + offset] ^= 0xFF
        (tmp_path / "b.zip").write_bytes(content)
        found = read_bundle(tmp_path / "b.zip")
        assert [(f.fault, f.member) for f in found.findings] == [("damaged", NAME)]
        assert found.records == []


def test_a_member_that_unpacks_without_end_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normlib.lab.exchange.unpacking.LARGEST", 1000)
    [finding] = read_bundle(bundle).findings
    assert (finding.fault, finding.member) == ("damaged", NAME)
    assert "unpacks to more than" in finding.reason


# -- what reading costs --------------------------------------------------------------------------------------------------


def renumbered(members: dict[str, bytes], lines: int) -> dict[str, bytes]:
    """Let the manifest give the member another number of lines."""
    body = json.loads(members[MANIFEST])
    body["members"][0]["lines"] = lines
    return {**members, MANIFEST: json.dumps(body).encode()}


BOMB = b"\n" * 3_000_000


def test_a_bomb_of_line_ends_that_was_put_in_is_not_read(bundle: Path, tmp_path: Path) -> None:
    found = read_bundle(pack(tmp_path / "b.zip", {**members_of(bundle), NAME: BOMB}))
    assert [f.line for f in found.findings] == [None, None]
    assert "SHA-256" in found.findings[0].reason
    assert found.findings[1].reason == "it has 3000000 lines, the manifest says 3: none was read"


def test_a_bomb_of_line_ends_is_read_up_to_its_thousandth_fault(bundle: Path, tmp_path: Path) -> None:
    members = resealed({**members_of(bundle), NAME: BOMB})
    start = time.process_time()
    few = read_bundle(pack(tmp_path / "few.zip", members))
    many = read_bundle(pack(tmp_path / "many.zip", renumbered(members, len(BOMB))))
    assert time.process_time() - start < 5
    assert [f.line for f in few.findings] == [None, 1, 2, 3]
    assert [f.line for f in many.findings] == [*range(1, MOST_FINDINGS + 1), None]
    assert "up to its fault 1000" in many.findings[-1].reason


@pytest.mark.parametrize("lines", [2, 4, -1])
def test_another_number_of_lines_than_the_manifest_says_is_told(bundle: Path, tmp_path: Path, lines: int) -> None:
    found = read_bundle(pack(tmp_path / "b.zip", renumbered(members_of(bundle), lines)))
    assert found.findings == [Finding("damaged", NAME, None, f"it has 3 lines, the manifest says {lines}")]
    assert len(found.records) == max(0, min(lines, 3))


def test_a_member_that_is_named_twice_is_read_once(bundle: Path, tmp_path: Path) -> None:
    members = members_of(bundle)
    body = json.loads(members[MANIFEST])
    members[MANIFEST] = json.dumps({**body, "members": body["members"] * 2}).encode()
    found = read_bundle(pack(tmp_path / "b.zip", members))
    assert [f.reason for f in found.findings] == ["the bundle holds this name twice"]
    assert len(found.records) == 3


def test_a_manifest_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NormlibError, match="unpacks to more than 1 MiB"):
        read_bundle(pack(tmp_path / "b.zip", {MANIFEST: b" " * ((1 << 20) + 1)}))


# -- archives of another make --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_member_packed_by_another_method_is_not_unpacked(bundle: Path, tmp_path: Path, method: int) -> None:
    members = members_of(bundle)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr(MANIFEST, members[MANIFEST])
        file.writestr(NAME, members[NAME], method)
    [finding] = read_bundle(tmp_path / "b.zip").findings
    assert (finding.fault, finding.member) == ("damaged", NAME)
    assert f"packed by method {method}" in finding.reason


def test_a_member_that_hides_how_long_it_is_is_told(bundle: Path, tmp_path: Path) -> None:
    content = bundle.read_bytes()
    with zipfile.ZipFile(bundle) as file:
        size = file.getinfo(NAME).file_size.to_bytes(4, "little")
    (tmp_path / "b.zip").write_bytes(content.replace(size, (10).to_bytes(4, "little")))
    [finding] = read_bundle(tmp_path / "b.zip").findings
    assert (finding.fault, finding.member) == ("damaged", NAME)


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    pack(tmp_path / "b.zip", {MANIFEST: manifest(), "é": b""})
    content = (tmp_path / "b.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(content.replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(NormlibError, match="is no bundle of records: 'utf-8' codec can't decode"):
        read_bundle(tmp_path / "b.zip")


# -- what is printed -----------------------------------------------------------------------------------------------------


def test_what_a_bundle_says_cannot_steer_the_terminal(bundle: Path, tmp_path: Path) -> None:
    members = members_of(bundle)
    found = read_bundle(pack(tmp_path / "b.zip", {**members, "a\x1b[2J\u202e\n": b""}))
    for text in (*summary(found.findings), *map(str, found.findings)):
        assert text == "a\\x1b[2J\\u202e\\n: foreign, the manifest does not name it"
    with pytest.raises(NormlibError) as caught:
        read_bundle(pack(tmp_path / "b.zip", {MANIFEST: manifest(**{"\x1b[2J": 1})}))
    assert "\\x1b[2J" in str(caught.value)
    assert str(caught.value).isprintable()


# -- records that no store could hold ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"table": {"x": {"a": 1}}}, "a trial returned dict"),
        ({"table": {"x": [1, 2], "y": [1, 2, 3]}}, r"different lengths: \[2, 3\]"),
        ({"table": {"depth": 4}}, r"named like settings: \['depth'\]"),
        ({"table": {"x": 1.23456789}}, "its table is none that a record can hold as it is"),
        ({"table": {"x": [{}]}}, "a trial returned dict"),
        ({"commit": 5}, "its commit is 5"),
        ({"dtype": [1]}, r"its dtype is \[1\]"),
        ({"reason": {}}, "its reason is {}"),
        ({"dirty": 1}, "its dirty is 1"),
        ({"seed": True}, "its seed is True"),
        ({"seconds": "1"}, "its seconds is '1'"),
        ({"peak_mb": [1.0]}, r"its peak_mb is \[1.0\]"),
        ({"status": ["ok"]}, r"its status is \['ok'\]"),
        ({"versions": {"torch": 2}}, "its version of torch is 2"),
        ({"notes": []}, r"its notes is \[\]"),
        ({"config": []}, r"its config is \[\]"),
        ({"schema": True}, "its schema is True"),
        ({"schema": None}, "not supported between"),
    ],
)
def test_a_record_that_no_store_could_hold_is_damaged(changed: Callable[..., Path], changes: Any, reason: str) -> None:
    found = read_bundle(changed(lambda line: forged(line, **changes)))
    assert [line.line for line in found.lines] == [1, 3]
    [finding] = found.findings
    assert (finding.fault, finding.line) == ("damaged", 2)
    assert re.search(reason, finding.reason)


def test_a_schema_without_end_is_newer(changed: Callable[..., Path]) -> None:
    [finding] = read_bundle(changed(lambda line: line.replace(b'"schema":1', b'"schema":1e999'))).findings
    assert (finding.fault, finding.line) == ("foreign", 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"table": {}}, {"table": {"x": None, "y": ["inf", None, True, "text"]}}, {"table": {"x": [[1, 2], [3]]}},
        {"peak_mb": None}, {"commit": None, "reason": "why"}, {"notes": {"deep": [{"a": None}]}}, {"seconds": 1},
    ],
)  # fmt: skip
def test_a_record_of_any_sound_kind_is_read(changed: Callable[..., Path], changes: Any) -> None:
    found = read_bundle(changed(lambda line: forged(line, **changes)))
    assert ([line.line for line in found.lines], found.findings) == ([1, 2, 3], [])
