"""The one training loop: stochastic gradient descent on tensors that live on the device.

A step costs its own arithmetic: batches are cut on the device, losses stay there, and the host waits for the device only every
`check_every` steps, where a probe was asked for, and to hand over the order of the next epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.training.evaluation import mode
from normlib.training.history import History, append_rows
from normlib.training.losses import Loss, make_loss

Rate = float | Callable[[int], float]
Probe = Callable[[int, nn.Module], Mapping[str, Any]]


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    batch_size: int | None,
    rate: Rate,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    loss: str | Loss = "cross_entropy",
    seed: int,
    probe: Probe | None = None,
    probe_steps: Iterable[int] = (),
    check_every: int = 100,
    loss_limit: float = math.inf,
) -> History:
    """Train a model in place by stochastic gradient descent, in train mode; each module gets its mode back afterwards.

    Args:
        model: any model, on the device of the data.
        x: inputs, shape (N, *).
        y: targets, shape (N, ...), as the loss wants them.
        steps: number of updates.
        batch_size: items per update; None takes all items, in order, at each step. Items are reshuffled every epoch; the
            incomplete batch at the end of an epoch is left out.
        rate: learning rate, or a function of the step (from 0) that returns it.
        momentum: of `torch.optim.SGD`: the velocity is a sum of gradients, not a mean.
        weight_decay: coefficient of ½‖w‖² over all parameters.
        loss: a key of `LOSSES`, or a function of output and target that returns a scalar.
        seed: seed of the order of the data, which depends on nothing else but N and `batch_size`.
        probe: called as `probe(step, model)` before the update of that step, with the model in train mode; what it returns
            is collected, see `append_rows`. It should leave the model as it finds it.
        probe_steps: when; `steps` itself stands for after the last update.
        check_every: how many steps to go between two looks at the loss.
        loss_limit: a loss above this counts as diverged, like one that is not finite.

    Returns:
        The losses, the step of divergence if any, and what the probe measured before it. A diverged run stops within
        `check_every` steps; what its parameters are then has no meaning.

    Raises:
        NormlibError: if the sizes do not fit each other, or a probe step is out of range.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> history = train(net, x, 3 * x, steps=200, batch_size=5, rate=0.5, loss="squared_error", seed=0)
        >>> round(net.weight.item(), 3), history.diverged_at
        (3.0, None)
    """
    wanted = _check(x, y, steps, batch_size, probe_steps)
    measure, losses = make_loss(loss), _Losses(steps, x, check_every, loss_limit)
    optimizer = torch.optim.SGD(model.parameters(), _rate(rate, 0), momentum, weight_decay=weight_decay, foreach=True)
    columns: dict[str, list[Any]] = {}
    batches = data_order(len(x), batch_size, seed, x.device)
    with mode(model, training=True):
        for step in range(steps + 1):
            probing = probe is not None and step in wanted
            if losses.due(step, probing) and losses.diverged(step):
                break
            if probing and probe is not None:
                append_rows(columns, step, probe(step, model))
            if step < steps:
                optimizer.param_groups[0]["lr"] = _rate(rate, step)
                batch = next(batches)
                losses.put(step, _update(model, optimizer, measure, x[batch], y[batch]))
    return losses.history(columns)


def data_order(count: int, batch_size: int | None, seed: int, device: torch.device | str = "cpu") -> Iterator[Tensor | slice]:
    """Yield the positions of one batch after another, without end: the order that `train` follows.

    The order is drawn on the CPU, so it is the same on every device.

    Args:
        count: number of items N.
        batch_size: items per batch; None yields all of them, in order.
        seed: seed of the shuffles.
        device: where the positions are put.
    """
    if batch_size is None:
        yield from itertools.repeat(slice(None))
        return
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator).to(device)
        yield from order.split(batch_size)[: count // batch_size]


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, measure: Loss, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    value = measure(model(x), y)
    value.backward()
    optimizer.step()
    return value.detach()


def _rate(rate: Rate, step: int) -> float:
    return float(rate(step)) if callable(rate) else rate


class _Losses:
    """The losses of a run on the device, looked at every so many steps."""

    def __init__(self, steps: int, x: Tensor, every: int, limit: float) -> None:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.values = torch.full((steps,), math.nan, dtype=dtype, device=x.device)
        self.every, self.limit = every, limit
        self.seen = 0  # the losses before this step are known to be fine
        self.diverged_at: int | None = None

    def put(self, step: int, value: Tensor) -> None:
        self.values[step] = value

    def due(self, step: int, probing: bool) -> bool:
        return probing or step == len(self.values) or step - self.seen >= self.every

    def diverged(self, step: int) -> bool:
        """Look at the losses before `step` that have not been looked at; this waits for the device."""
        new = self.values[self.seen : step]
        bad = (~(new.isfinite() & (new <= self.limit))).nonzero()
        if len(bad):
            self.diverged_at = self.seen + int(bad[0])
        self.seen = step
        return self.diverged_at is not None

    def history(self, columns: dict[str, list[Any]]) -> History:
        end = self.seen if self.diverged_at is None else self.diverged_at
        return History(self.values[:end].cpu().numpy().astype(np.float64), self.diverged_at, columns)


def _check(x: Tensor, y: Tensor, steps: int, batch_size: int | None, probe_steps: Iterable[int]) -> set[int]:
    if len(x) != len(y) or x.device != y.device:
        raise NormlibError(
            f"train got {len(x)} inputs on {x.device} and {len(y)} targets on {y.device}; "
            "expected as many targets as inputs, on the same device."
        )
    if batch_size is not None and not 1 <= batch_size <= len(x):
        raise NormlibError(f"train got batch_size={batch_size} for {len(x)} items; expected 1 to {len(x)}, or None for all.")
    wanted = {int(step) for step in probe_steps}
    if outside := sorted(step for step in wanted if not 0 <= step <= steps):
        raise NormlibError(f"probe_steps holds {outside}, but a run of {steps} steps has the steps 0 to {steps}.")
    return wanted
