"""What the generic suites share: every registered norm, how to run it, and where one differs by its mathematics."""

from __future__ import annotations

import math
from typing import Any

import torch
from definitions import CASES, Case
from torch import Tensor, nn

from normlib.layers import NORMS, make_norm, reference
from normlib.spec import arguments_of, spec_name, split_spec

# In training the output of one sample depends on the others, by what stands here.
BATCH_STATISTICS = {
    "batch": "mean and variance of the batch",
    "sync": "those of all processes' batches",
    "renorm": "those of the batch, corrected",
    "noisy": "those of the batch, then noise",
    "lp": "mean and Lp scale of the batch",
    "variance": "variance of the batch",
    "decorrelated": "mean and covariance of the batch",
    "switch": "a share of the batch's mean and variance",
    "evonorm_b0": "variance of the batch",
}
# These arguments take the batch out again.
WITHOUT_BATCH = {"ghost": 1, "use_batch": False}
# The order of the channels says which of them are together.
CHANNEL_GROUPS = {
    "group": "neighbors share mean and variance",
    "proxy": "so it does in the group norm inside",
    "evonorm_s0": "neighbors share a variance",
    "decorrelated": "neighbors are whitened together",
}
# Training draws noise, an element at a time and in the input's dtype: another order or dtype is other noise.
NOISE = {"noisy": "a scale and a shift for each element"}
# No statistics: a squashing function turns infinity into its asymptote, by its formula.
SQUASHING = {"dyt": "tanh", "derf": "erf"}
# A covariance needs more values of a channel than a group, here perhaps all of them, has channels.
FULL_RANK = {"decorrelated": "whitening by a covariance"}

REGISTERED = [case for case in CASES if spec_name(case.spec) in NORMS]
ONE_EACH = list({spec_name(case.spec): case for case in reversed(REGISTERED)}.values())[::-1]
LAYOUTS = ("contiguous", "channels last", "samples inside", "strided", "expanded")


def named(case: Case | str) -> str:
    return spec_name(str(case))


def with_argument(spec: str, **arguments: Any) -> str:
    """The spec with these arguments, those left out that the norm does not take or that the spec has already."""
    taken, set_already = arguments_of(NORMS[named(spec)]), split_spec(spec)[1]
    pairs = [f"{key}={value}" for key, value in arguments.items() if key in taken and key not in set_already]
    return spec + ("," if ":" in spec else ":") * bool(pairs) + ",".join(pairs)


def takes(case: Case | str, argument: str) -> bool:
    return argument in arguments_of(NORMS[named(case)])


def mixes_samples(case: Case | str, training: bool) -> bool:
    arguments = split_spec(str(case))[1]
    if named(case) not in BATCH_STATISTICS or any(arguments.get(key) == value for key, value in WITHOUT_BATCH.items()):
        return False
    return training or arguments.get("track_running_stats") is False


def ghost(case: Case) -> int:
    return int(split_spec(case.spec)[1].get("ghost", 1))  # type: ignore[arg-type]


def least_rank(case: Case) -> int:
    return min(map(len, case.shapes))


def least_count(case: Case, channels: int) -> int:
    return channels + 1 if named(case) in FULL_RANK else 2


def layouts(case: Case) -> tuple[str, ...]:
    """What `laid_out` can be asked for; equal samples have no principal components."""
    return LAYOUTS[:-1] if split_spec(case.spec)[1].get("method") == "pca" else LAYOUTS


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def built(spec: str, channels: int, dtype: torch.dtype = torch.float64, training: bool = True) -> nn.Module:
    """The norm with parameters drawn about where they start, after a batch, so that its running statistics are some."""
    module = make_norm(spec, channels, dtype=dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter += 0.1 * values(*parameter.shape, seed=10 + seed, dtype=dtype)
        run(module, values(4, channels, 3, seed=9, dtype=dtype))
    return module.train(training)


def run(module: nn.Module, x: Tensor, formula: bool = False) -> Tensor:
    torch.default_generator.manual_seed(0)  # a hundred times as fast as torch.manual_seed, which asks every kind of device
    with reference(formula):
        return module(x)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of `x` in other memory; "expanded" repeats the first sample instead."""
    if layout == "channels last" and x.ndim > 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "samples inside":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0]
    return x[:1].expand_as(x) if layout == "expanded" else x
