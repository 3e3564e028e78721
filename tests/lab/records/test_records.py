"""Records: what is written is what is read, and no accident makes a wrong record or loses a right one."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_studies import append_many

from normlib.errors import NormlibError
from normlib.lab import Record, RecordWarning, Store
from normlib.lab.records.record import SCHEMA, _canonical, _checksum

Make = Callable[..., Record]
STUDY = ("toy.record", "quick")


def seeds_in(store: Store) -> list[int]:
    return [record.seed for record in store.read(*STUDY)]


def rewritten(line: str, **changes: Any) -> str:
    """Change a line and give it the checksum that fits, as another version of the code would have written it."""
    body = {**json.loads(line), **changes}
    body.pop("check")
    return _canonical({**body, "check": _checksum(_canonical(body))}) + "\n"


# -- round trip ----------------------------------------------------------------------------------------------------------


def test_round_trip_keeps_everything(make_record: Make) -> None:
    record = make_record(reason="why not", versions={"torch": "2"}, notes={"data": {"name": "digits"}}, dirty=True)
    assert Record.from_line(record.to_line()) == record


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.arange(3), [0, 1, 2]),
        (np.array([[1.5, np.inf], [-np.inf, 0.0]]), [[1.5, math.inf], [-math.inf, 0.0]]),
        (np.float32(0.5), 0.5),
        (np.array(7), 7),
        (np.bool_(True), True),
        ((1, "two", False), [1, "two", False]),
        ([math.inf, -math.inf], [math.inf, -math.inf]),
        (1.23456789e-12, 1.2346e-12),
        (123456789.0, 123460000.0),
        (123456789, 123456789),
    ],
)
def test_values_come_back_as_plain_numbers_with_five_digits(make_record: Make, value: Any, expected: Any) -> None:
    found = Record.from_line(make_record(table={"x": value}).to_line()).table["x"]
    assert found == expected
    assert type(found) is type(expected)


def test_not_a_number_comes_back(make_record: Make) -> None:
    record = Record.from_line(make_record(table={"x": [1.0, math.nan], "y": None}, peak_mb=math.nan).to_line())
    assert math.isnan(record.table["x"][1])
    assert math.isnan(record.table["y"])
    assert math.isnan(record.peak_mb)


@pytest.mark.parametrize("changes", [{"table": {"x": object()}}, {"table": {"x": {"a": 1}}}, {"notes": {"x": object()}}])
def test_what_json_has_no_word_for_is_refused(make_record: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(NormlibError, match="use"):
        make_record(**changes).to_line()


def test_a_line_is_one_line_of_strict_json(make_record: Make) -> None:
    line = make_record(reason="two\nlines \u2028 λ", table={"x": [math.nan, math.inf]}).to_line()
    assert line.count("\n") == 1
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["reason"] == "two\nlines \u2028 λ"


# -- the key -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"study": "toy.other"}, {"preset": "full"}, {"config": {"norm": "layer", "depth": 3}}, {"seed": 1}, {"code": "4567"}],
)
def test_the_key_names_study_preset_config_seed_and_code(make_record: Make, changes: dict[str, Any]) -> None:
    assert make_record(**changes).key != make_record().key


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "NVIDIA H200"}, {"start": "2027-01-01"}, {"seconds": 9.0}, {"commit": None}, {"dirty": True},
        {"table": {"x": 0}}, {"status": "diverged"}, {"config": {"depth": 3, "norm": "batch"}},
    ],
)  # fmt: skip
def test_the_key_does_not_depend_on_where_or_what(make_record: Make, changes: dict[str, Any]) -> None:
    assert make_record(**changes).key == make_record().key


def test_the_key_survives_the_file(make_record: Make) -> None:
    record = make_record(config={"sizes": (2, 3), "rate": 0.1})
    assert Record.from_line(record.to_line()).key == record.key


def test_a_setting_that_cannot_be_recorded_is_told(make_record: Make) -> None:
    with pytest.raises(NormlibError, match=r"setting of toy\.record"):
        _ = make_record(config={"depth": np.int64(3)}).key


# -- damage --------------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_reported_and_mended(store: Store, make_record: Make) -> None:
    path = store.path(*STUDY)
    for seed in range(2):
        store.append(make_record(seed=seed))
    whole = path.read_bytes()
    path.write_bytes(whole + make_record(seed=2).to_line().encode()[:-20])
    with pytest.warns(RecordWarning, match=r"quick\.jsonl: the last line is torn"):
        assert seeds_in(store) == [0, 1]
    with pytest.warns(RecordWarning, match="torn"):
        store.append(make_record(seed=3))
    assert path.read_bytes() == whole + make_record(seed=3).to_line().encode()
    assert seeds_in(store) == [0, 1, 3]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda line: line[:40] + "\n", "Unterminated|delimiter|Expecting"),
        (lambda line: "\n", None),
        (lambda line: "[1, 2]\n", "not a record"),
        (lambda line: line.replace('"x":[1.0,2.0]', '"x":[1.0,3.0]'), "changed after it was written"),
        (lambda line: line.replace('"seed":1', '"seed":7'), "changed after it was written"),
        (lambda line: rewritten(line, schema=SCHEMA + 1), "update normlib"),
        (lambda line: rewritten(line, colour="red"), "colour"),
    ],
)
def test_a_damaged_line_is_named_and_skipped(store: Store, make_record: Make, damage: Any, reason: str | None) -> None:
    path = store.path(*STUDY)
    path.parent.mkdir(parents=True)
    lines = [make_record(seed=seed).to_line() for seed in range(3)]
    damaged = damage(lines[1])
    assert damaged != lines[1]
    path.write_text(lines[0] + damaged + lines[2])
    if reason is None:
        assert seeds_in(store) == [0, 2]
        return
    with pytest.warns(RecordWarning, match=rf"quick\.jsonl:2: skipped, .*({reason})"):
        assert seeds_in(store) == [0, 2]


def test_dropping_records_keeps_what_cannot_be_read(store: Store, make_record: Make) -> None:
    path = store.path(*STUDY)
    path.parent.mkdir(parents=True)
    lines = [make_record(seed=seed).to_line() for seed in range(3)]
    newer = rewritten(lines[1], schema=SCHEMA + 1)
    path.write_text(lines[0] + newer + lines[2])
    store.drop(*STUDY, lambda record: record.seed == 0)
    assert path.read_text() == newer + lines[2]
    store.drop("toy.absent", "quick", lambda record: True)
    assert not store.path("toy.absent", "quick").exists()


def test_a_record_of_a_newer_schema_is_named_and_outlives_everything(store: Store, make_record: Make) -> None:
    path = store.path(*STUDY)
    store.append(make_record(seed=0))
    newer = rewritten(make_record(seed=1).to_line(), schema=SCHEMA + 1, colour="red")
    path.write_text(path.read_text() + newer)
    with pytest.warns(RecordWarning, match=r"quick\.jsonl:2: skipped, it has schema 2, .*: update normlib"):
        assert store.append(make_record(seed=1))
    store.drop(*STUDY, lambda record: True)
    assert path.read_text() == newer


@pytest.mark.parametrize("damage", [lambda _: "[" * 100_000 + "\n", lambda line: rewritten(line, table=[])], ids=["nest", "list"])
def test_a_line_of_another_shape_is_skipped(store: Store, make_record: Make, damage: Callable[[str], str]) -> None:
    path = store.path(*STUDY)
    path.parent.mkdir(parents=True)
    path.write_text(damage(make_record().to_line()) + make_record().to_line())
    with pytest.warns(RecordWarning, match=r"quick\.jsonl:1: skipped"):
        assert seeds_in(store) == [0]


def test_bytes_that_are_no_text_are_skipped(store: Store, make_record: Make) -> None:
    path = store.path(*STUDY)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\n" + make_record().to_line().encode())
    with pytest.warns(RecordWarning, match=r"quick\.jsonl:1: skipped"):
        assert seeds_in(store) == [0]


# -- the store -----------------------------------------------------------------------------------------------------------


def test_a_finished_trial_is_written_once(store: Store, make_record: Make) -> None:
    assert store.append(make_record())
    assert not store.append(make_record(device="another machine"))
    assert [r.device for r in store.read(*STUDY)] == ["a processor"]


def test_many_are_added_at_once_and_each_trial_once(store: Store, make_record: Make) -> None:
    store.append(make_record(seed=1))
    records = [make_record(seed=seed) for seed in (0, 1, 2, 2)] + [make_record(preset="full")]
    assert store.append_all(records) == [True, False, True, False, True]
    assert seeds_in(store) == [1, 0, 2]
    assert len(store.read("toy.record", "full")) == 1
    assert store.append_all([]) == []
    assert store.append_all(records) == [False] * 5


def test_a_file_is_read_again_only_when_something_else_changed_it(
    store: Store, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = []
    original = Record.from_line
    monkeypatch.setattr(Record, "from_line", lambda line: readings.append(line) or original(line))
    for seed in range(20):
        assert store.append(make_record(seed=seed))
    assert not store.append(make_record(seed=3))
    assert readings == []
    assert Store(store.folder).append(make_record(seed=20))
    readings.clear()
    assert not store.append(make_record(seed=20))
    assert len(readings) == 21
    store.drop(*STUDY, lambda record: record.seed == 3)
    assert store.append(make_record(seed=3))


def test_what_a_later_record_replaced_is_history(store: Store, make_record: Make) -> None:
    store.append(make_record(device="the first"))
    other = Store(store.folder.parent / "other", [store.folder])
    other.append(make_record(device="the second"))
    assert [r.device for r in other.history(*STUDY)] == ["the first", "the second"]
    assert [r.device for r in other.read(*STUDY)] == ["the second"]


def test_a_failed_trial_gives_way_to_its_repetition(store: Store, make_record: Make) -> None:
    store.append(make_record(status="failed", reason="no luck", table={}))
    assert store.append(make_record())
    assert not store.append(make_record(status="failed", reason="no luck", table={}))
    assert [r.status for r in store.read(*STUDY)] == ["ok"]


def test_fallbacks_are_read_and_never_written(tmp_path: Path, make_record: Make) -> None:
    shipped, own = Store(tmp_path / "shipped"), Store(tmp_path / "own", [tmp_path / "shipped"])
    shipped.append(make_record(seed=0, commit="shipped"))
    shipped.append(make_record(seed=1))
    before = shipped.path(*STUDY).read_bytes()
    assert own.append(make_record(seed=0, commit="own"))
    assert {r.seed: r.commit for r in own.read(*STUDY)} == {0: "own", 1: "abc"}
    assert shipped.path(*STUDY).read_bytes() == before
    assert list(own.files()) == [own.path(*STUDY)]


def test_two_processes_append_at_once(store: Store, make_record: Make, pool: Executor) -> None:
    record = make_record(table={"x": list(range(2000))})
    halves = [[*range(30)], [*range(15, 45)]]
    futures = [pool.submit(append_many, str(store.folder), record, seeds) for seeds in halves]
    written = sum(sum(future.result(timeout=60)) for future in futures)
    assert written == 45
    assert sorted(seeds_in(store)) == list(range(45))
    assert len(store.path(*STUDY).read_bytes().splitlines()) == 45


# -- a disk that is full -------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_file_as_it_was(store: Store, make_record: Make) -> None:
    path = store.path(*STUDY)
    store.append(make_record())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for columns in (1000, 30_000):  # less and more than a buffer
        big = make_record(seed=1, table={"x": list(range(columns))})
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3000, hard))
        try:
            with pytest.raises(NormlibError, match=r"could not be written to .* then run the same command again"):
                store.append(big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
    assert store.append(make_record(seed=1))
    assert seeds_in(store) == [0, 1]


def test_a_full_disk_takes_all_of_many_records_or_none(store: Store, make_record: Make) -> None:
    path = store.path(*STUDY)
    store.append(make_record())
    before = path.read_bytes()
    many = [make_record(seed=seed) for seed in range(1, 20)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3000, hard))
    try:
        with pytest.raises(NormlibError, match=r"the 19 records of toy\.record could not be written"):
            store.append_all(many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert all(store.append_all(many))
    assert seeds_in(store) == list(range(20))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.usefixtures("full_disk")
def test_a_failed_sync_leaves_nothing_of_the_first_record(store: Store, make_record: Make) -> None:
    with pytest.raises(NormlibError, match="No space left"):
        store.append(make_record())
    assert store.path(*STUDY).read_bytes() == b""


@pytest.mark.usefixtures("full_disk")
def test_a_failed_rewrite_leaves_the_file_as_it_was(store: Store, make_record: Make) -> None:
    path = store.path(*STUDY)
    path.parent.mkdir(parents=True)
    path.write_text(make_record().to_line())
    with pytest.raises(NormlibError, match="it is as it was"):
        store.drop(*STUDY, lambda record: True)
    assert path.read_text() == make_record().to_line()
    assert not list(path.parent.glob("*.tmp"))


def test_a_folder_that_is_none_is_told(tmp_path: Path, make_record: Make) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NormlibError, match="--results"):
        Store(tmp_path / "file").append(make_record())
    with pytest.raises(NormlibError, match="could not be read"):
        Store(tmp_path / ("x" * 300)).read(*STUDY)


def test_the_default_folder_follows_argument_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLIB_RESULTS", str(tmp_path / "a"))
    assert Store.default(tmp_path / "b").folder == tmp_path / "b"
    assert Store.default().folder == tmp_path / "a"
    monkeypatch.delenv("NORMLIB_RESULTS")
    assert Store.default().folder.name == "results"
    monkeypatch.setattr("normlib.lab.records.store.checkout", lambda: None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Store.default().folder == tmp_path / "normlib" / "results"
    assert [f.name for f in Store.default().fallbacks] == ["_records"]
