"""Measurements on any torch model, which they leave as they find it."""

from normlib.probes.cost import copy_bandwidth, forward_backward, peak_bytes, step_seconds
from normlib.probes.curvature import (
    hessian,
    hessian_operator,
    hessian_vector_product,
    model_loss,
    top_eigenvalue,
    top_eigenvalues,
)
from normlib.probes.density import (
    SpectralDensity,
    extreme_eigenvalues,
    gauss_newton,
    gauss_newton_operator,
    lanczos,
    model_outputs,
    spectral_density,
)
from normlib.probes.geometry import feature_geometry, mean_cosine, ranks
from normlib.probes.growth import Estimate, autocorrelation, gradient_growth, growth_factor
from normlib.probes.invariance import invariances, is_invariant, linear_and_norm
from normlib.probes.jacobian import (
    batch_jacobian,
    mean_squared_singular_value,
    model_map,
    sample_jacobians,
    singular_values,
    top_singular_values,
)
from normlib.probes.landscape import gradient_landscape, landscape_ranges
from normlib.probes.moments import ChannelMoments, channel_moments, moment_drift, moment_snapshot, unit_statistics
from normlib.probes.parameters import loss_and_gradient
from normlib.probes.propagation import activation_statistics, gradient_statistics, saturation
from normlib.probes.shift import internal_covariate_shift
from normlib.probes.signal import ChannelPower, channel_power, signal_propagation
from normlib.probes.spectra import Whitening, covariance, second_moment, spectrum, whitening
from normlib.probes.state import preserved
from normlib.probes.surface import loss_on_plane, random_direction
from normlib.probes.units import unit_activity, unit_gradients
from normlib.probes.updates import (
    effective_rates,
    parameter_norms,
    radial_gradients,
    snapshot,
    update_cosines,
    update_ratios,
)
from normlib.probes.watching import record_activations, reduce_activations

__all__ = [
    "ChannelMoments",
    "ChannelPower",
    "Estimate",
    "SpectralDensity",
    "Whitening",
    "activation_statistics",
    "autocorrelation",
    "batch_jacobian",
    "channel_moments",
    "channel_power",
    "copy_bandwidth",
    "covariance",
    "effective_rates",
    "extreme_eigenvalues",
    "feature_geometry",
    "forward_backward",
    "gauss_newton",
    "gauss_newton_operator",
    "gradient_growth",
    "gradient_landscape",
    "gradient_statistics",
    "growth_factor",
    "hessian",
    "hessian_operator",
    "hessian_vector_product",
    "internal_covariate_shift",
    "invariances",
    "is_invariant",
    "lanczos",
    "landscape_ranges",
    "linear_and_norm",
    "loss_and_gradient",
    "loss_on_plane",
    "mean_cosine",
    "mean_squared_singular_value",
    "model_loss",
    "model_map",
    "model_outputs",
    "moment_drift",
    "moment_snapshot",
    "parameter_norms",
    "peak_bytes",
    "preserved",
    "radial_gradients",
    "random_direction",
    "ranks",
    "record_activations",
    "reduce_activations",
    "sample_jacobians",
    "saturation",
    "second_moment",
    "signal_propagation",
    "singular_values",
    "snapshot",
    "spectral_density",
    "spectrum",
    "step_seconds",
    "top_eigenvalue",
    "top_eigenvalues",
    "top_singular_values",
    "unit_activity",
    "unit_gradients",
    "unit_statistics",
    "update_cosines",
    "update_ratios",
    "whitening",
]
