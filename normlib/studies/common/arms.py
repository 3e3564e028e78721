"""The arms of a comparison: the images they share, when each arrives, and their numbers side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config
from normlib.layers import BatchNorm
from normlib.studies.common.inputs import load
from normlib.surgery import reestimate_statistics
from normlib.training import accuracy


def images_for(c: Config, seed: int) -> tuple[Dataset, Dataset]:
    """Return what an arm is tuned on and what it is tested on, both standardized by the same training images.

    Args:
        c: the configuration; `data`, and where it has them `train`, `test`, `pool` (squares to average over) and `validation`
            (images held out of the training images; a sixth of them if not given).
        seed: which images are held out.

    Returns:
        The set to tune on, whose test images are the held-out ones, and the set with the true test images, to be looked at once.
    """
    images = load(c).pooled(c.get("pool", 1)).standardized()
    return images.split_validation(c.get("validation", len(images.x_train) // 6), seed), images


def population_accuracy(model: nn.Module, batches: Iterable[Tensor], x: Tensor, y: Tensor) -> float:
    """Return the accuracy with statistics averaged over batches, as running ones lag behind; the model stays as it is.

    Args:
        model: a network; without batch normalization it is evaluated as it stands.
        batches: inputs to take statistics from, see `reestimate_statistics`.
        x: inputs, shape (N, *).
        y: classes, shape (N,).
    """
    if any(isinstance(module, BatchNorm) for module in model.modules()):
        model = reestimate_statistics(copy.deepcopy(model), batches)
    return accuracy(model, x, y, statistics="eval")


def first_at(steps: Sequence[float], values: Sequence[float], target: float) -> float:
    """Return the first step at which a value reaches a target, or infinity.

    Example:
        >>> first_at([0, 10, 20], [0.1, 0.8, 0.7], 0.75)
        10.0
    """
    reached = [step for step, value in zip(steps, values, strict=True) if value >= target]
    return float(reached[0]) if reached else np.inf


def side_by_side(table: pd.DataFrame, arm: str | list[str], value: str, **where: object) -> pd.DataFrame:
    """Lay the arms of a table side by side: one row a seed, one column an arm, the first value of each run.

    Args:
        table: one or more rows a run.
        arm: the column, or the columns, that tell the arms apart.
        value: the column to read.
        **where: columns and the level to keep of each.

    Example:
        >>> runs = pd.DataFrame({"norm": ["batch", "none"] * 2, "seed": [0, 0, 1, 1], "accuracy": [0.9, 0.8, 0.7, 0.6]})
        >>> (side_by_side(runs, "norm", "accuracy").eval("batch - none")).round(3).tolist()
        [0.1, 0.1]
    """
    for column, level in where.items():
        table = table[table[column] == level]
    arms = [arm] if isinstance(arm, str) else arm
    return table.drop_duplicates(["seed", *arms]).set_index(["seed", *arms])[value].unstack(arms)
