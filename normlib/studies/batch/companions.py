"""Whom an example meets in its batch, what noise that is, and how first-layer weights are spread over the pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.training import train

DRAWS = 1000  # batches whose means are compared


def fit(net: nn.Module, images: Dataset, steps: int, batch_size: int, rate: float, seed: int, group: int = 1) -> bool:
    """Train a network; return whether it diverged.

    Args:
        net: the network, changed in place.
        images: of which the training images are used.
        steps: number of updates.
        batch_size: images per update.
        rate: learning rate.
        seed: of the order of the data.
        group: images that stay together in every epoch. The groups are shuffled; a ghost batch of this size is one of them.
    """
    x = images.x_train.flatten(1).unflatten(0, (-1, group))
    y = images.y_train.unflatten(0, (-1, group))
    grouped = nn.Sequential(nn.Flatten(0, 1), net)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target.flatten())

    run = train(grouped, x, y, steps=steps, batch_size=batch_size // group, rate=rate, momentum=0.9, loss=loss, seed=seed)
    return run.diverged_at is not None


def variance_of_batch_means(values: Tensor, batch: int, seed: int) -> float:
    """Draw many batches of items with replacement; return the variance of their means in units of that of the items.

    Args:
        values: shape (items, units); the result is the mean over units.
        batch: items per batch.
        seed: of the draws.
    """
    chosen = torch.randint(len(values), (DRAWS, batch), generator=torch.Generator().manual_seed(seed)).to(values.device)
    means = values[chosen].mean(1)
    return float((means.var(0) / values.var(0, correction=0)).mean())


def share_of_inputs(weight: Tensor) -> float:
    """Return how evenly units spread their weight (units, inputs): 1 if over all inputs alike, 1 / inputs if on one."""
    squares = weight.double().square()
    return float((squares.sum(1).square() / squares.square().sum(1)).mean() / weight.shape[1])


def roughness(weight: Tensor, shape: tuple[int, ...]) -> float:
    """Return the squared difference of the weights of neighboring pixels, in units of what independent weights have."""
    maps = weight.double().unflatten(1, shape)
    steps = [maps.diff(dim=dim).square().mean() for dim in (-1, -2)]
    return float((steps[0] + steps[1]) / (4 * maps.square().mean()))
