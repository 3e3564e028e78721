"""Studies that are small, slow or badly behaved on purpose. Workers import this module by name."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normlib.lab import Config, Diverged, Drawing, Judgement, Record, Store, Study, judge_identity
from normlib.studies import get_study
from normlib.studies.common.looks import subplots

PRESETS: Any = {"quick": {}, "laptop": {}, "full": None}


def declare(name: str, **vary: list[Any]) -> Study:
    return Study(f"toy.{name}", item="none", title="a toy", kind="exact", vary=vary, **PRESETS)


def mark(text: str) -> bool:
    """Leave a mark in $TOY_FOLDER; True if this is the first of its kind."""
    path = Path(os.environ["TOY_FOLDER"]) / text
    first = not path.exists()
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return first


noise = declare("noise", arm=[1, 2, 3])


@noise.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    c.note("data", {"name": "noise", "official": True})
    draws = {"python": random.random(), "numpy": np.random.rand(), "torch": torch.rand(3).tolist()}
    return {**draws, "threads": torch.get_num_threads()}


@noise.draw
def _(table: Any) -> Drawing:
    figure, axes = subplots()
    axes.plot(table.arm, table.numpy)
    return Drawing(figure, caption="Noise.", alt="A jagged line.")


@noise.claim("threads", "A trial has one thread.", criterion="the largest number is 1")
def _(table: Any) -> Judgement:
    return judge_identity("threads above one", float(table.threads.max() - 1), 0.0)


moody = declare("moody", mood=["fine", "raises", "diverges", "unwritable"])


@moody.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    if c.mood == "raises" and mark("raised"):
        raise RuntimeError("not today")
    if c.mood == "diverges":
        mark("diverged")
        raise Diverged("loss is not finite at step 3", loss=[1.0, 2.0, float("inf")])
    return {"x": object()} if c.mood == "unwritable" and mark("unwritten") else {"x": 1}


interrupted = declare("interrupted", i=list(range(5)))


@interrupted.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    if c.i == 3 and mark("interrupted"):
        raise KeyboardInterrupt
    return {"x": c.i}


slow = declare("slow", i=list(range(12)))


@slow.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    mark("pids")
    time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
    return {"x": c.i}


fragile = declare("fragile", i=list(range(6)))


@fragile.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    if c.i == 2 and mark("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    mark(f"ran-{c.i}")
    return {"x": c.i}


def append_many(folder: str, record: Record, seeds: list[int]) -> list[bool]:
    """Append one record per seed, for a worker."""
    store = Store(folder)
    return [store.append(Record(**{**vars(record), "seed": seed})) for seed in seeds]


def code_of(study_id: str, config: dict[str, Any]) -> str:
    """Digest a trial's code, in a worker."""
    return get_study(study_id).code(config)


endless = declare("endless", how=["fine", "sleeps", "loops", "deaf", "greedy"])


@endless.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    if (Path(os.environ["TOY_FOLDER"]) / f"{c.how}-cured").exists() or c.how == "fine":
        return {"x": 1}
    if c.how == "greedy":
        sum(range(10**12))  # never lets go of the interpreter
    if c.how == "deaf":  # no signal arrives
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(60)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(60 if c.how == "sleeps" else 0)
        except Exception:
            continue
    return {"x": 1}


hungry = declare("hungry", i=list(range(4)))


@hungry.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    if c.i == 1 and mark("crowded"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
    if c.i == 2:
        mark("too-large")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 900.00 GiB")
    return {"x": c.i}


together = declare("together", arm=[1, 2])


@together.trial_of_seeds
def _(c: Config, seeds: list[int]) -> list[dict[str, Any]]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return [{"x": c.arm * torch.rand(2, generator=g).numpy()} for g in generators]


poison = declare("poison", how=["a", "dies", "b", "exits", "c"])


@poison.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    if c.how == "dies":
        os._exit(9)
    if c.how == "exits":
        raise SystemExit(0)
    return {"x": 1}


rude = declare("rude", how=["fine", "leaves", "exits", "unprintable", "surrogate", "note", "ragged", "clash"])


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@rude.trial
def _(c: Config, seed: int) -> dict[str, Any]:
    if c.how == "leaves":
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
    if c.how == "exits":
        raise SystemExit(0)
    if c.how == "unprintable":
        raise UnprintableError
    if c.how == "note":
        c.note("function", len)
    tables: dict[str, dict[str, Any]] = {
        "surrogate": {"x": "\ud800"}, "ragged": {"x": [1, 2], "y": [1]}, "clash": {"how": "other"},
    }  # fmt: skip
    return tables.get(c.how, {"x": 1})
