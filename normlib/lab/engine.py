"""The engine: runs what is missing, on any executor with the interface of `concurrent.futures`.

One parent holds the store and appends each record as its trial completes; workers only measure. So an interrupt loses at most
the trials in flight, and a worker that dies costs one repetition.
"""

from __future__ import annotations

import datetime
import importlib
import os
import random
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from normlib.errors import NormlibError, unknown
from normlib.lab.executors import OpenExecutor, choose_executor
from normlib.lab.provenance import best_device, device_name, git_state, peak_memory_mb, versions
from normlib.lab.records import Record, Store, pack_table, record_key
from normlib.lab.study import PRESETS, Config, Diverged, Study

RETRIES = 2
_ALONE = threading.Lock()  # one trial at a time in a process: the random generators and the thread count are the process's own


@dataclass
class Outcome:
    """What a call of `run` did: how many trials were there before, were run, diverged, failed, were left for want of time."""

    study: str
    preset: str
    skipped: int = 0
    ran: int = 0
    diverged: int = 0
    left: int = 0
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False


def run(
    study: Study,
    preset: str = "quick",
    *,
    store: Store | None = None,
    device: str | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    deadline: float | None = None,
) -> Outcome:
    """Run the trials of a study that have no fresh record yet.

    Args:
        study: what to run.
        preset: "quick", "laptop" or "full".
        store: where records are read and written; the default store if not given.
        device: "cpu", "cuda", or None for the best there is (quick runs stay on the CPU).
        seeds: number of seeds; the preset's own if not given.
        workers: number of processes; None means in this process for quick and on a GPU, else one per core. A timing study
            always runs in this process, one trial after the other.
        executor: any executor to use instead, such as a Dask client's.
        progress: show a progress bar with an estimate of the time left.
        deadline: `time.monotonic()` after which no new trial is started.

    Returns:
        What was done. A trial that raises is recorded as failed, with the reason, and tried again by the next call.

    Raises:
        UnknownNameError: the study has no such preset.
        NormlibError: the device is not there, or a record could not be written.
    """
    device = _checked_device(device, preset)
    if seeds is not None and seeds < 1:
        raise NormlibError(f"seeds={seeds} was passed; at least 1 is needed")
    if workers is not None and workers < 1:
        raise NormlibError(f"workers={workers} was passed; at least 1 is needed (1 runs in this process)")
    store = store or Store.default()
    done = {r.key: r for r in store.read(study.id, preset) if r.status != "failed" and study.is_fresh(r)}
    trials = study.trials(preset, seeds)
    pending = [t for t in trials if record_key(study.id, preset, *t, study.code(t[0])) not in done]
    outcome = Outcome(study.id, preset, skipped=len(trials) - len(pending))
    if pending:
        _run_pending(study, preset, pending, store, device, workers, executor, progress, deadline, outcome)
    if not (outcome.left or outcome.failures or outcome.interrupted):
        _drop_superseded(study, preset, store)
    return outcome


def _run_pending(
    study: Study,
    preset: str,
    pending: list[tuple[dict[str, Any], int]],
    store: Store,
    device: str,
    workers: int | None,
    executor: Executor | None,
    progress: bool,
    deadline: float | None,
    outcome: Outcome,
) -> None:
    commit, dirty = git_state()
    make = choose_executor(preset, device, 1 if study.kind == "timing" else workers, executor)
    bar = tqdm(total=len(pending), desc=f"{study.id} {preset}", unit="trial", disable=not progress)
    try:
        for body in _completed(study, preset, pending, device, make, deadline, outcome):
            record = Record(**body, commit=commit, dirty=dirty, versions=versions())
            store.append(record)
            bar.update()
            outcome.ran += 1
            outcome.diverged += record.status == "diverged"
            if record.status == "failed":
                outcome.failures.append(f"seed {record.seed}, {record.config}: {record.reason}")
    except KeyboardInterrupt:
        outcome.interrupted = True
        kept = {record.key for record in store.read(study.id, preset)}  # the count may miss a record that was just written
        outcome.ran = sum(record_key(study.id, preset, *trial, study.code(trial[0])) in kept for trial in pending)
    finally:
        bar.close()
    outcome.left = len(pending) - outcome.ran


