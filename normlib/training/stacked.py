"""Models of one architecture as one batched network: their state stacked, its optimizer, and the batches of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from normlib.errors import NormlibError
from normlib.training.execution import Run
from normlib.training.loop import data_order
from normlib.training.losses import Loss

Named = Mapping[str, Tensor]
Examples = Tensor | Sequence[Tensor]
ChangeGradients = Callable[[Named], Named]


class Copies:
    """Models of one architecture, with their parameters and buffers stacked: axis 0 is the copy.

    Args:
        models: K models that differ in the values of parameters and buffers and in nothing else.

    Attributes:
        learned: by name, the stacked parameters that training changes, each (K, *).
        losses: of each copy, shape (K,), at the last batch.

    Raises:
        NormlibError: if the models differ in more, or share parameters.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        _check_alike(models)
        self.models = models
        self.parameters = {
            name: torch.stack([model.get_parameter(name).detach() for model in models]).requires_grad_(own.requires_grad)
            for name, own in models[0].named_parameters()
        }
        self.buffers = {name: torch.stack([model.get_buffer(name) for model in models]) for name, _ in models[0].named_buffers()}
        self.learned = {name: weight for name, weight in self.parameters.items() if weight.requires_grad}
        self.losses = torch.empty(0)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the parameters."""
        return next(iter(self.learned.values())).dtype

    @torch.no_grad()
    def hand_back(self) -> None:
        """Write the state of each copy into its model."""
        for name, stacked in self.parameters.items():
            for model, own in zip(self.models, stacked, strict=True):
                model.get_parameter(name).copy_(own)
        for name, stacked in self.buffers.items():
            for model, own in zip(self.models, stacked, strict=True):
                model.get_buffer(name).copy_(own)

    def total(self, measure: Loss, axis: int | None) -> Run:
        """Return the sum of the losses as a function of a batch; the loss of each copy stays in `losses`.

        Args:
            measure: loss of one copy's output and target.
            axis: where a batch has the axis of the copies; None if all copies take the same batch.
        """

        def loss_of(parameters: Named, buffers: Named, x: Tensor, y: Tensor) -> Tensor:
            return measure(functional_call(self.models[0], {**parameters, **buffers}, (x,)), y)

        mapped = vmap(loss_of, in_dims=(0, 0, axis, axis))

        def total(x: Tensor, y: Tensor) -> Tensor:
            losses = mapped(self.parameters, self.buffers, x, y)
            self.losses = losses.detach()
            return losses.sum()

        return total

    def changing(self, change: ChangeGradients | None) -> Callable[[], None]:
        """Return the function that passes the gradients through `change`."""

        def changed() -> None:
            if change is not None:
                slopes = {name: weight.grad for name, weight in self.learned.items() if weight.grad is not None}
                for name, slope in change(slopes).items():
                    self.learned[name].grad = slope

        return changed


class CopiesSGD(torch.optim.Optimizer):
    """`torch.optim.SGD` of stacked parameters, with a rate for each copy.

    Args:
        weights: stacked parameters, each (K, *).
        rates: learning rate of each copy, shape (K,); the attribute `rates` holds a copy, to be written to from step to step.
        momentum: of all copies.
        weight_decay: of all copies.
    """

    def __init__(self, weights: Iterable[Tensor], rates: Tensor, momentum: float, weight_decay: float) -> None:
        super().__init__(list(weights), {"weight_decay": weight_decay})
        self.rates, self.momentum, self.decay = rates.clone(), momentum, weight_decay
        self.velocities = {weight: torch.zeros_like(weight) for weight in self.param_groups[0]["params"] if momentum}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update what has a gradient."""
        moved = [weight for weight in self.param_groups[0]["params"] if weight.grad is not None]
        slopes: list[Tensor] = [weight.grad for weight in moved]
        if self.decay:
            slopes = list(torch._foreach_add(slopes, moved, alpha=self.decay))
        if self.momentum:
            velocities = [self.velocities[weight] for weight in moved]
            torch._foreach_mul_(velocities, self.momentum)
            torch._foreach_add_(velocities, slopes)
            slopes = velocities
        for weight, slope in zip(moved, slopes, strict=True):
            weight.addcmul_(slope, self.rates.view(-1, *[1] * (weight.ndim - 1)), value=-1)


