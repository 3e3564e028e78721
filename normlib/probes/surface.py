"""The loss on a plane through a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlib.probes.parameters import Direction, Loss, checked_direction, flat, moved, trainable
from normlib.probes.state import preserved
from normlib.probes.watching import Columns


def random_direction(model: nn.Module, seed: int = 0, *, filterwise: bool = False) -> dict[str, Tensor]:
    """Draw a direction from a normal distribution, by a generator of its own on the CPU: a seed means the same on all devices.

    Args:
        model: any model, for the names and shapes of its parameters.
        seed: seed of the generator.
        filterwise: False for a vector of length 1. True for one whose part at each filter (each index of axis 0 of a weight
            of two or more axes) is as long as the filter, and 0 at biases and other vectors: a distance along it then does
            not depend on the scale that the network has given a filter whose scale does not matter.

    Example:
        >>> float(flat(random_direction(nn.Linear(3, 2))).norm().round(decimals=5))
        1.0

    Source: `li2018` for the directions scaled by filters.
    """
    params, generator = trainable(model), torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for name, p in params.items()}
    if filterwise:
        return {name: _like_filters(drawn[name], p) for name, p in params.items()}
    length = float(flat(drawn).norm())
    return {name: part / length for name, part in drawn.items()}


def loss_on_plane(
    model: nn.Module,
    loss_fn: Loss,
    x: Tensor,
    y: Tensor,
    direction_a: Direction,
    direction_b: Direction,
    grid: tuple[Sequence[float], Sequence[float]],
    *,
    training: bool | None,
) -> Columns:
    r"""Return the loss on a plane through the model, $L(\theta + \alpha a + \beta b)$. Cost: one forward pass per point.

    Args:
        model: any model.
        loss_fn: function of output and target that returns a scalar.
        x: inputs.
        y: targets.
        direction_a: $a$, by name of parameter: a step, a gradient, a `random_direction`. What is left out stays.
        direction_b: $b$.
        grid: the values of α, and those of β.
        training: see `gradient_landscape`.

    Returns:
        Columns with one entry a point, β running fastest: `alpha`, `beta`, `loss`.

    Raises:
        UnknownNameError: if there is no parameter of a name in a direction.
        NormlibError: if a direction does not have the shape of its parameter.

    Source: `li2018`.
    """
    start = trainable(model)
    a, b = checked_direction(direction_a, start), checked_direction(direction_b, start)
    columns: Columns = {"alpha": [], "beta": [], "loss": []}
    for alpha in grid[0]:
        for beta in grid[1]:
            with preserved(model, training), torch.no_grad():
                loss = loss_fn(functional_call(model, moved(start, (alpha, a), (beta, b)), (x,)), y)
            for column, value in zip(columns.values(), (alpha, beta, float(loss)), strict=True):
                column.append(value)
    return columns


def _like_filters(drawn: Tensor, p: Tensor) -> Tensor:
    if p.ndim < 2:
        return torch.zeros_like(p)
    axes = tuple(range(1, p.ndim))
    wanted, found = (torch.linalg.vector_norm(t, dim=axes, keepdim=True) for t in (p, drawn))
    return drawn * (wanted / found)
