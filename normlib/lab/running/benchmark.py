"""What the lab itself costs: seconds per trial that are not the trial's, and how two workers compare with one.

normlib bench lab
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from normlib.lab.config import Config
from normlib.lab.records import Store
from normlib.lab.running.engine import run
from normlib.lab.running.executors import InlineExecutor, process_pool
from normlib.lab.study import Study

_QUICK: dict[str, Any] = {"quick": {}, "laptop": {}, "full": None}

empty = Study(
    "bench.empty", item="none", title="What the lab costs per trial", kind="exact", vary={"i": list(range(100))}, **_QUICK
)
busy = Study("bench.busy", item="none", title="How work scales with workers", kind="train", vary={"i": list(range(16))}, **_QUICK)


@empty.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    return {"x": [0.0] * 60}


@busy.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    """Multiply small matrices, so that memory is no limit: about a second on one core.

    The factor is large enough that the values neither die out nor become denormal numbers, which are slow.
    """
    x = torch.randn(64, 64) / 4
    total = x
    for _ in range(50_000):
        total = torch.tanh(total @ x)
    return {"x": float(total.sum())}


def lab_costs(dask: bool = True) -> dict[str, list[Any]]:
    """Measure on this machine.

    Workers are started and have imported torch before the clock runs; their start costs some seconds once per run.

    Args:
        dask: measure a Dask cluster of processes on this machine too; needs `normlib[cluster]`.

    Returns:
        Columns: `where`, `workers`, `overhead_ms` (wall time per empty trial, recorded and synced to disk), `busy_s` (wall time
        of 16 equal trials on the CPU), and `speedup`, that of one worker of the same kind over this one.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("where", "workers", "overhead_ms", "busy_s", "speedup")}
    for where in ("processes", "dask") if dask else ("processes",):
        alone = 0.0
        for workers in (1, 2):
            overhead, seconds = _measure(where, workers)
            alone = seconds if workers == 1 else alone
            row = (where, workers, 1e3 * overhead, seconds, alone / seconds)
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value)
    return columns


def _measure(where: str, workers: int) -> tuple[float, float]:
    with ExitStack() as stack:
        store = Store(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        executor = stack.enter_context(_executor(where, workers))
        _warm(executor, workers)
        seconds = [_timed(study, store, executor) for study in (empty, busy)]
    return seconds[0] / len(empty.trials("quick")), seconds[1]


@contextmanager
def _executor(where: str, workers: int) -> Iterator[Executor]:
    if where == "dask":
        from distributed import Client, LocalCluster

        from normlib.lab.running.cluster import ClusterExecutor

        options: dict[str, Any] = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
        with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
            yield ClusterExecutor(client)
        return
    pool = process_pool(workers) if workers > 1 else InlineExecutor()
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _warm(executor: Executor, workers: int) -> None:
    """Let every worker import what it needs."""
    wait([executor.submit(_breathe) for _ in range(4 * workers)])


def _breathe() -> None:
    time.sleep(0.5)


def _timed(study: Study, store: Store, executor: Executor) -> float:
    clock = time.perf_counter()
    outcome = run(study, store=store, executor=executor, device="cpu")
    assert not outcome.left and not outcome.failures, outcome
    return time.perf_counter() - clock
