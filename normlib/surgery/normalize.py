"""Attach a norm of either kind to a weight layer: to its weight, to its output, or to both."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from normlib.errors import NormlibError, unknown
from normlib.layers import NORMS, make_norm
from normlib.spec import SpecError, spec_name
from normlib.weights import WEIGHT_NORMS, parametrize_weight

_OUTPUTS = ("out_features", "out_channels")


def normalize(layer: nn.Module, spec: str) -> nn.Module:
    """Normalize a linear layer or a convolution as a spec says.

    Args:
        layer: a module with `out_features` or `out_channels`.
        spec: a norm of activations (`"batch"`), one of weights (`"scaled_weight"`), or both with a plus between:
            `"standardized_weight + group:size=8"`.

    Returns:
        The layer itself, its weight parametrized, if the spec names a weight norm alone; else `nn.Sequential` with the
        children `layer` and `norm`.

    Raises:
        SpecError: if the text is not a spec, or names two norms of one kind.
        UnknownNameError: if a name or an argument is not known; the message holds the nearest match.
        NormlibError: if the layer has no number of outputs.

    Example:
        >>> list(dict(normalize(nn.Conv2d(3, 16, 3), "standardized_weight + group:size=8").named_children()))
        ['layer', 'norm']
        >>> type(normalize(nn.Linear(3, 4), "weight").parametrizations.weight[0]).__name__
        'WeightNorm'
    """
    layer, norm = normalized_parts(layer, spec)
    names_weight_alone = isinstance(norm, nn.Identity) and spec_name(spec) in WEIGHT_NORMS
    return layer if names_weight_alone else nn.Sequential(OrderedDict(layer=layer, norm=norm))


def normalized_parts(layer: nn.Module, spec: str) -> tuple[nn.Module, nn.Module]:
    """Return the layer, its weight parametrized if the spec says so, and the norm that follows it (the identity, if none).

    Args:
        layer: as in `normalize`.
        spec: as in `normalize`.

    Raises:
        NormlibError: as in `normalize`.
    """
    weight_spec, norm_spec = split_kinds(spec)
    features = next((getattr(layer, name) for name in _OUTPUTS if hasattr(layer, name)), None)
    if features is None:
        raise NormlibError(
            f"normalize takes a layer with a weight and a number of outputs, such as nn.Linear or nn.Conv2d, but got "
            f"{type(layer).__name__}. For a norm by itself use make_norm({norm_spec!r}, num_features)."
        )
    norm = make_norm(norm_spec, features)  # first: if it does not fit, the layer stays as it was
    weight = getattr(layer, "weight", None)
    if weight is not None:
        norm = norm.to(device=weight.device, dtype=weight.dtype)
    return (layer if weight_spec is None else parametrize_weight(layer, weight_spec)), norm


def split_kinds(spec: str) -> tuple[str | None, str]:
    """Split a spec into its weight norm (None, if it has none) and its norm of activations (`"none"`, if it has none).

    Raises:
        SpecError: if it names two norms of one kind, or is no text.
        UnknownNameError: if a name is not known.

    Example:
        >>> split_kinds("standardized_weight + group:size=8"), split_kinds("batch")
        (('standardized_weight', 'group:size=8'), (None, 'batch'))
    """
    if not isinstance(spec, str):
        raise SpecError(f"a spec is text such as 'batch' or 'scaled_weight', but got {spec!r}.")
    found: dict[str, str] = {}
    for part in map(str.strip, spec.split("+")):
        kind = _kind(spec_name(part))
        if kind in found:
            raise SpecError(f"the spec {spec!r} names two {kind}s. At most one of weights and one of activations goes together.")
        found[kind] = part
    return found.get(WEIGHT_NORMS.kind), found.get(NORMS.kind, "none")


def _kind(name: str) -> str:
    """Return which table knows the name."""
    for table in (WEIGHT_NORMS, NORMS):
        if name in table:
            return table.kind
    raise unknown("norm of weights or activations", name, [*WEIGHT_NORMS, *NORMS], NORMS.hint)
