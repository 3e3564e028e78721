"""The parameters of a model as points and directions: by name, or as one vector; and the loss and its gradient there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlib.errors import NormlibError, unknown
from normlib.probes.state import preserved

Loss = Callable[[Tensor, Tensor], Tensor]
Direction = Mapping[str, Tensor]
Parameters = TypeVar("Parameters", Tensor, Mapping[str, Tensor])


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require a gradient, by name, detached.

    Raises:
        NormlibError: if there are none.
    """
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise NormlibError(f"{type(model).__name__} has no parameter that requires a gradient. Was it frozen?")
    return params


def loss_and_gradient(
    model: nn.Module,
    loss_fn: Loss,
    x: Tensor,
    y: Tensor,
    params: Direction | None = None,
    wanted: Sequence[str] | None = None,
    *,
    training: bool | None,
) -> tuple[float, dict[str, Tensor]]:
    """Return a loss and its gradient at other parameters than those that the model has. Cost: one forward, one backward pass.

    Args:
        model: any model; it is left as it is.
        loss_fn: function of output and target that returns a scalar.
        x: inputs.
        y: targets.
        params: parameters by name; the model's own for those that are left out.
        wanted: names of the parameters to differentiate by, None for all that require a gradient. The backward pass goes no
            further down than they need.
        training: True for train mode, False for eval mode, None for the mode that each module is in.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> half = lambda output, target: 0.5 * (output - target).square().sum()
        >>> loss_and_gradient(line, half, torch.ones(1, 1), torch.zeros(1, 1), {"weight": torch.tensor([[3.0]])}, training=True)
        (4.5, {'weight': tensor([[3.]])})
    """
    names = list(trainable(model)) if wanted is None else list(wanted)
    point = {**dict(model.named_parameters()), **(params or {})}
    leaves = {name: point[name].detach().requires_grad_() for name in names}
    fixed = {name: value.detach() for name, value in point.items() if name not in leaves}
    with preserved(model, training), torch.enable_grad():
        loss = loss_fn(functional_call(model, {**fixed, **leaves}, (x,)), y)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return float(loss.detach()), dict(zip(names, gradients, strict=True))


def flat(vector: Direction) -> Tensor:
    """Return tensors by name as one vector in float64, in their order."""
    return torch.cat([part.detach().double().reshape(-1) for part in vector.values()])


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of the angle between two vectors, NaN if either is zero."""
    norms = float(a.norm()) * float(b.norm())
    return float(a @ b) / norms if norms else math.nan


def moved(start: Direction, *steps: tuple[float, Direction]) -> dict[str, Tensor]:
    """Return parameters plus each direction times its factor."""
    return {
        name: p + sum(factor * direction[name] for factor, direction in steps if name in direction) for name, p in start.items()
    }


def checked_direction(direction: Direction, start: Direction) -> Direction:
    """Return a direction whose names and shapes are those of parameters.

    Raises:
        UnknownNameError: if there is no parameter of a name.
        NormlibError: if a part does not have the shape of its parameter.
    """
    for name, part in direction.items():
        if name not in start:
            raise unknown("parameter", name, start)
        if part.shape != start[name].shape:
            raise NormlibError(f"the direction at {name!r} has shape {tuple(part.shape)}; expected {tuple(start[name].shape)}.")
    return direction


def as_vector(loss: Callable[[Parameters], Tensor], params: Parameters) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Rewrite a loss of tensors as a loss of one vector; return it with the present vector."""
    if isinstance(params, Tensor):
        shape = params.shape
        return lambda vector: loss(vector.view(shape)), params.detach().reshape(-1)
    names, tensors = list(params), list(params.values())
    shapes, sizes = [t.shape for t in tensors], [t.numel() for t in tensors]

    def flat_loss(vector: Tensor) -> Tensor:
        parts = zip(names, vector.split(sizes), shapes, strict=True)
        return loss({name: part.view(shape) for name, part, shape in parts})

    return flat_loss, torch.cat([t.detach().reshape(-1) for t in tensors])


def random_unit(like: Tensor, seed: int) -> Tensor:
    """Draw a vector of length 1, as long as another, from a generator of its own on the CPU."""
    start = torch.randn(len(like), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (start / start.norm()).to(like)


def finite(values: Tensor) -> Tensor:
    """Return the values, all of which must be finite.

    Raises:
        NormlibError: if one is not.
    """
    if not bool(values.isfinite().all()):
        raise NormlibError("the Hessian has values that are not finite: has training diverged? Look at the loss first.")
    return values
