"""Measurements on any torch model, which they leave as they find it."""

from normlib.probes.curvature import (
    hessian,
    hessian_operator,
    hessian_vector_product,
    model_loss,
    top_eigenvalue,
    top_eigenvalues,
)
from normlib.probes.propagation import activation_statistics, gradient_statistics, record_activations, saturation
from normlib.probes.spectra import Whitening, covariance, second_moment, spectrum, whitening
from normlib.probes.state import preserved

__all__ = [
    "Whitening",
    "activation_statistics",
    "covariance",
    "gradient_statistics",
    "hessian",
    "hessian_operator",
    "hessian_vector_product",
    "model_loss",
    "preserved",
    "record_activations",
    "saturation",
    "second_moment",
    "spectrum",
    "top_eigenvalue",
    "top_eigenvalues",
    "whitening",
]
