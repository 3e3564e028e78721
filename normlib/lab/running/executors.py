"""Where trials run: in this process, in processes of this machine, on a cluster, or wherever a given executor puts them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from normlib.lab.running.limits import make_expendable

Slots = Callable[[], int]
"""How many tasks to keep in flight: more than there are workers, so that none has to wait for its next one."""

Open = Callable[[], AbstractContextManager[tuple[Executor, Slots]]]
GIVEN_SLOTS = 64
CONTEXT_MB = 700  # what a process takes of a GPU before its first tensor
WORTH_PACKING = 30.0  # seconds of work left below which starting processes on a GPU does not pay


@dataclass(frozen=True)
class Place:
    """Where trials run.

    Args:
        open: opens an executor, with a function that says how many tasks to keep in flight; called again after a worker died.
        open_alone: opens one for a task that shall have no company; None takes `open`, with one task in flight.
        is_shared: several trials may share one machine's memory.
        measures_first: the number of processes is not known before a first trial was measured.
    """

    open: Open
    open_alone: Open | None = None
    is_shared: bool = False
    measures_first: bool = False


class InlineExecutor(Executor):
    """Runs each call at once, in this process: no start-up cost, for the short trials of a page."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the call and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def choose_place(
    preset: str,
    device: str | None,
    workers: int | None,
    executor: Executor | None = None,
    cluster: str | None = None,
    expendable: bool = False,
) -> Place:
    """Choose where trials run.

    Args:
        preset: quick runs in this process.
        device: where trials run; "cuda" puts several on one GPU once a first one was measured.
        workers: number of processes; None decides by preset and device.
        executor: an executor to use instead.
        cluster: address of a Dask scheduler to use instead.
        expendable: run in worker processes even where one is enough, so that one that hangs can be ended.
    """
    if executor is not None:
        return given(executor)
    if cluster is not None:
        from normlib.lab.running.cluster import dask_cluster

        return Place(lambda: dask_cluster(cluster), is_shared=True)
    if workers is None:
        on_gpu = (device or "cpu") != "cpu"
        if on_gpu and preset != "quick" and not expendable:
            return Place(inline, measures_first=True)
        workers = 1 if preset == "quick" or on_gpu else os.cpu_count() or 1
    return processes(workers, expendable)


def processes(workers: int, expendable: bool = False) -> Place:
    """Return a place of so many processes; one means this process, unless it has to be expendable."""
    if workers == 1:
        return Place(lambda: _processes(1)) if expendable else Place(inline)
    return Place(lambda: _processes(workers), lambda: _processes(1), is_shared=True)


def given(executor: Executor) -> Place:
    """Return the place that an executor of the caller's is; it is not closed."""

    @contextmanager
    def open_executor() -> Iterator[tuple[Executor, Slots]]:
        yield executor, lambda: GIVEN_SLOTS

    return Place(open_executor)


@contextmanager
def inline() -> Iterator[tuple[Executor, Slots]]:
    """Open an executor in this process."""
    yield InlineExecutor(), lambda: 1


@contextmanager
def _processes(workers: int) -> Iterator[tuple[Executor, Slots]]:
    pool = process_pool(workers)
    try:
        yield pool, lambda: 2 * workers
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def packing(seconds: float, peak_mb: float, tasks: int, free_mb: float, cores: int) -> int:
    """Say how many processes one GPU should hold.

    Small trials wait for their launches and not for arithmetic, so several share a GPU well. Memory is what limits them: each
    process takes its trial's peak and a context, and a fifth of what is free stays free. Where little is left to do, starting
    processes costs more than it gains.

    Args:
        seconds: what the first trial took.
        peak_mb: its peak memory on the GPU.
        tasks: how many are left.
        free_mb: free memory of the GPU.
        cores: processor cores of the machine.

    Example:
        >>> packing(seconds=20, peak_mb=300, tasks=40, free_mb=140_000, cores=16)
        8
        >>> packing(seconds=20, peak_mb=30_000, tasks=40, free_mb=140_000, cores=16)
        3
        >>> packing(seconds=0.5, peak_mb=300, tasks=10, free_mb=140_000, cores=16)
        1
    """
    if seconds * tasks < WORTH_PACKING:
        return 1
    fitting = int(0.8 * free_mb / (peak_mb + CONTEXT_MB))
    return max(1, min(fitting, cores, tasks, 8))


def packed(bodies: list[dict[str, Any]], tasks: int, device: str | None = None) -> Place:
    """Return the place for the tasks that are left on a GPU, after the records of a first one."""
    import torch

    free_mb = torch.cuda.mem_get_info(device)[0] / 1e6 if torch.cuda.is_available() else 0.0
    seconds = sum(body["seconds"] for body in bodies)
    return processes(packing(seconds, bodies[0]["peak_mb"], tasks, free_mb, os.cpu_count() or 1))


def process_pool(workers: int) -> Executor:
    """Make a pool of processes: loky's where it is installed, else the standard library's, spawned afresh.

    A worker ends with its parent, also when the parent is killed.
    """
    try:
        from loky import ProcessPoolExecutor as LokyExecutor
    except ImportError:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(os.getpid(),))
    return _LokyPool(LokyExecutor(workers, timeout=None, initializer=_start_worker, initargs=(os.getpid(),)))


def _start_worker(parent: int) -> None:
    """Let this worker end when a trial hangs, and when its parent is gone: nobody would take its results."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    make_expendable()
    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


class _LokyPool(Executor):
    """loky's pool under the standard library's signature of `shutdown`; what runs is stopped when it is closed."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait=wait, kill_workers=cancel_futures)
