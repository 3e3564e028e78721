"""A time limit for a trial, also for one that hangs."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_expendable = False  # whether this process is a worker that somebody replaces when it ends


class OutOfTime(BaseException):
    """Raised inside a trial that runs too long; no `except Exception` in the trial catches it."""


def make_expendable() -> None:
    """Say that this process is a worker of a pool: it may end itself when a trial in it cannot be interrupted."""
    global _expendable
    _expendable = True


def is_expendable() -> bool:
    """Tell whether this process is such a worker, or one of Dask's that its nanny starts again."""
    return _expendable or _has_nanny()


def hard_limit(limit: float) -> float:
    """Return when a worker is ended whose trial does not answer to being interrupted, in seconds from its start."""
    return limit + max(2.0, 0.1 * limit)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupt what runs inside after so many seconds.

    In the main thread a signal interrupts, also in mid-sleep; in another thread an exception is set, which Python raises between
    two of its instructions. Code that returns to Python from neither (a loop inside a C library) can only be stopped with its
    process: a worker ends at `hard_limit`, by a clock that does not need the interpreter.

    Args:
        seconds: the limit; None for none.

    Raises:
        OutOfTime: inside, when the time is over.
    """
    if seconds is None:
        yield
        return
    by_signal = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    with _last_resort(hard_limit(seconds)), _by_signal(seconds) if by_signal else _by_exception(seconds):
        yield


@contextmanager
def _last_resort(seconds: float) -> Iterator[None]:
    """End this process if it is expendable and still here after so many seconds."""
    if not is_expendable():
        yield
        return
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _has_nanny() -> bool:
    if "distributed" not in sys.modules:
        return False
    from distributed import worker

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
