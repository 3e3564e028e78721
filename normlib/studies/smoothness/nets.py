"""The two networks of Santurkar et al. (2018), a VGG-like one and a deep linear one, each with the recipe of the paper."""

from __future__ import annotations

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config
from normlib.networks import VGG, DeepLinearNet, PlainConvNet
from normlib.training import History, train
from normlib.training.probing import Probe, ProbeSteps

BATCH = 128  # images per update and per statistic, as in the paper
PAPER_RATE = 0.1  # of the convolutional network in most figures of the paper
LINEAR_RATE = 1e-6  # of the deep linear network, for a loss that is a sum
SAMPLES = 1000  # for the deep linear network, all of them in each step
RECIPE = f"plain SGD, {BATCH} images, a constant rate, no weight decay"

# What every comparison on images sets at each preset, unless it needs less: data, sizes, network. Steps and rates are its own.
QUICK = {"data": "digits", "train": 512, "validation": 128, "test": 128, "depth": 5, "width": 8}
LAPTOP = {"data": "fashion-mnist", "pool": 2, "train": 3072, "validation": 512, "test": 2000, "depth": 7, "width": 16}
FULL = {"data": "cifar10", "train": 45_000, "validation": 5_000, "test": 10_000, "vgg": 16, "steps": 15_000}


def vgg(c: Config, images: Dataset, norm: str, seed: int) -> VGG | PlainConvNet:
    """Build the convolutional network: that of Simonyan and Zisserman with `c.vgg` weight layers, or plain convolutions.

    Without a setting `vgg` it is `PlainConvNet` with `c.depth` weight layers and `c.width` channels, which small images pass too.
    The initialization is Glorot's, as in the paper, unless a setting `init` says otherwise.

    Args:
        c: the configuration.
        images: for channels, side and classes.
        norm: a norm spec, such as "batch", "noisy", "lp:p=1".
        seed: of the weights, which are the same for every norm.
    """
    channels, side, _ = images.shape
    init = c.get("init", "glorot_normalized")
    if c.get("vgg"):
        return VGG(c.vgg, in_channels=channels, classes=images.classes, norm=norm, init=init, seed=seed).to(c.device)
    return PlainConvNet(c.depth, c.width, channels, images.classes, norm, init, seed, side).to(c.device)


def fit(
    network: nn.Module,
    images: Dataset,
    *,
    steps: int,
    rate: float,
    seed: int,
    weight_decay: float = 0.0,
    probe: Probe | None = None,
    probe_steps: ProbeSteps = (),
) -> History:
    """Train in place by the recipe of the paper: plain SGD on batches of 128 images at a constant rate, no augmentation.

    Args:
        network: any classifier.
        images: of which the training images are used; no fewer than a batch of them.
        steps: number of updates.
        rate: learning rate; 0.1 in most figures of the paper.
        seed: of the order of the images.
        weight_decay: none in the paper's words, about 4e-4 by what its figure 4 shows.
        probe: see `train`.
        probe_steps: see `train`.
    """
    return train(
        network, images.x_train, images.y_train, steps=steps, batch_size=BATCH, rate=rate, weight_decay=weight_decay, seed=seed,
        probe=probe, probe_steps=probe_steps,
    )  # fmt: skip


def at_paper_rate(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the runs at the paper's rate."""
    return table[table.rate == PAPER_RATE]


def linear_task(seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw the task of the deep linear network: 1000 normal inputs in ten dimensions, and a normal matrix times each.

    Returns:
        Inputs and targets, shape (1000, 10).
    """
    generator = torch.Generator().manual_seed(seed)
    x, matrix = torch.randn(SAMPLES, 10, generator=generator), torch.randn(10, 10, generator=generator)
    return x.to(device), (x @ matrix.T).to(device)


def linear_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return half the sum of squared errors over all samples, which the start of the paper's curves and its rate ask for."""
    return 0.5 * F.mse_loss(output, target, reduction="sum")


def fit_linear(
    norm: str, seed: int, device: str, *, steps: int, rate: float, probe: Probe | None = None, probe_steps: ProbeSteps = ()
) -> tuple[DeepLinearNet, History]:
    """Train the deep linear network, 25 layers of 10 by 10, on all samples at each step, by the recipe of the paper.

    Args:
        norm: a norm spec; it follows every layer but the last.
        seed: of weights and task.
        device: where.
        steps: number of updates; 10,000 in the paper.
        rate: learning rate; 1e-6 and 1e-7 in the paper.
        probe: see `train`.
        probe_steps: see `train`.
    """
    network, (x, y) = DeepLinearNet(norm=norm, seed=seed).to(device), linear_task(seed, device)
    history = train(
        network, x, y, steps=steps, batch_size=None, rate=rate, loss=linear_loss, seed=seed, probe=probe, probe_steps=probe_steps
    )
    return network, history
