"""Many copies of one small network trained as one batched network: seeds and learning rates in one go.

A step of a small network costs its launches, not its arithmetic. Here one step launches for all copies what `train` launches for
one, and each copy ends where it would have ended alone. On a CPU that gains little; on a GPU nearly the number of copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.training.evaluation import mode
from normlib.training.execution import Parts, Run, make_execution
from normlib.training.history import History
from normlib.training.losses import Loss, make_loss
from normlib.training.probing import Probe, Probes, ProbeSteps, Step
from normlib.training.schedules import Rate, make_schedule
from normlib.training.stacked import ChangeGradients, Copies, CopiesData, CopiesSGD, Examples
from normlib.training.update import make_objective


def train_together(
    models: Sequence[nn.Module],
    x: Examples,
    y: Examples,
    *,
    steps: int,
    batch_size: int | None,
    rates: Sequence[Rate],
    schedule: str = "constant",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    loss: str | Loss = "cross_entropy",
    seeds: Sequence[int],
    change_gradients: ChangeGradients | None = None,
    probe: Probe | Mapping[str, Probe] | None = None,
    probe_steps: ProbeSteps = (),
    check_every: int = 100,
    loss_limit: float = math.inf,
    execution: str = "eager",
) -> list[History]:
    r"""Train models of one architecture in place, in one batch, each as `train` would train it alone.

    **Idea.** The parameters and buffers of the K models are stacked, the forward pass is mapped over them by `torch.func.vmap`, and
    the gradient of the sum of the K losses holds that of each. The update is that of `torch.optim.SGD` with a rate per copy,
    $v \leftarrow \mu v + g + \lambda w$, $w \leftarrow w - \eta_k v$. Afterwards each model holds its own parameters and
    running statistics. A copy that diverges says so in its own history, and the others do not notice.

    Args:
        models: K models that differ in the values of parameters and buffers and in nothing else, on the device of the data.
        x: inputs that all copies share, shape (N, *); or a list of K such tensors of one shape, one per copy.
        y: targets, shared as `x` is.
        steps: number of updates.
        batch_size: as in `train`.
        rates: learning rate of each copy, a number or a function of the step.
        schedule: as in `train`, of every rate.
        momentum: as in `train`.
        weight_decay: as in `train`.
        loss: as in `train`; of one copy.
        seeds: seed of each copy's order of the data.
        change_gradients: called at each step with the gradients by name of parameter, each of shape (K, *), before decay and
            momentum; returns those to use under the same names. For a preconditioner, say.
        probe: called as `probe(step, model)` for each copy that has not diverged, as in `train`;
            the step knows no optimizer.
        probe_steps: as in `train`.
        check_every: how many steps to go before asking whether every copy has diverged.
        loss_limit: as in `train`.
        execution: as in `Update`; "graph" (on CUDA) leaves hardly any launches.

    Returns:
        One history per copy, as `train` would return it.

    Raises:
        NormlibError: if the models differ in architecture (the message names where), the numbers of things do not fit each
            other, or a layer has no batched form: random ones such as dropout, spectral norm.

    Example:
        >>> nets = [nn.Linear(1, 1) for _ in range(3)]
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> args = {"steps": 200, "batch_size": 5, "loss": "squared_error"}
        >>> histories = train_together(nets, x, 3 * x, rates=[0.2, 0.5, 20.0], seeds=[0, 1, 2], **args)
        >>> [round(net.weight.item(), 3) for net in nets[:2]], [history.diverged_at is None for history in histories]
        ([3.0, 3.0], [True, True, False])
    """
    copies = Copies(models)
    data = CopiesData(x, y, seeds, batch_size, models=len(models), rates=len(rates))
    probes, measure = [Probes(probe, probe_steps, steps) for _ in models], make_loss(loss)
    losses = _Losses(steps, len(models), data, loss_limit)
    table = _rates(rates, schedule, steps).to(data.device, copies.dtype)
    optimizer = CopiesSGD(copies.learned.values(), table[0], momentum, weight_decay)
    run = make_execution(execution, Parts(copies.total(measure, data.axis), optimizer, copies.changing(change_gradients)))
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(mode(model, training=True))
        for step in range(steps + 1):
            probing = step in probes[0].due
            if (probing or step == steps or step - losses.seen >= check_every) and not losses.alive(step):
                break
            if step == steps and not probing:
                break
            batch = next(data.batches)
            if probing:
                copies.hand_back()
                now = table[min(step, steps - 1)].tolist()
                for k in losses.alive(step):
                    inputs, targets = data.of_copy(k, batch)
                    known = {"model": models[k], "x": inputs, "y": targets, "rate": now[k], "loss": measure}
                    probes[k].ask(Step(step, **known, _objective=make_objective(measure, "float32", data.device)))
            if step < steps:
                optimizer.rates.copy_(table[step])
                _attempt(run, *data.at(batch))
                losses.values[step] = copies.losses
        copies.hand_back()
    return losses.histories([each.columns() for each in probes])


def _rates(rates: Sequence[Rate], schedule: str, steps: int) -> Tensor:
    """Return the rate of each copy at each step, shape (steps, K)."""
    courses = [make_schedule(schedule, rate, steps) for rate in rates]
    return torch.tensor([[course(step) for course in courses] for step in range(max(steps, 1))], dtype=torch.float64)


def _attempt(run: Run, x: Tensor, y: Tensor) -> None:
    try:
        run(x, y)
    except RuntimeError as error:
        raise NormlibError(
            f"the copies could not be trained as one batched network: {str(error).splitlines()[0]} If one of them trains alone, a "
            "layer has no batched form (dropout and other random layers, spectral norm), or the memory does not hold all copies. "
            "Then train them one by one, with `train`."
        ) from error


class _Losses:
    """The losses of all copies on the device, shape (steps, K), and where each copy diverged."""

    def __init__(self, steps: int, copies: int, data: CopiesData, limit: float) -> None:
        dtype = torch.float64 if data.x.dtype == torch.float64 else torch.float32
        self.values = torch.full((steps, copies), math.nan, dtype=dtype, device=data.device)
        self.limit, self.seen = limit, 0
        self.ends: list[int | None] = [None] * copies

    def alive(self, step: int) -> list[int]:
        """List the copies that have not diverged before `step`; this waits for the device if there is something new."""
        if step > self.seen:
            new = self.values[self.seen : step]
            bad = ~(new.isfinite() & (new <= self.limit))
            firsts = torch.where(bad.any(0), bad.int().argmax(0), -1).tolist()
            for k, first in enumerate(firsts):
                if first >= 0 and self.ends[k] is None:
                    self.ends[k] = self.seen + first
            self.seen = step
        return [k for k, end in enumerate(self.ends) if end is None]

    def histories(self, columns: list[dict[str, list[Any]]]) -> list[History]:
        values = self.values[: self.seen].cpu().numpy().astype(np.float64)
        return [History(values[:end, k].copy(), end, columns[k]) for k, end in enumerate(self.ends)]
