"""Three properties of an untrained network, and what a short training of it is observed to do."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlib.data import Dataset
from normlib.probes import channel_power, gradient_growth, mean_cosine, reduce_activations
from normlib.studies.unified.ten import fit


def properties(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Measure the three properties of an untrained network with `blocks`, in train mode: two forward passes and a backward one.

    Returns:
        `variance`, the log of the factor by which each block multiplies the variance of a channel over images and positions,
        from the first block's output to the last's; `cosine`, the mean cosine between two images' last maps; `centered`, the
        same after the mean of each image's features is taken off; `gradient`, the log of the factor by which each block
        multiplies the norm of the gradient on its way back, from the last block's output to the first's.
    """
    names = [f"blocks.{at}" for at in range(len(network.get_submodule("blocks")))]  # type: ignore[arg-type]
    ends, steps = [names[0], names[-1]], len(names) - 1
    first, last = (found.variance for found in reduce_activations(network, x, channel_power, ends, training=True).values())
    cosines = reduce_activations(
        network, x, lambda maps: (mean_cosine(maps), mean_cosine(maps, "samples")), names[-1:], training=True
    )
    norms = gradient_growth(network, cross_entropy, x, y, ends, training=True)["squared_norm"]
    (cosine, centered), *_ = cosines.values()
    return {
        "variance": _log(last / first) / steps,
        "cosine": cosine,
        "centered": centered,
        "gradient": _log(norms[0] / norms[-1]) / 2 / steps,
    }


def _log(ratio: float) -> float:
    return math.log(ratio) if 0 < ratio < math.inf else math.inf


def observed(network: nn.Module, images: Dataset, *, steps: int, rate: float, seed: int, batch: int) -> dict[str, object]:
    """Train in place by the paper's recipe, and return the `speed`: the mean over the steps of the accuracy on their batches.

    Each batch is counted before its update, in train mode. After a loss that is not finite the accuracy counts as chance.
    """
    guesses: list[Tensor] = []
    labels: list[Tensor] = []

    def keep(step: object, model: nn.Module) -> dict[str, float]:
        labels.append(step.y)  # type: ignore[attr-defined]
        return {}

    watch = network.register_forward_hook(lambda module, args, output: guesses.append(output.detach().argmax(1)))
    run = fit(network, images, steps=steps, rate=rate, seed=seed, batch=batch, probe=keep, probe_steps=range(steps))
    watch.remove()
    finite = steps if run.diverged_at is None else run.diverged_at
    right = [float((guess == label).double().mean()) for guess, label in zip(guesses[:finite], labels[:finite], strict=True)]
    right += [1 / images.classes] * (steps - finite)
    return {"speed": float(np.mean(right)), "finite": finite == steps}


def rank_correlation(a: pd.Series[float], b: pd.Series[float]) -> float:
    """Return Spearman's rank correlation of two columns, ties sharing their mean rank; NaN if one of them is constant.

    Example:
        >>> rank_correlation(pd.Series([1, 2, 3]), pd.Series([10, 30, 20]))
        0.5
    """
    first, second = (values.rank().to_numpy() for values in (a, b))
    if len(first) < 2 or not first.std() or not second.std() or np.isnan([first, second]).any():
        return math.nan
    return float(round(np.corrcoef(first, second)[0, 1], 12))


def from_the_others(features: pd.DataFrame, outcome: pd.Series[float]) -> pd.Series[float]:
    """Predict where each row stands by a linear fit to the ranks of the others.

    Args:
        features: a row for each arm; their ranks among all rows are used.
        outcome: what is to be ranked; the row that is predicted has no part in the fit, nor in the ranks fitted to.

    Returns:
        The predicted place of each row among the others, from 0 (lowest) to 1. A fit that knows nothing says 0.5.
    """
    ranks = features.rank() / len(features)
    design = np.column_stack([np.ones(len(ranks)), ranks.to_numpy()])
    places = []
    for row in range(len(outcome)):
        others = np.arange(len(outcome)) != row
        target = (outcome[others].rank().to_numpy() - 0.5) / (len(outcome) - 1)
        places.append(float(design[row] @ np.linalg.lstsq(design[others], target, rcond=None)[0]))
    return pd.Series(places, index=outcome.index)


def one_batch(images: Dataset, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the training images on which the properties are measured, and their labels."""
    chosen = torch.randperm(len(images.x_train), generator=torch.Generator().manual_seed(seed))[:size].to(images.y_train.device)
    return images.x_train[chosen], images.y_train[chosen]
