"""Where trials run: in this process, in processes of this machine, or wherever a given executor puts them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

OpenExecutor = Callable[[], AbstractContextManager[tuple[Executor, int]]]
"""Opens an executor and says how many trials to keep in flight; called again after a worker died."""

GIVEN_SLOTS = 64


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


def choose_executor(preset: str, device: str, workers: int | None, executor: Executor | None) -> OpenExecutor:
    """Choose where trials run; the result opens a context of (executor, number of trials in flight)."""
    if workers is None:
        workers = 1 if preset == "quick" or device != "cpu" else os.cpu_count() or 1

    @contextmanager
    def open_executor() -> Iterator[tuple[Executor, int]]:
        if executor is not None:
            yield executor, GIVEN_SLOTS
        elif workers == 1:
            yield InlineExecutor(), 1
        else:
            pool = process_pool(workers)
            try:
                yield pool, 2 * workers
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return open_executor


def process_pool(workers: int) -> Executor:
    """Make a pool of processes: loky's where it is installed, else the standard library's, spawned afresh.

    A worker ends with its parent, also when the parent is killed.
    """
    try:
        from loky import ProcessPoolExecutor as LokyExecutor
    except ImportError:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with, initargs=(os.getpid(),))
    return _LokyPool(LokyExecutor(workers, timeout=None, initializer=_end_with, initargs=(os.getpid(),)))


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone; nobody would take its results."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


class _LokyPool(Executor):
    """loky's pool under the standard library's signature of `shutdown`; what runs is stopped when it is closed."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait=wait, kill_workers=cancel_futures)
