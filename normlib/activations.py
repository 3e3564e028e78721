"""The activation functions that layers, gains and networks name."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normlib.registry import Registry

ACTIVATIONS = Registry(
    "activation",
    {
        "identity": "torch.nn:Identity",
        "logistic": "torch.nn:Sigmoid",
        "tanh": "torch.nn:Tanh",
        "scaled_tanh": "normlib.activations:ScaledTanh",
        "softsign": "torch.nn:Softsign",
        "relu": "torch.nn:ReLU",
        "standard_relu": "normlib.activations:StandardReLU",
        "relu6": "torch.nn:ReLU6",
        "leaky_relu": "torch.nn:LeakyReLU",
        "elu": "torch.nn:ELU",
        "celu": "torch.nn:CELU",
        "selu": "torch.nn:SELU",
        "gelu": "torch.nn:GELU",
        "silu": "torch.nn:SiLU",
        "mish": "torch.nn:Mish",
        "hardswish": "torch.nn:Hardswish",
        "softplus": "torch.nn:Softplus",
        "log_sigmoid": "torch.nn:LogSigmoid",
    },
)


class ScaledTanh(nn.Module):
    r"""The sigmoid $f(x) = 1.7159 \tanh(2x/3)$: $f(\pm 1) = \pm 1$, and its curvature is largest near $x = \pm 1$.

    Shape:
        Any; the output has the shape of the input.

    Example:
        >>> ScaledTanh()(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-1.0000,  0.0000,  1.0000])

    Source: `lecun1998`, section 4.4.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to each element."""
        return 1.7159 * torch.tanh(input * (2 / 3))


class StandardReLU(nn.Module):
    r"""The ReLU with mean 0 and variance 1 for normal inputs: $f(x) = \sqrt{2\pi/(\pi-1)}\,(\max(x, 0) - 1/\sqrt{2\pi})$.

    For $x \sim N(0, 1)$ the ReLU has mean $1/\sqrt{2\pi}$ and variance $(\pi - 1)/(2\pi)$; both are taken out.

    Shape:
        Any; the output has the shape of the input.

    Example:
        >>> StandardReLU()(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.6833, -0.6833,  1.0295])

    Source: `arpit2016`; `lubana2021` puts it behind layers with weight normalization.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function to each element."""
        return (torch.relu(input) - 1 / math.sqrt(2 * math.pi)) * math.sqrt(2 * math.pi / (math.pi - 1))


def make_activation(name: str) -> nn.Module:
    """Build the activation that a name stands for, as a module, so that a forward hook can watch it.

    Args:
        name: a key of `ACTIVATIONS`.

    Raises:
        UnknownNameError: if the name is not known; the message holds the nearest match.

    Example:
        >>> make_activation("softsign")(torch.tensor([3.0]))
        tensor([0.7500])
    """
    activation: nn.Module = ACTIVATIONS[name]()
    return activation
