"""The relatives of group norm against batch and group norm: one reading of an arm, one training, one drawing of errors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from normlib.activations import ACTIVATIONS, make_activation
from normlib.data import Dataset
from normlib.lab import Config, Diverged, number
from normlib.layers import EvoNormB0, SwitchNorm
from normlib.layers.moments import instance_map, instance_moments, per_instance, pooled_moments
from normlib.layers.shapes import channel_affine
from normlib.networks import PlainConvNet
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import norm_color, note
from normlib.studies.common.statements import gap
from normlib.studies.common.tuning import tuned
from normlib.studies.flavors.convnets import BATCH, Workers, convnet, errors, fit

PER, WARM_UP = "per ", "warm-up"
SCHEDULES = {True: "linear:warmup=0.1", False: "linear"}  # with a warm-up over the first tenth of the steps, and without
SMALL = 2  # images per statistic, where they are few


def read_arm(arm: str) -> tuple[str, str, int, bool]:
    """Read "group:size=8 + silu", "evonorm_b0 + per 2" or "frn + warm-up".

    Returns:
        The norm spec, the activation (a ReLU unless said otherwise), the images per statistic, whether the rate is warmed up.
    """
    norm, *rest = arm.split(" + ")
    activation = next((word for word in rest if word in ACTIVATIONS), "relu")
    images = next((int(word.removeprefix(PER)) for word in rest if word.startswith(PER)), BATCH)
    return norm, activation, images, WARM_UP in rest


class GhostEvoNormB0(EvoNormB0):
    """EvoNorm-B0 whose batch variance is taken over `images` samples at a time, as `BatchNorm` does with `ghost`.

    Args:
        num_features: number of channels C.
        images: samples in a ghost batch; they must divide the batch.

    Shape:
        Input (N, C, *), output the same.
    """

    def __init__(self, num_features: int, images: int) -> None:
        super().__init__(num_features)
        self.images = images

    def _by_batch(self, input: Tensor) -> Tensor:
        mean, var = instance_moments(input)
        batch_var = _ghosts(mean, var, self.images)[1]
        count = self.images * input.shape[2:].numel()
        self._follow(running_var=batch_var.mean((0, 1)) * (count / (count - 1)))
        batch_std = (_for_each(batch_var, self.images) + self.eps).sqrt()
        excess = instance_map(input, self.v.expand(mean.shape), (var + self.eps).sqrt() - batch_std).relu()
        return channel_affine(input / (per_instance(batch_std, input) + excess), self.weight, self.bias)


class GhostSwitchNorm(SwitchNorm):
    """Switchable normalization whose batch share is taken over `images` samples at a time.

    Args:
        num_features: number of channels C.
        images: samples in a ghost batch; they must divide the batch.

    Shape:
        Input (N, C, *), output the same.
    """

    def __init__(self, num_features: int, images: int) -> None:
        super().__init__(num_features)
        self.images = images

    def _batch_share(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        if not self._uses_batch:
            return self._running()
        pooled = _ghosts(mean, var, self.images)
        self._track(*pooled, count // len(pooled[0]), len(pooled[0]))
        return _for_each(pooled[0], self.images), _for_each(pooled[1], self.images)


def _ghosts(mean: Tensor, var: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Pool moments (N, C) over every `images` samples in a row: (ghosts, 1, C)."""
    return pooled_moments(mean.unflatten(0, (-1, images)), var.unflatten(0, (-1, images)), 1)


def _for_each(pooled: Tensor, images: int) -> Tensor:
    """Hand what a ghost batch shares to each of its samples: (ghosts, 1, C) to (N, C)."""
    return pooled.expand(-1, images, -1).flatten(0, 1)


GHOSTS = {EvoNormB0: GhostEvoNormB0, SwitchNorm: GhostSwitchNorm}


def network_of(c: Config, images: Dataset, seed: int) -> PlainConvNet:
    """Build the network of the arm `c.arm`; the weights are the same for every arm."""
    norm, activation, per_statistic, _ = read_arm(c.arm)
    network = convnet(c, images, norm, seed)
    for block in network.blocks:
        if activation != "relu":
            block.activation = make_activation(activation)
        if per_statistic != BATCH:
            block.norm = GHOSTS[type(block.norm)](c.width, per_statistic).to(c.device)
    return network


