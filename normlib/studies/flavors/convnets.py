"""One convolutional network and one recipe for every comparison of norms on maps, at as many images per statistic as asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config
from normlib.networks import PlainConvNet
from normlib.training import History, evaluate, train
from normlib.training.probing import Probe, ProbeSteps

BATCH = 64  # images per update, unless an arm says otherwise
RECIPE = "momentum 0.9, weight decay 0.0001, a rate that falls linearly to zero"
MEASURED_AT_ONCE = 500  # images per forward pass in evaluation, where no statistic depends on it


class Workers(nn.Module):
    """In train mode, hand a network so many images at a time, as workers that share gradients and no statistics do.

    Running statistics then move once a worker. In eval mode the network sees all images together.

    Args:
        network: what is trained; it becomes the child `network`.
        images: per worker; they must divide the batch.

    Shape:
        As the network.

    Raises:
        RuntimeError: from torch, if `images` does not divide the batch.
    """

    def __init__(self, network: nn.Module, images: int) -> None:
        super().__init__()
        self.network, self.images = network, images

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, *) to outputs (N, classes)."""
        if not self.training:
            output: Tensor = self.network(input)
            return output
        return torch.cat([self.network(part) for part in input.unflatten(0, (-1, self.images))])


def convnet(c: Config, images: Dataset, norm: str, seed: int) -> PlainConvNet:
    """Build the network of all arms: plain 3×3 convolutions, `c.depth` weight layers, `c.width` channels; He's initialization.

    Args:
        c: the configuration; `depth`, `width`, `device`.
        images: for channels, side and classes.
        norm: a norm spec, such as "group:size=8" or "standardized_weight + group:size=8".
        seed: of the weights, which are the same for every norm.
    """
    channels, side, _ = images.shape
    return PlainConvNet(c.depth, c.width, channels, images.classes, norm, "he", seed, side).to(c.device)


def fit(
    network: nn.Module,
    images: Dataset,
    *,
    epochs: float,
    rate: float,
    seed: int,
    batch: int = BATCH,
    per_statistic: int | None = None,
    schedule: str = "linear",
    probe: Probe | None = None,
    probe_steps: ProbeSteps = (),
) -> History:
    """Train a network in place by the recipe of all arms: momentum 0.9, weight decay 1e-4, a rate that falls linearly to zero.

    Args:
        network: any classifier.
        images: of which the training images are used.
        epochs: how many times each is seen; the steps are rounded down.
        rate: learning rate at the start.
        seed: of the order of the images.
        batch: images per update.
        per_statistic: images that batch statistics are taken over, see `Workers`; None makes it the whole batch. The spec
            "batch:ghost=m" does the same for batch norm, and faster.
        schedule: course of the rate.
        probe: see `train`; in eval mode the model it is given maps images to outputs as `network` does.
        probe_steps: see `train`.
    """
    return train(
        network if per_statistic is None else Workers(network, per_statistic),
        images.x_train, images.y_train, steps=int(epochs * (len(images.x_train) // batch)), batch_size=batch, rate=rate,
        schedule=schedule, momentum=0.9, weight_decay=1e-4, seed=seed, probe=probe, probe_steps=probe_steps,
    )  # fmt: skip


def errors(network: nn.Module, tune: Dataset, images: Dataset) -> dict[str, float]:
    """Measure in eval mode, in percent: the error on training, held-out and test images, and the loss on training images.

    Args:
        network: trained on `tune`.
        tune: its test images are the held-out ones.
        images: with the true test images.
    """
    seen, held_out, new = (
        evaluate(network, x, y, statistics="eval", batch_size=MEASURED_AT_ONCE)
        for x, y in ((tune.x_train, tune.y_train), (tune.x_test, tune.y_test), (images.x_test, images.y_test))
    )
    return {
        "train_error": 100 * (1 - seen.accuracy),
        "held_out_error": 100 * (1 - held_out.accuracy),
        "test_error": 100 * (1 - new.accuracy),
        "train_loss": seen.loss,
    }
