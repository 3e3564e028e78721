"""Gains: against closed forms, an independent quadrature, the published list, and the recipe that made it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from normlib.activations import ACTIVATIONS, make_activation
from normlib.errors import NormlibError, UnknownNameError
from normlib.weights import RELEASED_GAINS, activation_gain, activation_moments

# mean, variance and gain, as integrated for the notes of the book; five to six digits
EXACT = {
    "relu": (0.39894, 0.340845, 1.712859),
    "gelu": (0.28210, 0.345644, 1.700926),
    "silu": (0.20662, 0.313083, 1.787187),
    "elu": (0.16052, 0.619179, 1.270843),
    "celu": (0.16052, 0.619179, 1.270843),
    "selu": (0.0, 1.0, 1.0),
    "leaky_relu": (0.39495, 0.344062, 1.704832),
    "tanh": (0.0, 0.394294, 1.592537),
    "logistic": (0.5, 0.043379, 4.801313),
    "softplus": (0.80606, 0.271515, 1.919126),
    "log_sigmoid": (-0.80606, 0.271515, 1.919126),
    "softsign": (0.0, 0.183014, 2.337533),
    "relu6": (0.39894, 0.340845, 1.712859),
    "mish": (0.24040, 0.394548, 1.592025),
    "hardswish": (0.16622, 0.303939, 1.813871),
}


@pytest.mark.parametrize("name", EXACT)
def test_moments_and_gain(name: str) -> None:
    mean, variance, gain = EXACT[name]
    assert activation_moments(name) == (pytest.approx(mean, abs=1e-5), pytest.approx(variance, abs=1e-6))
    assert activation_gain(name) == pytest.approx(gain, abs=1e-5 if name != "logistic" else 5e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_quadrature_is_exact_to_nine_digits(name: str) -> None:
    function = make_activation(name)

    def f(x: float) -> float:
        return float(function(torch.tensor(x, dtype=torch.float64)))

    def expected(power: int) -> float:
        def integrand(x: float) -> float:
            return f(x) ** power * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

        pieces = [(-12, -3), (-3, 0), (0, 3), (3, 6), (6, 12)]  # no kink within
        return sum(integrate.quad(integrand, *piece, epsabs=1e-12, epsrel=1e-12)[0] for piece in pieces)

    mean = expected(1)
    assert activation_moments(name) == (pytest.approx(mean, abs=1e-9), pytest.approx(expected(2) - mean**2, abs=1e-9))


def test_closed_forms() -> None:
    assert activation_gain("relu") == pytest.approx(math.sqrt(2 / (1 - 1 / math.pi)), abs=1e-12)
    assert activation_moments("relu") == (pytest.approx(1 / math.sqrt(2 * math.pi)), pytest.approx((1 - 1 / math.pi) / 2))
    assert activation_gain("identity") == pytest.approx(1, abs=1e-12)
    assert activation_gain(torch.abs) == pytest.approx((1 - 2 / math.pi) ** -0.5, abs=1e-12)
    assert activation_gain(torch.square) == pytest.approx(2**-0.5, abs=1e-12)
    assert activation_gain(torch.sign) == pytest.approx(1, abs=1e-12)
    assert activation_moments(torch.sin) == (pytest.approx(0, abs=1e-12), pytest.approx((1 - math.exp(-2)) / 2, abs=1e-12))


def test_names_and_functions_agree() -> None:
    assert activation_gain(torch.nn.functional.silu) == activation_gain("silu")


@pytest.mark.parametrize("name", RELEASED_GAINS)
def test_released_constants_are_near_but_not_exact(name: str) -> None:
    off = RELEASED_GAINS[name] / activation_gain(name) - 1
    assert 1e-5 < abs(off) < 2e-3


def test_released_constant_is_a_draw_of_the_recipe() -> None:
    """256 normals in each of 1024 vectors, the variance of each after ReLU, their mean, its inverse root."""
    generator = np.random.default_rng(0)
    gains = [np.maximum(generator.standard_normal((1024, 256)), 0).var(axis=1).mean() ** -0.5 for _ in range(40)]
    spread = np.std(gains)
    assert 5e-4 < spread < 5e-3
    assert abs(RELEASED_GAINS["relu"] - np.mean(gains)) < 3 * spread
    # the biased variance of 256 values is 1/256 short of that of the distribution, and the gain half of it too large
    assert np.mean(gains) / activation_gain("relu") == pytest.approx(1 + 1 / 512, abs=4 * spread / math.sqrt(40) / 1.7)


def test_a_constant_has_no_gain() -> None:
    with pytest.raises(NormlibError, match=r"variance 0\.0.*output varies"):
        activation_gain(torch.zeros_like)
    with pytest.raises(NormlibError, match="stays finite"):
        activation_gain(torch.log)  # nan of negative input
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        activation_gain("rleu")
