"""What a step costs: seconds and peak memory, of arms that are timed in turn so that they share what disturbs them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

Step = Callable[[], object]


def forward_backward(module: nn.Module, x: Tensor) -> Step:
    """Return one step of a module as a call: forward on `x`, backward from a fixed gradient to `x` and the parameters.

    The gradient that arrives from above has the memory format of the output. The gradients are let go at the end, so that
    nothing is held between steps.
    """
    x = x.detach().requires_grad_()
    upstream: list[Tensor] = []  # drawn once, at the first step, when the shape of the output is known

    def step() -> None:
        y = module(x)
        upstream[:] = upstream or [torch.randn_like(y)]
        y.backward(upstream[0])
        x.grad = None
        module.zero_grad(set_to_none=True)

    return step


def step_seconds(
    steps: Mapping[str, Step], device: str = "cpu", rounds: int = 5, min_seconds: float = 0.1
) -> dict[str, list[float]]:
    """Time several steps in turn, round by round.

    Args:
        steps: what to time, by name. Each runs three times before the first measurement, so that it is compiled and warm.
        device: where the steps compute; on CUDA the clock is the device's own.
        rounds: how often each is measured.
        min_seconds: how long one measurement lasts at least; it is the mean over that many steps.

    Returns:
        By name, the seconds that a step took in each round. A ratio of two arms is best taken round by round: what else the
        machine does then falls on both.
    """
    counts = {}
    for name, step in steps.items():
        for _ in range(3):
            once = _clocked(step, 1, device)
        counts[name] = max(1, int(np.ceil(min_seconds / max(once, 1e-7))))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(_clocked(step, counts[name], device) / counts[name])
    return seconds


def _clocked(step: Step, count: int, device: str) -> float:
    """Return the seconds that `count` steps take."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        for _ in range(count):
            step()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        step()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def peak_bytes(step: Step, device: str = "cpu") -> int:
    """Return how much memory a step holds at its peak beyond what was held before it.

    On the CPU the allocations that torch's profiler saw are added up; on CUDA the allocator keeps the count.
    """
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(max(np.cumsum([0, *(change for _, change in changes)])))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the standard error of the process: the profiler reports its start and stop there."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def copy_bandwidth(device: str = "cpu", size: int = 1 << 28) -> float:
    """Return the bytes a second that a copy of `size` bytes moves, reading and writing counted: what memory can do at best."""
    source = torch.empty(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = step_seconds({"copy": lambda: target.copy_(source)}, device)["copy"]
    return 2 * size / float(np.median(seconds))
