"""Every registered network at a tiny size, the norms that fit it, and what the tests read off its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normlib.layers import NORMS
from normlib.layers.recurrent import Cell
from normlib.networks import make_network
from normlib.weights import WEIGHT_NORMS

ALL = (*NORMS, *WEIGHT_NORMS)
VECTORS = tuple(norm for norm in ALL if norm not in ("instance", "switch"))  # these have nothing to average over in a vector


@dataclass(frozen=True)
class Tiny:
    """One network: its arguments, the shape of one input and one output, the norms that fit, an argument that does not."""

    arguments: dict[str, Any]
    input: tuple[int, ...]
    output: int = 5
    norms: tuple[str, ...] = ALL
    wrong: dict[str, Any] = field(default_factory=dict)
    says: str = ""


IMAGE = (1, 8, 8)
TINY = {
    "mlp": Tiny({"sizes": [64, 64, 64, 5]}, IMAGE, norms=VECTORS, wrong={"sizes": [3]}, says="inputs, hidden"),
    "plain": Tiny(
        {"depth": 6, "width": 32, "in_channels": 1, "classes": 5, "image_size": 8}, IMAGE, wrong={"depth": 3}, says="at least 4"
    ),
    "strided": Tiny(
        {"channels": [32, 64, 64], "halved": [1], "in_channels": 1, "classes": 5}, IMAGE, wrong={"halved": [3]}, says="from 0 to 2"
    ),
    "deep_linear": Tiny({"width": 64, "depth": 4}, (64,), 64, VECTORS, {"depth": 0}, "1 or more of both"),
    "vgg": Tiny(
        {"depth": 11, "width": 0.5, "in_channels": 1, "classes": 5, "hidden": (16,)},
        (1, 32, 32),
        wrong={"depth": 12},
        says="plans for 11",
    ),
    "densenet": Tiny(
        {"stages": [2, 1], "growth": 32, "in_channels": 1, "classes": 5}, IMAGE, wrong={"growth": 0}, says="all positive"
    ),
    "resnet": Tiny(
        {"stages": [1, 1], "width": 32, "in_channels": 1, "classes": 5}, IMAGE, wrong={"stages": []}, says="blocks of each"
    ),
    "nf_resnet": Tiny(
        {"stages": [1, 1], "width": 32, "in_channels": 1, "classes": 5}, IMAGE, wrong={"stages": [0]}, says="blocks of each"
    ),
    "recurrent": Tiny(
        {"inputs": 6, "hidden": 8, "classes": 5, "max_length": 4},
        (4, 6),
        norms=("none", "layer", "batch"),
        wrong={"hidden": 0},
        says="1 or more of each",
    ),
    "vit": Tiny(
        {"image_size": 8, "patch": 2, "dim": 32, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "in_channels": 1, "classes": 5},
        IMAGE,
        wrong={"patch": 3},
        says="tile the image",
    ),
}
CASES = [(network, norm) for network, tiny in TINY.items() for norm in tiny.norms]


def build(network: str, **arguments: Any) -> nn.Module:
    return make_network(network, **{**TINY[network].arguments, **arguments})


def inputs(network: str, batch: int = 32) -> Tensor:
    return torch.randn(batch, *TINY[network].input, generator=torch.Generator().manual_seed(0))


def weight_layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def drawn(layer: nn.Module) -> Tensor:
    """The weight as it was drawn: a weight norm keeps it, or what stands for its direction, as its last original."""
    if not hasattr(layer, "parametrizations"):
        return layer.weight
    originals = dict(layer.parametrizations.weight.named_parameters())
    return originals.get("original1", originals.get("original"))


def common(network: nn.Module) -> Iterator[Tensor]:
    """What every arm of a comparison has: drawn weights and their biases, in order, and what the network itself holds."""
    for layer in weight_layers(network):
        yield drawn(layer)
        if layer.bias is not None:
            yield layer.bias
    for module in network.modules():
        if isinstance(module, Cell) or module is network:
            yield from module.parameters(recurse=False)


def count(parameters: Iterator[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
