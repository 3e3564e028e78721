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
from normlib.probes.invariance import invariances, is_invariant, linear_and_norm
from normlib.probes.propagation import activation_statistics, gradient_statistics, record_activations, saturation
from normlib.probes.spectra import Whitening, covariance, second_moment, spectrum, whitening
from normlib.probes.state import preserved

__all__ = [
    "Whitening",
    "activation_statistics",
    "copy_bandwidth",
    "covariance",
    "forward_backward",
    "gradient_statistics",
    "hessian",
    "hessian_operator",
    "hessian_vector_product",
    "invariances",
    "is_invariant",
    "linear_and_norm",
    "model_loss",
    "peak_bytes",
    "preserved",
    "record_activations",
    "saturation",
    "second_moment",
    "spectrum",
    "step_seconds",
    "top_eigenvalue",
    "top_eigenvalues",
    "whitening",
]
