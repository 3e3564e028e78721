"""The table of networks, and `make_network`, which builds one by name.

A new network is one file and one line here. Its constructor takes `norm`, `init` and `seed`, and a seed gives the same
weights whatever the norm; the tests of the package hold every registered network to that.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from normlib.registry import Registry

NETWORKS = Registry(
    "network",
    {
        "mlp": "normlib.networks.mlp:MLP",
        "plain": "normlib.networks.plain:PlainConvNet",
        "deep_linear": "normlib.networks.deep_linear:DeepLinearNet",
        "strided": "normlib.networks.strided:StridedConvNet",
        "vgg": "normlib.networks.vgg:VGG",
        "densenet": "normlib.networks.densenet:DenseNet",
        "resnet": "normlib.networks.resnet:ResNet",
        "nf_resnet": "normlib.networks.resnet:nf_resnet",
        "recurrent": "normlib.networks.recurrent:RecurrentClassifier",
        "vit": "normlib.networks.vit:ViT",
    },
)


def make_network(name: str, **arguments: Any) -> nn.Module:
    """Build a network.

    Args:
        name: a key of `NETWORKS`.
        **arguments: those of its constructor.

    Raises:
        UnknownNameError: if the name is not known; the message holds the nearest match.

    Example:
        >>> make_network("mlp", sizes=[2, 3, 1], norm="batch").head
        Linear(in_features=3, out_features=1, bias=True)
    """
    network: nn.Module = NETWORKS[name](**arguments)
    return network
