"""Faults in the gain that makes up for an activation in networks of scaled standardized weights."""

from __future__ import annotations

import math

from normlib.activations import make_activation
from normlib.gallery.fault import Effect, Fault, Implementation
from normlib.weights.gains import activation_gain, activation_moments


def variance_after(activation: str, gain: float, layers: int) -> float:
    """Return the variance after some wide layers of activation, gain and rows of norm 1 that sum to zero; it starts at 1."""
    function, variance = make_activation(activation), 1.0
    for _ in range(layers):
        std = math.sqrt(variance)
        variance = gain**2 * activation_moments(lambda z, std=std: function(std * z))[1]  # type: ignore[misc]
    return variance


def copied_gain(activation: str) -> float:
    """Look the gain up in a list."""
    return {"relu": 1.7129, "gelu": 1.596, "silu": 2.218}[activation]


def check_copied_gain(gain: Implementation) -> float:
    """The gain times the activation of a standard normal input has variance 1."""
    return max(abs(variance_after(name, gain(name), 1) - 1) for name in ("relu", "gelu", "silu"))


def through_silu(gain: Implementation, layers: int) -> float:
    """Return the variance after some layers with SiLU."""
    return variance_after("silu", gain("silu"), layers)


COPIED_GAIN = Fault(
    name="copied_gain",
    family="weights",
    title="The gain of an activation is copied from a list that has it wrong",
    seen="2.218 for SiLU and 1.596 for GELU go round in notes on normalizer-free networks; an integral gives 1.787 and 1.701.",
    symptom="Too large by a quarter, the signal of a SiLU network grows by half or more a layer; of a GELU network it fades.",
    wrong=copied_gain,
    right=activation_gain,
    check=check_copied_gain,
    bound=1e-6,
    effect=Effect("variance", "layers with SiLU", (0, 1, 2, 4, 8), through_silu),
)


def he_gain(activation: str) -> float:
    """Make up for the mean square of the activation."""
    mean, variance = activation_moments(activation)
    return (mean**2 + variance) ** -0.5


def check_he_gain(gain: Implementation) -> float:
    """After ten layers of ReLU the variance is still 1."""
    return abs(variance_after("relu", gain("relu"), 10) - 1)


def through_relu(gain: Implementation, layers: int) -> float:
    """Return the variance after some layers with ReLU."""
    return variance_after("relu", gain("relu"), layers)


HE_GAIN = Fault(
    name="he_gain",
    family="weights",
    title="The gain is that of He's initialization, √2 for ReLU",
    seen="Rows drawn at random pass on the mean square of their input; rows that sum to zero pass on its variance alone.",
    symptom="The signal loses a third of its variance at each layer, though the gain is the textbook's.",
    wrong=he_gain,
    right=activation_gain,
    check=check_he_gain,
    bound=1e-6,
    effect=Effect("variance", "layers with ReLU", (0, 1, 2, 4, 8, 16), through_relu, lambda layers: (1 - 1 / math.pi) ** layers),
)
