"""How fast are the layers? Each against torch's own of the same name, forward and backward, on the machine at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.benchmark import Timer

from normlib.layers import make_norm, reference

MAPS = (64, 64, 32, 32)
TOKENS = (64 * 256, 768)
TORCH = {
    "batch": (nn.BatchNorm2d(64), MAPS),
    "instance": (nn.InstanceNorm2d(64), MAPS),
    "group:groups=32": (nn.GroupNorm(32, 64), MAPS),
    "layer": (nn.LayerNorm(768), TOKENS),
    "rms": (nn.RMSNorm(768), TOKENS),
}


@dataclass(frozen=True)
class Timing:
    """One normalizer: milliseconds of torch's own layer for a forward and backward pass, and ratios to it."""

    spec: str
    shape: tuple[int, ...]
    torch_ms: float
    fast_ratio: float
    formula_ratio: float


def bench_layers(device: str = "cpu", min_seconds: float = 1.0) -> Iterator[Timing]:
    """Time every layer that torch has as well.

    Args:
        device: where to run.
        min_seconds: how long each measurement lasts at least; the median over its blocks counts.

    Yields:
        One timing per normalizer.
    """
    for spec, (theirs, shape) in TORCH.items():
        x = torch.randn(shape, device=device, requires_grad=True)
        ours, theirs = make_norm(spec, shape[1]).to(device), theirs.to(device)
        base, fast = _milliseconds(theirs, x, min_seconds), _milliseconds(ours, x, min_seconds)
        with reference():
            formula = _milliseconds(ours, x, min_seconds)
        yield Timing(spec, shape, base, fast / base, formula / base)


def _milliseconds(layer: nn.Module, x: torch.Tensor, min_seconds: float) -> float:
    timer = Timer(
        "layer(x).backward(g)", globals={"layer": layer, "x": x, "g": torch.ones_like(x)}, num_threads=torch.get_num_threads()
    )
    return timer.blocked_autorange(min_run_time=min_seconds).median * 1e3
