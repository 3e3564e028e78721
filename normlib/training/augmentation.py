"""Augmentation of the batches of a run, on the device: random crops, flips, mixup.

What is random is drawn on the CPU, an epoch at a time, from one generator per augmentation that the seed of the run sets and
nothing else does. So the draws are the same on every device and under every norm, the order of the data does not depend on
them, and to add a flip does not change the crops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.errors import NormlibError, unknown
from normlib.registry import Registry
from normlib.spec import parse_spec

Batch = tuple[Tensor, Tensor]
Padding = Literal["zeros", "reflect"]

AUGMENTATIONS = Registry(
    "augmentation",
    {
        "crop": "normlib.training.augmentation:RandomCrop",
        "flip": "normlib.training.augmentation:HorizontalFlip",
        "mixup": "normlib.training.augmentation:Mixup",
    },
    hint="Augmentations are written 'crop:padding=4 + flip', and 'none' is none.",
)


class Augmentation(Protocol):
    """What an augmentation does: draw for many batches, and apply what was drawn to one."""

    def draw(self, batches: int, size: int, random: np.random.Generator) -> tuple[Tensor, ...]:
        """Draw for so many batches of so many items; the first axis of each tensor is the batch."""

    def __call__(self, x: Tensor, y: Tensor, *drawn: Tensor) -> Batch:
        """Return the batch as augmented by what was drawn for it."""


class Pipeline:
    """Augmentations one after another, each with its own stream of random numbers.

    Args:
        spec: for example `"none"`, `"crop:padding=4,mode=reflect + flip"`, `"mixup:alpha=0.2"`.
        data: the inputs and targets of the run, by which each augmentation checks that it fits.
        batch_size: items per batch; None stands for all.
        seed: seed of the run.

    Attributes:
        parts: the augmentations in order.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if a name or an argument is not known; the message holds the nearest match.
        NormlibError: if the data do not fit, or an augmentation stands there twice.

    Example:
        >>> x, y = torch.arange(12.0).reshape(4, 1, 1, 3), torch.arange(4)
        >>> augment = Pipeline("flip", (x, y), batch_size=2, seed=0)
        >>> augment(x[:2], y[:2])[0].flatten(1).tolist()
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """

    def __init__(self, spec: str, data: Batch, batch_size: int | None, seed: int) -> None:
        specs = [] if spec.strip() == "none" else [part.strip() for part in spec.split(" + ")]
        read = [parse_spec(part, AUGMENTATIONS) for part in specs]
        names = [name for name, _ in read]
        if len(set(names)) < len(names):
            raise NormlibError(f"the augmentation {spec!r} names one twice. Leave one out.")
        self.parts: list[Augmentation] = [AUGMENTATIONS[name](data, **arguments) for name, arguments in read]
        size = len(data[0]) if batch_size is None else batch_size
        streams = [np.random.default_rng([seed, *name.encode()]) for name in names]
        self._draws = _draws(self.parts, streams, len(data[0]) // size, size, data[0].device)

    def __call__(self, x: Tensor, y: Tensor) -> Batch:
        """Augment the next batch."""
        if self.parts:
            for part, drawn in zip(self.parts, next(self._draws), strict=True):
                x, y = part(x, y, *drawn)
        return x, y


class RandomCrop:
    """Pad the images on all sides and cut each at a place of its own: a shift by up to `padding` pixels either way.

    Args:
        data: inputs of shape (N, C, H, W), and targets.
        padding: width of the margin, in pixels.
        mode: what the margin holds: "zeros" (of standardized images the mean), or "reflect", the image mirrored at its edge.

    Raises:
        NormlibError: if the inputs are no images, or the margin does not fit them.

    Source: `he2016`.
    """

    def __init__(self, data: Batch, padding: int = 4, mode: Padding = "zeros") -> None:
        _check_images("crop", data[0])
        if mode not in get_args(Padding):
            raise unknown("mode of padding", mode, get_args(Padding))
        limit = min(data[0].shape[2:]) - 1 if mode == "reflect" else min(data[0].shape[2:])
        if not (isinstance(padding, int) and 1 <= padding <= limit):
            raise NormlibError(
                f"crop got padding={padding} in mode {mode!r} for images {tuple(data[0].shape)}; expected 1 to {limit}."
            )
        self.padding = padding
        self.mode = "constant" if mode == "zeros" else "reflect"

    def draw(self, batches: int, size: int, random: np.random.Generator) -> tuple[Tensor, ...]:
        """Draw the corner of each cut in the padded image, row and column, each from 0 to 2·padding."""
        corners = random.integers(0, 2 * self.padding, (2, batches, size), endpoint=True)
        return tuple(torch.from_numpy(corners))

    def __call__(self, x: Tensor, y: Tensor, *drawn: Tensor) -> Batch:
        """Cut each image at its corner."""
        rows, columns = drawn
        height, width = x.shape[2:]
        windows = F.pad(x, [self.padding] * 4, mode=self.mode).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(len(x), device=x.device), :, rows, columns], y


class HorizontalFlip:
    """Mirror each image left to right with a probability.

    Args:
        data: inputs of shape (N, C, H, W), and targets.
        probability: of each image to be mirrored.

    Raises:
        NormlibError: if the inputs are no images, or the probability is none.

    Source: `he2016`.
    """

    def __init__(self, data: Batch, probability: float = 0.5) -> None:
        _check_images("flip", data[0])
        if not 0 <= probability <= 1:
            raise NormlibError(f"flip got probability={probability}; expected 0 to 1.")
        self.probability = probability

    def draw(self, batches: int, size: int, random: np.random.Generator) -> tuple[Tensor, ...]:
        """Draw which images are mirrored."""
        return (torch.from_numpy(random.random((batches, size)) < self.probability),)

    def __call__(self, x: Tensor, y: Tensor, *drawn: Tensor) -> Batch:
        """Mirror them."""
        (mirrored,) = drawn
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x), y


class Mixup:
    r"""Mix each item with another of its batch: $\lambda x_i + (1 - \lambda) x_j$, and the targets likewise.

    One $\lambda \sim \mathrm{Beta}(\alpha, \alpha)$ is drawn for a batch, and one permutation, as in the authors' code. Classes
    become probabilities (N, K), for `cross_entropy`; targets that are real numbers are mixed as they are.

    Args:
        data: inputs (N, *) and targets.
        alpha: $\alpha$.
        classes: K; None counts up to the highest class among the targets.

    Raises:
        NormlibError: if alpha is not positive.

    Source: `zhang2018`.
    """

    def __init__(self, data: Batch, alpha: float = 0.2, classes: int | None = None) -> None:
        if not alpha > 0:
            raise NormlibError(f"mixup got alpha={alpha}; expected a positive number, as in 'mixup:alpha=0.2'.")
        self.alpha = alpha
        y = data[1]
        self.classes = classes if classes is not None or y.is_floating_point() else int(y.max()) + 1

    def draw(self, batches: int, size: int, random: np.random.Generator) -> tuple[Tensor, ...]:
        """Draw a share per batch, and each item's partner."""
        shares = random.beta(self.alpha, self.alpha, batches).astype(np.float32)
        partners = random.permuted(np.tile(np.arange(size), (batches, 1)), axis=1)
        return torch.from_numpy(shares), torch.from_numpy(partners)

    def __call__(self, x: Tensor, y: Tensor, *drawn: Tensor) -> Batch:
        """Mix inputs and targets."""
        share, partner = drawn
        if not y.is_floating_point():
            y = x.new_zeros(len(y), self.classes or 0).scatter_(1, y[:, None], 1.0)
        return x[partner].lerp(x, share.to(x.dtype)), y[partner].lerp(y, share.to(y.dtype))


def _draws(
    parts: Sequence[Augmentation], streams: Sequence[np.random.Generator], batches: int, size: int, device: torch.device
) -> Iterator[list[list[Tensor]]]:
    """Yield what each augmentation drew for one batch after another; an epoch's draws go to the device together."""
    while True:
        drawn = [[t.to(device) for t in part.draw(batches, size, random)] for part, random in zip(parts, streams, strict=True)]
        for batch in range(batches):
            yield [[table[batch] for table in tables] for tables in drawn]


def _check_images(name: str, x: Tensor) -> None:
    if x.ndim != 4:
        raise NormlibError(f"{name} got inputs of shape {tuple(x.shape)}; expected images (N, C, H, W). Do not flatten them.")
