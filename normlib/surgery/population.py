"""Statistics of the population for evaluation, as `ioffe2015` takes them: averages over batches, after training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    r"""Replace the running statistics of every norm in a model by averages over batches.

    With $\mu_b$ and $\sigma_b^2$ the mean and biased variance of batch $b$ of $m$ values a channel, `running_mean` becomes
    $\overline{\mu_b}$ and `running_var` becomes $\overline{\sigma_b^2\, m / (m - 1)}$ (`ioffe2015`, algorithm 2). The statistics of
    a layer are those of what it receives while the layers before it use the statistics of the same batch. Parameters stay
    as they are; the norms run in training mode and everything else as in evaluation, so that dropout is off.

    Args:
        model: a network, changed in place.
        batches: inputs (N, *), as many as wanted and of one size, since each batch counts the same. Tuples such as a loader
            of (input, target) yields count by their first element.

    Returns:
        The same model, each module in the mode in which it was.

    Raises:
        NormlibError: if the model keeps no running statistics, or there is no batch. Then the statistics stay as they were.

    Example:
        >>> from normlib.layers import BatchNorm
        >>> layer, x = BatchNorm(3), 5 + torch.randn(100, 3)
        >>> torch.allclose(reestimate_statistics(layer, [x[:50], x[50:]]).running_mean, x.mean(0))
        True

    Source: `ioffe2015`, algorithm 2.
    """
    norms = [m for m in model.modules() if getattr(m, "track_running_stats", False) and hasattr(m, "reset_running_stats")]
    if not norms:
        raise NormlibError(f"{type(model).__name__} holds no norm with running statistics, so there is nothing to re-estimate.")
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise NormlibError("there is no batch to take statistics from. Pass at least one; an iterator can be used once only.")
    with _modes(model), _cumulative(norms):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()  # type: ignore[operator]
            norm.train()
        for batch in _with_first(first, stream):
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    return model


def _with_first(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    """Put each module back into the mode in which it was."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _cumulative(norms: list[nn.Module]) -> Iterator[None]:
    """Let every batch count the same; after an error the statistics are those from before."""
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    for norm in norms:
        norm.momentum = None  # type: ignore[assignment]
    try:
        yield
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
