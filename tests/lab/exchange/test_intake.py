"""Taking a bundle in: all or nothing, once, and each line that is left out is named."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from bundle_files import forged, members_of, pack, resealed
from bundle_worker import take_bundle

from normlib.errors import NormlibError
from normlib.lab import Record, Store, Study
from normlib.lab.exchange.bundles import Finding, write_bundle
from normlib.lab.exchange.intake import RefusedBundleError, summary, take

Make = Callable[..., Record]
NAME = "records/toy.travelling/laptop.jsonl"


def trial(c: Any, seed: int) -> dict[str, Any]:
    return {"x": c.size * seed}


@pytest.fixture
def studies() -> Iterator[dict[str, Study]]:
    declared = Study(
        "toy.travelling", item="none", title="a title", kind="exact", vary={"arm": ["a", "b"]}, quick={"size": 1},
        laptop={"size": 2}, full=None,
    )  # fmt: skip
    declared.trial(trial)
    yield {declared.id: declared}
    del Study.instances["toy.travelling"]


@pytest.fixture
def records(studies: dict[str, Study], make_record: Make) -> list[Record]:
    study = studies["toy.travelling"]
    trials = study.trials("laptop")
    return [make_record(study=study.id, preset="laptop", config=c, seed=s, code=study.code(c)) for c, s in trials]


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Path]:
    """Write records into a bundle, through a folder of another machine."""

    def export(records: list[Record]) -> Path:
        elsewhere = Store(tmp_path / "elsewhere")
        elsewhere.append_all(records)
        write_bundle(tmp_path / "bundle.zip", elsewhere, {r.study for r in records}, {r.preset for r in records})
        return tmp_path / "bundle.zip"

    return export


def tamper(bundle: Path, old: bytes, new: bytes) -> Path:
    """Replace text in the lines, and leave the manifest as it is."""
    with zipfile.ZipFile(bundle) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(bundle, "w") as file:
        for name, content in members.items():
            file.writestr(name, content.replace(old, new, 1) if name == NAME else content)
    return bundle


def test_records_arrive_as_they_left_and_only_once(
    store: Store, studies: dict[str, Study], records: list[Record], export: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = export(records)
    found = take(bundle, store, studies)
    assert (found.taken, found.findings) == (records, [])
    path = store.path("toy.travelling", "laptop")
    before = path.read_bytes()
    assert before == Store(tmp_path / "elsewhere").path("toy.travelling", "laptop").read_bytes()
    again = take(bundle, store, studies)
    assert (again.taken, again.count("duplicate")) == ([], len(records))
    assert {str(f) for f in again.findings} == {
        f"{NAME}:{n}: duplicate, its trial has a finished record already" for n in range(1, 7)
    }
    assert path.read_bytes() == before


def test_only_what_is_new_is_taken(
    store: Store, studies: dict[str, Study], records: list[Record], export: Callable[..., Path]
) -> None:
    own = dataclasses.replace(records[1], device="mine")
    store.append(own)
    found = take(export(records), store, studies)
    assert found.taken == [records[0], *records[2:]]
    assert [(f.fault, f.line) for f in found.findings] == [("duplicate", 2)]
    assert own in store.read("toy.travelling", "laptop")


@pytest.mark.parametrize("old", [b'"x":[1.0,2.0]', b'"seed":0', b'"device":"a processor"'])
def test_one_tampered_line_refuses_all_and_its_place_is_told(
    store: Store, studies: dict[str, Study], records: list[Record], export: Callable[..., Path], old: bytes
) -> None:
    bundle = tamper(export(records), old, old.replace(b"1.0", b"9.0").replace(b":0", b":8").replace(b"a p", b"b p"))
    with pytest.raises(RefusedBundleError, match=r"refused and nothing was written") as caught:
        take(bundle, store, studies)
    assert f"{NAME}:1: damaged, its checksum does not fit" in str(caught.value)
    assert "Take the 5 sound records with --keep-sound" in str(caught.value)
    assert {f.line for f in caught.value.findings} == {None, 1}
    assert not store.folder.exists()
    found = take(bundle, store, studies, keep_sound=True)
    assert found.taken == records[1:]
    assert found.count("damaged") == 2


def test_a_record_that_no_store_could_hold_stops_all_before_anything_is_written(
    store: Store, studies: dict[str, Study], records: list[Record], export: Callable[..., Path], tmp_path: Path
) -> None:
    members = members_of(export(records))
    lines = members[NAME].splitlines()
    members[NAME] = b"\n".join([*lines[:-1], forged(lines[-1], table={"x": {"a": 1}}), b""])
    bundle = pack(tmp_path / "forged.zip", resealed(members))
    with pytest.raises(RefusedBundleError, match=f"{NAME}:6: damaged, a trial returned dict"):
        take(bundle, store, studies)
    assert not store.folder.exists()
    assert take(bundle, store, studies, keep_sound=True).taken == records[:-1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"study": "toy.travelin"}, "there is no study named 'toy.travelin'; did you mean 'toy.travelling'"),
        ({"preset": "full"}, "there is no preset of toy.travelling named 'full'"),
    ],
)
def test_what_this_normlib_does_not_know_refuses_all(
    store: Store,
    studies: dict[str, Study],
    records: list[Record],
    export: Callable[..., Path],
    changes: dict[str, str],
    reason: str,
) -> None:
    bundle = export([*records, dataclasses.replace(records[0], **changes)])
    with pytest.raises(RefusedBundleError, match="unknown, ") as caught:
        take(bundle, store, studies)
    assert reason in str(caught.value)
    assert not store.folder.exists()
    assert len(take(bundle, store, studies, keep_sound=True).taken) == len(records)


def test_what_other_code_measured_is_left_out_or_taken(
    store: Store, studies: dict[str, Study], records: list[Record], export: Callable[..., Path]
) -> None:
    older = dataclasses.replace(records[0], code="0123456789abcdef")
    gone = dataclasses.replace(records[1], config={"arm": "c", "size": 2})
    bundle = export([older, gone, *records[2:]])
    found = take(bundle, store, studies)
    assert found.taken == records[2:]
    assert summary(found.findings) == [
        f"{NAME}:1: stale, it was measured by other code than there is here",
        f"{NAME}:2: stale, the preset has no such settings",
    ]
    more = take(bundle, store, studies, stale=True)
    assert more.taken == [older, gone]
    assert more.count("stale") == 0


def test_an_empty_bundle_is_taken_and_changes_nothing(store: Store, studies: dict[str, Study], tmp_path: Path) -> None:
    body = {"bundle": 1, "normlib": "0", "commit": None, "dirty": False, "created": "", "members": []}
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("manifest.json", json.dumps(body))
    found = take(tmp_path / "b.zip", store, studies)
    assert (found.taken, found.findings) == ([], [])
    assert not store.folder.exists()


def test_a_folder_that_cannot_be_written_is_told(
    studies: dict[str, Study], records: list[Record], export: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NormlibError, match=r"the 6 records of toy\.travelling could not be written"):
        take(export(records), Store(tmp_path / "file"), studies)


def test_two_processes_take_one_bundle_at_once(
    store: Store, export: Callable[..., Path], make_record: Make, pool: Executor
) -> None:
    bundle = export([make_record(study="toy.noise", config={"arm": arm}, seed=s) for s in range(20) for arm in (1, 2, 3)])
    futures = [pool.submit(take_bundle, str(bundle), str(store.folder)) for _ in range(2)]
    assert sum(future.result(timeout=60) for future in futures) == 60
    assert len(store.path("toy.noise", "quick").read_bytes().splitlines()) == 60
    assert len(store.read("toy.noise", "quick")) == 60


def test_findings_are_told_in_few_lines() -> None:
    findings = [Finding("stale", "a", n, "old") for n in (5, 1, 2, 3)] + [Finding("damaged", "a", None, "torn")]
    assert summary(findings) == ["a:1-3,5: stale, old", "a: damaged, torn"]
