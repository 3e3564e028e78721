"""From a batch to new weights: what one update of training is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normlib.errors import unknown
from normlib.training.clipping import make_clip
from normlib.training.execution import Parts, make_execution
from normlib.training.losses import Loss
from normlib.training.optimizers import Decay, make_optimizer, set_rate

Objective = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]  # of a model, inputs and targets

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Update:
    """All that is seldom set about the updates of a run, as short specs that a study can vary.

    The first four bear on what is computed; the last two on how fast, and on the numbers by rounding only.

    Attributes:
        optimizer: `"sgd"`, `"sgd:nesterov=True"`, `"adam"`, `"adamw:beta2=0.95"`; see `make_optimizer`.
        decay: what weight decay takes hold of: "all" parameters, or "weights", not biases and gains.
        clip: `"none"`, `"agc:clipping=0.01,exempt=head"`, `"norm:limit=1"`; see `make_clip`.
        precision: "float32" computes in the dtype of the model and the data; "bfloat16" casts what autocast holds safe, while the
            weights and the loss stay as they are.
        channels_last: whether maps lie in memory with the channels last, as convolutions on a GPU like them.
        execution: `"eager"`, `"compile"`, `"graph"` (on CUDA); see `make_execution`.

    Example:
        >>> Update(clip="agc:clipping=0.01,exempt=head", decay="weights").optimizer
        'sgd'
    """

    optimizer: str = "sgd"
    decay: Decay = "all"
    clip: str = "none"
    precision: str = "float32"
    channels_last: bool = False
    execution: str = "eager"


class Updater:
    """Makes the updates of one run: call it with a batch and the rate, and it returns the loss before the update.

    Args:
        update: how.
        model: any model, in the mode it is trained in.
        measure: loss of output and target.
        device: of the model and the data.
        rate: the first learning rate.
        momentum: see `make_optimizer`.
        weight_decay: see `make_optimizer`.

    Attributes:
        objective: the loss at the precision of the run, as a function of a model, inputs and targets.
        optimizer: torch's optimizer.
    """

    def __init__(
        self,
        update: Update,
        model: nn.Module,
        measure: Loss,
        device: torch.device,
        *,
        rate: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.objective = objective = make_objective(measure, update.precision, device)
        held = torch.tensor(rate, device=device) if update.execution.startswith("graph") else rate
        self.optimizer = make_optimizer(
            update.optimizer, model, held, momentum=momentum, weight_decay=weight_decay, decay=update.decay
        )
        parts = Parts(lambda x, y: objective(model, x, y), self.optimizer, make_clip(update.clip, model))
        self._run = make_execution(update.execution, parts)

    def __call__(self, x: Tensor, y: Tensor, rate: float) -> Tensor:
        """Make one update."""
        set_rate(self.optimizer, rate)
        return self._run(x, y)


def make_objective(measure: Loss, precision: str, device: torch.device) -> Objective:
    """Return the loss as a function of a model, inputs and targets, at a precision.

    Args:
        measure: loss of output and target.
        precision: "float32" or "bfloat16", see `Update`.
        device: where the model runs.

    Raises:
        UnknownNameError: if the precision is neither.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "float32":
        return lambda model, x, y: measure(model(x), y)

    def objective(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output = model(x)
        return measure(output.float(), y)

    return objective


@contextmanager
def laid_out(model: nn.Module, channels_last: bool) -> Iterator[Callable[[Tensor], Tensor]]:
    """Lay the filters of a model in memory with the channels last if asked, and back afterwards.

    Yields:
        The function that lays a batch of maps the same way.
    """
    if not channels_last:
        yield lambda x: x
        return
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
