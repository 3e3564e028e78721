"""Commands on records: `export`, `import`, `status`, `diff`, and the order of `run --pending`."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normlib.lab import Record, Store
from normlib.studies import STUDIES, get_study

STUDY = "lecun1998.rates"
SECOND = "lecun1998.hessian"
Cli = Callable[..., Any]


@pytest.fixture
def measured(cli: Cli, folder: Path) -> list[Record]:
    """The two records of a quick run."""
    assert cli("run", STUDY).code == 0
    return Store(folder).read(STUDY, "quick")


def changed(records: list[Record], folder: Path, **changes: Any) -> Path:
    """Write records with changes into another folder."""
    Store(folder).append_all(dataclasses.replace(record, **changes) for record in records)
    return folder


# -- export and import ---------------------------------------------------------------------------------------------------


def test_records_are_handed_over(cli: Cli, folder: Path, tmp_path: Path, measured: list[Record]) -> None:
    bundle, other = tmp_path / "bündel.zip", tmp_path / "andere"
    told = cli("export", bundle)
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines()[0] == f"{STUDY} quick: 2 records"
    assert told.out.splitlines()[1].startswith(f"{bundle}: 2 records, ")
    assert cli("import", bundle, "--results", other) == (0, f"{bundle}: 2 taken\n", "")
    name = f"{STUDY}/quick.jsonl"
    assert (other / name).read_bytes() == (folder / name).read_bytes()
    again = cli("import", bundle, "--results", other)
    assert (again.code, again.out) == (0, f"{bundle}: 0 taken, 2 there already\n")
    assert f"records/{name}:1-2: duplicate, its trial has a finished record already" in again.err
    assert cli("run", STUDY, "--results", other).out == f"{STUDY} quick: 0 run, 2 there already\n"


def test_a_tampered_bundle_is_refused_and_its_sound_rest_may_be_kept(cli: Cli, tmp_path: Path, measured: list[Record]) -> None:
    bundle, other = tmp_path / "b.zip", tmp_path / "other"
    cli("export", bundle, "lecun1998", "--preset", "quick")
    with zipfile.ZipFile(bundle) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(bundle, "w") as file:
        for name, content in members.items():
            file.writestr(name, content.replace(b'"seed":0', b'"seed":1', 1))
    told = cli("import", bundle, "--results", other)
    assert (told.code, told.out) == (2, "")
    assert "refused and nothing was written" in told.err
    assert f"records/{STUDY}/quick.jsonl:1: damaged" in told.err
    assert not other.exists()
    kept = cli("import", bundle, "--results", other, "--keep-sound")
    assert (kept.code, kept.out) == (1, f"{bundle}: 1 taken, 2 damaged\n")
    assert Store(other).read(STUDY, "quick") == measured[1:]


def test_records_of_other_code_are_left_out_unless_asked_for(cli: Cli, tmp_path: Path, measured: list[Record]) -> None:
    bundle, other = tmp_path / "b.zip", tmp_path / "other"
    older = changed(measured, tmp_path / "older", code="0123456789abcdef")
    cli("export", bundle, "--results", older)
    told = cli("import", bundle, "--results", other)
    assert (told.code, told.out) == (0, f"{bundle}: 0 taken, 2 stale\n")
    assert "quick.jsonl:1-2: stale, it was measured by other code" in told.err
    assert cli("import", bundle, "--results", other, "--stale").out == f"{bundle}: 2 taken\n"


SLIPS = [
    (("export",), "required: FILE"),
    (("export", "b.zip", "lecun1998.rate"), "did you mean 'lecun1998.rates'"),
    (("export", "b.zip", "--preset", "labtop"), "did you mean 'laptop'"),
    (("export", "b.zip"), "no records to export"),
    (("import", "absent.zip"), "could not be read"),
    (("status", "lecun1998.rate"), "did you mean 'lecun1998.rates'"),
    (("status", "--preset", "labtop"), "did you mean 'laptop'"),
    (("diff", "a"), "required: B"),
    (("diff", "absent", "absent"), "no folder of records and no bundle"),
    (("diff", "a", "b", "--devices", "--versions"), "not allowed with"),
    (("diff", "a", "b", "--devices"), "no trial in common"),
]


@pytest.mark.parametrize(("arguments", "message"), SLIPS, ids=lambda value: "-".join(value) if isinstance(value, tuple) else "")
def test_a_slip_with_records_gives_one_message(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = cli(*arguments)
    assert (told.code, told.out) == (2, "")
    assert message in told.err
    assert "Traceback" not in told.err
    assert not list(tmp_path.iterdir())


# -- status --------------------------------------------------------------------------------------------------------------


def test_the_status_tells_what_there_is_and_what_comes_next(cli: Cli, measured: list[Record]) -> None:
    told = cli("status", "--preset", "quick")
    assert (told.code, told.err) == (0, "")
    row = next(line for line in told.out.splitlines() if STUDY in line)
    assert row.split()[:4] == [STUDY, "quick", "2", "2"]
    assert measured[0].device in row
    assert "every trial has a fresh record" in told.out
    assert f"next: normlib run {STUDY} --preset laptop" in cli("status").out


def test_the_status_for_machines(cli: Cli, measured: list[Record], folder: Path) -> None:
    found = json.loads(cli("status", "--json").out)
    quick, laptop = found["studies"]
    assert (quick["preset"], quick["fresh"], quick["left"], quick["devices"]) == ("quick", 2, 0, {measured[0].device: 2})
    assert (laptop["preset"], laptop["fresh"], laptop["missing"]) == ("laptop", 0, laptop["wanted"])
    assert found["total"]["wanted"] == 2 + laptop["wanted"]
    assert found["next"] == [f"normlib run {STUDY} --preset laptop"]
    elsewhere = json.loads(cli("status", "--json", "--preset", "quick", "--device", "H200").out)
    assert (elsewhere["studies"][0]["missing"], elsewhere["next"]) == (2, [])


# -- diff ----------------------------------------------------------------------------------------------------------------


def test_a_folder_and_its_bundle_are_the_same(cli: Cli, folder: Path, tmp_path: Path, measured: list[Record]) -> None:
    cli("export", tmp_path / "b.zip")
    told = cli("diff", folder, tmp_path / "b.zip")
    assert (told.code, told.err) == (0, "")
    assert "same" in next(line for line in told.out.splitlines() if STUDY in line)
    assert "0 of " in told.out


def test_two_devices_and_two_versions_of_one_folder(cli: Cli, folder: Path, tmp_path: Path, measured: list[Record]) -> None:
    shipped = tmp_path / "shipped"
    table = {**measured[0].table, "limit": 2 * measured[0].table["limit"]}
    changed(measured[:1], shipped, device="NVIDIA H200", code="0123456789abcdef", commit="feed5eed", table=table)
    commit = measured[0].commit or ""
    for arguments in (
        (measured[0].device, "h200", "--devices"),
        ("fresh", "stale", "--versions"),
        (commit[:8], "feed", "--versions"),
    ):
        found = json.loads(cli("diff", *arguments, "--json").out)[0]
        assert (found["study"], found["preset"], found["matched"]) == (STUDY, "quick", 1)
        [limit] = [d for d in found["differences"] if d["column"] == "limit"]
        assert (limit["relative"], limit["outcome"]) == (1.0, "differs")
        assert {d["outcome"] for d in found["differences"] if d is not limit} == {"same"}
    told = cli("diff", "fresh", "stale", "--versions")
    assert "100 %" in next(line for line in told.out.splitlines() if " limit " in line)
    assert "1, 1 only in A" in told.out


def test_a_verdict_that_changes_is_printed(cli: Cli, folder: Path, tmp_path: Path, measured: list[Record]) -> None:
    tables = [{**record.table, "limit": 3 * record.table["limit"]} for record in measured]
    other = tmp_path / "other"
    Store(other).append_all(dataclasses.replace(r, table=t) for r, t in zip(measured, tables, strict=True))
    told = cli("diff", folder, other)
    assert f"{STUDY}/limit: reproduced → not reproduced" in told.out


def test_a_damaged_bundle_is_not_compared(cli: Cli, folder: Path, tmp_path: Path, measured: list[Record]) -> None:
    cli("export", tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as file:
        file.writestr("extra", "")
    told = cli("diff", folder, tmp_path / "b.zip")
    assert (told.code, told.out) == (2, "")
    assert "is not as it was written" in told.err


# -- run --pending -------------------------------------------------------------------------------------------------------


def test_what_the_book_lacks_most_is_run_first(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = "normlib.studies.origins.lecun1998:hessian_is_second_moment"
    monkeypatch.setattr(STUDIES, "_targets", {STUDY: STUDIES._targets[STUDY], SECOND: target})
    assert cli("run", STUDY).code == 0
    for study in (STUDY, SECOND):
        monkeypatch.setattr(get_study(study), "measure", lambda *_: [{"x": 1.0}])
    ran = [line.split()[0] for line in cli("run", "--pending").out.splitlines()]
    assert ran == [SECOND, STUDY]
    told = cli("run", "--pending", "--budget", "0.000001s", "--results", folder.parent / "other")
    assert told.code == 1
    assert [line.split()[0] for line in told.out.splitlines()] == [STUDY, SECOND]
    assert told.out.count("left; run the same command again to go on") == 2
