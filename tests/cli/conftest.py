"""The command line with a folder of records of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from normlib.cli import main
from normlib.lab.records import store as records
from normlib.studies import STUDIES

STUDY = "lecun1998.rates"


class Told(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of records of one test, and only studies that are there, whatever else is being written."""
    monkeypatch.setenv("NORMLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(records, "committed_results", lambda: tmp_path / "shipped")
    monkeypatch.setattr(STUDIES, "_targets", {STUDY: STUDIES._targets[STUDY]})
    return tmp_path / "results"


@pytest.fixture
def cli(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Call the command; it returns the exit code and what was printed."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` sets it

    def call(*arguments: Any) -> Told:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's way
            code = int(stop.code or 0)
        return Told(code, *capsys.readouterr())

    return call
