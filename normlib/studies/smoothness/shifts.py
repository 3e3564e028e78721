"""Internal covariate shift over training: when it is measured, in which layers, and how the table of it is read and drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import nn

from normlib.lab import number
from normlib.probes import internal_covariate_shift
from normlib.studies.common.looks import median_and_band, norm_color
from normlib.training.history import History, log_steps
from normlib.training.losses import Loss
from normlib.training.probing import Probe

NORMS = {"none": "without", "batch": "with BN"}
COLUMNS = ("gradient_norm", "shift", "relative_shift", "cosine")


def probed_steps(steps: int, points: int) -> list[int]:
    """List when to measure: evenly on a log axis, for the start, and evenly on a linear one, for the rest."""
    return sorted({*log_steps(steps, points), *(steps * (i + 1) // points - 1 for i in range(points))})


def weight_layers(network: nn.Module) -> list[str]:
    """List the layers that hold weights, from the lowest."""
    return [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def shift_probe(loss: Loss, names: list[str]) -> Probe:
    """Return a probe that measures the shift of layers by definition 2.1, on the batch and at the rate of the step ahead.

    Args:
        loss: function of output and target.
        names: the layers, in forward order. All parameters below each take the step: scales and biases of norms, too.
    """

    def probe(step, model):
        found = internal_covariate_shift(model, loss, step.x, step.y, step.rate, names, training=True)
        return {name: found[name] for name in COLUMNS}

    return probe


def with_depth_and_loss(history: History, depths: list[int]) -> dict[str, Any]:
    """Return what the probe measured, with the place of each layer and the training loss, a mean over ten steps around."""
    columns = dict(history.probes)
    if not columns:
        return {}
    columns["layer"] = depths * (len(columns["step"]) // len(depths))
    columns["loss"] = [float(np.mean(history.loss[max(0, at - 5) : at + 5])) if at else history.loss[0] for at in columns["step"]]
    return columns


def phase(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Keep the probes of a part of each run: the "first" step; without it the "early" or "late" fifth, or "all"."""
    last = table.groupby(["rate"]).step.transform("max")
    first = table.step == 0
    parts = {"first": first, "early": ~first & (table.step <= last / 5), "late": table.step >= 0.8 * last, "all": ~first}
    return table[parts[name]]


def typical(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return the median over probes and layers: a row a seed, a column a norm and rate."""
    return table.groupby(["seed", "norm", "rate"])[value].median().unstack(["norm", "rate"])


def ratios(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return a quantity with batch norm over that without, seed by seed: a column a rate."""
    found = typical(table, value)
    return found["batch"] / found["none"]


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cosine with batch norm less that without, seed by seed: a column a rate."""
    found = typical(table, "cosine")
    return found["batch"] - found["none"]


def by_rate(values: pd.DataFrame) -> str:
    """Write the median over seeds at each rate."""
    return ", ".join(f"{number(values[rate].median())} at rate {rate_in_words(rate)}" for rate in sorted(values, reverse=True))


def rate_in_words(rate: float) -> str:
    """Write a learning rate: "0.1", "10⁻⁶"."""
    return number(rate).removeprefix("1.0·")


def draw_layers(axes: Axes, table: pd.DataFrame, value: str) -> None:
    """Draw a quantity over training: a thin line a layer (medians over seeds), a bold one and a band for the median layer.

    The highest layer is dashed. The first step stands apart, at the left, as open circles.
    """
    for norm in NORMS:
        arm, color = table[(table.norm == norm) & np.isfinite(table[value])], norm_color(norm)
        rest = arm[arm.step > 0].assign(step=arm.step + 1)
        for place, layer in rest.groupby("layer"):
            curve = layer.groupby("step")[value].median()
            style = (
                {"linestyle": "--", "linewidth": 0.9, "alpha": 0.9}
                if place == rest.layer.max()
                else {"linewidth": 0.6, "alpha": 0.45}
            )
            axes.plot(curve.index, curve, color=color, **style)
        middle = rest.groupby(["seed", "step"])[value].median().reset_index()
        median_and_band(axes, middle, "step", value, color=color, linewidth=2, label=NORMS[norm])
        start = arm[arm.step == 0].groupby("layer")[value].median()
        axes.plot([1] * len(start), start, "o", color=color, mfc="none", markersize=4)
    axes.set(xscale="log")