class CopiesData:
    """The inputs and targets of all copies, and the order in which each copy meets them.

    Args:
        x: inputs that all copies share, shape (N, *), or a list of them.
        y: targets, likewise.
        seeds: of the order of each copy.
        batch_size: items per batch, or None for all.
        numbers: how many there are of what there must be one of per copy, by name.

    Attributes:
        batches: yields positions (B,) for all copies, or (K, B), or a slice of all.
        axis: where a batch has the axis of the copies; None if one batch serves all.

    Raises:
        NormlibError: if the numbers or the sizes do not fit each other.
    """

    def __init__(
        self,
        x: Examples,
        y: Examples,
        seeds: Sequence[int],
        batch_size: int | None,
        **numbers: int,
    ) -> None:
        self.shared = isinstance(x, Tensor)
        _check_data(x, y, batch_size, {**numbers, "seeds": len(seeds)})
        self.x, self.y = (part if isinstance(part, Tensor) else torch.stack(list(part)) for part in (x, y))
        self.device, count = self.x.device, self.x.shape[0 if self.shared else 1]
        alike = batch_size is None or len(set(seeds)) == 1
        self.axis = None if self.shared and alike else 0
        self.rows = torch.arange(len(seeds), device=self.device)[:, None]
        self.batches = (
            data_order(count, batch_size, seeds[0], self.device) if alike else _orders(count, batch_size, seeds, self.device)
        )

    def at(self, batch: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return inputs and targets at `batch`, an item of `batches`."""
        if self.shared:
            return self.x[batch], self.y[batch]
        if isinstance(batch, Tensor) and batch.ndim == 2:
            return self.x[self.rows, batch], self.y[self.rows, batch]
        return self.x[:, batch], self.y[:, batch]

    def of_copy(self, k: int, batch: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of one copy."""
        x, y = self.at(batch)
        return (x, y) if self.axis is None else (x[k], y[k])


def _check_data(x: Examples, y: Examples, batch_size: int | None, numbers: Mapping[str, int]) -> None:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        inputs, targets = [x], [y]
    elif isinstance(x, Tensor) or isinstance(y, Tensor):
        raise NormlibError(
            "x and y are a tensor and a list. Pass two tensors that all copies share, or two lists with one per copy."
        )
    else:
        inputs, targets, numbers = list(x), list(y), {**numbers, "x": len(x), "y": len(y)}
    if len(set(numbers.values())) > 1:
        given = ", ".join(f"{number} {name}" for name, number in numbers.items())
        raise NormlibError(f"training together wants one of each per copy, but got {given}.")
    for kind, tensors in (("inputs", inputs), ("targets", targets)):
        if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
            raise NormlibError(f"the {kind} of copies that train together have one shape, but got {sorted(shapes)}.")
    count = len(inputs[0])
    if count != len(targets[0]) or inputs[0].device != targets[0].device:
        raise NormlibError(
            f"training got {count} inputs on {inputs[0].device} and {len(targets[0])} targets on {targets[0].device}; "
            "expected as many targets as inputs, on the same device."
        )
    if batch_size is not None and not 1 <= batch_size <= count:
        raise NormlibError(f"training got batch_size={batch_size} for {count} items; expected 1 to {count}, or None for all.")


def _orders(count: int, batch_size: int | None, seeds: Sequence[int], device: torch.device) -> Iterator[Tensor | slice]:
    """Yield the positions (K, B) of each batch: the `data_order` of each seed, put side by side once an epoch."""
    orders, per_epoch = {seed: data_order(count, batch_size, seed) for seed in seeds}, count // (batch_size or count)
    while True:
        epoch = {seed: torch.stack(list(islice(order, per_epoch))) for seed, order in orders.items()}  # type: ignore[arg-type]
        yield from torch.stack([epoch[seed] for seed in seeds], dim=1).to(device)


def _check_alike(models: Sequence[nn.Module]) -> None:
    if not models:
        raise NormlibError("there are no models to train together. Pass a list of at least one.")
    held = [id(parameter) for model in models for parameter in model.parameters()]
    if len(set(held)) < len(held):
        raise NormlibError("the models to train together share parameters. Build each anew, or copy.deepcopy the first.")
    first = _parts(models[0])
    if not any("learned" in part for part in first.values()):
        raise NormlibError("the models to train together have no parameter that requires a gradient.")
    for k, model in enumerate(models[1:], 1):
        other = _parts(model)
        for name in {**first, **other}:
            if (here := first.get(name, "missing")) != (there := other.get(name, "missing")):
                raise NormlibError(
                    f"models that train together are of one architecture, but {name or 'the model'!r} is {here} in model 0 and "
                    f"{there} in model {k}. They may differ in the values of parameters and buffers only."
                )


def _parts(model: nn.Module) -> dict[str, str]:
    """Describe each module, parameter and buffer of a model by name."""
    modules = {name: f"{type(module).__name__}({module.extra_repr()})" for name, module in model.named_modules()}
    parameters = {name: ("learned " if p.requires_grad else "frozen ") + _described(p) for name, p in model.named_parameters()}
    return {**modules, **parameters, **{name: _described(buffer) for name, buffer in model.named_buffers()}}


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"
