"""A time limit for a trial, also for one that hangs."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_expendable = False  # whether this process is a worker that somebody replaces when it ends


class OutOfTime(BaseException):
    """Raised inside a trial that runs too long; no `except Exception` in the trial catches it."""


def make_expendable() -> None:
    """Say that this process is a worker of a pool: it may end itself when a trial in it cannot be interrupted."""
    global _expendable
    _expendable = True


def hard_limit(limit: float) -> float:
    """Return when a worker is ended whose trial does not answer to being interrupted, in seconds from its start."""
    return limit + max(2.0, 0.1 * limit)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupt what runs inside after so many seconds.

    In the main thread a signal interrupts, also in mid-sleep; in another thread an exception is set, which Python raises between
    two of its instructions. Code that returns to Python from neither (a loop inside a C library) can only be stopped with its
    process: a worker ends itself at `hard_limit`.

    Args:
        seconds: the limit; None for none.

    Raises:
        OutOfTime: inside, when the time is over.
    """
    if seconds is None:
        yield
        return
    last_resort = threading.Timer(hard_limit(seconds), _end_process)
    last_resort.daemon = True
    last_resort.start()
    by_signal = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    try:
        with _by_signal(seconds) if by_signal else _by_exception(seconds):
            yield
    finally:
        last_resort.cancel()


def _end_process() -> None:
    if _expendable or _has_nanny():
        os._exit(70)


def _has_nanny() -> bool:
    """Tell whether this is a Dask worker that its nanny starts again."""
    try:
        from distributed import worker
    except ImportError:
        return False
    return any(getattr(w, "nanny", None) for w in worker.Worker._instances)


@contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _by_exception(seconds: float) -> Iterator[None]:
    thread, over, turn = ctypes.c_ulong(threading.get_ident()), False, threading.Lock()
    raise_there = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def interrupt() -> None:
        with turn:
            if not over:
                raise_there(thread, ctypes.py_object(OutOfTime))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with turn:
            over = True
            raise_there(thread, None)  # one that was set and not raised yet shall not strike later
