"""Moments and percentiles of units, before and after a layer, and how far they drift from one time to another.

A unit is a channel: what its values are taken over is the batch and, on maps and tokens, the positions. The probes are meant to
be called at many steps of a training; they take the hooks off and leave the model as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.layers.batch import batch_moments
from normlib.probes.propagation import percentiles_of
from normlib.probes.watching import Columns, Key, Layers, Side, reduce_activations

Units = int | Sequence[int] | None


class ChannelMoments(NamedTuple):
    """Mean and biased variance of each channel, both of shape (C,), in float64."""

    mean: Tensor
    variance: Tensor


def channels_first(x: Tensor, channel_axis: int = 1) -> Tensor:
    """Return `x` in float64 as (N, C, *): the batch in axis 0, the channels in axis 1.

    Args:
        x: activations of shape (N, C), (N, C, H, W), or, with `channel_axis=-1`, tokens (N, T, C).
        channel_axis: which axis holds the channels.

    Raises:
        NormlibError: if there is no such axis beside that of the batch.
    """
    if x.ndim < 2 or channel_axis % x.ndim == 0 or not -x.ndim <= channel_axis < x.ndim:
        raise NormlibError(
            f"channel_axis={channel_axis} is no axis of channels of a tensor of shape {tuple(x.shape)}: axis 0 is the batch. "
            "Take 1 for (N, C, *), -1 for tokens (N, T, C), and name the layers if they are not all alike."
        )
    return x.detach().double().movedim(channel_axis, 1)


def channel_moments(x: Tensor, channel_axis: int = 1) -> ChannelMoments:
    """Return mean and biased variance of each channel, over the batch and all positions.

    Example:
        >>> import torch
        >>> channel_moments(torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]))
        ChannelMoments(mean=tensor([2., 5.], dtype=torch.float64), variance=tensor([1., 0.], dtype=torch.float64))
    """
    return ChannelMoments(*batch_moments(channels_first(x, channel_axis)))


def unit_statistics(
    model: nn.Module,
    x: Tensor,
    layers: Layers = None,
    *,
    units: Units = None,
    pooled: bool = False,
    sides: Sequence[Side] = ("output",),
    percentiles: Sequence[float] = (15, 50, 85),
    channel_axis: int = 1,
    training: bool | None = None,
) -> Columns:
    """Describe the distribution of the values of single units over one batch. Cost: one forward pass.

    Args:
        model: any model.
        x: one batch of inputs.
        layers: see `record_activations`.
        units: which: their indices, or how many, spread evenly; None for every unit.
        pooled: whether the values of the chosen units of a layer are described together, in one row.
        sides: see `reduce_activations`.
        percentiles: which, in percent; `15` gives the column `p15`.
        channel_axis: see `channels_first`.
        training: see `record_activations`.

    Returns:
        Columns with one entry a unit: `layer`, `side`, `unit` (not if pooled), `mean`, `variance` (biased), the percentiles.

    Raises:
        NormlibError: if a layer has no such unit, or for what `reduce_activations` refuses.

    Example:
        >>> import torch
        >>> found = unit_statistics(nn.Identity(), torch.tensor([[0.0, 1.0], [4.0, 1.0]]), percentiles=[25])
        >>> found["unit"], found["mean"], found["variance"], found["p25"]
        ([0, 1], [2.0, 1.0], [4.0, 0.0], [1.0, 1.0])

    Source: `ioffe2015`, figure 1, with several units for its one; pooled, `wu2018`, figure 6 with percentiles 1, 20, 80, 99.
    """

    def describe(activations: Tensor) -> list[dict[str, Any]]:
        by_unit = channels_first(activations, channel_axis).transpose(0, 1).flatten(1)
        chosen = _units(units, len(by_unit))
        if pooled:
            return [_row(by_unit[chosen].flatten(), percentiles)]
        return [{"unit": unit, **_row(by_unit[unit], percentiles)} for unit in chosen]

    columns: Columns = {}
    for (layer, side), rows in reduce_activations(model, x, describe, layers, sides=sides, training=training).items():
        for row in rows:
            for column, value in {"layer": layer, "side": side, **row}.items():
                columns.setdefault(column, []).append(value)
    return columns


def _units(units: Units, count: int) -> list[int]:
    if units is None:
        return list(range(count))
    if isinstance(units, int):
        few = min(units, count)
        units = [(2 * i + 1) * count // (2 * few) for i in range(few)]  # the middles of equal parts
    if not units or not all(0 <= unit < count for unit in units):
        raise NormlibError(f"units={units!r} are no units of a layer of {count}; expected indices from 0 to {count - 1}.")
    return list(units)


def _row(values: Tensor, percentiles: Sequence[float]) -> dict[str, float]:
    found = zip(percentiles, percentiles_of(values, percentiles), strict=True)
    return {"mean": float(values.mean()), "variance": float(values.var(correction=0)), **{f"p{q:g}": v for q, v in found}}


def moment_snapshot(
    model: nn.Module,
    x: Tensor,
    layers: Layers = None,
    *,
    sides: Sequence[Side] = ("output",),
    channel_axis: int = 1,
    training: bool | None = None,
) -> dict[Key, ChannelMoments]:
    """Keep the moments of every channel of the chosen layers, for `moment_drift`. Cost: one forward pass.

    Args:
        model: any model.
        x: one batch of inputs. With the same batch at two times the drift is that of the weights alone; with the batch of the
            step it is what the next layer is trained on.
        layers: see `record_activations`.
        sides: see `reduce_activations`.
        channel_axis: see `channels_first`.
        training: see `record_activations`.
    """
    return reduce_activations(model, x, lambda t: channel_moments(t, channel_axis), layers, sides=sides, training=training)


def moment_drift(earlier: Mapping[Key, ChannelMoments], later: Mapping[Key, ChannelMoments]) -> Columns:
    r"""Measure how far the moments of the channels have moved between two snapshots.

    Args:
        earlier: of `moment_snapshot`.
        later: of the same layers.

    Returns:
        Columns with one entry a layer and side: `layer`; `side`; `mean_drift`, the average over channels of $|\mu' - \mu|$;
        `variance_drift`, that of $|\sigma'^2 - \sigma^2|$; and, free of the scale of the activations, `relative_mean_drift`,
        of $|\mu' - \mu| / \sigma$, and `relative_variance_drift`, of $|\sigma'^2 - \sigma^2| / \sigma^2$, over the channels
        that had a variance; NaN if none had.

    Raises:
        NormlibError: if the snapshots are not of the same layers.

    Example:
        >>> import torch
        >>> at = lambda mean, variance: {("0", "output"): ChannelMoments(torch.tensor([mean]), torch.tensor([variance]))}
        >>> drift = moment_drift(at(1.0, 4.0), at(2.0, 7.0))
        >>> drift["mean_drift"], drift["relative_mean_drift"], drift["relative_variance_drift"]
        ([1.0], [0.5], [0.75])

    Source: `santurkar2018`, figure 8.
    """
    if list(earlier) != list(later):
        raise NormlibError(
            f"moment_drift got snapshots of {list(earlier)} and of {list(later)}; expected the same layers and sides."
        )
    columns: Columns = {"layer": [layer for layer, _ in earlier], "side": [side for _, side in earlier]}
    pairs = [(was, later[key]) for key, was in earlier.items()]
    columns["mean_drift"] = [_average((now.mean - was.mean).abs()) for was, now in pairs]
    columns["variance_drift"] = [_average((now.variance - was.variance).abs()) for was, now in pairs]
    columns["relative_mean_drift"] = [_average(_ratio(now.mean - was.mean, was.variance.sqrt())) for was, now in pairs]
    columns["relative_variance_drift"] = [_average(_ratio(now.variance - was.variance, was.variance)) for was, now in pairs]
    return columns


def _ratio(change: Tensor, scale: Tensor) -> Tensor:
    return change[scale > 0].abs() / scale[scale > 0]


def _average(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
