"""Losses by name. Each is the mean over the items of a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.errors import unknown
from normlib.registry import Registry
from normlib.spec import parse_spec

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES = Registry(
    "loss",
    {
        "cross_entropy": "normlib.training.losses:cross_entropy",
        "squared_error": "normlib.training.losses:squared_error",
    },
)


def make_loss(loss: str | Loss) -> Loss:
    """Return the loss that a spec stands for; a function `f(output, target)` that returns a scalar passes as it is.

    Args:
        loss: for example `"cross_entropy"` or `"cross_entropy:smoothing=0.1"`, or a function.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.
    """
    if not isinstance(loss, str):
        return loss
    name, arguments = parse_spec(loss, LOSSES)
    if "target" in arguments:
        raise unknown(f"argument of loss {name!r}", "target", ["smoothing"] if name == "cross_entropy" else [])
    measure: Loss = LOSSES[name]
    return functools.partial(measure, **arguments) if arguments else measure


def cross_entropy(output: Tensor, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
    r"""Return the mean of $-\sum_k q_k \log \mathrm{softmax}(o)_k$, in nats.

    Args:
        output: $o$, shape (N, K).
        target: classes (N,), or probabilities (N, K), as mixup makes them.
        smoothing: $\epsilon$ of label smoothing: $q = (1 - \epsilon) p + \epsilon / K$, where $p$ is the target.

    Example:
        >>> output = torch.tensor([[2.0, 0.0]])
        >>> smooth = cross_entropy(output, torch.tensor([0]), smoothing=0.1)
        >>> torch.equal(smooth, cross_entropy(output, torch.tensor([[0.95, 0.05]])))
        True

    Source: `szegedy2016`, section 7, for label smoothing.
    """
    return F.cross_entropy(output, target, label_smoothing=smoothing)


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
    return torch.full_like(output, -1.0, requires_grad=False).scatter(1, classes[:, None], 1.0)
