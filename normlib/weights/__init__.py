"""What acts on parameters: weight normalizers as torch parametrizations, the gains they need, and a start from data."""

from normlib.weights.gains import RELEASED_GAINS, activation_gain, activation_moments
from normlib.weights.initialize import data_dependent_init
from normlib.weights.norm import CenteredWeightNorm, WeightNorm, centered_weight_norm, weight_norm
from normlib.weights.registry import WEIGHT_NORMS, parametrize_weight, spectral
from normlib.weights.rows import WeightError
from normlib.weights.standardization import (
    ScaledWeightStandardization,
    WeightStandardization,
    scaled_weight_standardization,
    weight_standardization,
)

__all__ = [
    "RELEASED_GAINS",
    "WEIGHT_NORMS",
    "CenteredWeightNorm",
    "ScaledWeightStandardization",
    "WeightError",
    "WeightNorm",
    "WeightStandardization",
    "activation_gain",
    "activation_moments",
    "centered_weight_norm",
    "data_dependent_init",
    "parametrize_weight",
    "scaled_weight_standardization",
    "spectral",
    "weight_norm",
    "weight_standardization",
]
