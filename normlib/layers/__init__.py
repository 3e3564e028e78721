"""What acts on activations: normalizers, each with its formula and its fast path, and the specs that name them."""

from normlib.layers.batch import BatchNorm, batch_moments, batch_norm
from normlib.layers.group import GroupNorm, group_norm, grouped
from normlib.layers.instance import InstanceNorm, instance_norm
from normlib.layers.layer import ChannelLayerNorm, LayerNorm, layer_norm
from normlib.layers.mode import by_formula, formula, reference
from normlib.layers.registry import NORMS, ChannelsLast, includes_activation, make_norm
from normlib.layers.rms import ChannelRMSNorm, RMSNorm, rms_norm
from normlib.layers.shapes import ShapeError
from normlib.spec import SpecError, parse_spec

__all__ = [
    "NORMS",
    "BatchNorm",
    "ChannelLayerNorm",
    "ChannelRMSNorm",
    "ChannelsLast",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "ShapeError",
    "SpecError",
    "batch_moments",
    "batch_norm",
    "by_formula",
    "formula",
    "group_norm",
    "grouped",
    "includes_activation",
    "instance_norm",
    "layer_norm",
    "make_norm",
    "parse_spec",
    "reference",
    "rms_norm",
]
