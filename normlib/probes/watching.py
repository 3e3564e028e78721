"""Watching a model run, through hooks that are taken off again: what its layers put out, and the gradients there.

Layers come in the order in which they run; a module that runs again is listed again, as "name#2".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError, unknown
from normlib.probes.state import preserved

Layers = type[nn.Module] | tuple[type[nn.Module], ...] | Sequence[str] | None
Columns = dict[str, list[Any]]
Side = Literal["input", "output"]
Key = tuple[str, str]
Reduced = TypeVar("Reduced")


def record_activations(model: nn.Module, x: Tensor, layers: Layers = None, *, training: bool | None = None) -> dict[str, Tensor]:
    """Run a model once and keep what its layers put out.

    Args:
        model: any model.
        x: one batch of inputs.
        layers: which: a type or tuple of types of module, or a list of names as in `model.named_modules()`; None for every
            module without children.
        training: True for train mode, False for eval mode, None for the mode that each module is in.

    Returns:
        Name to output, detached, in forward order.

    Raises:
        UnknownNameError: if no module has a given name.
        NormlibError: if a chosen module does not put out one tensor, or none was chosen.

    Example:
        >>> net = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> record_activations(net, torch.tensor([[-1.0, 2.0]]), nn.ReLU)
        {'1': tensor([[0., 2.]])}
    """
    with preserved(model, training), torch.no_grad(), watched(model, layers) as outputs:
        model(x)
    return {name: output for name, (_, output) in outputs.items()}


def reduce_activations(
    model: nn.Module,
    x: Tensor,
    reduce: Callable[[Tensor], Reduced],
    layers: Layers = None,
    *,
    sides: Sequence[Side] = ("output",),
    training: bool | None = None,
) -> dict[Key, Reduced]:
    """Run a model once and keep what a function makes of the activations, not the activations themselves.

    The function sees each tensor as it passes, before anything writes into it. Cost: one forward pass.

    Args:
        model: any model.
        x: one batch of inputs.
        reduce: function of one tensor; it must not write to it.
        layers: see `record_activations`.
        sides: "input" for what goes into a layer (the first tensor among its arguments), "output" for what comes out, or both.
        training: see `record_activations`.

    Returns:
        (layer, side) to result, in forward order.

    Raises:
        UnknownNameError: if there is no such side, or no module has a given name.
        NormlibError: if a chosen module does not take or put out a tensor, or none was chosen.

    Example:
        >>> net = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
        >>> reduce_activations(net, torch.tensor([-1.0, 3.0]), lambda t: float(t.mean()), nn.ReLU, sides=["input", "output"])
        {('1', 'input'): 1.0, ('1', 'output'): 1.5}
    """
    for side in sides:
        if side not in get_args(Side):
            raise unknown("side of a layer", side, get_args(Side))
    watch = _Watch(reduce, sides)
    handles = [handle for name, module in chosen_layers(model, layers).items() for handle in watch.hook(name, module)]
    try:
        with preserved(model, training), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return watch.found


class _Watch:
    """Hooks that reduce what passes through a layer. An input waits for its output, so that both get the number of one call."""

    def __init__(self, reduce: Callable[[Tensor], Any], sides: Sequence[Side]) -> None:
        self.reduce, self.sides = reduce, sides
        self.found: dict[Key, Any] = {}
        self.calls: dict[str, None] = {}
        self.waiting: dict[str, list[Any]] = {}

    def hook(self, name: str, module: nn.Module) -> list[Any]:
        """Hang the hooks that the sides ask for on a module; return their handles."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            self.waiting.setdefault(name, []).append(self._reduced(name, module, first, "takes no tensor"))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            call = numbered(name, self.calls)
            self.calls[call] = None
            if "input" in self.sides:
                self.found[call, "input"] = self.waiting[name].pop()
            if "output" in self.sides:
                self.found[call, "output"] = self._reduced(
                    name, module, output, f"puts out {type(output).__name__}, not one tensor"
                )

        handles = [module.register_forward_hook(after)]
        if "input" in self.sides:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        return handles

    def _reduced(self, name: str, module: nn.Module, value: Any, trouble: str) -> Any:
        if not isinstance(value, Tensor):
            raise NormlibError(f"layer {name!r} ({type(module).__name__}) {trouble}. Name the layers to watch, without this one.")
        return self.reduce(value.detach())


@contextmanager
def watched(model: nn.Module, layers: Layers) -> Iterator[dict[str, tuple[nn.Module, Tensor]]]:
    """Collect (module, output) of the chosen layers, in forward order, while the context lasts."""
    outputs: dict[str, tuple[nn.Module, Tensor]] = {}
    chosen = chosen_layers(model, layers)

    def watch(name: str) -> Callable[..., Tensor]:
        def keep(module: nn.Module, args: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise NormlibError(
                    f"layer {name!r} ({type(module).__name__}) puts out {type(output).__name__}, not one tensor. "
                    "Name the layers to watch, without this one."
                )
            outputs[numbered(name, outputs)] = (module, output)
            return output.clone()  # what comes next may write into its input

        return keep

    handles = [module.register_forward_hook(watch(name)) for name, module in chosen.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def chosen_layers(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """Return the modules that `layers` chooses, by name; the model itself is "model".

    Raises:
        UnknownNameError: if no module has a given name.
        NormlibError: if none was chosen.
    """
    modules = {name or "model": module for name, module in model.named_modules()}
    if layers is None:
        chosen = {name: module for name, module in modules.items() if not any(module.children())}
    elif isinstance(layers, (type, tuple)):
        chosen = {name: module for name, module in modules.items() if isinstance(module, layers)}
    else:
        if missing := [name for name in layers if name not in modules]:
            raise unknown("layer", missing[0], modules)
        chosen = {name: modules[name] for name in layers}
    if not chosen:
        raise NormlibError(
            f"no layer of {type(model).__name__} is {layers}; it has {sorted({type(m).__name__ for m in modules.values()})}."
        )
    return chosen


def weight_layers(model: nn.Module) -> list[str]:
    """List the layers that have a weight of two or more axes."""
    return [name or "model" for name, module in model.named_modules() if weight_of(module) is not None]


def weight_of(module: nn.Module) -> Tensor | None:
    """Return the weight of a module if it has two or more axes, as the module applies it."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.ndim >= 2 else None


def gradients_at(loss: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return dL/dt for each tensor, None where there is none; `.grad` is not touched."""
    inputs = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(loss, inputs, allow_unused=True) if inputs else ())
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in tensors]


def numbered(name: str, taken: dict[str, Any]) -> str:
    """Name a further run of a module: "name", then "name#2"."""
    count = sum(other.partition("#")[0] == name for other in taken)
    return f"{name}#{count + 1}" if count else name
