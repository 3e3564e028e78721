"""Peng et al. (2018), MegDet: processes that exchange messages, each with its own images, against one process with all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import normlib
from normlib.errors import NormlibError
from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, GRAY, subplots
from normlib.studies.common.statements import gap
from normlib.studies.flavors.peng2018 import distances
from normlib.studies.flavors.sync_process import NORMS, run

SHARDS = {"equal": [8, 8, 8], "unequal": [3, 7, 14]}
TOLERANCE = 1e-10

processes = Study(
    "peng2018.processes",
    item="§3.3",
    title="Three processes that share statistics are one process with all images; sharing gradients is not enough",
    kind="exact",
    vary={"shards": list(SHARDS)},
    quick={"data": "digits", "pool": 1, "train": 24, "shards": ["unequal"]},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 24},
    full=None,
)


def in_processes(task: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Run a task of `sync_process` in one process for each shard; the processes exchange messages by gloo.

    Returns:
        By norm, the outputs of all images in their order, and gradients and running statistics as the first process has them.

    Raises:
        NormlibError: if a process fails; the message holds what it printed.
    """
    paths = [str(Path(normlib.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(task, Path(folder) / "task.pt")
        command = [sys.executable, "-m", "normlib.studies.flavors.sync_process", folder]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started = [subprocess.Popen([*command, str(rank)], env=environment, **pipes) for rank in range(len(task["shards"]))]
        try:
            said = [process.communicate()[0] for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        if any(process.returncode for process in started):
            raise NormlibError("a process that shares batch statistics failed and printed:\n" + "\n".join(said))
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(len(started))]
    return {norm: {**found[0][norm], "outputs": torch.cat([one[norm]["outputs"] for one in found])} for norm in NORMS}


@processes.trial
def _(c, seed):
    images = load(c, seed).pooled(c.pool).standardized()
    task = {"classes": images.classes, "seed": seed, "x": images.x_train.double().cpu(), "y": images.y_train.cpu()}
    task["shards"] = SHARDS[c.shards]
    whole = run("batch", **task)
    return {f"{norm}_{what}": gap(of[what], whole[what]) for norm, of in in_processes(task).items() for what in whole}


WAYS = {
    "sync_outputs": ("shared: outputs", BLUE),
    "sync_gradients": ("shared: gradients", BLUE),
    "sync_running": ("shared: running statistics", BLUE),
    "batch_outputs": ("each its own: outputs", GRAY),
    "batch_gradients": ("each its own: gradients", GRAY),
    "batch_running": ("each its own: running statistics", GRAY),
}


@processes.draw
def _(table):
    figure, axes = subplots(1, 1, height=2.4)
    distances(axes, table, WAYS)
    shared = table[[way for way in WAYS if way.startswith("sync")]].max().max()
    alone = table.groupby("shards")[["batch_outputs", "batch_gradients"]].median().min()
    return Drawing(
        figure,
        caption="Three processes hold 24 images of one batch and add their gradients; one step of a network of two convolutions "
        f"in float64. With shared statistics they differ from one process with all images by at most {number(shared)} of the "
        f"largest number. With statistics of their own they differ by {number(alone.batch_outputs)} in the outputs and "
        f"{number(alone.batch_gradients)} in the gradients, or more (medians over seeds). Equal shards are 8 each, unequal ones 3, "
        "7 and 14.",
        alt="Distance from one process with all images, log axis, for outputs, gradients and running statistics: at rounding with "
        "shared statistics, near one without, in equal and in unequal shards.",
    )


@processes.claim(
    "one-process",
    "Processes that share the statistics of batch norm compute what one process computes on all images: outputs and gradients.",
    criterion=f"three processes, equal and unequal shards: outputs and parameter gradients within {TOLERANCE:g}, relative",
)
def _(table):
    return judge_identity("largest relative difference", table[["sync_outputs", "sync_gradients"]].max().max(), TOLERANCE)


@processes.claim(
    "running",
    "The running mean and variance that they store are those of one process, too.",
    criterion=f"three processes, equal and unequal shards: running statistics of both norms within {TOLERANCE:g}, relative",
    by="notes",
)
def _(table):
    return judge_identity("largest relative difference", table.sync_running.max(), TOLERANCE)


@processes.claim(
    "gradients-alone",
    "Processes that share gradients only, and not statistics, compute other outputs and other gradients.",
    criterion="the smaller of both relative differences, the least over equal and unequal shards, above 1 %, interval over seeds",
    by="notes",
)
def _(table):
    least = table[["batch_outputs", "batch_gradients"]].min(axis=1).groupby(table.seed).min()
    return judge_effect("least relative difference", least, claimed=(0.01, np.inf), null=0.0)
