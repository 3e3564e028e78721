"""Internal covariate shift: how far the gradient of a layer turns when the layers below it take their step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError, unknown
from normlib.probes.parameters import Loss, cosine, flat, loss_and_gradient, trainable
from normlib.probes.state import preserved
from normlib.probes.watching import Columns, Layers, chosen_layers


def internal_covariate_shift(
    model: nn.Module,
    loss_fn: Loss,
    x: Tensor,
    y: Tensor,
    step: float | Mapping[str, Tensor],
    layers: Layers = None,
    *,
    training: bool | None,
) -> Columns:
    r"""Measure internal covariate shift by its definition, layer by layer.

    With $G_i = \nabla_{W_i} L(W_1, \dots, W_k)$ and $G'_i = \nabla_{W_i} L(W'_1, \dots, W'_{i-1}, W_i, \dots, W_k)$ on the same
    batch, where $W'$ are the weights after the step, the shift of layer $i$ is $\|G_i - G'_i\|$; the cosine of the angle
    between both is 1 if there is none. All parameters below take the step: scales and biases of norms too.

    Layers are below one another in the order in which they start to run; of a module that runs twice the first time counts, and
    what a module holds itself, beside its children, counts as used when it starts. Random numbers are drawn alike for both
    gradients.

    Cost for k layers: at most k + 2 forward and k + 1 backward passes, each backward pass of a layer only as far down as it.

    Args:
        model: any model.
        loss_fn: function of output and target that returns a scalar.
        x: inputs, the batch of the training step.
        y: its targets.
        step: the learning rate of a plain step of gradient descent; or new parameters by name, of any update, where those
            left out stay.
        layers: which to measure, see `record_activations`; all of the others below them take the step all the same. A module
            with children counts with all their parameters. None for every module that holds a weight of two or more axes.
        training: True for train mode: a batch norm takes its statistics from `x`, and the gradient goes through them. False
            for eval mode, None for the mode that each module is in.

    Returns:
        Columns with one entry a layer, in forward order: `layer`; `gradient_norm` $\|G\|$; `shift` $\|G - G'\|$;
        `relative_shift` $\|G - G'\| / \|G\|$, the one to compare models by, as gradients differ in size; `cosine`. The last two
        are NaN where a gradient is zero. Of a parametrized weight the gradient is that of what is trained.

    Raises:
        UnknownNameError: if no module or no parameter has a given name.
        NormlibError: if a chosen layer does not run or has nothing to train, or a new parameter has another shape.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> for layer in net:
        ...     _ = nn.init.constant_(layer.weight, 1.0)
        >>> half = lambda output, target: 0.5 * (output - target).square().sum()
        >>> found = internal_covariate_shift(net, half, torch.ones(1, 1), 3 * torch.ones(1, 1), 0.5, training=True)
        >>> found["layer"], found["gradient_norm"], found["shift"], found["cosine"]
        (['0', '1'], [2.0, 2.0], [0.0, 0.0], [1.0, 1.0])
        >>> found = internal_covariate_shift(net, half, torch.ones(1, 1), 3 * torch.ones(1, 1), 1.0, training=True)
        >>> found["shift"], found["cosine"]  # the weight below went from 1 to 3: no error is left
        ([0.0, 2.0], [1.0, nan])

    Source: `santurkar2018`, definition 2.1.
    """
    order = _forward_order(model, x, training)
    homes = {name: _home(name, order) for name, _ in model.named_parameters()}
    chosen = _measured(model, layers, order, homes)
    gradient = loss_and_gradient(model, loss_fn, x, y, training=training)[1]
    after = _after(model, step, gradient)
    columns: Columns = {key: [] for key in ("layer", "gradient_norm", "shift", "relative_shift", "cosine")}
    for layer, own in chosen.items():
        below = {name: value for name, value in after.items() if name not in own and order[homes[name]] < order[layer]}
        moved = loss_and_gradient(model, loss_fn, x, y, below, own, training=training)[1] if below else gradient
        g, h = (flat({name: gradients[name] for name in own}) for gradients in (gradient, moved))
        norm, shift = float(g.norm()), float((g - h).norm())
        row = (layer or "model", norm, shift, shift / norm if norm else math.nan, cosine(g, h))
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return columns


def _forward_order(model: nn.Module, x: Tensor, training: bool | None) -> dict[str, int]:
    """Return the names of the modules that run ("" is the model), each with its place in the order in which they start."""
    order: dict[str, int] = {}

    def started(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any) -> None:
            order.setdefault(name, len(order))

        return note

    handles = [module.register_forward_pre_hook(started(name)) for name, module in model.named_modules()]
    try:
        with preserved(model, training), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return order


def _home(parameter: str, order: Mapping[str, int]) -> str:
    """Return the module that uses a parameter: the innermost around it that runs, parametrizations aside."""
    parts = parameter.split(".")
    owner = parts[: parts.index("parametrizations")] if "parametrizations" in parts else parts[:-1]
    while owner and ".".join(owner) not in order:
        owner = owner[:-1]
    return ".".join(owner)


def _measured(model: nn.Module, layers: Layers, order: Mapping[str, int], homes: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the layers to measure, in forward order, each with the names of its parameters."""
    trained = trainable(model)
    if layers is None:
        owners = {homes[name] for name, p in trained.items() if p.ndim > 1}
        found = {layer: [name for name in trained if homes[name] == layer] for layer in owners}
    else:
        chosen = ["" if module is model else name for name, module in chosen_layers(model, layers).items()]
        found = {layer: [name for name in trained if not layer or f"{homes[name]}.".startswith(f"{layer}.")] for layer in chosen}
    for layer, own in found.items():
        if layer not in order or not own:
            trouble = "has no parameter that requires a gradient" if layer in order else "does not run"
            raise NormlibError(f"layer {layer or 'model'!r} {trouble}, so it has no gradient to compare. Leave it out of layers.")
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _after(model: nn.Module, step: float | Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters that the step changes, as they are after it."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    if not isinstance(step, Mapping):
        return {name: params[name] - step * g for name, g in gradient.items()}
    for name, value in step.items():
        if name not in params:
            raise unknown("parameter", name, params)
        if value.shape != params[name].shape:
            raise NormlibError(f"the step has {name!r} at shape {tuple(value.shape)}; expected {tuple(params[name].shape)}.")
    return dict(step)