def _completed(
    study: Study,
    preset: str,
    pending: list[tuple[dict[str, Any], int]],
    device: str,
    make: OpenExecutor,
    deadline: float | None,
    outcome: Outcome,
) -> Iterator[dict[str, Any]]:
    """Yield results as they complete; when a worker dies, start anew with the trials that it took down."""
    waiting = list(pending)
    for attempt in range(RETRIES + 1):
        lost: list[tuple[dict[str, Any], int]] = []
        with make() as (executor, slots):
            running: dict[Future[Any], tuple[dict[str, Any], int]] = {}
            while waiting or running:
                while waiting and len(running) < slots and not _is_over(deadline):
                    trial = waiting.pop(0)
                    try:
                        running[executor.submit(execute, study.module, study.id, preset, *trial, device)] = trial
                    except BrokenExecutor:
                        waiting.insert(0, trial)
                        break
                if not running:
                    break
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    trial = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenExecutor:
                        lost.append(trial)
        waiting = lost + waiting
        if not waiting or _is_over(deadline):
            return
        if attempt == RETRIES:
            raise NormlibError(
                f"{study.id}: workers died {RETRIES + 1} times (killed, or out of memory?); {len(waiting)} trials are left. "
                "What was measured is kept; run the same command again, perhaps with fewer --workers."
            )


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def execute(module: str, study_id: str, preset: str, config: Mapping[str, Any], seed: int, device: str) -> dict[str, Any]:
    """Run one trial where this is called (a worker, this process, a node of a cluster) and return the body of its record."""
    importlib.import_module(module)
    study = Study.instances[study_id]
    settings = Config(config, device)
    with _ALONE, _threads(device, study.kind):
        started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        clock = time.perf_counter()
        seed_everything(seed)
        status, reason, table = _measure(study, settings, seed)
        seconds = round(time.perf_counter() - clock, 3)
    return {
        "study": study_id,
        "preset": preset,
        "config": dict(config),
        "seed": seed,
        "code": study.code(config),
        "status": status,
        "reason": reason,
        "table": table,
        "device": device_name(device),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "start": started,
        "seconds": seconds,
        "peak_mb": peak_memory_mb(device),
        "notes": settings.notes,
    }


def _measure(study: Study, settings: Config, seed: int) -> tuple[str, str | None, dict[str, Any]]:
    try:
        try:
            return "ok", None, pack_table(study.measure(settings, seed))
        except Diverged as diverged:
            return "diverged", diverged.reason, pack_table(diverged.table)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})", {}


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch: the one place where a trial's randomness starts."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def _threads(device: str, kind: str) -> Iterator[None]:
    """Hold a trial on the CPU to one thread, as small networks crawl when threads outnumber cores; a timing takes every core."""
    if device != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1 if kind == "timing" else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _checked_device(device: str | None, preset: str) -> str:
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    device = device or ("cpu" if preset == "quick" else best_device())
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise NormlibError(f"device {device!r} was asked for, but torch finds no CUDA GPU here; use --device cpu")
    if device.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise unknown("device", device, ("cpu", "cuda", "mps"))
    return device


def _drop_superseded(study: Study, preset: str, store: Store) -> None:
    """Once a preset is whole with all its seeds, remove what failed and what older code measured from the growing file."""
    done = {r.key for r in store.read(study.id, preset) if r.status != "failed"}
    if all(record_key(study.id, preset, *t, study.code(t[0])) in done for t in study.trials(preset)):
        store.drop(study.id, preset, lambda r: r.status == "failed" or not study.is_fresh(r))
