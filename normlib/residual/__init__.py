"""What replaces normalization on residual branches: how each method joins a branch to its shortcut, and specs that name them."""

from normlib.residual.fixup import Fixup, fixup_factor, fixup_init
from normlib.residual.join import Join, ScalarBias, Scale
from normlib.residual.nf import BlockVariance, NormalizerFree, expected_variances
from normlib.residual.registry import RESIDUALS, make_residual
from normlib.residual.rescale import RescaleNet, rescale_coefficients
from normlib.residual.scheme import ResidualScheme, ScaledSum
from normlib.residual.skipinit import ReZero, SkipInit

__all__ = [
    "RESIDUALS",
    "BlockVariance",
    "Fixup",
    "Join",
    "NormalizerFree",
    "ReZero",
    "RescaleNet",
    "ResidualScheme",
    "ScalarBias",
    "Scale",
    "ScaledSum",
    "SkipInit",
    "expected_variances",
    "fixup_factor",
    "fixup_init",
    "make_residual",
    "rescale_coefficients",
]
