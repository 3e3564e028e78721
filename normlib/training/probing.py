"""Probes: what a run of training is asked on its way, and what it tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlib.errors import NormlibError, unknown
from normlib.training.evaluation import Statistics, accuracy
from normlib.training.history import append_rows
from normlib.training.losses import Loss
from normlib.training.update import Objective

Probe = Callable[["Step", nn.Module], Mapping[str, Any]]
ProbeSteps = Iterable[int] | Mapping[str, Iterable[int]]


class Step(int):
    """The number of a step that knows what training is about to do in it. It is read-only.

    A probe that wants to know when, takes it as the number that it is; one that measures the update itself asks for more.

    Attributes:
        model: the model before the update, in train mode.
        x: inputs of this step's batch, as augmented. After the last update, of the batch that would come next.
        y: its targets; after mixup they are probabilities.
        rate: the learning rate of this step's update; after the last update, that of the last.
        loss: the loss as a function of output and target.
        optimizer: torch's optimizer, as the update before left it.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> step = Step(3, model=net, x=torch.ones(2, 1), y=torch.ones(2, 1), rate=0.1)
        >>> step + 1, step.rate
        (4, 0.1)
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    rate: float
    loss: Loss
    optimizer: torch.optim.Optimizer
    _objective: Objective

    def __new__(cls, number: int, **known: Any) -> Step:  # noqa: D102 - built by the loop alone
        step = super().__new__(cls, number)
        step.__dict__.update(known)
        return step

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a step is read-only, but {name!r} was set. Keep it in a variable of the probe.")

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradient of this batch's loss by parameter name: what the update starts from, before clipping and decay.

        The model is run once more. Its buffers, its gradients and torch's random state are left as they are; with dropout the
        mask is the one that the update will draw.
        """
        named = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.random.fork_rng(devices=[self.x.device] if self.x.is_cuda else []):
            value = self._objective(lambda x: functional_call(self.model, buffers, (x,)), self.x, self.y)
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(named, found, strict=True))


class Probes:
    """The probes of one run, when each is due, and what they measured.

    Args:
        probe: one probe, several by name, or None.
        when: steps from 0 to `steps`, for all probes; or by name of the probe.
        steps: number of updates in the run.

    Raises:
        NormlibError: if a step is out of range.
        UnknownNameError: if steps are given for a probe that is not there.
    """

    def __init__(self, probe: Probe | Mapping[str, Probe] | None, when: ProbeSteps, steps: int) -> None:
        self.single = not isinstance(probe, Mapping)
        self.probes: dict[str, Probe] = dict(probe) if isinstance(probe, Mapping) else {"": probe} if probe is not None else {}
        if not isinstance(when, Mapping):
            common = _checked(when, steps)
            when = dict.fromkeys(self.probes, common)
        for name in when.keys() - self.probes.keys():
            raise unknown("probe", name, self.probes)
        self.when = {name: _checked(wanted, steps) for name, wanted in when.items()}
        self.due = frozenset().union(*self.when.values())
        self._columns: dict[str, dict[str, list[Any]]] = {name: {} for name in self.probes}

    def ask(self, step: Step) -> None:
        """Call the probes that are due at a step."""
        for name, probe in self.probes.items():
            if step in self.when.get(name, ()):
                append_rows(self._columns[name], int(step), probe(step, step.model))

    def columns(self) -> dict[str, Any]:
        """Return the columns of the one probe, or those of each by its name."""
        return self._columns.get("", {}) if self.single else self._columns


def accuracy_probe(x: Tensor, y: Tensor, *, statistics: Statistics, batch_size: int | None = None) -> Probe:
    """Return a probe that measures the column `accuracy` on a data set; see `evaluate`.

    Args:
        x: inputs, shape (N, *).
        y: targets, as for `evaluate`.
        statistics: "train" or "eval".
        batch_size: how many items to take at once; None takes all.

    Example:
        >>> probe = accuracy_probe(torch.eye(3), torch.tensor([0, 1, 1]), statistics="eval")
        >>> round(probe(Step(0), nn.Identity())["accuracy"], 4)
        0.6667
    """
    measure = partial(accuracy, x=x, y=y, statistics=statistics, batch_size=batch_size)
    return lambda step, model: {"accuracy": measure(model)}


def _checked(wanted: Iterable[int], steps: int) -> frozenset[int]:
    known = frozenset(int(step) for step in wanted)
    if outside := sorted(step for step in known if not 0 <= step <= steps):
        raise NormlibError(f"probe_steps holds {outside}, but a run of {steps} steps has the steps 0 to {steps}.")
    return known
