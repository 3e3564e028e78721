"""Losses by name. Each is the mean over the items of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES = Registry(
    "loss",
    {
        "cross_entropy": "normlib.training.losses:cross_entropy",
        "squared_error": "normlib.training.losses:squared_error",
    },
)


def make_loss(loss: str | Loss) -> Loss:
    """Return the loss that a name stands for; a function `f(output, target)` that returns a scalar passes as it is.

    Raises:
        UnknownNameError: if the name is not known; the message holds the nearest match.
    """
    found: Loss = LOSSES[loss] if isinstance(loss, str) else loss
    return found


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean of -log softmax(output)[target], in nats; `target` holds classes (N,) or probabilities (N, K)."""
    return F.cross_entropy(output, target)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    r"""Return $E = \frac{1}{2N} \sum_n \|d_n - o_n\|^2$: summed over outputs, averaged over items, halved.

    Args:
        output: $o$, shape (N, K).
        target: $d$ as real numbers, shape (N, K) or, for one output, (N,); or classes as integers, shape (N,), which stand
            for a target of +1 at the class and -1 elsewhere.

    Example:
        >>> float(squared_error(torch.tensor([[1.0, 1.0]]), torch.tensor([0])))
        2.0

    Source: `lecun1998`, eq. 28.
    """
    if not target.is_floating_point():
        target = signed_targets(target, output)
    return 0.5 * (output - target.reshape(output.shape)).square().sum() / len(output)


def signed_targets(classes: Tensor, output: Tensor) -> Tensor:
    """Return +1 at the class and -1 elsewhere, of the shape (N, K) and the dtype of `output`."""
    return torch.full_like(output, -1.0, requires_grad=False).scatter_(1, classes[:, None], 1.0)
