"""The ten normalizers of Lubana, Dick and Tanaka (2021), and the two families of networks that carry them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from normlib.data import Dataset
from normlib.lab import Config
from normlib.networks import ResNet, StridedConvNet
from normlib.training import History, train
from normlib.training.probing import Probe, ProbeSteps
from normlib.weights import WeightNorm

BATCH = 256  # images per update and per statistic in the paper's large setting; 16 in its small one
SCHEDULE = "step:at=0.75"  # the code's three quarters; the paper's words are two thirds
RECIPE = "momentum 0.9, weight decay 0.0001 on all parameters, the rate falling to a tenth after three quarters of the steps"

# What comparisons on images set at each preset, unless they need less: data, sizes, network. Steps and rates are their own.
QUICK = {"data": "digits", "train": 512, "validation": 128, "test": 128, "layers": 10, "width": 8, "strides": 2, "blocks": 2}
LAPTOP = {
    "data": "fashion-mnist", "pool": 2, "train": 3_072, "validation": 512, "test": 2_000, "layers": 10, "width": 16, "strides": 3,
    "blocks": 3,
}  # fmt: skip
FULL = {"data": "cifar10", "validation": 5_000, "layers": 10, "width": 64, "blocks": 9}


@dataclass(frozen=True)
class Normalizer:
    """One of the ten: what it is called, what it acts on, its norm spec, and the activation behind it."""

    name: str
    spec: str
    parametric: bool = False
    activation: str = "relu"


TEN = {
    "batch": Normalizer("batch norm", "batch"),
    "layer": Normalizer("layer norm", "layer"),
    "instance": Normalizer("instance norm", "instance:affine=True"),
    "group": Normalizer("group norm", "group:groups=8"),
    "frn": Normalizer("filter response norm", "frn"),
    "variance": Normalizer("variance norm", "variance"),
    "evonorm_b0": Normalizer("EvoNorm-B0", "evonorm_b0"),
    "evonorm_s0": Normalizer("EvoNorm-S0", "evonorm_s0:groups=8"),
    "weight": Normalizer("weight norm", "weight", parametric=True, activation="standard_relu"),
    "scaled_weight": Normalizer("scaled weight standardization", "scaled_weight:gain=relu", parametric=True),
}
"""The ten by their key. Groups are eight, which in networks a quarter as wide as the paper's have the sizes of its 32 groups."""

PLAIN = Normalizer("none", "none")


def normalizer(key: str) -> Normalizer:
    """Return one of the ten, or the absence of any for "none"; another key, such as "group:size=4", is taken for a norm spec."""
    return PLAIN if key == "none" else TEN.get(key, Normalizer(key, key))


def plan(layers: int, width: int, strides: int = 4) -> tuple[list[int], list[int]]:
    """Return the channels of the networks without shortcuts, and the positions of their strides.

    Five parts of equal length; each of the first four ends in a stride of 2, or each of the first `strides`. The widths of the
    parts are 1, 2, 4, 8, 8 times `width`, and with twenty layers 1, 2, 4, 4, 8 times. With `width` 64 these are the paper's, by
    the code of its authors.

    Args:
        layers: number of convolutions, a multiple of five; 10, 20 or 40 in the paper.
        width: channels of the first part.
        strides: 4 in the paper, on images of 32 pixels; fewer for smaller images, so that the last maps are 2×2 as there.

    Example:
        >>> plan(10, 64)
        ([64, 64, 128, 128, 256, 256, 512, 512, 512, 512], [1, 3, 5, 7])
    """
    each, factors = layers // 5, (1, 2, 4, 4, 8) if layers == 20 else (1, 2, 4, 8, 8)
    channels = [width * factor for factor in factors for _ in range(each)]
    return channels, [(part + 1) * each - 1 for part in range(strides)]


def with_unit_lengths(network: nn.Module) -> nn.Module:
    """Set the lengths of all weights with weight normalization to 1, where the paper's start; in place."""
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], WeightNorm):
            nn.init.ones_(module.original0)  # type: ignore[arg-type]
    return network


def cnn(c: Config, images: Dataset, key: str, seed: int, layers: int | None = None) -> nn.Module:
    """Build a network without shortcuts: 3×3 convolutions, strides, He's initialization, the mean over positions, a head.

    Args:
        c: the configuration; `width`, `device`, `strides` if it has them, and `layers` unless given.
        images: for channels and classes.
        key: see `normalizer`.
        seed: of the weights, which are the same for every normalizer.
        layers: number of convolutions, in place of `c.layers`.
    """
    norm, (channels, halved) = normalizer(key), plan(layers or c.layers, c.width, c.get("strides", 4))
    network = StridedConvNet(channels, halved, images.shape[0], images.classes, norm.spec, norm.activation, "he", seed)
    return with_unit_lengths(network).to(c.device)


def resnet(c: Config, images: Dataset, key: str, seed: int, version: int = 1, residual: str = "sum") -> nn.Module:
    """Build a residual network of three stages of `c.blocks` basic blocks; 9 make the ResNet-56 of the paper, with `c.width` 32.

    Two differences from the authors' code: a 1×1 convolution where theirs projects by a 3×3 one, and EvoNorm inside the branch,
    where theirs stands behind the addition in version 1.

    Args:
        c: the configuration; `blocks`, `width`, `device`.
        images: for channels and classes.
        key: see `normalizer`.
        seed: of the weights, which are the same for every normalizer.
        version: 1, an activation after the addition, as in most of the paper; or 2, none.
        residual: "sum" or "skipinit".
    """
    norm = normalizer(key)
    network = ResNet(
        [c.blocks] * 3, c.width, version=version, in_channels=images.shape[0], classes=images.classes, norm=norm.spec,
        activation=norm.activation, init="he", seed=seed, residual=residual,
    )  # fmt: skip
    return with_unit_lengths(network).to(c.device)


def fit(
    network: nn.Module,
    images: Dataset,
    *,
    steps: int,
    rate: float,
    seed: int,
    batch: int = BATCH,
    probe: Probe | None = None,
    probe_steps: ProbeSteps = (),
) -> History:
    """Train in place by the recipe of the paper: momentum 0.9, weight decay 1e-4, the rate falling once to a tenth.

    Args:
        network: any classifier.
        images: of which the training images are used.
        steps: number of updates; the rate falls after three quarters of them, as in the authors' code.
        rate: learning rate at the start; 0.1 in the paper.
        seed: of the order of the images.
        batch: images per update, and per statistic of the normalizers that take theirs from the batch.
        probe: see `train`.
        probe_steps: see `train`.
    """
    return train(
        network, images.x_train, images.y_train, steps=steps, batch_size=batch, rate=rate, momentum=0.9, weight_decay=1e-4,
        schedule=SCHEDULE, seed=seed, probe=probe, probe_steps=probe_steps,
    )  # fmt: skip
