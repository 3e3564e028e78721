"""The table of norms, and `make_norm`, which builds one from its spec.

A target is a callable `f(num_features, *, device, dtype, **arguments)` that returns a module for input (N, C, *). A new norm is
one file and one line here; the tests of the package then run over it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normlib.registry import Registry
from normlib.spec import SpecError, parse_spec, spec_name

NORMS = Registry(
    "norm",
    {
        "none": "normlib.layers.registry:no_norm",
        "batch": "normlib.layers.batch:BatchNorm",
        "layer": "normlib.layers.layer:ChannelLayerNorm",
        "rms": "normlib.layers.rms:ChannelRMSNorm",
        "group": "normlib.layers.group:grouped",
        "instance": "normlib.layers.instance:InstanceNorm",
        "sync": "normlib.layers.sync:SyncBatchNorm",
        "switch": "normlib.layers.switch:SwitchNorm",
        "frn": "normlib.layers.response:FilterResponseNorm",
        "evonorm_b0": "normlib.layers.evonorm:EvoNormB0",
        "evonorm_s0": "normlib.layers.evonorm:EvoNormS0",
        "proxy": "normlib.layers.proxy:ProxyNorm",
        "dyt": "normlib.layers.dynamic:DynamicTanh",
        "derf": "normlib.layers.dynamic:Derf",
        "renorm": "normlib.layers.renorm:BatchRenorm",
        "noisy": "normlib.layers.noisy:NoisyBatchNorm",
        "lp": "normlib.layers.lp:LpBatchNorm",
        "variance": "normlib.layers.variance:VarianceNorm",
        "decorrelated": "normlib.layers.decorrelated:DecorrelatedBatchNorm",
    },
    hint="A spec reads 'name' or 'name:argument=value,argument=value'.",
)

# What differs when features come last: a token is a sample of its own.
TOKEN_NORMS = Registry(
    "token norm",
    {
        "layer": "normlib.layers.layer:token_layer_norm",
        "rms": "normlib.layers.rms:token_rms_norm",
    },
)


def no_norm(num_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> nn.Identity:
    """Return the module that changes nothing: the arm without normalization."""
    return nn.Identity()


def make_norm(spec: str, num_features: int, *, channel_axis: int = 1, **factory_kwargs: Any) -> nn.Module:
    """Build the norm that a spec names.

    Args:
        spec: for example `"none"`, `"batch"`, `"batch:momentum=0.01"`, `"group:size=8"`, `"layer"`.
        num_features: number of channels C.
        channel_axis: 1 for maps and vectors (N, C, *); -1 for tokens (N, T, C), features last. There `"layer"` and `"rms"`
            normalize each token by itself, as in Transformers, and the others take the tokens for positions.
        **factory_kwargs: torch's `device` and `dtype`.

    Returns:
        A module for such input. If its attribute `includes_activation` is True it replaces the activation too.

    Raises:
        SpecError: if the text is not a spec, or `channel_axis` is neither 1 nor -1.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.
        ShapeError: if the norm does not fit the number of channels.

    Example:
        >>> make_norm("group:size=8", 24)
        GroupNorm(3, 24, eps=1e-05, affine=True...)
        >>> make_norm("layer", 24, channel_axis=-1)
        LayerNorm((24,), eps=1e-05, elementwise_affine=True...)
    """
    if channel_axis not in (1, -1):
        raise SpecError(f"channel_axis={channel_axis!r} is neither 1, for input (N, C, *), nor -1, for tokens (N, T, C).")
    table = TOKEN_NORMS if channel_axis == -1 and spec_name(spec) in TOKEN_NORMS else NORMS
    name, arguments = parse_spec(spec, table)
    norm: nn.Module = table[name](num_features, **arguments, **factory_kwargs)
    return ChannelsLast(norm) if channel_axis == -1 and table is NORMS and name != "none" else norm


class ChannelsLast(nn.Module):
    """A norm for input (N, C, *), used on input (N, *, C): the features move to axis 1 and back.

    Args:
        norm: the norm; it becomes the child `norm`.

    Shape:
        Input (N, *, C), output the same.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, *, C)."""
        output: Tensor = self.norm(input.movedim(-1, 1)).movedim(1, -1)
        return output


def includes_activation(norm: nn.Module) -> bool:
    """Return whether a norm replaces the activation that would follow it, as EvoNorm does."""
    return bool(getattr(getattr(norm, "norm", norm), "includes_activation", False))
