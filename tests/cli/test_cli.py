"""The command line: what it prints, where it writes, and that a user's slip gives one line and exit code 2."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normlib import __version__
from normlib.lab import Store
from normlib.studies import get_study

STUDY = "lecun1998.rates"


Cli = Callable[..., Any]


# -- what works ----------------------------------------------------------------------------------------------------------


def test_a_study_is_run_listed_shown_and_judged(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert cli("run", STUDY).out == f"{STUDY} quick: 2 run, 0 there already\n"
    assert (folder / STUDY / "quick.jsonl").read_bytes().count(b"\n") == 2
    assert cli("run", STUDY) == (0, f"{STUDY} quick: 0 run, 2 there already\n", "")
    assert cli("run", "--pending").out == f"{STUDY} quick: 0 run, 2 there already\n"

    listed = cli("list")
    assert listed.code == 0
    assert "2/2" in next(line for line in listed.out.splitlines() if STUDY in line)

    shown = cli("show", STUDY, "--preset", "quick", "--out", tmp_path / "figure.svg")
    assert (shown.code, shown.err) == (0, "")
    assert get_study(STUDY).title in shown.out
    assert "preset quick, 1 seed, " in shown.out
    assert "reproduced" in shown.out
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")

    judged = cli("claims", STUDY)
    assert judged.code == 0
    assert f"{STUDY}/limit" in judged.out


def test_a_source_stands_for_its_studies(cli: Cli) -> None:
    assert cli("run", "lecun1998").out.startswith(f"{STUDY} quick: 2 run")


def test_records_go_where_the_option_says(cli: Cli, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert cli("run", STUDY, "--results", other).code == 0
    assert (other / STUDY / "quick.jsonl").is_file()
    assert not folder.exists()
    assert "2/2" in cli("list", "--results", other).out
    assert "0/2" in cli("list").out


def test_seeds_may_be_chosen(cli: Cli, folder: Path) -> None:
    assert cli("run", STUDY, "--seeds", "2").out.startswith(f"{STUDY} quick: 4 run")
    assert {r.seed for r in Store(folder).read(STUDY, "quick")} == {0, 1}


def test_time_that_is_up_leaves_the_rest(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    told = cli("run", STUDY, "--budget", "0.000001s")
    assert told.code == 1
    assert "2 left; run the same command again to go on" in told.out
    assert cli("run", STUDY, "--budget", "1h").code == 0


def test_failures_are_told_and_make_the_exit_code_1(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any) -> dict[str, Any]:
        raise RuntimeError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(get_study(STUDY), "measure", measure)
        told = cli("run", STUDY)
    assert told.code == 1
    assert told.out.count("failed: seed 0, ") == 2
    assert "RuntimeError: no luck" in told.out
    assert cli("run", STUDY) == (0, f"{STUDY} quick: 2 run, 0 there already\n", "")


def test_a_damaged_record_is_a_warning_in_one_line(cli: Cli, folder: Path) -> None:
    path = folder / STUDY / "quick.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("not a record\n")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        told = cli("run", STUDY)
    assert told.code == 0
    assert f"normlib: warning: {path}:1: skipped" in told.err.splitlines()[0]
    assert "Traceback" not in told.err


def test_ctrl_c_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(get_study(STUDY), "measure", interrupt)
    assert cli("run", STUDY).code == 130
    monkeypatch.setattr(Store, "default", interrupt)
    told = cli("list")
    assert (told.code, told.err) == (130, "normlib: interrupted\n")


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == f"normlib {__version__}\n"
    for command in ("run", "list", "show", "claims", "data"):
        told = cli(command, "--help")
        assert (told.code, told.err) == (0, "")
        assert command in told.out


# -- what does not -------------------------------------------------------------------------------------------------------

SLIPS = [
    (("run", "lecun1998.rate"), "no study named 'lecun1998.rate'; did you mean 'lecun1998.rates'"),
    (("run", STUDY, "nobody2020"), "no study named 'nobody2020'"),
    (("show", "lecun1998.rtaes"), "did you mean 'lecun1998.rates'"),
    (("claims", "lecun1989.rates"), "did you mean 'lecun1998.rates'"),
    (("run",), "name at least one study"),
    (("run", STUDY, "--preset", "labtop"), "no preset named 'labtop'; did you mean 'laptop'"),
    (("run", STUDY, "--preset", "full"), "no preset of lecun1998.rates named 'full'"),
    (("show", STUDY, "--preset", "quik"), "did you mean 'quick'"),
    (("show", STUDY, "--preset", "quick"), "normlib run lecun1998.rates --preset quick"),
    (("run", STUDY, "--device", "cpuu"), "no device named 'cpuu'; did you mean 'cpu'"),
    (("run", STUDY, "--workers", "0"), "workers=0"),
    (("run", STUDY, "--seeds", "0"), "seeds=0"),
    (("run", STUDY, "--seeds", "-2"), "seeds=-2"),
    *((("run", STUDY, f"--budget={b}"), "is no duration") for b in ("soon", "20", "m", "", "-5m", "0s", "nans", "infh", "1d")),
    (("run", STUDY, "--seeds", "many"), "invalid int value"),
    (("fly",), "invalid choice: 'fly'"),
    ((), "required: COMMAND"),
    (("data", "fashion-mnits"), "did you mean 'fashion-mnist'"),
]


@pytest.mark.parametrize(("arguments", "message"), SLIPS, ids=lambda value: "-".join(value) if isinstance(value, tuple) else "")
def test_a_slip_gives_one_message_and_exit_code_2(cli: Cli, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    told = cli(*arguments)
    assert told.code == 2
    assert message in told.err
    assert told.out == ""
    assert "Traceback" not in told.err
    assert not folder.exists()


def test_a_folder_that_is_a_file_is_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = cli("run", STUDY, "--results", tmp_path / "file")
    assert told.code == 2
    assert "could not be written" in told.err
    assert "--results" in told.err
    for command in (("run", STUDY), ("list",), ("show", STUDY), ("claims",)):
        told = cli(*command, "--results", tmp_path / ("x" * 300))
        assert (told.code, told.out) == (2, "")
        assert "could not be read" in told.err


@pytest.mark.parametrize("name", ["no/such/folder/figure.svg", "figure.xyz", "", "figure"])
def test_a_figure_that_cannot_be_written_is_told(cli: Cli, tmp_path: Path, name: str) -> None:
    cli("run", STUDY)
    told = cli("show", STUDY, "--out", tmp_path / name)
    assert told.code == 2
    assert "the figure could not be written to" in told.err
    assert told.out == ""


def test_half_a_run_cannot_be_drawn_and_says_so(cli: Cli, folder: Path) -> None:
    cli("run", STUDY)
    path = folder / STUDY / "quick.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    told = cli("show", STUDY, "--preset", "quick")
    assert told.code == 2
    assert "go on with: normlib run lecun1998.rates --preset quick" in told.err
    assert "1/2" in cli("list").out


def test_python_m_normlib_is_the_command() -> None:
    command = [sys.executable, "-m", "normlib", "run", "lecun1998.rate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("normlib: there is no study named 'lecun1998.rate'; did you mean 'lecun1998.rates'")
    assert done.stderr.count("\n") == 1
