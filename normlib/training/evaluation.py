"""Loss and accuracy on a data set, with the statistics that the caller names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlib.errors import NormlibError
from normlib.training.losses import Loss, make_loss

Statistics = Literal["train", "eval"]


class Evaluation(NamedTuple):
    """Mean loss, and the share of items that are classified correctly."""

    loss: float
    accuracy: float


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[nn.Module]:
    """Put every module of a model in train or in eval mode, and give each its own mode back afterwards.

    Args:
        model: any model.
        training: True for train mode.

    Example:
        >>> net = nn.Dropout()
        >>> with mode(net, training=False):
        ...     net.training
        False
        >>> net.training
        True
    """
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield model
    finally:
        for module, was in before:
            module.training = was


@torch.no_grad()
def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    statistics: Statistics,
    loss: str | Loss = "cross_entropy",
    batch_size: int | None = None,
) -> Evaluation:
    """Measure a model on a data set and leave it as it was, running statistics included.

    Args:
        model: any model.
        x: inputs, shape (N, *).
        y: targets: classes (N,), or real numbers of the shape of the output (for one output also (N,)).
        statistics: "train" runs in train mode, so a batch norm takes its statistics from each batch here; "eval" runs in
            eval mode, with running statistics.
        loss: a key of `LOSSES`, or a function that returns the mean over a batch.
        batch_size: how many items to take at once, the last batch with what is left; None takes all at once. With
            `statistics="train"` it changes the result.

    Raises:
        NormlibError: if `statistics` is neither word.
    """
    if statistics not in get_args(Statistics):
        raise NormlibError(f"statistics={statistics!r}; expected 'train' (of each batch) or 'eval' (running statistics).")
    measure, size = make_loss(loss), batch_size or len(x)
    totals = torch.zeros(2, dtype=torch.float64, device=x.device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with mode(model, training=statistics == "train"):
        for inputs, targets in zip(x.split(size), y.split(size), strict=True):
            output = functional_call(model, buffers, (inputs,))
            batch_loss = measure(output, targets).double() * len(inputs)
            totals += torch.stack([batch_loss, _correct(output, targets).sum().double()])
    return Evaluation(*(totals / len(x)).tolist())


def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, statistics: Statistics, batch_size: int | None = None) -> float:
    """Return the share of items that a model classifies correctly; see `evaluate`."""
    return evaluate(model, x, y, statistics=statistics, loss=_no_loss, batch_size=batch_size).accuracy


def _no_loss(output: Tensor, target: Tensor) -> Tensor:
    return output.new_zeros(())


def _correct(output: Tensor, target: Tensor) -> Tensor:
    """Compare the largest output with the class (or the largest target); of a single output, its sign with the target's."""
    if not target.is_floating_point():
        return output.argmax(1) == target
    target = target.reshape(output.shape)
    if output.shape[1] == 1:
        return (output > 0) == (target > 0)
    return output.argmax(1) == target.argmax(1)
