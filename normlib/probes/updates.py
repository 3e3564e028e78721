"""How far a training step moves the parameters: lengths of weights and gradients, updates beside weights, effective rates.

Weights that a parametrization makes (such as those of `normlib.weights`) can be read in two ways: as stored, that is the
parameters that the optimizer moves ("0.parametrizations.weight.original1"), or as applied, the weight that the layer uses
("0.weight"). A snapshot's names tell which is meant, and all that is compared with it is read in the same way.

Norms are Euclidean, over all elements of a tensor, in float64. Each function costs a pass over the parameters; only
`radial_gradients` runs the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlib.errors import NormlibError
from normlib.probes.state import preserved
from normlib.probes.watching import Columns

Snapshot = Mapping[str, Tensor]


def snapshot(model: nn.Module, *, applied: bool) -> dict[str, Tensor]:
    """Copy the parameters of a model that require a gradient, by name.

    Args:
        model: any model.
        applied: of a parametrized weight, True for the weight that the layer applies in the mode it is in, False for the
            parameters that it is made of. For all others the two are the same.

    Example:
        >>> sorted(snapshot(nn.utils.parametrizations.weight_norm(nn.Linear(2, 1)), applied=True))
        ['bias', 'weight']
    """
    return _read(model, _names(model, applied))


def parameter_norms(model: nn.Module, *, applied: bool) -> Columns:
    """Measure the length of each parameter, and of the gradient that stands in its `.grad`.

    Args:
        model: any model, for example after a backward pass.
        applied: see `snapshot`. A weight that a parametrization makes has no `.grad`, so its `gradient_norm` is NaN; take
            `gradient_statistics` there.

    Returns:
        Columns with one entry a parameter: `parameter`; `weight_norm`; `gradient_norm`, NaN where there is none.
    """
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    weights = snapshot(model, applied=applied)
    return {
        "parameter": list(weights),
        "weight_norm": [_norm(weight) for weight in weights.values()],
        "gradient_norm": [math.nan if (gradient := gradients.get(name)) is None else _norm(gradient) for name in weights],
    }


def update_ratios(before: Snapshot, after: nn.Module | Snapshot) -> Columns:
    r"""Compare how far each parameter has moved with how long it was: $\lVert w' - w \rVert / \lVert w \rVert$.

    Args:
        before: an earlier `snapshot`.
        after: the model as it is now, or a later snapshot.

    Returns:
        Columns with one entry a parameter: `parameter`; `weight_norm`, before; `update_norm`; `ratio`, which is infinite for what
        was zero and moved (biases after the first step), and NaN for what was zero and stayed.

    Raises:
        NormlibError: if a parameter of the snapshot is missing, or has another shape.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> before = snapshot(net, applied=False)
        >>> _ = net.weight.data.mul_(0.5)
        >>> update_ratios(before, net)["ratio"]
        [0.5]
    """
    updates = _difference(before, after)
    lengths, steps = [_norm(before[name]) for name in updates], [_norm(update) for update in updates.values()]
    return {
        "parameter": list(updates),
        "weight_norm": lengths,
        "update_norm": steps,
        "ratio": [_ratio(step, length) for step, length in zip(steps, lengths, strict=True)],
    }


def update_cosines(first: Snapshot, second: Snapshot, third: nn.Module | Snapshot) -> Columns:
    """Measure the angle between two successive updates: 1 for steps straight on, 0 for unrelated ones, -1 to and fro.

    Args:
        first: a snapshot.
        second: a later one.
        third: the model as it is now, or a still later snapshot.

    Returns:
        Columns with one entry a parameter, and a last one, "all", for all of them as one vector: `parameter`; `cosine`, NaN if
        either update is zero.

    Raises:
        NormlibError: if a parameter of the first snapshot is missing later, or has another shape.
    """
    earlier, later = _difference(first, second), _difference({name: second[name] for name in first}, third)
    inner = [float(torch.sum(earlier[name] * later[name])) for name in earlier]
    lengths = [(_norm(earlier[name]), _norm(later[name])) for name in earlier]
    both = [math.hypot(*norms) for norms in zip(*lengths, strict=True)]
    cosines = [_ratio(dot, a * b, math.nan) for dot, (a, b) in zip(inner, lengths, strict=True)]
    return {"parameter": [*earlier, "all"], "cosine": [*cosines, _ratio(sum(inner), math.prod(both), math.nan)]}


def effective_rates(weights: Snapshot, rate: float, *, per_output: bool) -> Columns:
    r"""Return the learning rate that a scale-invariant weight feels, $\eta / \lVert w \rVert^2$.

    The loss does not depend on the length of such a weight, its gradient is orthogonal to it and inversely proportional to its
    length; so a step of gradient descent with rate η turns the direction as a step at length 1 with this rate would. Weights
    before batch norm are scale-invariant output by output, before layer norm as a whole; so is the stored direction of a weight
    norm, but not the weight that it applies. `radial_gradients` tells which weights are.

    Args:
        weights: a `snapshot`, best of those weights that are scale-invariant.
        rate: learning rate of plain gradient descent, η.
        per_output: True for the norm of each output's row (axis 0), of which the median rate is given; False for the norm of the
            whole tensor. Only weights of two axes or more have rows, others are taken as a whole.

    Returns:
        Columns with one entry a parameter: `parameter`; `effective_rate`, infinite for a weight of zero.

    Example:
        >>> effective_rates({"weight": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}, 0.5, per_output=True)
        {'parameter': ['weight'], 'effective_rate': [0.26]}

    Source: `vanlaarhoven2017`.
    """
    rates = []
    for weight in weights.values():
        rows = weight if per_output and weight.ndim > 1 else weight[None]
        squares = rows.detach().double().reshape(len(rows), -1).square().sum(1)
        rates.append(median(_ratio(rate, square) for square in squares.tolist()))
    return {"parameter": list(weights), "effective_rate": rates}


def radial_gradients(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    training: bool | None,
) -> Columns:
    r"""Measure the share of each gradient that lies along its weight: the cosine of w and $\partial L / \partial w$.

    It is 0 for a weight whose length the loss does not depend on, up to rounding and the eps of its norm. Of parametrized weights
    the stored parameters are taken. Cost: one forward and one backward pass.

    Args:
        model: any model; it is left as it is.
        loss_fn: function of output and target that returns a scalar.
        x: one batch of inputs.
        y: its targets.
        training: True for train mode, False for eval mode, None for the mode that each module is in. A weight before batch norm
            is scale-invariant in train mode only.

    Returns:
        Columns with one entry a parameter: `parameter`; `cosine`, NaN where weight or gradient is zero.

    Source: `arora2019`.
    """
    params = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with preserved(model, training), torch.enable_grad():
        loss = loss_fn(model(x), y)
        gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
    pairs = [(w.detach().double(), g.double()) for w, g in zip(params.values(), gradients, strict=True)]
    return {
        "parameter": list(params),
        "cosine": [_ratio(float((w * g).sum()), _norm(w) * _norm(g), math.nan) for w, g in pairs],
    }


def _names(model: nn.Module, applied: bool) -> list[str]:
    """List what to read: each parameter that requires a gradient, or what a parametrization makes of it, once."""
    names: dict[str, None] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            names[_applied_name(model, name) if applied else name] = None
    return list(names)


def _applied_name(model: nn.Module, name: str) -> str:
    parts = name.split(".")
    if "parametrizations" not in parts:
        return name
    place = parts.index("parametrizations")
    layer, tensor = model.get_submodule(".".join(parts[:place])), parts[place + 1]
    return ".".join([*parts[:place], tensor]) if parametrize.is_parametrized(layer, tensor) else name


def _read(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Copy tensors by name; a parametrization may change its buffers when it is read (spectral norm), which is undone."""
    found = {}
    with preserved(model), torch.no_grad():
        for name in names:
            path, _, attribute = name.rpartition(".")
            try:
                found[name] = getattr(model.get_submodule(path), attribute).detach().clone()
            except AttributeError as error:
                raise NormlibError(
                    f"{type(model).__name__} has no {name!r} any more. Take the snapshot of the same model."
                ) from error
    return found


def _difference(before: Snapshot, after: nn.Module | Snapshot) -> dict[str, Tensor]:
    now = _read(after, list(before)) if isinstance(after, nn.Module) else after
    if unlike := [name for name in before if name not in now or now[name].shape != before[name].shape]:
        raise NormlibError(
            f"the later parameters lack {unlike[0]!r} in the shape {tuple(before[unlike[0]].shape)}. Take both snapshots of the "
            "same model, in the same way (stored or applied)."
        )
    return {name: now[name].detach().double() - then.detach().double() for name, then in before.items()}


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())


def _ratio(numerator: float, denominator: float, otherwise: float = math.inf) -> float:
    """Divide; what is not zero over zero is `otherwise`, and zero over zero NaN."""
    if denominator:
        return numerator / denominator
    return otherwise if numerator else math.nan
