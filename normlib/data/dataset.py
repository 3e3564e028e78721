"""A data set as four tensors on one device, and the few views that studies ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.data.errors import DataError


def balanced_pick(labels: np.ndarray[Any, Any], count: int, seed: int) -> np.ndarray[Any, Any]:
    """Choose `count` positions at random so that the classes' shares differ by at most one while they last.

    The choice is the same on every machine (NumPy freezes `RandomState`), in random order, and nested: what is chosen
    for a small count is among what is chosen for a larger one with the same seed.

    Args:
        labels: one integer for each item, shape (N,).
        count: how many to choose, at most N.
        seed: any non-negative integer.

    Returns:
        Positions in `labels`, shape (count,).
    """
    order = np.random.RandomState(np.random.MT19937(seed)).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many of its class come before each item
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        turn[members] = np.arange(len(members))
    return order[np.sort(np.argsort(turn, kind="stable")[:count])]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels, whole, on one device.

    Every method returns a new data set and leaves this one as it is. `digest`, `official` and `source` describe the set
    as it was found; parts and views of it keep them.

    Attributes:
        name: its name in the registry, or the stem of the user's npz.
        x_train: training images, float32 in [0, 1], shape (N, C, H, W).
        y_train: training labels, int64, shape (N,).
        x_test: test images, as `x_train`.
        y_test: test labels, as `y_train`.
        classes: number of classes.
        digest: SHA-256 of the content as found, the same on every machine and for every file format.
        official: whether that content is the published set.
        source: where it was found, in words without a path: "user cache", "$NORMLIB_DATA" ...

    Example:
        >>> from normlib.data import load
        >>> digits = load("digits")
        >>> digits
        Dataset('digits', 1437 + 360 of (1, 8, 8), 10 classes, official, scikit-learn, cpu)
        >>> digits.subset(100, 50).flat().x_train.shape
        torch.Size([100, 64])
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    digest: str
    official: bool
    source: str

    def __repr__(self) -> str:
        kind = "official" if self.official else "not the official set"
        return (
            f"Dataset({self.name!r}, {len(self.x_train)} + {len(self.x_test)} of {self.shape}, "
            f"{self.classes} classes, {kind}, {self.source}, {self.device})"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: (C, H, W), or (d,) after `flat`."""
        return tuple(self.x_train.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.x_train.device

    def to(self, device: str | torch.device) -> Dataset:
        """Return the set with its tensors on `device`."""
        return replace(
            self,
            x_train=self.x_train.to(device),
            y_train=self.y_train.to(device),
            x_test=self.x_test.to(device),
            y_test=self.y_test.to(device),
        )

    def subset(self, n_train: int | None = None, n_test: int | None = None, seed: int = 0) -> Dataset:
        """Return a class-balanced random part; None keeps all of that split.

        The same seed gives the same images on every machine, and larger parts contain the smaller ones.

        Raises:
            DataError: if there are fewer images than asked for.
        """
        result = self
        if n_train is not None:
            rows, _ = self._divide(self.y_train, n_train, seed, "training")
            result = replace(result, x_train=self.x_train[rows], y_train=self.y_train[rows])
        if n_test is not None:
            rows, _ = self._divide(self.y_test, n_test, seed, "test")
            result = replace(result, x_test=self.x_test[rows], y_test=self.y_test[rows])
        return result

    def split_validation(self, n: int, seed: int = 0) -> Dataset:
        """Return the set to tune on: `n` training images, class-balanced, stand in the place of the test images.

        The true test images are not in the result, so that a learning rate cannot be tuned on them.

        Raises:
            DataError: unless `n` leaves at least one training image.
        """
        if n >= len(self.y_train):
            raise DataError(f"{self.name!r} has {len(self.y_train)} training images; {n} for validation leaves none.")
        held, kept = self._divide(self.y_train, n, seed, "training")
        return replace(
            self,
            x_train=self.x_train[kept],
            y_train=self.y_train[kept],
            x_test=self.x_train[held],
            y_test=self.y_train[held],
        )

    def flat(self) -> Dataset:
        """Return the images as rows, shape (N, C * H * W); no values are copied."""
        return self._map(lambda x: x.flatten(1))

    def pooled(self, k: int) -> Dataset:
        """Return images averaged over k x k squares, shape (N, C, H / k, W / k).

        Raises:
            DataError: unless k divides height and width.
        """
        if len(self.shape) != 3 or k < 1 or self.shape[1] % k or self.shape[2] % k:
            raise DataError(
                f"images of shape {self.shape} cannot be averaged over {k} x {k} squares; expected (C, H, W) with H and W "
                "divisible by k. Call pooled before flat."
            )
        return self._map(lambda x: F.avg_pool2d(x, k))

    def standardized(self) -> Dataset:
        """Return (x - mean) / deviation for each channel, both from the training images; the variance is biased.

        After `flat`, each feature is a channel. A channel that never varies is centered only.
        """
        dims = [d for d in range(self.x_train.ndim) if d != 1]
        var, mean = torch.var_mean(self.x_train, dim=dims, correction=0, keepdim=True)
        scale = torch.where(var > 0, var, torch.ones_like(var)).rsqrt()
        return self._map(lambda x: (x - mean) * scale)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Dataset:
        return replace(self, x_train=function(self.x_train), x_test=function(self.x_test))

    def _divide(self, labels: Tensor, count: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
        """Return the positions chosen and, in their old order, the positions left."""
        if not 0 < count <= len(labels):
            raise DataError(f"{self.name!r} has {len(labels)} {split} images; cannot take {count} of them.")
        chosen = torch.from_numpy(balanced_pick(labels.cpu().numpy(), count, seed)).to(labels.device)
        left = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        left[chosen] = False
        return chosen, left.nonzero().flatten()
