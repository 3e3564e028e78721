"""Trials that hang, trials that find no memory: each ends with a reason, and the run goes on."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import toy_studies as toys

from normlib.lab import Store, run
from normlib.lab.running.limits import OutOfTime, hard_limit, time_limit


@pytest.mark.parametrize("in_thread", [False, True])
def test_what_takes_too_long_is_interrupted(in_thread: bool) -> None:
    def hang() -> str:
        try:
            with time_limit(0.2):
                while True:
                    time.sleep(0.01)
        except OutOfTime:
            return "interrupted"

    clock = time.monotonic()
    if in_thread:
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(hang).result(timeout=10) == "interrupted"
    else:
        assert hang() == "interrupted"
    assert 0.2 <= time.monotonic() - clock < 5


@pytest.mark.parametrize("in_thread", [False, True])
def test_what_ends_in_time_is_left_alone(in_thread: bool) -> None:
    def work() -> int:
        with time_limit(0.3):
            pass
        for _ in range(60):
            time.sleep(0.01)  # the limit passes here, outside
        return 7

    before = threading.active_count()
    if in_thread:
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(work).result(timeout=10) == 7
    else:
        assert work() == 7
    end = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < end, "a timer was left behind"
        time.sleep(0.01)
    with time_limit(None):
        assert threading.active_count() <= before


def cure(folder: Path, *hows: str) -> None:
    for how in hows:
        (folder / f"{how}-cured").write_text("")


def test_a_trial_that_hangs_fails_with_its_reason_and_the_run_goes_on(store: Store, toy_folder: Path) -> None:
    cure(toy_folder, "deaf", "loops", "greedy")
    outcome = run(toys.endless, store=store, workers=2, device="cpu", time_limit=1)
    assert (outcome.ran, outcome.left, len(outcome.failures)) == (5, 0, 1)
    assert "'sleeps'" in outcome.failures[0]
    assert "TimeLimit: it took longer than 1 s" in outcome.failures[0]
    cure(toy_folder, "sleeps")
    assert run(toys.endless, store=store).ran == 1  # it is tried again, and goes well now
    assert {r.status for r in store.read("toy.endless", "quick")} == {"ok"}


def test_a_worker_whose_trial_cannot_be_interrupted_is_ended(store: Store, toy_folder: Path) -> None:
    outcome = run(toys.endless, store=store, time_limit=2)  # quick runs in this process, but not with a time limit
    by_how = {r.config["how"]: r for r in store.read("toy.endless", "quick")}
    assert (outcome.ran, outcome.left) == (5, 0)
    assert by_how["fine"].status == "ok"
    assert {how for how, r in by_how.items() if r.status == "failed"} == {"sleeps", "loops", "deaf", "greedy"}
    for how in ("deaf", "greedy"):
        assert "its worker was ended" in (by_how[how].reason or "")
        assert by_how[how].seconds >= hard_limit(2) - 0.5
    for how in ("sleeps", "loops"):
        assert "the time limit of this run" in (by_how[how].reason or "")
    cure(toy_folder, "sleeps", "loops", "deaf", "greedy")
    assert run(toys.endless, store=store).ran == 4
    assert {r.status for r in store.read("toy.endless", "quick")} == {"ok"}


def test_what_finds_no_memory_among_others_runs_again_alone(store: Store, toy_folder: Path) -> None:
    outcome = run(toys.hungry, store=store, workers=2, device="cpu")
    by_i = {r.config["i"]: r for r in store.read("toy.hungry", "quick")}
    assert {i: r.status for i, r in by_i.items()} == {0: "ok", 1: "ok", 2: "failed", 3: "ok"}
    assert "out of memory" in (by_i[2].reason or "")
    assert (outcome.ran, outcome.left, len(outcome.failures)) == (4, 0, 1)
    assert len((toy_folder / "too-large").read_text().split()) == 2  # among others, then alone
