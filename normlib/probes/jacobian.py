"""Jacobians and their singular values: how a network, or a part of it, stretches small changes of its inputs.

A function of a batch, (N, *inputs) to (N, *outputs), has a Jacobian of N·outputs rows and N·inputs columns. Where each sample is
mapped alone it is block-diagonal, and its singular values are those of the samples' own Jacobians. Batch norm in train mode
couples the samples: the blocks off the diagonal are not zero, and a block on the diagonal tells how a sample's output follows its
input while the others stay and the statistics move. So what is meant is always said: the whole batch or the samples, the
mode of the model, and whether it couples.

`model_map` turns a model, or the part between two layers, into such a function. The pullback costs one backward pass, the
pushforward two (the pullback is differentiated, so that layers with a backward of their own are served too).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, svds
from torch import Tensor, nn
from torch.func import jacrev, vjp

from normlib.errors import NormlibError, unknown
from normlib.probes.growth import Estimate
from normlib.probes.state import call_on_copies, preserved

Map = Callable[[Tensor], Tensor]
_DENSE = 64  # up to this many rows or columns the dense Jacobian is quicker


def model_map(
    model: nn.Module, x: Tensor, source: str | None = None, target: str | None = None, *, training: bool
) -> tuple[Map, Tensor]:
    """Write a model, or what lies between the outputs of two of its layers, as a function, with the present argument.

    Args:
        model: any model; it is left as it is.
        x: one batch of inputs.
        source: name of the module whose output is the argument; None for the input of the model. Paths that lead around it are
            held at what they are for `x`.
        target: name of the module whose output is the value; None for the output of the model.
        training: True for train mode, in which a batch norm takes its statistics from the batch and derivatives go through them;
            False for eval mode.

    Returns:
        The function, and its argument for `x`, detached. Each call runs the whole model.

    Raises:
        UnknownNameError: if no module has a given name.
        NormlibError: if a given module does not run once, or does not put out one tensor.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> function, point = model_map(net, torch.zeros(5, 2), "0", "1", training=True)
        >>> function(point).shape
        torch.Size([5, 3])
    """
    modules = dict(model.named_modules())
    for name in (source, target):
        if name is not None and name not in modules:
            raise unknown("layer", name, [known for known in modules if known])

    def run(argument: Tensor | None) -> dict[str | None, Tensor]:
        kept: dict[str | None, Tensor] = {}
        handles = []
        if source is not None:  # registered first, so that a target that is the source puts the argument out
            handles.append(modules[source].register_forward_hook(_keep(kept, source, argument)))
        if target is not None and target != source:
            handles.append(modules[target].register_forward_hook(_keep(kept, target, None)))
        try:
            with preserved(model, training):
                kept[None] = call_on_copies(model, {}, x if source is not None or argument is None else argument)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    def function(argument: Tensor) -> Tensor:
        return _tensor(run(argument), target)

    with torch.no_grad():
        point = x if source is None else _tensor(run(None), source)
    return function, point.detach()


def batch_jacobian(function: Map, x: Tensor) -> Tensor:
    """Return the Jacobian of a whole batch, shape (N·outputs, N·inputs): N·outputs backward passes, for small N.

    Args:
        function: of a batch (N, *inputs), for example from `model_map`.
        x: where.

    Example:
        >>> batch_jacobian(lambda x: x - x.mean(0), torch.zeros(2, 1))
        tensor([[ 0.5000, -0.5000],
                [-0.5000,  0.5000]])
    """
    x = x.detach()
    with torch.no_grad():
        matrix: Tensor = jacrev(lambda flat: function(flat.view_as(x)).flatten(), chunk_size=64)(x.flatten())
    return matrix.detach()


def sample_jacobians(function: Map, x: Tensor, *, coupled: bool) -> Tensor:
    """Return the Jacobian of each sample's output in its own input, shape (N, outputs, inputs).

    Args:
        function: of a batch (N, *inputs).
        x: where.
        coupled: whether a sample's output may depend on other samples, as with batch norm in train mode. True gives the blocks on
            the diagonal of the batch's Jacobian, for N·outputs backward passes of the batch. False takes each sample's output to be
            its own, for `outputs` backward passes; for a function that does couple, these would be sums down the columns.

    Example:
        >>> sample_jacobians(lambda x: x - x.mean(0), torch.zeros(4, 1), coupled=True).flatten()
        tensor([0.7500, 0.7500, 0.7500, 0.7500])
    """
    x = x.detach()

    def own(sample: Tensor, i: int) -> Tensor:
        return function(torch.cat([x[:i], sample[None], x[i + 1 :]]))[i].flatten()

    with torch.no_grad():
        if coupled:
            blocks = [jacrev(lambda sample, i=i: own(sample, i), chunk_size=64)(x[i]).flatten(1) for i in range(len(x))]
            return torch.stack(blocks).detach()
        sums = jacrev(lambda batch: function(batch).flatten(1).sum(0), chunk_size=64)(x)  # (outputs, N, *inputs)
        return sums.flatten(2).transpose(0, 1).detach()


def singular_values(function: Map, x: Tensor) -> Tensor:
    """Return all singular values of the Jacobian of a whole batch, largest first: exact, for small N.

    Those of the samples are `torch.linalg.svdvals(sample_jacobians(...))`, of shape (N, min(outputs, inputs)).

    Example:
        >>> singular_values(lambda x: x * torch.tensor([2.0, 3.0]), torch.zeros(1, 2))
        tensor([3., 2.])
    """
    return torch.linalg.svdvals(batch_jacobian(function, x))


def top_singular_values(
    function: Map, x: Tensor, count: int = 1, *, tolerance: float = 1e-4, max_restarts: int = 1000, seed: int = 0
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the largest singular values of the Jacobian of a whole batch without building it (scipy's svds).

    Args:
        function: of a batch (N, *inputs).
        x: where.
        count: how many, at most as many as there are rows, and columns.
        tolerance: relative. In float32 not much below 1e-5 can be reached.
        max_restarts: of the iteration.
        seed: seed of the start vector.

    Returns:
        The values, largest first. Each step of the iteration costs three backward passes.

    Raises:
        NormlibError: if `count` does not fit, the Jacobian is not finite, or the iteration does not converge.
    """
    push, pull, value = _products(function, x)
    shape = value.numel(), x.numel()
    if not 1 <= count <= min(shape):
        raise NormlibError(f"top_singular_values got count={count}, but the Jacobian is of shape {shape}.")
    if not bool(pull(torch.ones_like(value)).isfinite().all()):
        raise NormlibError("the Jacobian has values that are not finite: has training diverged? Look at the outputs first.")
    if min(shape) <= max(_DENSE, 2 * count):
        return singular_values(function, x)[:count].double().cpu().numpy()

    def operate(product: Map, like: Tensor) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
        return lambda v: product(torch.as_tensor(v).to(like).view_as(like)).flatten().double().cpu().numpy()

    operator = LinearOperator(shape, matvec=operate(push, x), rmatvec=operate(pull, value), dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(min(shape))
    try:
        found = svds(operator, k=count, tol=tolerance, maxiter=max_restarts, v0=start, return_singular_vectors=False)
    except ArpackNoConvergence as error:
        raise NormlibError(
            f"no {count} singular values within {tolerance:g} after {max_restarts} restarts. Raise max_restarts or "
            "tolerance, or compute in float64."
        ) from error
    return np.sort(found)[::-1]


def mean_squared_singular_value(function: Map, x: Tensor, *, probes: int = 16, seed: int = 0) -> Estimate:
    r"""Estimate the mean of the squared singular values of the Jacobian of a whole batch by random probes.

    For signs u, independent and random, the mean of $\lVert J^\top u \rVert^2$ is $\lVert J \rVert_F^2$ (`hutchinson1990`),
    which is divided by the number of singular values, the smaller of rows and columns. It is 1 if J is orthogonal.

    Args:
        function: of a batch (N, *inputs).
        x: where.
        probes: how many, two or more; each costs one backward pass.
        seed: seed of the probes.

    Returns:
        The estimate and its standard error over the probes.

    Raises:
        NormlibError: if there are fewer than two probes.

    Example:
        >>> mean_squared_singular_value(lambda x: 3 * x, torch.zeros(4, 5))
        Estimate(value=9.0, standard_error=0.0)

    Source: `hutchinson1990` for the probes.
    """
    if probes < 2:
        raise NormlibError(f"mean_squared_singular_value got probes={probes}; expected two or more, for a standard error.")
    _, pull, value = _products(function, x)
    generator = torch.Generator().manual_seed(seed)
    squares = []
    for _ in range(probes):
        signs = torch.randint(2, value.shape, generator=generator) * 2 - 1
        squares.append(float(pull(signs.to(value)).double().square().sum()) / min(value.numel(), x.numel()))
    return Estimate.of(squares)


def _keep(kept: dict[str | None, Tensor], name: str, replacement: Tensor | None) -> Callable[..., Tensor | None]:
    """Make a hook that keeps the output of a module, or puts another in its place."""

    def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            raise NormlibError(f"layer {name!r} puts out {type(output).__name__}, not one tensor. Name another layer.")
        if name in kept:
            raise NormlibError(f"layer {name!r} runs more than once, so its output is not one tensor. Name another layer.")
        kept[name] = output.clone() if replacement is None else replacement  # what comes next may write into its input
        return kept[name].clone()

    return hook


def _tensor(kept: dict[str | None, Tensor], name: str | None) -> Tensor:
    if name not in kept:
        raise NormlibError(f"layer {name!r} does not run when the model does. Name another layer.")
    if not isinstance(kept[name], Tensor):
        raise NormlibError(f"the model puts out {type(kept[name]).__name__}, not one tensor. Name a layer as the target.")
    return kept[name]


def _products(function: Map, x: Tensor) -> tuple[Map, Map, Tensor]:
    """Return v ↦ Jv, u ↦ Jᵀu, and the value of the function."""
    with torch.no_grad():  # nothing is to be known of the parameters
        value, pullback, *_ = vjp(function, x.detach())
        pushforward = vjp(lambda u: pullback(u)[0], torch.zeros_like(value))[1]  # Jᵀu is linear in u, so its pullback is J
    return lambda v: pushforward(v)[0].detach(), lambda u: pullback(u)[0].detach(), value.detach()
