"""What acts on activations: normalizers, each with its formula and its fast path, and the specs that name them."""

from normlib.layers.batch import BatchNorm, batch_moments, batch_norm
from normlib.layers.decorrelated import DecorrelatedBatchNorm, decorrelated_batch_norm
from normlib.layers.dynamic import Derf, DynamicTanh, derf, dynamic_tanh
from normlib.layers.evonorm import EvoNormB0, EvoNormS0, evonorm_b0, evonorm_s0
from normlib.layers.group import GroupNorm, group_norm, grouped
from normlib.layers.instance import InstanceNorm, instance_norm
from normlib.layers.layer import ChannelLayerNorm, LayerNorm, layer_norm
from normlib.layers.lp import LpBatchNorm, gaussian_factor, lp_batch_norm
from normlib.layers.noisy import NoisyBatchNorm, batch_noise, noisy_batch_norm
from normlib.layers.proxy import ProxyNorm, proxy_norm
from normlib.layers.recurrent import unroll
from normlib.layers.recurrent_batch import BatchNormLSTMCell, StepBatchNorm
from normlib.layers.recurrent_layer import LayerNormGRUCell, LayerNormLSTMCell, LayerNormRNNCell
from normlib.layers.registry import NORMS, ChannelsLast, includes_activation, make_norm
from normlib.layers.renorm import BatchRenorm, batch_renorm, renorm_limits
from normlib.layers.response import FilterResponseNorm, ThresholdedLinearUnit, filter_response_norm, thresholded_linear
from normlib.layers.rms import ChannelRMSNorm, RMSNorm, rms_norm
from normlib.layers.shapes import ShapeError
from normlib.layers.switch import SwitchNorm, switch_norm
from normlib.layers.sync import SyncBatchNorm, combined_moments
from normlib.layers.variance import VarianceNorm, variance_norm
from normlib.layers.whitening import whitening_matrix
from normlib.mode import by_formula, formula, reference
from normlib.spec import SpecError, parse_spec

__all__ = [
    "NORMS",
    "BatchNorm",
    "BatchNormLSTMCell",
    "BatchRenorm",
    "ChannelLayerNorm",
    "ChannelRMSNorm",
    "ChannelsLast",
    "DecorrelatedBatchNorm",
    "Derf",
    "DynamicTanh",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LayerNormRNNCell",
    "LpBatchNorm",
    "NoisyBatchNorm",
    "ProxyNorm",
    "RMSNorm",
    "ShapeError",
    "SpecError",
    "StepBatchNorm",
    "SwitchNorm",
    "SyncBatchNorm",
    "ThresholdedLinearUnit",
    "VarianceNorm",
    "batch_moments",
    "batch_noise",
    "batch_norm",
    "batch_renorm",
    "by_formula",
    "combined_moments",
    "decorrelated_batch_norm",
    "derf",
    "dynamic_tanh",
    "evonorm_b0",
    "evonorm_s0",
    "filter_response_norm",
    "formula",
    "gaussian_factor",
    "group_norm",
    "grouped",
    "includes_activation",
    "instance_norm",
    "layer_norm",
    "lp_batch_norm",
    "make_norm",
    "noisy_batch_norm",
    "parse_spec",
    "proxy_norm",
    "reference",
    "renorm_limits",
    "rms_norm",
    "switch_norm",
    "thresholded_linear",
    "unroll",
    "variance_norm",
    "whitening_matrix",
]
