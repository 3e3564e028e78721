"""What happens where a trial runs: a worker, this process, or a node of a cluster takes a task and returns bodies of records."""

from __future__ import annotations

import datetime
import gc
import importlib
import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normlib.errors import NormlibError
from normlib.lab.code.provenance import best_device, device_name, peak_memory_mb, start_peak_memory, versions
from normlib.lab.config import Config, Diverged
from normlib.lab.records import Record, pack_table
from normlib.lab.running.limits import OutOfTime, is_expendable, time_limit
from normlib.lab.study import Study
from normlib.lab.table import check_columns

OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
_ALONE = threading.Lock()  # one trial at a time in a process: the random generators and the thread count are the process's own


class OtherCodeError(NormlibError):
    """A worker would measure with other code than the one that asks; the message names it."""

    def __init__(self, message: str, worker: str = "") -> None:
        super().__init__(message)
        self.worker = worker

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.worker)


@dataclass(frozen=True)
class Task:
    """One trial to run somewhere: plain data, so that it travels.

    Args:
        module: the module that declares the study.
        study: its id.
        preset: "quick", "laptop" or "full".
        config: the settings.
        seeds: one seed; several for a study that takes seeds together.
        device: where to run it; None lets the worker choose the best that it has.
        code: digest of the code that the trial reaches, as the one who asks has it; None accepts a worker of any code.
        limit: seconds after which the trial is given up.
    """

    module: str
    study: str
    preset: str
    config: Mapping[str, Any]
    seeds: tuple[int, ...]
    device: str | None = "cpu"
    code: str | None = None
    limit: float | None = None

    def failed(self, reason: str, seconds: float) -> list[dict[str, Any]]:
        """Return the bodies of records that say why nothing came of the task."""
        about: dict[str, Any] = {"code": self.code or "", "device": self.device or "", "dtype": _dtype(), "start": _now()}
        about |= {"seconds": round(seconds, 3), "peak_mb": float("nan")}
        return [self.body(seed, "failed", reason, {}, about) for seed in self.seeds]

    def body(
        self, seed: int, status: str, reason: str | None, table: Mapping[str, Any], about: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the body of the record of one seed; `about` says by which code, where, when and how long it ran."""
        asked = {"study": self.study, "preset": self.preset, "config": dict(self.config), "seed": seed}
        return {**asked, "status": status, "reason": reason, "table": dict(table), **about}


def execute(task: Task) -> list[dict[str, Any]]:
    """Run a task here and return the body of one record for each of its seeds.

    Whatever the trial does, short of ending the process, becomes a record.

    Raises:
        OtherCodeError: the code here is not that of the one who asks.
    """
    study, code = _study_here(task)
    device = task.device or best_device()
    settings = Config(task.config, device)
    with _ALONE, _undone(), _threads(device, study.kind):
        started, dtype = _now(), _dtype()
        start_peak_memory(device)
        clock = time.perf_counter()
        seed_everything(task.seeds[0])
        status, reason, tables = _measure(study, settings, task)
        seconds = round((time.perf_counter() - clock) / len(task.seeds), 3)
        peak = peak_memory_mb(device)
    together = {"together": len(task.seeds)} if len(task.seeds) > 1 else {}
    about = {
        "code": code,
        "device": device_name(device),
        "dtype": dtype,
        "start": started,
        "seconds": seconds,
        "peak_mb": peak,
        "notes": {**settings.notes, **together},
        "versions": versions(),
    }
    bodies = [task.body(seed, status, reason, table, about) for seed, table in zip(task.seeds, tables, strict=True)]
    return [_recordable(body) for body in bodies]


def _study_here(task: Task) -> tuple[Study, str]:
    """Return the study as it is here, with the digest of its code."""
    try:
        importlib.import_module(task.module)
        study = Study.instances[task.study]
        code = study.code(task.config)
    except Exception as error:
        if task.code is None:
            raise
        raise OtherCodeError(f"{worker_name()} has no {task.study} ({_reason(error)})", worker_name()) from None
    if task.code not in (None, code):
        raise OtherCodeError(f"the code of {task.study} on {worker_name()} is {code}, not {task.code}", worker_name())
    return study, code


def _measure(study: Study, settings: Config, task: Task) -> tuple[str, str | None, list[dict[str, Any]]]:
    nothing: list[dict[str, Any]] = [{} for _ in task.seeds]
    try:
        with time_limit(task.limit):
            return "ok", None, [_packed(task, table) for table in study.measure(settings, task.seeds)]
    except Diverged as diverged:
        return _diverged(diverged, task)
    except OutOfTime:
        return "failed", f"TimeLimit: it took longer than {task.limit:g} s, the time limit of this run", nothing
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not is_expendable():
            raise
        reason = _reason(error)
    if is_out_of_memory(reason):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return "failed", reason, nothing


def _diverged(diverged: Diverged, task: Task) -> tuple[str, str | None, list[dict[str, Any]]]:
    if len(task.seeds) > 1:
        reason = "a trial of several seeds raised Diverged, which would stop them all; return what each seed has measured instead"
        return "failed", reason, [{} for _ in task.seeds]
    try:
        return "diverged", str(diverged.reason), [_packed(task, diverged.table)]
    except Exception as error:
        return "failed", _reason(error), [{}]


def _packed(task: Task, table: Mapping[str, Any]) -> dict[str, Any]:
    packed = pack_table(table)
    check_columns(task.study, {**task.config, "seed": None, "status": None}, packed)
    return packed


def _recordable(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body that can be written: one with notes or columns that cannot becomes a failure that says so."""
    try:
        Record(**body).to_line().encode("utf-8")
    except Exception as error:
        return {**body, "status": "failed", "reason": _reason(error), "table": {}, "notes": {}}
    return body


def _reason(error: BaseException) -> str:
    """Say what was raised and where, whatever the exception makes of being printed."""
    try:
        said = str(error).encode("utf-8", "replace").decode()
    except Exception:
        said = "(it cannot be printed)"
    place = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{type(error).__name__}: {said}" + "".join(f" ({frame.name}, line {frame.lineno})" for frame in place)


def is_out_of_memory(reason: str | None) -> bool:
    """Tell whether the reason of a failure is a lack of memory, of the GPU or of the machine."""
    return bool(reason) and str(reason).startswith(OUT_OF_MEMORY)


def worker_name() -> str:
    """Name the process: its address in a Dask cluster, else host and process id."""
    try:
        from distributed import get_worker

        return str(get_worker().address)
    except (ImportError, ValueError):
        return f"{socket.gethostname()}, process {os.getpid()}"


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch: the one place where a trial's randomness starts."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def _undone() -> Iterator[None]:
    """Undo what a trial changes in its process and leaves behind, which would change the next one's numbers."""
    dtype, grad, folder = torch.get_default_dtype(), torch.is_grad_enabled(), Path.cwd()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        os.chdir(folder)


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


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _dtype() -> str:
    return str(torch.get_default_dtype()).removeprefix("torch.")
