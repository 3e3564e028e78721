"""What a run of training leaves behind: the loss at each step, where it diverged, and what probes measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from normlib.errors import NormlibError


@dataclass(frozen=True, eq=False)
class History:
    """The record of one run.

    Attributes:
        loss: loss of the batch at each step, before that step's update, shape (steps run,). If the run diverged, the steps
            before `diverged_at`.
        diverged_at: first step whose loss was not finite (or above the limit), counted from 0; None if there was none.
        probes: what the probe measured, as columns; `probes["step"]` says when. Of several probes, the columns of each by name.
    """

    loss: np.ndarray[Any, np.dtype[np.float64]]
    diverged_at: int | None = None
    probes: dict[str, Any] = field(default_factory=dict)

    def curve(self, points: int = 60) -> dict[str, list[Any]]:
        """Thin the loss for a record: columns `step` and `loss` at no more than `points` steps, denser at the start.

        The loss at a step is the mean since the step listed before it, so noise shrinks as the spacing grows.
        """
        if not len(self.loss):
            return {"step": [], "loss": []}
        steps = log_steps(len(self.loss), points)
        starts = [0, *(step + 1 for step in steps[:-1])]
        means = [float(self.loss[start : step + 1].mean()) for start, step in zip(starts, steps, strict=True)]
        return {"step": steps, "loss": means}


def log_steps(total: int, points: int) -> list[int]:
    """Return at most `points` step numbers in 0 ... total - 1, roughly evenly spaced on a log axis, first and last among them.

    Example:
        >>> log_steps(1000, 7)
        [0, 2, 9, 31, 99, 315, 999]

    Raises:
        NormlibError: if `total` is below 1 or `points` below 2.
    """
    if total < 1 or points < 2:
        raise NormlibError(f"log_steps got total={total}, points={points}; expected at least one step and two points.")
    return sorted({int(step) - 1 for step in np.geomspace(1, total, points).round()})


def append_rows(columns: dict[str, list[Any]], step: int, result: Mapping[str, Any]) -> None:
    """Append what a probe returned to columns in place: one row, or as many as its lists are long.

    Args:
        columns: the columns so far; empty at first.
        step: goes into the column `step`.
        result: numbers, and lists of one length (arrays and tensors count as lists); single values stand for every row.

    Raises:
        NormlibError: if the lists differ in length, or the names differ from those of the rows before.

    Example:
        >>> columns = {}
        >>> append_rows(columns, 5, {"layer": ["a", "b"], "loss": 0.5})
        >>> columns
        {'step': [5, 5], 'layer': ['a', 'b'], 'loss': [0.5, 0.5]}
    """
    row = {"step": step, **{name: _plain(value) for name, value in result.items()}}
    lengths = {len(value) for value in row.values() if isinstance(value, list)}
    if len(lengths) > 1:
        raise NormlibError(f"the columns of a probe differ in length at step {step}: {sorted(lengths)}.")
    if columns and columns.keys() != row.keys():
        raise NormlibError(f"a probe returned {list(row)[1:]} at step {step}, but {list(columns)[1:]} before. Keep the names.")
    rows = lengths.pop() if lengths else 1
    for name, value in row.items():
        columns.setdefault(name, []).extend(value if isinstance(value, list) else [value] * rows)


def _plain(value: Any) -> Any:
    """Turn tensors, arrays and NumPy numbers into lists and Python numbers."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
