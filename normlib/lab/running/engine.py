"""The engine: runs what is missing, on any executor with the interface of `concurrent.futures`.

One parent holds the store and appends each record as its trial completes; workers only measure. So an interrupt loses at most
the trials in flight, and a worker that dies costs one repetition.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from normlib.errors import NormlibError, unknown
from normlib.lab.code.provenance import best_device, git_state, has_device
from normlib.lab.records import Record, Store, record_key
from normlib.lab.running.dispatch import measured
from normlib.lab.running.executors import Place, choose_place
from normlib.lab.running.trial import Task
from normlib.lab.study import PRESETS, Study

Trial = tuple[dict[str, Any], int]


class LabWarning(UserWarning):
    """Something that slows a run or changes where it happens, and loses nothing."""


@dataclass
class Outcome:
    """What a call of `run` did: how many trials were there before, were run, diverged, failed, were left for want of time.

    `busy` says that another process is running the study here, and nothing was done.
    """

    study: str
    preset: str
    skipped: int = 0
    ran: int = 0
    diverged: int = 0
    left: int = 0
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False
    busy: bool = False


def run(
    study: Study,
    preset: str = "quick",
    *,
    store: Store | None = None,
    device: str | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    cluster: str | None = None,
    time_limit: float | None = None,
    progress: bool = False,
    deadline: float | None = None,
    wait_for_others: bool = True,
) -> Outcome:
    """Run the trials of a study that have no fresh record yet.

    Args:
        study: what to run.
        preset: "quick", "laptop" or "full".
        store: where records are read and written; the default store if not given.
        device: "cpu", "cuda", or None for the best there is (quick runs stay on the CPU; a worker of a cluster chooses).
        seeds: number of seeds; the preset's own if not given.
        workers: number of processes. None means one per core on a CPU, this process for quick, and as many as the first
            trial shows to fit on a GPU. A timing study always runs in this process, one trial after the other.
        executor: any executor to use instead.
        cluster: address of a Dask scheduler to use instead.
        time_limit: seconds after which a trial is given up and recorded as failed.
        progress: show a progress bar with an estimate of the time left.
        deadline: `time.monotonic()` after which no new trial is started.
        wait_for_others: when another process is running this study into the same store, wait for it and then run what it left;
            False returns at once with `busy`.

    Returns:
        What was done. A trial that raises is recorded as failed, with the reason, and tried again by the next call.

    Raises:
        UnknownNameError: the study has no such preset.
        NormlibError: the device is not there, the cluster cannot be used, or a record could not be written.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    _check_positive(seeds=seeds, workers=workers, time_limit=time_limit)
    job = _Job(study, preset, store or Store.default(), _checked_device(device, preset, cluster), seeds, time_limit, deadline)
    place = choose_place(preset, job.device, 1 if study.kind == "timing" else workers, executor, cluster, time_limit is not None)
    outcome = Outcome(study.id, preset, skipped=len(job.trials) - len(pending := job.pending()))
    if pending:
        with _turn(job, wait_for_others) as ours:
            pending = job.pending() if ours else pending
            outcome.skipped, outcome.busy = len(job.trials) - len(pending), not ours
            if ours and pending:
                _run_pending(job, pending, place, progress, outcome)
            outcome.left = len(pending) - outcome.ran
    if not (outcome.left or outcome.failures or outcome.interrupted):
        job.drop_superseded()
    return outcome


