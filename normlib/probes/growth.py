"""Gradients on their way back: by which factor each layer multiplies them, and how alike they are at neighboring inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.probes.state import preserved
from normlib.probes.watching import Columns, Layers, gradients_at, watched, weight_layers


class Estimate(NamedTuple):
    """A mean and its standard error.

    Example:
        >>> Estimate.of([1.0, 3.0])
        Estimate(value=2.0, standard_error=1.0)
    """

    value: float
    standard_error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Take the mean of two values or more, and its error from their spread."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))))


def gradient_growth(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    layers: Layers = None,
    *,
    training: bool | None,
) -> Columns:
    r"""Measure by which factor each layer multiplies the squared gradient on its way back.

    With BN and ReLU at initialization the squared norm grows by $\pi / (\pi - 1) = 1.467$ a layer, the norm by 1.211, in wide
    networks and large batches (`lubana2021` on the result of `yang2019`).

    Args:
        model: any model; it is left as it is.
        loss_fn: function of output and target that returns a scalar $L$. With random `y` of the outputs' shape,
            `lambda output, y: (output * y).sum()` sends a random gradient back.
        x: one batch of inputs.
        y: its targets.
        layers: see `record_activations`; None for every module with a weight of two or more axes, so that a gradient is that of
            a pre-activation before its norm.
        training: see `record_activations`.

    Returns:
        Columns with one entry a layer, in forward order: `layer`; `second_moment`, the mean of the squares of $\partial L /
        \partial s$ over all elements of the layer's output s; `squared_norm`, their sum; `growth`, the squared norm over that
        of the layer listed next, NaN for the last. Of layers of one size the second moments have the same ratios. See
        `growth_factor` for the factor of a stack.

    Raises:
        UnknownNameError: if no module has a given name.
        NormlibError: if a chosen module does not put out one tensor, or none was chosen.

    Source: `lubana2021`; `yang2019`.
    """
    with preserved(model, training), torch.enable_grad():
        with watched(model, weight_layers(model) if layers is None else layers) as outputs:
            loss = loss_fn(model(x), y)
        gradients = gradients_at(loss, [output for _, output in outputs.values()])
    squares = [torch.tensor([math.nan]) if g is None else g.detach().double().square() for g in gradients]
    norms = [float(square.sum()) for square in squares]
    return {
        "layer": list(outputs),
        "second_moment": [float(square.mean()) for square in squares],
        "squared_norm": norms,
        "growth": [_ratio(here, above) for here, above in zip(norms, [*norms[1:], math.nan], strict=True)],
    }


def growth_factor(values: Sequence[float]) -> Estimate:
    """Return the geometric mean of the factors from each value to the one before it, with its standard error.

    The mean is decided by the first and the last value. That is the best estimate if the factors' deviations are independent from
    layer to layer, as the layers' weights are; the standard error rests on the same.

    Args:
        values: positive, in forward order, such as the `squared_norm` of `gradient_growth` without the layers at the ends.

    Raises:
        NormlibError: if there are fewer than three values, or one is not positive.

    Example:
        >>> round(growth_factor([27.0, 9.0, 3.0, 1.0]).value, 6)
        3.0
    """
    if len(values) < 3 or not all(value > 0 for value in values):
        raise NormlibError(f"growth_factor got {list(values)}; expected three positive values or more. Leave the others out.")
    mean, error = Estimate.of((-np.diff(np.log(values))).tolist())
    return Estimate(math.exp(mean), math.exp(mean) * error)


def autocorrelation(values: Tensor, max_lag: int) -> list[float]:
    r"""Correlate each value of a sequence with the value some places further.

    With $\bar g$ the mean, it is $\sum_i \langle g_i - \bar g, g_{i + k} - \bar g \rangle / \sum_i \lVert g_i - \bar g \rVert^2$
    for the lags k = 0, 1, ..., the usual estimate, which is biased towards 0 for lags near N.

    The values meant here are the gradients $g_i$ of the output for the i-th of N inputs, evenly spaced on a line, in that input:
    `autocorrelation(sample_jacobians(function, x, coupled=...), max_lag)`. Near 0 from lag 1 on they are white noise.

    Args:
        values: N of any shape, (N, *).
        max_lag: the largest lag, below N.

    Returns:
        The autocorrelation at lags 0 to `max_lag`; NaN if all values are equal.

    Raises:
        NormlibError: if `max_lag` does not fit.

    Example:
        >>> autocorrelation(torch.tensor([1.0, -1.0, 1.0, -1.0]), 2)
        [1.0, -0.75, 0.5]

    Source: `balduzzi2017`.
    """
    if not 0 <= max_lag < len(values):
        raise NormlibError(f"autocorrelation got max_lag={max_lag} for {len(values)} values; expected a lag from 0 to one below.")
    g = values.detach().reshape(len(values), -1).double()
    g = g - g.mean(0)
    sums = [float((g[: len(g) - k] * g[k:]).sum()) for k in range(max_lag + 1)]
    return [_ratio(value, sums[0]) for value in sums]


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
