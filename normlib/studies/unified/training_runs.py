"""One run of training as the studies of Lubana, Dick and Tanaka (2021) record it: curve, speed, setbacks, failure."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config
from normlib.studies.unified.ten import fit
from normlib.training import accuracy, data_order

WINDOW = 4  # steps over which a loss is averaged before it counts as a setback
CHANCE = 0.2  # a run that ends below this training accuracy has not left chance, which is 0.1 with ten classes
FAILURE = "fails: its loss is not finite at some step, or fewer than 20 % are right in the batches of the last quarter"
POINTS = 32


def shares_right(outputs: list[Tensor], targets: Tensor, order: Any, steps: int) -> np.ndarray[Any, Any]:
    """Return, for each step, the share of its batch that was classified correctly; outputs that are no numbers are wrong.

    Args:
        outputs: of each step's batch before its update; steps that a diverged run did not reach are missing, and count as 0.
        targets: classes of all training images, shape (N,).
        order: an iterator over the positions of each batch in `targets`, as `data_order` makes it.
        steps: how many there should have been.
    """
    right = np.zeros(steps)
    for step, (output, batch) in enumerate(zip(outputs, order, strict=False)):
        right[step] = float(((output.argmax(1) == targets[batch]) & output.isfinite().all(1)).float().mean())
    return right


def setback(loss: np.ndarray[Any, Any]) -> float:
    """Return the largest rise of the loss above the lowest that it had been, both as means over four steps; 0 if it only falls.

    Example:
        >>> setback(np.repeat([2.0, 1.0, 1.5, 0.5], 4))
        0.5
    """
    means = loss[: len(loss) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(1)
    if len(means) < 2:
        return 0.0
    return float(max((means[1:] - np.minimum.accumulate(means)[:-1]).max(), 0.0))


def run_of(network: nn.Module, images: Dataset, tests: Dataset, c: Config, rate: float, seed: int) -> dict[str, Any]:
    """Train in place and return the columns of the record.

    Args:
        network: any classifier.
        images: to train on, and in `x_test` those held out of the training images.
        tests: whose test images are looked at once, after training.
        c: the configuration; `steps`, `batch`.
        rate: learning rate at the start.
        seed: of the order of the images.

    Returns:
        The curve (`step`, `right`: the share of training images right in their batches, before the update, in train mode);
        `speed`, its mean over all steps; `setback`, infinite if the run diverged; `diverged` and `failed`, 0 or 1;
        `held_out` and `tested`, accuracies with running statistics, not a number if the run diverged.
    """
    outputs: list[Tensor] = []
    hook = network.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    history = fit(network, images, steps=c.steps, rate=rate, seed=seed, batch=c.batch)
    hook.remove()
    order = data_order(len(images.x_train), c.batch, seed, images.x_train.device)
    right = shares_right(outputs, images.y_train, order, c.steps)
    diverged = history.diverged_at is not None
    parts = np.array_split(np.arange(c.steps), min(POINTS, c.steps))
    score = {"held_out": images, "tested": tests}
    return {
        "step": [int(part[-1]) for part in parts],
        "right": [float(right[part].mean()) for part in parts],
        "speed": float(right.mean()),
        "setback": np.inf if diverged else setback(history.loss),
        "diverged": int(diverged),
        "failed": int(diverged or right[-(c.steps // 4) :].mean() < CHANCE),
        **{
            name: np.nan if diverged else accuracy(network, held.x_test, held.y_test, statistics="eval", batch_size=500)
            for name, held in score.items()
        },
    }
