"""What replaces batch norm in a residual network, side by side: one network, one recipe, a trick for each arm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from normlib.data import Dataset
from normlib.lab import Config
from normlib.networks import ResNet
from normlib.training import History, Update, train
from normlib.training.losses import Loss
from normlib.training.probing import Probe, ProbeSteps

BATCH = 128  # images per update and per statistic, unless an arm says otherwise
SCHEDULE = "cosine:warmup=0.05"
RECIPE = "Nesterov momentum 0.9, weight decay 0.0005 on weights alone, a cosine to zero after 5 % of warm-up"

# What every comparison on images sets at each preset, unless it needs less: data, sizes, network. Steps and rates are its own.
QUICK = {"data": "digits", "train": 512, "validation": 128, "test": 128, "stages": [1, 1], "width": 8}
LAPTOP = {
    "data": "fashion-mnist", "pool": 2, "train": 3_072, "validation": 512, "test": 2_000, "stages": [2, 2, 2], "width": 8,
}  # fmt: skip
FULL = {"data": "cifar10", "validation": 5_000, "stages": [3, 3, 3], "width": 16}


@dataclass(frozen=True)
class Trick:
    """One way to build a residual network: what it is called, its norm spec, and how its branches join their shortcuts."""

    name: str
    norm: str = "none"
    residual: str = "sum"
    init: str = "he"
    bias: bool = True


TRICKS = {
    "batch": Trick("batch norm", "batch", bias=False),
    "none": Trick("no norm"),
    "scaled_sum": Trick("sum / √2", residual="scaled_sum"),
    "skipinit": Trick("SkipInit at 0", residual="skipinit"),
    "skipinit_root": Trick("SkipInit at 1/√L", residual="skipinit:gain=1/sqrt(d)"),
    "rezero": Trick("ReZero", residual="rezero"),
    "fixup": Trick("Fixup", residual="fixup", bias=False),  # it has scalar biases of its own
    "rescale": Trick("RescaleNet", residual="rescale"),
    "nf": Trick("NF", "scaled_weight:gain=relu", "nf:alpha=0.2", "lecun"),
    "nf_zero": Trick("NF, SkipInit at 0", "scaled_weight:gain=relu", "nf:alpha=0.2,gain=0", "lecun"),
    "nf_he": Trick("NF with He's weights", residual="nf:alpha=0.2"),
}
"""Batch norm, nothing, and nine that stand for it. L is the number of branches."""


def resnet(
    c: Config, images: Dataset, key: str, seed: int, *, unit: str = "basic", drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """Build the residual network of an arm: version 2, `c.stages` blocks, `c.width` channels in the first stage.

    Args:
        c: the configuration; `stages`, `width`, `device`, and `group_size` if it has it.
        images: for channels and classes.
        key: of `TRICKS`.
        seed: of the weights, which are the same for every arm with the same initialization.
        unit: "basic", "bottleneck" or "inverted".
        drop_path: rate of stochastic depth at the last block.
        dropout: rate before the head.
    """
    trick = TRICKS[key]
    return ResNet(
        c.stages, c.width, unit=unit, version=2, in_channels=images.shape[0], classes=images.classes, norm=trick.norm,
        init=trick.init, seed=seed, residual=trick.residual, bias=trick.bias, drop_path=drop_path, dropout=dropout,
        group_size=c.get("group_size"),
    ).to(c.device)  # fmt: skip


def fit(
    network: nn.Module,
    images: Dataset,
    *,
    steps: int,
    rate: float,
    seed: int,
    batch: int = BATCH,
    clip: str = "none",
    loss: str | Loss = "cross_entropy",
    augment: str = "none",
    probe: Probe | None = None,
    probe_steps: ProbeSteps = (),
) -> History:
    """Train in place by the recipe of all arms; weight decay spares biases and gains, as the normalizer-free networks ask.

    Args:
        network: any classifier.
        images: of which the training images are used.
        steps: number of updates.
        rate: learning rate at its highest.
        seed: of the order of the images.
        batch: images per update, and per statistic of batch norm.
        clip: see `Update`; "agc:clipping=0.01,exempt=head" is that of `brock2021b`.
        loss: see `train`; "cross_entropy:smoothing=0.1" smooths labels.
        augment: see `train`.
        probe: see `train`.
        probe_steps: see `train`.
    """
    return train(
        network, images.x_train, images.y_train, steps=steps, batch_size=batch, rate=rate, schedule=SCHEDULE, momentum=0.9,
        weight_decay=5e-4, loss=loss, augment=augment, update=Update(optimizer="sgd:nesterov=True", decay="weights", clip=clip),
        seed=seed, probe=probe, probe_steps=probe_steps,
    )  # fmt: skip
