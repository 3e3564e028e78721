"""The table of norms, and `make_norm`, which builds one from its spec.

A target is a callable `f(num_features, *, device, dtype, **arguments)` that returns a module for input (N, C, *). A new norm is
one file and one line here; the tests of the package then run over it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normlib.layers.spec import parse_spec
from normlib.registry import Registry

NORMS = Registry(
    "norm",
    {
        "none": "normlib.layers.registry:no_norm",
        "batch": "normlib.layers.batch:BatchNorm",
        "layer": "normlib.layers.layer:ChannelLayerNorm",
        "rms": "normlib.layers.rms:ChannelRMSNorm",
        "group": "normlib.layers.group:grouped",
        "instance": "normlib.layers.instance:InstanceNorm",
    },
    hint="A spec reads 'name' or 'name:argument=value,argument=value'.",
)


def no_norm(num_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> nn.Identity:
    """Return the module that changes nothing: the arm without normalization."""
    return nn.Identity()


def make_norm(spec: str, num_features: int, **factory_kwargs: Any) -> nn.Module:
    """Build the norm that a spec names.

    Args:
        spec: for example `"none"`, `"batch"`, `"batch:momentum=0.01"`, `"group:size=8"`, `"layer"`.
        num_features: number of channels C.
        **factory_kwargs: torch's `device` and `dtype`.

    Returns:
        A module for input (N, C, *), channels in axis 1.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.
        ShapeError: if the norm does not fit the number of channels.

    Example:
        >>> make_norm("group:size=8", 24)
        GroupNorm(3, 24, eps=1e-05, affine=True...)
    """
    name, arguments = parse_spec(spec, NORMS)
    norm: nn.Module = NORMS[name](num_features, **arguments, **factory_kwargs)
    return norm