@dataclass(frozen=True)
class _Job:
    """What is asked of one call of `run`."""

    study: Study
    preset: str
    store: Store
    device: str | None
    seeds: int | None
    limit: float | None
    deadline: float | None

    @property
    def trials(self) -> list[Trial]:
        return self.study.trials(self.preset, self.seeds)

    def pending(self) -> list[Trial]:
        """List the trials without a fresh record that is no failure; those that failed before come last."""
        records = self.store.read(self.study.id, self.preset)
        done = {r.key for r in records if r.status != "failed" and self.study.is_fresh(r)}
        failed = {r.key for r in records if r.status == "failed"}
        return sorted((t for t in self.trials if self.key(t) not in done), key=lambda t: self.key(t) in failed)

    def key(self, trial: Trial) -> str:
        return record_key(self.study.id, self.preset, *trial, self.study.code(trial[0]))

    def tasks(self, trials: Sequence[Trial]) -> list[Task]:
        """Turn trials into tasks: one each, or on a GPU one per configuration where the study takes seeds together."""
        together = self.study.takes_seeds and (self.device or "").startswith("cuda")
        groups: dict[Any, tuple[dict[str, Any], list[int]]] = {}
        for config, seed in trials:
            name = str(config) if together else (str(config), seed)
            groups.setdefault(name, (config, []))[1].append(seed)
        about = (self.study.module, self.study.id, self.preset)
        return [Task(*about, c, tuple(s), self.device, self.study.code(c), self.limit) for c, s in groups.values()]

    def is_over(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def drop_superseded(self) -> None:
        """Once the preset is whole with all its seeds, remove what failed and what older code measured from the growing file."""
        study, preset, store = self.study, self.preset, self.store
        done = {r.key for r in store.read(study.id, preset) if r.status != "failed"}
        if all(self.key(t) in done for t in study.trials(preset)):
            store.drop(study.id, preset, lambda r: r.status == "failed" or not study.is_fresh(r))


def _run_pending(job: _Job, pending: list[Trial], place: Place, progress: bool, outcome: Outcome) -> None:
    commit, dirty = git_state()
    bar = tqdm(total=len(pending), desc=f"{job.study.id} {job.preset}", unit="trial", disable=not progress)
    try:
        for body in (body for bodies in measured(job.tasks(pending), place, job.is_over) for body in bodies):
            record = Record(**body, commit=commit, dirty=dirty)
            job.store.append(record)
            bar.update()
            outcome.ran += 1
            outcome.diverged += record.status == "diverged"
            if record.status == "failed":
                outcome.failures.append(f"seed {record.seed}, {record.config}: {record.reason}")
    except KeyboardInterrupt:
        outcome.interrupted = True
        kept = {record.key for record in job.store.read(job.study.id, job.preset)}  # the count may miss one just written
        outcome.ran = sum(job.key(trial) in kept for trial in pending)
    finally:
        bar.close()


@contextmanager
def _turn(job: _Job, waits: bool) -> Iterator[bool]:
    """Hold the study's place in the store against other processes that run it; yield whether it is ours."""
    path = job.store.path(job.study.id, job.preset)
    lock = FileLock(f"{path}.run.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        if not waits:
            yield False
            return
        warnings.warn(f"another process is running {job.study.id} {job.preset} here; waiting for it", LabWarning, stacklevel=4)
        try:
            lock.acquire(timeout=-1 if job.deadline is None else max(0.0, job.deadline - time.monotonic()))
        except Timeout:
            yield False
            return
    except OSError as error:
        raise NormlibError(
            f"the records of {job.study.id} could not be written to {path}: {error}. Nothing was run; choose another folder with "
            "--results, or mend this one."
        ) from error
    try:
        yield True
    finally:
        lock.release()


def _check_positive(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise NormlibError(f"{name}={value} was passed; expected more than 0, or None for the default")


def _checked_device(device: str | None, preset: str, cluster: str | None) -> str | None:
    """Choose the device; on a cluster a worker's own machine decides what there is."""
    if device is None:
        return "cpu" if preset == "quick" else None if cluster else best_device()
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not (kind == "cuda" and index.isdigit())):
        raise unknown("device", device, ("cpu", "cuda", "cuda:0", "mps"))
    if not cluster and not has_device(device):
        raise NormlibError(f"device {device!r} was asked for, but torch finds none here; use --device cpu")
    return device
