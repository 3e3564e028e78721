"""How signals pass through a network: activations forward, gradients backward, layer by layer.

The probes watch any torch model through forward hooks. They take the hooks off and leave the model as it was: modes, gradients,
running statistics, random state. Layers come in the order in which they run; a module that runs again is listed again, as
"name#2". Standard deviations are over all elements of a tensor together, divided by the count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlib.probes.state import preserved
from normlib.probes.watching import Columns, Layers, gradients_at, record_activations, watched, weight_layers, weight_of


def activation_statistics(
    model: nn.Module,
    x: Tensor,
    layers: Layers = None,
    *,
    percentiles: Sequence[float] = (2, 50, 98),
    bounds: tuple[float, float] | None = None,
    training: bool | None = None,
) -> Columns:
    """Describe the distribution of each layer's outputs over one batch.

    Args:
        model: any model.
        x: one batch of inputs.
        layers: see `record_activations`.
        percentiles: which, in percent; `2` gives the column `p2`.
        bounds: the asymptotes of the activation; adds the column `saturation`, see `saturation`.
        training: see `record_activations`.

    Returns:
        Columns with one entry a layer: `layer`, `mean`, `std`, the percentiles, and `saturation` if asked for.

    Source: `glorot2010`, figures 2, 3 and 6.
    """
    columns: Columns = {}
    for name, output in record_activations(model, x, layers, training=training).items():
        values = output.detach().double().flatten()
        row = {"layer": name, "mean": float(values.mean()), "std": float(values.std(correction=0))}
        row |= {f"p{q:g}": value for q, value in zip(percentiles, percentiles_of(values, percentiles), strict=True)}
        if bounds is not None:
            row["saturation"] = saturation(values, bounds)
        for column, value in row.items():
            columns.setdefault(column, []).append(value)
    return columns


def gradient_statistics(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    layers: Layers = None,
    *,
    training: bool | None = None,
) -> Columns:
    r"""Measure the signal in both directions: outputs, back-propagated gradients, gradients of weights.

    Args:
        model: any model.
        loss_fn: function of output and target that returns a scalar $L$. Gradients are of this scalar: those of a mean over
            N items are N times smaller than those of their sum.
        x: one batch of inputs.
        y: its targets.
        layers: see `record_activations`; None for every module with a weight of two or more axes.
        training: see `record_activations`.

    Returns:
        Columns with one entry a layer: `layer`; `output_std`; `gradient_std` of $\partial L/\partial s$ with $s$ the layer's
        output (of a linear layer, the pre-activation); `weight_gradient_std` and `weight_gradient_norm` of
        $\partial L/\partial W$. A layer without a weight of two or more axes has NaN in the last two, as has anything that
        no gradient reaches. Of a parametrized weight it is the gradient of the weight that the layer applies.

    Raises:
        UnknownNameError: if no module has a given name.
        NormlibError: if a chosen module does not put out one tensor, or none was chosen.

    Source: `glorot2010`, figures 6 to 9.
    """
    with preserved(model, training), parametrize.cached(), torch.enable_grad():
        with watched(model, weight_layers(model) if layers is None else layers) as outputs:
            loss = loss_fn(model(x), y)
        names = list(outputs)
        signals = [output for _, output in outputs.values()]
        weights = [weight_of(module) for module, _ in outputs.values()]
        gradients = gradients_at(loss, [*signals, *weights])
    signal_gradients, weight_gradients = gradients[: len(names)], gradients[len(names) :]
    return {
        "layer": names,
        "output_std": [_std(signal) for signal in signals],
        "gradient_std": [_std(gradient) for gradient in signal_gradients],
        "weight_gradient_std": [_std(gradient) for gradient in weight_gradients],
        "weight_gradient_norm": [math.nan if g is None else float(g.double().norm()) for g in weight_gradients],
    }


def saturation(values: Tensor, bounds: tuple[float, float], margin: float = 0.05) -> float:
    """Return the share of values within `margin` times the range of either bound.

    Args:
        values: outputs of a bounded activation, any shape.
        bounds: its asymptotes: (0, 1) for the logistic function, (-1, 1) for tanh.
        margin: as a share of the range.

    Example:
        >>> saturation(torch.tensor([-0.95, 0.0, 0.5, 0.999]), (-1, 1))
        0.5
    """
    low, high = bounds
    edge = margin * (high - low)
    return float(((values <= low + edge) | (values >= high - edge)).double().mean())


def _std(values: Tensor | None) -> float:
    return math.nan if values is None else float(values.detach().double().std(correction=0))


def percentiles_of(values: Tensor, percentiles: Sequence[float]) -> list[float]:
    """Interpolate linearly between the sorted values, as NumPy does (torch.quantile refuses large tensors)."""
    ordered = values.sort().values
    places = torch.tensor(percentiles, dtype=torch.float64, device=values.device) / 100 * (len(values) - 1)
    below = places.floor().long()
    above = (below + 1).clamp(max=len(values) - 1)
    return torch.lerp(ordered[below], ordered[above], places - below).tolist()
