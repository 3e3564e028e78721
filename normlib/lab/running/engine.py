"""The engine: runs what is missing, on any executor with the interface of `concurrent.futures`.

One parent holds the store and appends each record as its trial completes; workers only measure. So an interrupt loses at most
the trials in flight, and a worker that dies costs one repetition.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from normlib.errors import NormlibError, unknown
from normlib.lab.code.provenance import best_device, git_state
from normlib.lab.records import Record, Store, record_key
from normlib.lab.running.executors import Place, choose_place, packed, processes
from normlib.lab.running.trial import Task, execute, is_out_of_memory
from normlib.lab.study import PRESETS, Study

RETRIES = 2
LOOK = 5.0  # seconds between two looks at the clock while trials run
Trial = tuple[dict[str, Any], int]
Bodies = list[dict[str, Any]]


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
    place = choose_place(preset, job.device, 1 if study.kind == "timing" else workers, executor, cluster)
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
        """List the trials without a fresh record that is no failure."""
        records = self.store.read(self.study.id, self.preset)
        done = {r.key for r in records if r.status != "failed" and self.study.is_fresh(r)}
        return [t for t in self.trials if self.key(t) not in done]

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

    @property
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
        for body in _measured(job, job.tasks(pending), place):
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


def _measured(job: _Job, tasks: list[Task], place: Place) -> Iterator[dict[str, Any]]:
    """Yield the bodies of all records; on a GPU the first trial shows how many fit, and what found no memory runs again alone."""
    if place.measures_first and tasks:
        first, tasks = tasks[:1], tasks[1:]
        for bodies in _completed(job, first, place):
            yield from bodies
            place = packed(bodies[0], len(tasks))
    crowded: list[Task] = []
    for bodies in _completed(job, tasks, place, crowded if place.is_shared else None):
        yield from bodies
    for bodies in _completed(job, crowded, processes(1)):
        yield from bodies


def _completed(job: _Job, tasks: list[Task], place: Place, crowded: list[Task] | None = None) -> Iterator[Bodies]:
    """Yield results as they complete; when a worker dies, start anew with the tasks that it took down.

    A task that ran out of memory goes to `crowded`, if there is such a list, instead of being yielded.
    """
    waiting = list(tasks)
    for attempt in range(RETRIES + 1):
        lost: list[Task] = []
        for task, result in _attempt(job, waiting, place):
            if isinstance(result, BaseException):
                lost.append(task)
            elif crowded is not None and is_out_of_memory(result[0]["reason"]):
                crowded.append(task)
            else:
                yield result
        waiting = lost + waiting
        if not waiting or job.is_over:
            return
        if attempt == RETRIES:
            raise NormlibError(
                f"{job.study.id}: workers died {RETRIES + 1} times (killed, or out of memory?); {len(waiting)} trials are left. "
                "What was measured is kept; run the same command again, perhaps with fewer --workers."
            )


def _attempt(job: _Job, waiting: list[Task], place: Place) -> Iterator[tuple[Task, Bodies | BaseException]]:
    """Hand out tasks from `waiting`, which it empties, until an executor breaks; yield each with its bodies, or as lost."""
    with place.open() as (executor, slots):
        running: dict[Future[Any], tuple[Task, float]] = {}
        while waiting or running:
            width = slots(job.limit is None)
            while waiting and len(running) < width and not job.is_over:
                try:
                    future = executor.submit(execute, waiting[0])
                except BrokenExecutor:
                    break
                running[future] = (waiting.pop(0), time.monotonic())
            if not running:
                return
            for future in wait(running, timeout=LOOK, return_when=FIRST_COMPLETED).done:
                task, begun = running.pop(future)
                try:
                    yield task, future.result()
                except BrokenExecutor as broken:
                    age = time.monotonic() - begun
                    hung = task.limit is not None and age >= task.limit
                    yield task, _hung(task, age) if hung else broken


def _hung(task: Task, age: float) -> Bodies:
    reason = f"TimeLimit: it took longer than {task.limit:g} s and did not answer to being interrupted; its worker was ended"
    return task.failed(reason, age)


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
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise unknown("device", device, ("cpu", "cuda", "mps"))
    if device is None:
        return "cpu" if preset == "quick" else None if cluster else best_device()
    if device.startswith("cuda") and not cluster and best_device() != "cuda":
        raise NormlibError(f"device {device!r} was asked for, but torch finds no CUDA GPU here; use --device cpu")
    return device