def trained(c: Config, seed: int) -> tuple[PlainConvNet, Dataset, dict[str, float]]:
    """Train the arm `c.arm` at the rate `c.rate`.

    Returns:
        The network, the images that it was tuned on, and its `errors`.

    Raises:
        Diverged: the loss was not finite.
    """
    tune, images = images_for(c, seed)
    network = network_of(c, tune, seed)
    history = fit(network, tune, epochs=c.epochs, rate=c.rate, seed=seed, schedule=SCHEDULES[read_arm(c.arm)[3]])
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}")
    return network, tune, errors(network, tune, images)


@torch.no_grad()
def coupling(network: nn.Module, x: Tensor) -> dict[str, float]:
    """Measure in float64 how much outputs depend on the other images of a batch, and on the mode; the network stays as it is.

    Args:
        network: any network.
        x: a batch, shape (N, *), N even.

    Returns:
        `coupling`: the gap between the outputs of all images together and two by two, in train mode. `modes`: the gap between
        train and eval mode.
    """
    network, x = copy.deepcopy(network).double(), x.double()
    together = network.train()(x)
    return {"coupling": gap(Workers(network, SMALL).train()(x), together), "modes": gap(network.eval()(x), together)}


def learned(network: PlainConvNet, name: str) -> dict[str, Any]:
    """Return the quartiles over channels of a learned vector of the norms, a row a layer; no numbers if they have none."""
    vectors = [vector for block in network.blocks if (vector := getattr(block.norm, name, None)) is not None]
    if not vectors:
        return {"layer": 0, **dict.fromkeys(("low", "middle", "high"), np.nan)}
    quartiles = np.quantile([vector.detach().cpu().numpy() for vector in vectors], [0.25, 0.5, 0.75], axis=1)
    columns = dict(zip(("low", "middle", "high"), quartiles.tolist(), strict=True))
    return {"layer": list(range(1, len(vectors) + 1)), **columns}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """Keep of each arm the runs at its best rate by the error on held-out images, and return these rates."""
    return tuned(table, ["arm"], "held_out_error", low=True)


def test_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Return the test error in percent at each arm's best rate: one row a seed, one column an arm."""
    return side_by_side(best(table)[0], "arm", "test_error")


test_errors.__test__ = False  # type: ignore[attr-defined]  # no test, to pytest


def chosen_rates(table: pd.DataFrame, rates: Mapping[str, float], names: Mapping[str, str]) -> str:
    """Write for a caption which rates were chosen, arms of one rate together, and which of them lie at an end of those tried."""
    tried = sorted(table.rate.unique())
    said = [
        f"{number(rate)} for {', '.join(names[arm] for arm in names if rates.get(arm) == rate)}"
        + (" (at an end of the rates tried)" if len(tried) > 2 and rate in (tried[0], tried[-1]) else "")
        for rate in tried
        if rate in rates.values()
    ]
    return "; ".join(said)


def error_rows(axes: Axes, table: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Draw one row an arm, the first one on top: test error of each seed, its median, and the median training error (open).

    Args:
        axes: where.
        table: runs at the best rates.
        names: the arms in the order of the rows, and how they are called.
    """
    runs = table.drop_duplicates(["arm", "seed"])
    for row, arm in enumerate(names):
        found, color = runs[runs.arm == arm], norm_color(arm)
        test = found.test_error[np.isfinite(found.test_error)]
        axes.plot(test, [row] * len(test), ".", color=color, markersize=5)
        axes.plot(test.median(), row, "|", color=color, markersize=15, markeredgewidth=2)
        axes.plot(found.train_error.median(), row, "o", color=color, markersize=5, markerfacecolor="none")
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="error (%)")
    note(axes, "dots, bar: test · open: training", 0, 1.03, fontsize=8.5)


def quartile_bars(axes: Axes, table: pd.DataFrame, *, color: str, shift: float = 0.0, **line: Any) -> None:
    """Draw what `learned` returned, by layer: medians over seeds of the median channel and of both quartiles."""
    rows = table.groupby("layer")[["low", "middle", "high"]].median()
    at = rows.index + shift
    axes.vlines(at, rows.low, rows.high, color=color, linewidth=2)
    axes.plot(at, rows.middle, color=color, linewidth=1, **line)
    axes.set(xlabel="layer", xticks=rows.index)
