"""Leave no trace: run a model for a measurement, and give it back bit for bit as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


@contextmanager
def preserved(model: nn.Module, training: bool | None = None) -> Iterator[nn.Module]:
    """Restore modes, gradients and buffers (running statistics among them) of a model, and torch's random state, on leaving.

    Args:
        model: any model.
        training: the mode inside the context: True for train, False for eval, None for the one each module is in.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> with preserved(norm, training=True):
        ...     _ = norm(torch.tensor([[1.0], [5.0]]))
        >>> float(norm.running_mean)
        0.0
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        if training is not None:
            model.train(training)
        try:
            yield model
        finally:
            for module, was in modes:
                module.training = was
            for module, name, buffer, copy in buffers:
                module._buffers[name] = _filled(buffer, copy)
            for parameter, gradient, values in gradients:
                parameter.grad = _filled(gradient, values)


def call_on_copies(model: nn.Module, params: Mapping[str, Tensor], *args: Tensor) -> Any:
    """Run a model with other parameters, on copies of its buffers.

    What a norm in train mode writes to its running statistics goes to the copies, which `torch.func` can differentiate through;
    a norm that reads them, as batch renormalization does, finds them as they are.

    Args:
        model: any model.
        params: parameters by name; the model's own for those that are left out.
        *args: its inputs.
    """
    copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return functional_call(model, {**copies, **params}, args)


@torch.no_grad()
def _filled(tensor: Tensor | None, copy: Tensor | None) -> Tensor | None:
    """Return the tensor itself with the values of its copy; a tensor that did not change is not written to."""
    if tensor is not None and copy is not None and not torch.equal(tensor, copy):
        tensor.copy_(copy)
    return tensor


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return sorted(device.index or 0 for device in devices if device.type == "cuda")
