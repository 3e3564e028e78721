"""The engine: what is missing is run, each trial once, whatever is interrupted, killed or raised on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy_studies as toys

from normlib.errors import NormlibError, UnknownNameError
from normlib.lab import Config, LabWarning, Record, RecordWarning, Store, Study, run
from normlib.lab.running.engine import _Job
from normlib.lab.running.executors import Place, inline, processes
from normlib.lab.running.trial import Task, execute

Make = Callable[..., Record]
VOLATILE = ("start", "seconds", "peak_mb")


def records_of(study: Study, store: Store, preset: str = "quick") -> list[Record]:
    """Read the records, each line of the file one of them."""
    records = store.read(study.id, preset)
    lines = store.path(study.id, preset).read_bytes().splitlines()
    assert len(lines) == len(records), "a record was doubled or lost"
    return records


def marks(folder: Path, name: str) -> list[int]:
    path = folder / name
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def stable(record: Record) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in VOLATILE}


# -- what is run ---------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_run(store: Store) -> None:
    first = run(toys.noise, store=store)
    assert (first.ran, first.skipped, first.left, first.failures) == (3, 0, 0, [])
    before = store.path("toy.noise", "quick").read_bytes()
    again = run(toys.noise, store=store)
    assert (again.ran, again.skipped) == (0, 3)
    assert store.path("toy.noise", "quick").read_bytes() == before
    more = run(toys.noise, store=store, seeds=2)
    assert (more.ran, more.skipped) == (3, 3)
    assert sorted((r.seed, r.config["arm"]) for r in records_of(toys.noise, store)) == [(s, a) for s in (0, 1) for a in (1, 2, 3)]


def test_a_record_says_where_it_comes_from(store: Store) -> None:
    run(toys.noise, store=store)
    record = records_of(toys.noise, store)[0]
    assert record.code == toys.noise.code(record.config)
    assert record.versions["torch"]
    assert record.notes["data"]["name"] == "noise"
    assert (record.status, record.dtype) == ("ok", "float32")
    assert "cores" in record.device
    assert record.seconds >= 0
    assert record.peak_mb > 1


def test_records_of_older_code_are_run_anew_and_then_dropped(store: Store, make_record: Make) -> None:
    old = {"study": "toy.noise", "code": "0ld", "table": {"x": 1}}
    store.append(make_record(**old, config={"arm": 1}, seed=0))
    store.append(make_record(**old, config={"arm": 1}, seed=7))
    assert run(toys.noise, store=store).ran == 3
    assert {r.code for r in records_of(toys.noise, store)} == {toys.noise.code({"arm": 1})}


def test_records_of_older_code_stay_until_all_seeds_are_there(store: Store, make_record: Make) -> None:
    for seed in range(3):
        store.append(make_record(study="toy.noise", preset="laptop", code="0ld", config={"arm": 1}, seed=seed))
    run(toys.noise, "laptop", store=store, seeds=1, workers=1, device="cpu")
    assert sum(r.code == "0ld" for r in store.read("toy.noise", "laptop")) == 3
    run(toys.noise, "laptop", store=store, workers=1, device="cpu")
    assert sum(r.code == "0ld" for r in store.read("toy.noise", "laptop")) == 0
    assert len(records_of(toys.noise, store, "laptop")) == 9


def test_a_record_of_a_setting_that_the_preset_no_longer_has_is_stale(make_record: Make) -> None:
    code = toys.noise.code({"arm": 1})
    assert toys.noise.is_fresh(make_record(study="toy.noise", config={"arm": 1}, code=code))
    assert not toys.noise.is_fresh(make_record(study="toy.noise", config={"arm": 9}, code=code))
    assert not toys.noise.is_fresh(make_record(study="toy.noise", config={"arm": 1}, code=code, preset="full"))


# -- randomness and threads ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_record_in_any_process(tmp_path: Path, pool: Executor) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    torch.rand(5)
    run(toys.noise, store=here, seeds=2)
    run(toys.noise, store=there, seeds=2, executor=pool)
    found = [sorted((stable(r) for r in records_of(toys.noise, s)), key=str) for s in (here, there)]
    assert found[0] == found[1]
    draws = {(r.seed, r.table["python"], r.table["numpy"], *r.table["torch"]) for r in records_of(toys.noise, here)}
    assert len(draws) == 2  # equal for the three arms, different for the two seeds


def test_threads_share_no_randomness(tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    run(toys.noise, store=here, seeds=10)
    with ThreadPoolExecutor(4) as threads:
        assert run(toys.noise, store=there, seeds=10, executor=threads).ran == 30
    found = [sorted((stable(r) for r in records_of(toys.noise, s)), key=str) for s in (here, there)]
    assert found[0] == found[1]


def test_a_trial_has_one_thread_and_the_count_comes_back(store: Store, toy_folder: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(toys.noise, store=store)
        run(toys.moody, store=store)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {r.table["threads"] for r in records_of(toys.noise, store)} == {1}


# -- trials that fail ----------------------------------------------------------------------------------------------------


def test_what_raises_fails_alone_and_what_diverges_is_a_measurement(store: Store, toy_folder: Path) -> None:
    outcome = run(toys.moody, store=store)
    assert (outcome.ran, outcome.diverged, outcome.left, len(outcome.failures)) == (4, 1, 0, 2)
    by_mood = {r.config["mood"]: r for r in records_of(toys.moody, store)}
    assert by_mood["fine"].status == "ok"
    assert by_mood["raises"].status == by_mood["unwritable"].status == "failed"
    assert "RuntimeError: not today" in (by_mood["raises"].reason or "")
    assert "object" in (by_mood["unwritable"].reason or "")
    assert by_mood["diverges"].status == "diverged"
    assert by_mood["diverges"].reason == "loss is not finite at step 3"
    assert by_mood["diverges"].table == {"loss": [1.0, 2.0, float("inf")]}

    again = run(toys.moody, store=store)  # the marks are there now: both failures go well
    assert (again.ran, again.skipped, again.failures) == (2, 2, [])
    assert {r.status for r in records_of(toys.moody, store)} == {"ok", "diverged"}
    assert len(marks(toy_folder, "diverged")) == 1


def test_a_full_disk_stops_the_run_and_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, calls = os.fsync, iter(range(10))

    def refuse_the_second(descriptor: int) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_the_second)
    with pytest.raises(NormlibError, match="No space left"):
        run(toys.noise, store=store)
    assert len(records_of(toys.noise, store)) == 1
    assert run(toys.noise, store=store).ran == 2
    assert len(records_of(toys.noise, store)) == 3


# -- time ----------------------------------------------------------------------------------------------------------------


def test_a_deadline_leaves_what_has_not_begun(store: Store, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trials_begun() -> float:
        return float(len(marks(toy_folder, "pids")))

    clock = SimpleNamespace(monotonic=trials_begun, perf_counter=time.perf_counter)
    monkeypatch.setattr("normlib.lab.running.engine.time", clock)  # each trial takes one second
    outcome = run(toys.slow, store=store, deadline=2.5)
    assert (outcome.ran, outcome.left, outcome.interrupted) == (3, 9, False)
    assert [r.config["i"] for r in records_of(toys.slow, store)] == [0, 1, 2]
    assert run(toys.slow, store=store, deadline=2.9).left == 9
    assert run(toys.slow, store=store, deadline=99).ran == 9


# -- interrupts and kills ------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_was(store: Store, toy_folder: Path) -> None:
    first = run(toys.interrupted, store=store)
    assert (first.interrupted, first.ran, first.left) == (True, 3, 2)
    assert len(records_of(toys.interrupted, store)) == 3
    second = run(toys.interrupted, store=store)
    assert (second.interrupted, second.ran, second.skipped) == (False, 2, 3)
    assert sorted(r.config["i"] for r in records_of(toys.interrupted, store)) == [0, 1, 2, 3, 4]


def test_a_killed_worker_costs_a_repetition(store: Store, toy_folder: Path) -> None:
    outcome = run(toys.fragile, store=store, workers=2, device="cpu")
    assert (outcome.ran, outcome.left, outcome.failures) == (6, 0, [])
    assert len(marks(toy_folder, "killed")) == 2
    assert os.getpid() not in marks(toy_folder, "killed")
    assert sorted(r.config["i"] for r in records_of(toys.fragile, store)) == list(range(6))


class Graveyard(Executor):
    """An executor all of whose workers die."""

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenExecutor("killed"))
        return future


def test_workers_that_always_die_are_told(store: Store) -> None:
    with pytest.raises(NormlibError, match="3 trials in a row ended their worker"):
        run(toys.noise, store=store, executor=Graveyard())
    assert [r.status for r in store.read("toy.noise", "quick")] == ["failed"] * 2


class Closed(Executor):
    """An executor that starts no worker."""

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        raise BrokenExecutor("no worker")


def test_workers_that_cannot_be_started_are_told(store: Store) -> None:
    with pytest.raises(NormlibError, match="no worker could be started; 3 trials are left"):
        run(toys.noise, store=store, executor=Closed())


def test_a_trial_that_ends_every_worker_is_named_and_the_others_run(store: Store, toy_folder: Path) -> None:
    outcome = run(toys.poison, store=store, workers=2, device="cpu")
    by_how = {r.config["how"]: r for r in records_of(toys.poison, store)}
    assert {how: r.status for how, r in by_how.items()} == {"a": "ok", "b": "ok", "c": "ok", "dies": "failed", "exits": "failed"}
    assert "WorkerDied: 2 workers that ran nothing else died of it" in (by_how["dies"].reason or "")
    assert "SystemExit: 0" in (by_how["exits"].reason or "")
    assert (outcome.ran, outcome.left, len(outcome.failures)) == (5, 0, 2)


COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored
from normlib.cli import main
from normlib.studies import STUDIES
STUDIES._targets["toy.slow"] = "toy_studies:slow"
sys.exit(main(["run", "toy.slow", "--device", "cpu", *sys.argv[1:]]))
"""


