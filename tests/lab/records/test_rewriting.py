"""Where records are, and records that are dropped: a file is written anew in one step, or stays as it is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from normlib.errors import NormlibError
from normlib.lab import Record, Store

Make = Callable[..., Record]
STUDY = ("toy.record", "quick")


# -- folders -------------------------------------------------------------------------------------------------------------


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_record: Make) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("own", ["shipped", tmp_path / "own"])
    assert (store.folder, store.fallbacks) == (tmp_path / "own", [tmp_path / "shipped"])
    store.append(make_record(seed=0))
    (tmp_path / "elsewhere").mkdir()
    os.chdir("elsewhere")
    store.append(make_record(seed=1))
    assert not list((tmp_path / "elsewhere").iterdir())
    assert [record.seed for record in store.read(*STUDY)] == [0, 1]


def test_one_record_that_cannot_be_written_stops_all(store: Store, make_record: Make) -> None:
    with pytest.raises(NormlibError, match="in a column"):
        store.append_all([make_record(), make_record(study="toy.other", table={"x": {"a": 1}})])
    assert not store.folder.exists()


# -- dropping ------------------------------------------------------------------------------------------------------------


def test_a_link_stays_one_and_its_target_is_written(store: Store, make_record: Make, tmp_path: Path) -> None:
    path, target = store.path(*STUDY), tmp_path / "disk" / "records.jsonl"
    for folder in (path.parent, target.parent):
        folder.mkdir(parents=True)
    target.write_text("".join(make_record(seed=seed).to_line() for seed in range(2)))
    path.symlink_to(target)
    store.drop(*STUDY, lambda record: record.seed == 0)
    assert path.is_symlink()
    assert target.read_text() == make_record(seed=1).to_line()
    assert [file.name for file in target.parent.iterdir()] == ["records.jsonl"]


def test_nothing_to_drop_takes_no_lock(store: Store, make_record: Make) -> None:
    path = store.path(*STUDY)
    path.parent.mkdir(parents=True)
    path.write_text(make_record().to_line())
    store.drop(*STUDY, lambda record: False)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.fixture
def sealed(store: Store, make_record: Make) -> Iterator[Path]:
    """A file of records in a folder that cannot be written."""
    path = store.path(*STUDY)
    path.parent.mkdir(parents=True)
    path.write_text(make_record().to_line())
    path.parent.chmod(0o555)
    yield path
    path.parent.chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_only_read_is_told_where_something_is_to_be_dropped(store: Store, sealed: Path) -> None:
    store.drop(*STUDY, lambda record: False)
    with pytest.raises(NormlibError, match="it is as it was"):
        store.drop(*STUDY, lambda record: True)
    assert [file.name for file in sealed.parent.iterdir()] == [sealed.name]


def test_a_lock_that_is_refused_is_told(store: Store, make_record: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = store.path(*STUDY)
    path.parent.mkdir(parents=True)
    path.write_text(make_record().to_line())
    monkeypatch.setattr("normlib.lab.records.store.FileLock", refuse)
    store.drop(*STUDY, lambda record: False)
    with pytest.raises(NormlibError, match=r"Permission denied.*; it is as it was"):
        store.drop(*STUDY, lambda record: True)
    assert path.read_text() == make_record().to_line()


def test_what_another_process_dropped_meanwhile_is_seen(store: Store, make_record: Make) -> None:
    path = store.path(*STUDY)
    path.parent.mkdir(parents=True)
    path.write_text("".join(make_record(seed=seed).to_line() for seed in range(2)))

    def unwanted(record: Record) -> bool:
        path.write_text(make_record(seed=1).to_line())
        return record.seed == 0

    before = path.stat().st_ino
    store.drop(*STUDY, unwanted)
    assert path.read_text() == make_record(seed=1).to_line()
    assert path.stat().st_ino == before
