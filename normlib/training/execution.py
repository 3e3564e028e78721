"""How the update of a step runs: eagerly, compiled, or as one CUDA graph. The numbers are the same up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from normlib.errors import NormlibError
from normlib.registry import Registry
from normlib.spec import parse_spec

Run = Callable[[Tensor, Tensor], Tensor]

EXECUTIONS = Registry(
    "execution",
    {
        "eager": "normlib.training.execution:eager",
        "compile": "normlib.training.execution:compiled",
        "graph": "normlib.training.execution:Graphed",
    },
    hint="A spec reads 'name' or 'name:argument=value', as in 'compile:mode=max-autotune-no-cudagraphs'.",
)


@dataclass(frozen=True)
class Parts:
    """What an update is made of.

    Attributes:
        forward: from inputs and targets to the loss.
        optimizer: holds the parameters.
        clip: called between the backward pass and the optimizer's step.
    """

    forward: Run
    optimizer: torch.optim.Optimizer
    clip: Callable[[], None]


def make_execution(spec: str, parts: Parts) -> Run:
    """Return the function that makes one update from inputs and targets, and returns the loss before it.

    Args:
        spec: `"eager"`; `"compile"`, which takes a `mode` of `torch.compile`; or `"graph"`.
        parts: what the update is made of.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.
        NormlibError: if a graph is wanted on a device that has none.
    """
    name, arguments = parse_spec(spec, EXECUTIONS)
    run: Run = EXECUTIONS[name](parts, **arguments)
    return run


def eager(parts: Parts) -> Run:
    """Run each operation as it comes."""
    forward, optimizer, clip = parts.forward, parts.optimizer, parts.clip

    def run(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = forward(x, y)
        value.backward()
        clip()
        optimizer.step()
        return value.detach()

    return run


def compiled(parts: Parts, mode: str = "default") -> Run:
    """Compile the forward and the backward pass with `torch.compile`; clipping and optimizer run eagerly.

    The compiler keeps what it made for a handful of models and then gives up; a run begins with an empty store.
    """
    torch.compiler.reset()
    return eager(replace(parts, forward=torch.compile(parts.forward, mode=mode)))


class Graphed:
    """Record the whole update once as a CUDA graph and replay it: one launch a step, whatever the number of kernels.

    The first steps of the run are the warm-up that a recording wants, on a stream of their own. Every batch must have the shape of
    the first; a model that decides by values, or draws from a generator of its own, cannot be recorded.

    Args:
        parts: what the update is made of; the learning rate of the optimizer is a tensor on the device.
        warmup: number of steps before the recording.

    Raises:
        NormlibError: if the parameters are not on a CUDA device.
    """

    def __init__(self, parts: Parts, warmup: int = 3) -> None:
        device = parts.optimizer.param_groups[0]["params"][0].device
        if device.type != "cuda":
            raise NormlibError(f"execution 'graph' is for CUDA devices, and the model is on {device}. Use 'eager' or 'compile'.")
        self.parts, self.eager = parts, eager(parts)
        self.left = max(int(warmup), 1)  # the optimizer must have its state before the recording
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Make one update; the value returned is overwritten by the next."""
        if self.left:
            self.left -= 1
            return self._warm(x, y)
        if self.graph is None:
            self.graph = self._record(x, y)
        else:
            self.x.copy_(x)
            self.y.copy_(y)
        self.graph.replay()
        return self.value

    def _warm(self, x: Tensor, y: Tensor) -> Tensor:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            value = self.eager(x, y)
        torch.cuda.current_stream().wait_stream(self.stream)
        return value

    def _record(self, x: Tensor, y: Tensor) -> torch.cuda.CUDAGraph:
        self.x, self.y = x.clone(), y.clone()
        self.parts.optimizer.zero_grad(set_to_none=True)  # so that the recording makes gradients of its own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.value = self.eager(self.x, self.y)
        return graph
