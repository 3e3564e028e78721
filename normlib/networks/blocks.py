"""What the networks are built of: weight layers drawn from one generator, and the unit weight layer → norm → activation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from normlib.activations import make_activation
from normlib.layers import includes_activation, make_norm
from normlib.networks.initialization import make_initializer
from normlib.surgery import normalized_parts, split_kinds

# Keeps the weights of seed s apart from data that a trial draws from a generator of the same seed; torch counts 32 bits of it.
STREAM = 1 << 31


class WeightLayers:
    """Builds the weight layers of one network: weights drawn in the order of the calls, biases zero.

    The generator lives on the CPU and draws nothing but these weights. So a seed gives the same network whatever the norm,
    and whichever device it moves to; torch's global generator is left as it is.

    Args:
        init: an initialization spec.
        seed: seed of the generator.
    """

    def __init__(self, init: str, seed: int) -> None:
        self.init = make_initializer(init)
        self.generator = torch.Generator().manual_seed(STREAM + seed)

    def __call__(self, kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
        """Build `kind(*args, **kwargs)`, a linear layer or a convolution."""
        layer = nn.utils.skip_init(kind, *args, **kwargs)
        self.init(layer.weight, self.generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return layer


def block(layer: nn.Module, norm: str, activation: str) -> nn.Sequential:
    """Chain a weight layer, its norm, and an activation: children `layer`, `norm`, `activation`.

    Args:
        layer: a linear layer or a convolution.
        norm: a spec as `normlib.surgery.normalize` takes it.
        activation: a key of `ACTIVATIONS`. A norm that brings its own activation is followed by the identity.
    """
    layer, normed = normalized_parts(layer, norm)
    return nn.Sequential(OrderedDict(layer=layer, norm=normed, activation=_after(normed, activation)))


def preactivation(num_features: int, norm: str, activation: str, order: str = "norm-activation") -> nn.Sequential:
    """Chain a norm of activations and an activation, in the order that `order` names: children `norm`, `activation`.

    Args:
        num_features: number of channels.
        norm: a spec as in `block`, of which the norm of activations counts.
        activation: as in `block`.
        order: `"norm-activation"` or `"activation-norm"`.
    """
    normed = make_norm(split_kinds(norm)[1], num_features)
    parts = {"norm": normed, "activation": _after(normed, activation)}
    return nn.Sequential(OrderedDict((name, parts[name]) for name in order.split("-")))


def _after(norm: nn.Module, activation: str) -> nn.Module:
    return make_activation("identity" if includes_activation(norm) else activation)
