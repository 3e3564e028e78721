"""Networks that take their norm as a spec, so that the arms of a comparison differ in the norm alone."""

from normlib.activations import ACTIVATIONS, ScaledTanh, make_activation
from normlib.networks.initialization import INITIALIZATIONS, make_initializer
from normlib.networks.mlp import MLP
from normlib.networks.plain import PlainConvNet
from normlib.networks.registry import NETWORKS, make_network
from normlib.networks.resnet import ResidualBlock, ResNet

__all__ = [
    "ACTIVATIONS",
    "INITIALIZATIONS",
    "MLP",
    "NETWORKS",
    "PlainConvNet",
    "ResNet",
    "ResidualBlock",
    "ScaledTanh",
    "make_activation",
    "make_initializer",
    "make_network",
]
