"""Replace the norms inside an existing model, of torch or of `normlib`, and keep what carries over."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normlib.errors import NormlibError, unknown
from normlib.layers import NORMS, ChannelsLast, GroupNorm, includes_activation, make_norm
from normlib.spec import arguments_of, split_spec

_CARRIED = ("eps", "momentum", "affine")
_TORCH: dict[str, tuple[type[nn.Module], ...]] = {
    "batch": (_BatchNorm,),
    "instance": (_InstanceNorm,),
    "group": (nn.GroupNorm,),
    "layer": (nn.LayerNorm,),
    "rms": (nn.RMSNorm,),
}


class SwapError(NormlibError, ValueError):
    """A norm that cannot be exchanged without losing something; the message says which, where, and what would do."""


def swap(model: nn.Module, kinds: Mapping[str, str]) -> nn.Module:
    """Replace each norm of some kinds by what a spec names.

    What carries over: the learned scale and shift, running statistics if both norms keep them, `eps`, `momentum` and
    `affine` unless the spec sets them, device, dtype, mode, `requires_grad`. A norm that stands in two places of the model stays
    one norm. Weights of other layers are not touched, so a network that was trained with the old norms needs training with the
    new ones, unless they compute the same.

    Args:
        model: any network, of `torch.nn` layers or of this package; changed in place.
        kinds: what to replace by what, as `{"batch": "group:size=16"}`; keys are names of `NORMS`.

    Returns:
        The model; if the model itself is such a norm, its replacement.

    Raises:
        UnknownNameError: if a key or a spec is not known; the message holds the nearest match.
        ShapeError: if a new norm does not fit the number of channels.
        SwapError: if the model has no norm of a kind, an affine map would be lost, or a norm has hooks. Then the model is as it
            was.

    Warns:
        UserWarning: if a new norm brings its own activation; the activation after it is then yours to remove.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        >>> swap(net, {"batch": "group:size=16"})[1]
        GroupNorm(2, 32, eps=1e-05, affine=True...)
    """
    for kind in kinds:
        if kind not in NORMS or kind == "none":
            raise unknown("kind of norm", kind, [name for name in NORMS if name != "none"])
    places = {name: module for name, module in model.named_modules(remove_duplicate=False) if kind_of(module) in kinds}
    missing = set(kinds) - {kind_of(module) for module in places.values()}
    if missing:
        held = Counter(kind for kind in map(kind_of, model.modules()) if kind)
        inventory = ", ".join(f"{kind} ({count})" for kind, count in held.items()) or "no norm"
        raise SwapError(f"{type(model).__name__} has no norm of the kind {sorted(missing)[0]!r}. It holds: {inventory}.")
    made: dict[int, nn.Module] = {}  # all of them first: an error leaves the model as it was
    for name, module in places.items():
        made[id(module)] = made.get(id(module)) or _replacement(name or type(module).__name__, module, kinds[kind_of(module)])  # type: ignore[index]
    if any(map(includes_activation, made.values())):
        warnings.warn("the new norms bring their own activation: remove the one that follows each of them", stacklevel=2)
    for name, module in places.items():
        parent, _, child = name.rpartition(".")
        if name:
            model.get_submodule(parent)._modules[child] = made[id(module)]
    return made[id(model)] if "" in places else model


def kind_of(module: nn.Module) -> str | None:
    """Return the name of `NORMS` that builds modules of this class, torch's own among them; None for any other module."""
    for name in NORMS:
        if name != "none" and type(module) is NORMS[name]:
            return name
    if type(module) is GroupNorm:
        return "group"
    if type(module).__module__.startswith("normlib."):  # a relative of torch's class that is a kind of its own
        return {"LayerNorm": "layer", "RMSNorm": "rms"}.get(type(module).__name__)
    return next((name for name, classes in _TORCH.items() if isinstance(module, classes)), None)


def _replacement(place: str, old: nn.Module, spec: str) -> nn.Module:
    """Build the new norm and fill it with what carries over."""
    if old._forward_hooks or old._forward_pre_hooks or hasattr(old, "parametrizations"):
        raise SwapError(
            f"the norm at {place!r} has hooks or parametrizations, which stay with it. Remove them, swap, and add them anew."
        )
    features, axis = _features(place, old)
    tensor = next((t for t in [*old.parameters(), *old.buffers()] if t.is_floating_point()), None)
    where: dict[str, Any] = {} if tensor is None else {"device": tensor.device, "dtype": tensor.dtype}
    new = make_norm(_with_carried(spec, old), features, channel_axis=axis, **where)
    _carry(place, old, new.norm if isinstance(new, ChannelsLast) else new, spec)
    return new.train(old.training)


def _features(place: str, old: nn.Module) -> tuple[int, int]:
    """Return the number of channels and the axis in which they stand."""
    for name in ("num_features", "num_channels"):
        if hasattr(old, name):
            return int(getattr(old, name)), 1
    shape: tuple[int, ...] = tuple(old.normalized_shape)  # type: ignore[arg-type]
    if len(shape) == 1:
        return shape[0], -1
    raise SwapError(
        f"{type(old).__name__} at {place!r} normalizes the axes {shape} together, with {math.prod(shape)} scales. No norm with "
        f"a scale per channel carries that over. Use ChannelLayerNorm({shape[0]}) in the model first: it takes the same statistics."
    )


def _with_carried(spec: str, old: nn.Module) -> str:
    """Add the arguments of the old norm that the new one takes and the spec does not set."""
    name, given = split_spec(spec)
    takes = arguments_of(NORMS[name])
    old_affine = getattr(old, "affine", getattr(old, "elementwise_affine", None))
    values = {"eps": getattr(old, "eps", None), "momentum": getattr(old, "momentum", 0.1), "affine": old_affine}
    carried = {a: values[a] for a in _CARRIED if hasattr(old, a) or a == "affine"}
    carried = {a: v for a, v in carried.items() if a in takes and a not in given and not (v is None and a != "momentum")}
    return f"{name}:" + ",".join(f"{a}={v}" for a, v in {**given, **carried}.items()) if given or carried else name


@torch.no_grad()
def _carry(place: str, old: nn.Module, new: nn.Module, spec: str) -> None:
    """Copy parameters and buffers of the same name and shape; refuse to lose a map that was learned."""
    targets = {**dict(new.named_parameters(recurse=False)), **dict(new.named_buffers(recurse=False))}
    for name, value in [*old.named_parameters(recurse=False), *old.named_buffers(recurse=False)]:
        target = targets.get(name)
        if target is not None and target.shape == value.shape:
            target.copy_(value)
            target.requires_grad_(value.requires_grad)
        elif name in ("weight", "bias") and not value.is_meta and bool((value != (1.0 if name == "weight" else 0.0)).any()):
            raise SwapError(
                f"the {name} that {type(old).__name__} at {place!r} has learned finds no place in {spec!r}. "
                f"Choose a norm with a {name} per channel, or reset it with reset_parameters() if it may go."
            )
