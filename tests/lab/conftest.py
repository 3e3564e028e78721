"""Makes `toy_studies` importable here and in worker processes, under one name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from normlib.lab import Record, Store
from normlib.lab.running.executors import process_pool

HERE = str(Path(__file__).parent)
collect_ignore = ["toy_studies.py"]  # collected as a module of tests it would be imported, and declared, twice
for folder in (HERE, str(Path(HERE) / "exchange")):
    if folder not in sys.path:
        sys.path.append(folder)


@pytest.fixture
def make_record() -> Callable[..., Record]:
    def make(**changes: Any) -> Record:
        body: dict[str, Any] = {
            "study": "toy.record", "preset": "quick", "config": {"norm": "batch", "depth": 3}, "seed": 0, "code": "0123",
            "status": "ok", "reason": None, "table": {"x": [1.0, 2.0], "y": 3.0}, "device": "a processor", "dtype": "float32",
            "start": "2026-01-02T03:04:05+00:00", "seconds": 0.5, "peak_mb": 100.0, "commit": "abc",
        }  # fmt: skip
        return Record(**{**body, **changes})

    return make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def toy_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which toy trials leave marks, so that a test sees what workers did."""
    folder = tmp_path / "marks"
    folder.mkdir()
    monkeypatch.setenv("TOY_FOLDER", str(folder))
    return folder


@pytest.fixture(scope="session")
def pool() -> Iterator[Executor]:
    """Two worker processes that tests share, as starting them takes seconds."""
    executor = process_pool(2)
    yield executor
    executor.shutdown(wait=True, cancel_futures=True)
