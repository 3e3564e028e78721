"""The loss around a point of training: along the gradient, as far as steps reach.

Every probe evaluates one batch at several points. The model never moves: its parameters are replaced for the call alone. Random
numbers (dropout, noise) are drawn alike at every point, so that only the parameters differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from torch import Tensor, nn

from normlib.errors import NormlibError, unknown
from normlib.probes.parameters import Direction, Loss, checked_direction, cosine, flat, loss_and_gradient, moved, trainable
from normlib.probes.watching import Columns

Unit = Literal["rate", "distance", "weight_norm"]


def gradient_landscape(
    model: nn.Module,
    loss_fn: Loss,
    x: Tensor,
    y: Tensor,
    lengths: Sequence[float],
    *,
    training: bool | None,
    unit: Unit = "rate",
    direction: Direction | None = None,
) -> Columns:
    r"""Go down the gradient from where a model stands, each time from the start, and measure loss and gradient there.

    With $g = \nabla L(\theta)$ and $g' = \nabla L(\theta - s g)$ on the same batch, the loss $L(\theta - s g)$, the change
    $\|g' - g\|$ (gradient predictiveness) and the change per distance moved, $\|g' - g\| / \|s g\|$, whose maximum over $s$
    is the effective β-smoothness. `landscape_ranges` takes these extremes. On a quadratic loss with Hessian $H$ the last is
    $\|H g\| / \|g\|$ at every $s$. Cost: one forward and one backward pass per length, and one more of each.

    Args:
        model: any model.
        loss_fn: function of output and target that returns a scalar.
        x: inputs, the batch of the training step.
        y: its targets.
        lengths: step lengths, positive. The paper takes 1/2 to 4 times the learning rate for its VGG, and 1/100 to 30 times for
            its linear network.
        training: True for train mode: a batch norm takes its statistics from `x`, and the gradient goes through them. False
            for eval mode, None for the mode that each module is in.
        unit: what a length is: "rate", the factor $s$; "distance", $\|s g\|$; "weight_norm", $\|s g\| / \|\theta\|$. The last
            two compare models at steps of equal size whatever the size of their gradients; the last is also fair where
            the scale of the weights does not matter.
        direction: what stands for $g$ in the step, by name of parameter; the steps go down it. None for the gradient.

    Returns:
        Columns with one entry a length: `length`; `distance` moved, as rounded in the dtype of the parameters; `loss`;
        `gradient_change`; `smoothness` (NaN if nothing moved); `cosine` between both gradients; and, the same in all rows,
        `start_loss` and `gradient_norm`.

    Raises:
        UnknownNameError: if there is no such unit, or no parameter of a name in `direction`.
        NormlibError: if the lengths are not positive, or there are none.

    Example:
        >>> import torch
        >>> bowl = nn.Linear(2, 1, bias=False)
        >>> _ = bowl.weight.data.copy_(torch.tensor([[1.0, 1.0]]))
        >>> half = lambda output, target: 0.5 * (output - target).square().sum()
        >>> found = gradient_landscape(bowl, half, torch.eye(2), torch.zeros(2, 1), [0.5, 1.0], training=True)
        >>> found["start_loss"], found["loss"], found["smoothness"]
        ([1.0, 1.0], [0.25, 0.0], [1.0, 1.0])

    Source: `santurkar2018`, section 3.2, figures 4 and 11.
    """
    if not len(lengths) or not all(length > 0 for length in lengths):
        raise NormlibError(f"gradient_landscape got lengths={list(lengths)}; expected positive step lengths, as [0.05, 0.1, 0.2].")
    start = trainable(model)
    loss, gradient = loss_and_gradient(model, loss_fn, x, y, training=training)
    direction = gradient if direction is None else checked_direction(direction, start)
    scale = _scale(unit, start, direction)
    g, origin = flat(gradient), flat(start)
    columns: Columns = {key: [] for key in ("length", "distance", "loss", "gradient_change", "smoothness", "cosine")}
    for length in lengths:
        there = moved(start, (-length * scale, direction))
        loss_there, gradient_there = loss_and_gradient(model, loss_fn, x, y, there, training=training)
        distance, h = float((flat(there) - origin).norm()), flat(gradient_there)
        change = float((h - g).norm())
        row = (length, distance, loss_there, change, change / distance if distance else math.nan, cosine(g, h))
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return {**columns, "start_loss": [loss] * len(lengths), "gradient_norm": [float(g.norm())] * len(lengths)}


def landscape_ranges(columns: Columns) -> dict[str, float]:
    """Take the extremes over step lengths of what `gradient_landscape` found; what is not a number counts as infinite.

    Returns:
        `loss_min`, `loss_max`; `change_min`, `change_max`, the gradient predictiveness; and `smoothness`, the effective
        β-smoothness, NaN if no step moved the parameters.

    Example:
        >>> columns = {"loss": [1.0, 3.0], "gradient_change": [0.5, 4.0], "smoothness": [5.0, 4.0]}
        >>> landscape_ranges(columns)
        {'loss_min': 1.0, 'loss_max': 3.0, 'change_min': 0.5, 'change_max': 4.0, 'smoothness': 5.0}

    Source: `santurkar2018`, figure 4.
    """
    loss, change = (np.nan_to_num(columns[name], nan=np.inf, posinf=np.inf) for name in ("loss", "gradient_change"))
    rates = [
        math.inf if math.isnan(rate) and not finite else rate
        for rate, finite in zip(columns["smoothness"], np.isfinite(change), strict=True)
    ]
    moved = [rate for rate in rates if not math.isnan(rate)]
    return {
        "loss_min": float(loss.min()),
        "loss_max": float(loss.max()),
        "change_min": float(change.min()),
        "change_max": float(change.max()),
        "smoothness": max(moved, default=math.nan),
    }


def _scale(unit: str, start: Direction, direction: Direction) -> float:
    """Return by what a length in this unit is multiplied to be a factor of the direction."""
    if unit not in get_args(Unit):
        raise unknown("unit of step lengths", unit, get_args(Unit))
    if unit == "rate":
        return 1.0
    norm = float(flat(direction).norm())
    reach = 1.0 if unit == "distance" else float(flat(start).norm())
    return reach / norm if norm else 0.0