Start = Callable[[int], subprocess.Popen[str]]


@pytest.fixture
def start(store: Store, toy_folder: Path) -> Iterator[Start]:
    """Start `normlib run toy.slow` and wait until some of its records are there; it does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(workers: int) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", COMMAND, "--results", str(store.folder), "--workers", str(workers)]
        environment = {**os.environ, "PYTHONPATH": str(Path(toys.__file__).parent), "TOY_SLEEP": "0.5"}
        process = subprocess.Popen(arguments, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)
        path, end = store.path("toy.slow", "quick"), time.monotonic() + 120
        while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None, process.communicate(timeout=30)
            assert time.monotonic() < end, "the run has no records"
            time.sleep(0.02)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_kill_9_in_mid_run_loses_nothing(store: Store, toy_folder: Path, start: Start) -> None:
    process = start(2)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    end = time.monotonic() + 20
    while any(map(is_alive, marks(toy_folder, "pids"))):
        assert time.monotonic() < end, "workers outlive their parent"
        time.sleep(0.1)

    kept = records_of(toys.slow, store)
    assert 3 <= len(kept) < 12
    path = store.path("toy.slow", "quick")
    path.write_bytes(path.read_bytes() + path.read_bytes()[:150])  # and the machine died in mid-write
    with pytest.warns(RecordWarning, match="torn"):
        outcome = run(toys.slow, store=store)
    assert (outcome.skipped, outcome.ran) == (len(kept), 12 - len(kept))
    found = records_of(toys.slow, store)
    assert sorted(r.config["i"] for r in found) == list(range(12))
    assert [stable(r) for r in kept] == [stable(r) for r in found[: len(kept)]]


def test_ctrl_c_ends_with_130_and_keeps_what_is_done(store: Store, start: Start) -> None:
    process = start(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "left; run the same command again" in out
    assert f"{len(records_of(toys.slow, store))} run" in out


# -- what is refused -----------------------------------------------------------------------------------------------------


def test_bad_arguments_are_told(store: Store) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        run(toys.noise, "quik", store=store)
    with pytest.raises(UnknownNameError, match=r"preset of toy\.noise named 'full'"):
        run(toys.noise, "full", store=store)
    for device in ("cpuu", "cpu:0", "cuda:x"):
        with pytest.raises(UnknownNameError, match=f"no device named '{device}'; did you mean"):
            run(toys.noise, store=store, device=device)
    with pytest.raises(NormlibError, match="torch finds none here"):
        run(toys.noise, store=store, device="cuda:99")
    with pytest.raises(NormlibError, match="workers=0"):
        run(toys.noise, store=store, workers=0)
    for seeds in (0, -1):
        with pytest.raises(NormlibError, match=f"seeds={seeds}"):
            run(toys.noise, store=store, seeds=seeds)
    if not torch.cuda.is_available():
        with pytest.raises(NormlibError, match="--device cpu"):
            run(toys.noise, store=store, device="cuda")
    assert not store.folder.exists()


def test_execute_returns_the_body_of_a_record() -> None:
    (body,) = execute(Task("toy_studies", "toy.noise", "quick", {"arm": 1}, (4,)))
    assert Record(**body).seed == 4
    assert body["table"]["threads"] == 1


# -- trials of many seeds ------------------------------------------------------------------------------------------------


def test_a_trial_of_seeds_gives_the_same_records_together_and_one_by_one() -> None:
    about = ("toy_studies", "toy.together", "laptop", {"arm": 2})
    together = execute(Task(*about, (0, 3, 5)))
    alone = [body for seed in (0, 3, 5) for body in execute(Task(*about, (seed,)))]
    assert [body["seed"] for body in together] == [0, 3, 5]
    assert [body["table"] for body in together] == [body["table"] for body in alone]
    assert {body["notes"]["together"] for body in together} == {3}
    assert not any("together" in body["notes"] for body in alone)


def test_seeds_go_together_on_a_gpu_and_one_by_one_elsewhere(store: Store) -> None:
    trials = [({"arm": arm}, seed) for seed in range(3) for arm in (1, 2)]
    on_gpu = _Job(toys.together, "laptop", store, "cuda", None, None, None).tasks(trials)
    assert [(t.config["arm"], t.seeds) for t in on_gpu] == [(1, (0, 1, 2)), (2, (0, 1, 2))]
    on_cpu = _Job(toys.together, "laptop", store, "cpu", None, None, None).tasks(trials)
    assert [(t.config["arm"], t.seeds) for t in on_cpu] == [(c["arm"], (seed,)) for c, seed in trials]
    ordinary = _Job(toys.noise, "laptop", store, "cuda", None, None, None).tasks(trials)
    assert [t.seeds for t in ordinary] == [(seed,) for _, seed in trials]


def test_a_trial_of_seeds_must_answer_for_each(store: Store) -> None:
    study = toys.declare("forgetful")
    study.trial_of_seeds(lambda c, seeds: [{"x": 1}])
    with pytest.raises(NormlibError, match="returned 1 tables for 2 seeds"):
        study.measure(Config({}), [0, 1])
    with pytest.raises(NormlibError, match=r"takes one seed at a time, got \[0, 1\]"):
        toys.noise.measure(Config({"arm": 1}), [0, 1])
    del Study.instances["toy.forgetful"]


# -- one GPU, several trials ---------------------------------------------------------------------------------------------


def test_the_first_trial_on_a_gpu_says_how_many_share_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[dict[str, Any], int]] = []

    def note(bodies: list[dict[str, Any]], tasks: int, device: str | None) -> Place:
        asked.append((bodies[0], tasks))
        return processes(1)

    monkeypatch.setattr("normlib.lab.running.dispatch.packed", note)
    monkeypatch.setattr("normlib.lab.running.engine.choose_place", lambda *_: Place(inline, measures_first=True))
    assert run(toys.noise, store=store, seeds=2).ran == 6
    assert [(body["config"], left) for body, left in asked] == [({"arm": 1}, 5)]


# -- others at the same study --------------------------------------------------------------------------------------------


def test_two_processes_on_one_study_run_each_trial_once(store: Store, toy_folder: Path, start: Start) -> None:
    process = start(1)
    busy = run(toys.slow, store=store, wait_for_others=False)
    assert (busy.busy, busy.ran) == (True, 0)
    assert busy.left == 12 - busy.skipped > 0
    with pytest.warns(LabWarning, match=r"another process is running toy\.slow quick here; waiting"):
        waited = run(toys.slow, store=store)
    assert (waited.ran, waited.skipped, waited.left, waited.busy) == (0, 12, 0, False)
    assert process.wait(timeout=30) == 0
    assert len(records_of(toys.slow, store)) == len(marks(toy_folder, "pids")) == 12


def test_what_a_killed_process_left_is_taken_up(store: Store, toy_folder: Path, start: Start) -> None:
    process = start(1)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    kept = len(records_of(toys.slow, store))
    assert run(toys.slow, store=store, wait_for_others=False).ran == 12 - kept
    assert len(records_of(toys.slow, store)) == 12


def test_waiting_for_another_process_ends_with_the_deadline(store: Store, toy_folder: Path, start: Start) -> None:
    start(1)
    clock = time.monotonic()
    with pytest.warns(LabWarning, match="waiting"):
        outcome = run(toys.slow, store=store, deadline=clock + 0.5)
    assert time.monotonic() - clock < 3
    assert (outcome.busy, outcome.ran) == (True, 0)


# -- a clock that jumps --------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_spoils_neither_times_nor_choices(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    years = iter([2030, 1999, 2050])

    def jumping() -> str:
        return f"{next(years)}-01-01T00:00:00+00:00"

    monkeypatch.setattr("normlib.lab.running.trial._now", jumping)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    outcome = run(toys.noise, store=store, deadline=time.monotonic() + 60)
    assert (outcome.ran, outcome.left) == (3, 0)
    records = records_of(toys.noise, store)
    assert [r.start[:4] for r in records] == ["2030", "1999", "2050"]
    assert all(0 <= r.seconds < 5 for r in records)
    assert run(toys.noise, store=store).skipped == 3


# -- trials that misbehave -----------------------------------------------------------------------------------------------


def test_whatever_a_trial_does_is_a_record(store: Store) -> None:
    outcome = run(toys.rude, store=store)
    by_how = {r.config["how"]: r for r in records_of(toys.rude, store)}
    assert by_how.pop("fine").status == by_how.pop("leaves").status == "ok"
    reasons = {how: r.reason or "" for how, r in by_how.items()}
    assert {r.status for r in by_how.values()} == {"failed"}
    assert "SystemExit: 0" in reasons["exits"]
    assert "UnprintableError: (it cannot be printed)" in reasons["unprintable"]
    assert "surrogates not allowed" in reasons["surrogate"]
    assert "cannot be recorded" in reasons["note"]
    assert "different lengths: [1, 2]" in reasons["ragged"]
    assert "columns named like settings: ['how']" in reasons["clash"]
    assert (outcome.ran, outcome.left, len(outcome.failures)) == (8, 0, 6)


def test_what_a_trial_leaves_behind_does_not_reach_the_next(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(toys.rude, store=Store("relative"))
    records = {r.config["how"]: r for r in Store(tmp_path / "relative").read("toy.rude", "quick")}
    assert len(records) == 8
    assert {r.dtype for r in records.values()} == {"float32"}
    assert Path.cwd() == tmp_path
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_what_failed_before_is_tried_last(store: Store, toy_folder: Path) -> None:
    run(toys.moody, store=store)
    store.drop("toy.moody", "quick", lambda r: r.config["mood"] == "diverges")
    trials = _Job(toys.moody, "quick", store, "cpu", None, None, None).pending()
    assert [config["mood"] for config, _ in trials] == ["diverges", "raises", "unwritable"]
