"""The one training loop: stochastic gradient descent on tensors that live on the device.

A step costs its own arithmetic: batches are cut on the device, losses stay there, and the host waits for the device only every
`check_every` steps, where a probe was asked for, and to hand over the order of the next epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.training.augmentation import Pipeline
from normlib.training.evaluation import mode
from normlib.training.history import History
from normlib.training.losses import Loss, make_loss
from normlib.training.probing import Probe, Probes, ProbeSteps, Step
from normlib.training.schedules import Rate, make_schedule
from normlib.training.update import Update, Updater, laid_out


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    batch_size: int | None,
    rate: Rate,
    schedule: str = "constant",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    loss: str | Loss = "cross_entropy",
    augment: str = "none",
    update: Update = Update(),  # noqa: B008 - frozen
    seed: int,
    probe: Probe | Mapping[str, Probe] | None = None,
    probe_steps: ProbeSteps = (),
    check_every: int = 100,
    loss_limit: float = math.inf,
) -> History:
    """Train a model in place on minibatches, in train mode; each module gets its mode back afterwards.

    Args:
        model: any model, on the device of the data.
        x: inputs, shape (N, *).
        y: targets, shape (N, ...), as the loss wants them.
        steps: number of updates.
        batch_size: items per update; None takes all items, in order, at each step. Items are reshuffled every epoch; the
            incomplete batch at the end of an epoch is left out.
        rate: learning rate at its highest, or a function of the step (from 0) that returns it.
        schedule: course of the rate, such as `"cosine:warmup=0.05"`; see `make_schedule`.
        momentum: of `torch.optim.SGD`: the velocity is a sum of gradients, not a mean.
        weight_decay: coefficient of ½‖w‖², over all parameters unless `update.decay` says otherwise.
        loss: a spec such as `"cross_entropy:smoothing=0.1"`, or a function of output and target that returns a scalar.
        augment: what is done to each batch, such as `"crop:padding=4 + flip"`; see `Pipeline`.
        update: optimizer, clipping, precision and the like.
        seed: seed of the order of the data, which depends on nothing else but N and `batch_size`; and of the augmentation.
        probe: called as `probe(step, model)` before the update of that step, with the model in train mode; what it returns
            is collected, see `append_rows`. It should leave the model as it finds it. The step is a number that also knows
            the batch, the rate and the gradient, see `Step`. Several probes are given by name.
        probe_steps: when; `steps` itself stands for after the last update. Probes with names can each have their own.
        check_every: how many steps to go between two looks at the loss.
        loss_limit: a loss above this counts as diverged, like one that is not finite.

    Returns:
        The losses, the step of divergence if any, and what the probe measured before it. A diverged run stops within
        `check_every` steps; what its parameters are then has no meaning.

    Raises:
        SpecError: if a spec does not read as one.
        UnknownNameError: if a spec holds a name that is not known.
        NormlibError: if the sizes do not fit each other, a value is out of range, or a probe step is.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> history = train(net, x, 3 * x, steps=200, batch_size=5, rate=0.5, loss="squared_error", seed=0)
        >>> round(net.weight.item(), 3), history.diverged_at
        (3.0, None)
    """
    _check(x, y, batch_size, augment, loss)
    probes, measure, rate_at = Probes(probe, probe_steps, steps), make_loss(loss), make_schedule(schedule, rate, steps)
    losses, now = _Losses(steps, x, check_every, loss_limit), rate_at(0)
    pipeline, order = Pipeline(augment, (x, y), batch_size, seed), data_order(len(x), batch_size, seed, x.device)
    with mode(model, training=True), laid_out(model, update.channels_last) as lay:
        updater = Updater(update, model, measure, x.device, rate=now, momentum=momentum, weight_decay=weight_decay)
        for step in range(steps + 1):
            probing = step in probes.due
            if losses.due(step, probing) and losses.diverged(step):
                break
            if step < steps:
                now = rate_at(step)
            elif not probing:
                break
            batch = next(order)
            inputs, targets = pipeline(x[batch], y[batch])
            inputs = lay(inputs)
            if probing:
                known = {"loss": measure, "optimizer": updater.optimizer, "_objective": updater.objective}
                probes.ask(Step(step, model=model, x=inputs, y=targets, rate=now, **known))
            if step < steps:
                losses.put(step, updater(inputs, targets, now))
    return losses.history(probes.columns())


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


def _check(x: Tensor, y: Tensor, batch_size: int | None, augment: str, loss: str | Loss) -> None:
    if len(x) != len(y) or x.device != y.device:
        raise NormlibError(
            f"train got {len(x)} inputs on {x.device} and {len(y)} targets on {y.device}; "
            "expected as many targets as inputs, on the same device."
        )
    if batch_size is not None and not 1 <= batch_size <= len(x):
        raise NormlibError(f"train got batch_size={batch_size} for {len(x)} items; expected 1 to {len(x)}, or None for all.")
    if "mixup" in augment and not y.is_floating_point() and isinstance(loss, str) and not loss.startswith("cross_entropy"):
        raise NormlibError(
            f"mixup makes probabilities of classes, which {loss!r} takes for numbers. Pass targets that are numbers."
        )
