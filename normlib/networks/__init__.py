"""Networks that take their norm as a spec, so that the arms of a comparison differ in the norm alone."""

from normlib.activations import ACTIVATIONS, ScaledTanh, make_activation
from normlib.networks.deep_linear import DeepLinearNet
from normlib.networks.densenet import DenseLayer, DenseNet
from normlib.networks.drop_path import DropPath, drop_paths
from normlib.networks.initialization import INITIALIZATIONS, make_initializer
from normlib.networks.mlp import MLP
from normlib.networks.plain import PlainConvNet
from normlib.networks.recurrent import RecurrentClassifier
from normlib.networks.registry import NETWORKS, make_network
from normlib.networks.residual_blocks import ResidualBlock
from normlib.networks.resnet import ResNet, nf_resnet
from normlib.networks.strided import StridedConvNet
from normlib.networks.vgg import VGG
from normlib.networks.vit import ViT

__all__ = [
    "ACTIVATIONS",
    "INITIALIZATIONS",
    "MLP",
    "NETWORKS",
    "VGG",
    "DeepLinearNet",
    "DenseLayer",
    "DenseNet",
    "DropPath",
    "PlainConvNet",
    "RecurrentClassifier",
    "ResNet",
    "ResidualBlock",
    "ScaledTanh",
    "StridedConvNet",
    "ViT",
    "drop_paths",
    "make_activation",
    "make_initializer",
    "make_network",
    "nf_resnet",
]
