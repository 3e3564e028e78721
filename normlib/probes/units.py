"""Units that do not work: dead, without a gradient, or saturated on a whole batch, and how sparse a layer is.

A unit is a channel; what is looked at is all its values, over the batch and all positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.probes.moments import channels_first
from normlib.probes.propagation import saturation
from normlib.probes.state import preserved
from normlib.probes.watching import Columns, Layers, gradients_at, record_activations, watched, weight_layers


def unit_activity(
    model: nn.Module,
    x: Tensor,
    layers: Layers = None,
    *,
    training: bool | None,
    bounds: tuple[float, float] | None = None,
    tolerance: float = 0.0,
    channel_axis: int = 1,
) -> Columns:
    """Count the units of each layer that say nothing on a batch. Cost: one forward pass.

    Args:
        model: any model; it is left as it is.
        x: one batch of inputs.
        layers: which, best the activation functions, such as `nn.ReLU`; see `record_activations`.
        training: see `record_activations`.
        bounds: the asymptotes of the activation; adds the columns on saturation, see `saturation`.
        tolerance: how large a value may be and count as zero.
        channel_axis: which axis holds the units: 1 for (N, C, *), -1 for tokens (N, T, C).

    Returns:
        Columns with one entry a layer: `layer`; `units`, their number; `dead`, the share of units that are zero for all inputs and
        positions; `sparsity`, the share of values that are zero; and with bounds `saturated`, the share of units all of whose
        values are saturated, and `saturation`, the share of values that are. A layer with values that are not finite has NaN.

    Raises:
        UnknownNameError: if no module has a given name.
        NormlibError: if a chosen module does not put out one tensor, it has no such axis, or the tolerance is negative.

    Example:
        >>> net = nn.Sequential(nn.ReLU())
        >>> unit_activity(net, torch.tensor([[-1.0, -1.0], [-2.0, 3.0]]), training=True)
        {'layer': ['0'], 'units': [2], 'dead': [0.5], 'sparsity': [0.75]}
    """
    if tolerance < 0:
        raise NormlibError(f"unit_activity got tolerance={tolerance}; expected 0 or more.")
    columns: Columns = {}
    for name, output in record_activations(model, x, layers, training=training).items():
        rows = _rows(output, channel_axis)
        shares = _shares(rows.abs() <= tolerance, "dead", "sparsity")
        if bounds is not None:
            per_unit = torch.tensor([saturation(row, bounds) for row in rows])
            shares |= {"saturated": float((per_unit == 1).double().mean()), "saturation": saturation(rows, bounds)}
        if not bool(rows.isfinite().all()):
            shares = dict.fromkeys(shares, math.nan)
        for column, value in {"layer": name, "units": len(rows), **shares}.items():
            columns.setdefault(column, []).append(value)
    return columns


def unit_gradients(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    layers: Layers = None,
    *,
    training: bool | None,
    tolerance: float = 0.0,
    channel_axis: int = 1,
) -> Columns:
    r"""Count the units of each layer that learn nothing from a batch. Cost: one forward and one backward pass.

    A unit whose ReLU is dead has a gradient of zero at its pre-activation s, though not at the output of the ReLU. A batch norm
    between them passes gradients from sample to sample of a unit; a layer norm passes them from unit to unit, so that what lies
    below a dead ReLU still learns.

    Args:
        model: any model; it is left as it is.
        loss_fn: function of output and target that returns a scalar.
        x: one batch of inputs.
        y: its targets.
        layers: see `record_activations`; None for every module with a weight of two or more axes, whose outputs are
            pre-activations.
        training: see `record_activations`.
        tolerance: how large a gradient may be and count as zero.
        channel_axis: see `unit_activity`.

    Returns:
        Columns with one entry a layer: `layer`; `units`, their number; `without_gradient`, the share of units for which
        $\partial L / \partial s$ is zero for all inputs and positions; `gradient_sparsity`, the share of its values that are.
        NaN if the loss does not depend on the layer, or with gradients that are not finite.

    Raises:
        UnknownNameError: if no module has a given name.
        NormlibError: if a chosen module does not put out one tensor, it has no such axis, or the tolerance is negative.
    """
    if tolerance < 0:
        raise NormlibError(f"unit_gradients got tolerance={tolerance}; expected 0 or more.")
    with preserved(model, training), torch.enable_grad():
        with watched(model, weight_layers(model) if layers is None else layers) as outputs:
            loss = loss_fn(model(x), y)
        signals = [output for _, output in outputs.values()]
        gradients = gradients_at(loss, signals)
    columns: Columns = {"layer": list(outputs), "units": [channels_first(s, channel_axis).shape[1] for s in signals]}
    for gradient in gradients:
        rows = torch.full((1, 1), math.nan) if gradient is None else _rows(gradient, channel_axis)
        shares = _shares(rows.abs() <= tolerance, "without_gradient", "gradient_sparsity")
        for column, value in shares.items():
            columns.setdefault(column, []).append(value if bool(rows.isfinite().all()) else math.nan)
    return columns


def _rows(values: Tensor, channel_axis: int) -> Tensor:
    """Return the values of each unit in a row, shape (C, N·positions)."""
    return channels_first(values, channel_axis).transpose(0, 1).flatten(1)


def _shares(zero: Tensor, units: str, values: str) -> dict[str, float]:
    return {units: float(zero.all(1).double().mean()), values: float(zero.double().mean())}
