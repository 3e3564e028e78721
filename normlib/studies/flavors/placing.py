"""Where a normalizer stands, found by probing it: entries that share a statistic, what it removes, what it stores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normlib.layers import NORMS, ShapeError, make_norm
from normlib.probes import invariances, is_invariant, linear_and_norm
from normlib.studies.common.statements import gap, normal
from normlib.studies.flavors.wu2018_axes import TOKENS, C, ChannelsFirst, H, N, W, build, found_sets
from normlib.weights import WEIGHT_NORMS, parametrize_weight
from normlib.weights.rows import parametrization_of

ARGUMENTS = {"group": "group:groups=3", "evonorm_s0": "evonorm_s0:groups=3", "decorrelated": "decorrelated:size=2"}
SPECS = [*(ARGUMENTS.get(name, name) for name in NORMS), TOKENS, *WEIGHT_NORMS]
TINY = 1e-12  # as eps, where an invariance to scale is asked for
FACTOR, SHIFT, BATCHES, LARGEST = 3.0, 0.7, 10, 8
AXES = ("samples", "channels", "positions")


def normalized_weight(spec: str, weight: Tensor) -> Tensor:
    """Return what a weight norm makes of a weight (outputs, inputs), at a gain of 1; its own draws are the same each time."""
    torch.manual_seed(0)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data = weight.detach().clone()
    found = parametrization_of(parametrize_weight(layer, spec), "weight")
    output: Tensor = found[0](torch.ones_like(weight[:, :1]), weight) if hasattr(found, "original0") else found[0](weight)
    return output


def layer_of(spec: str) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """Return `weight -> (x -> normalized layer)` with a fresh norm of either kind and hardly an eps, as `invariances` takes it."""

    def summed(weight: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("of,nf...->no...", weight, x)

    if spec in WEIGHT_NORMS:
        return lambda weight: lambda x: summed(normalized_weight(spec, weight), x)
    if spec == TOKENS:
        norm = ChannelsFirst(make_norm(f"layer:eps={TINY}", C, channel_axis=-1).double())
        return lambda weight: lambda x: norm(summed(weight, x))
    return linear_and_norm(spec, TINY)


def reach(sets: Tensor) -> dict[str, bool]:
    """Tell along which axes of a batch of maps the sets of `found_sets` extend."""
    shape = torch.meshgrid(torch.arange(N), torch.arange(C), torch.arange(H * W), indexing="ij")
    return {axis: bool((sets & (at.reshape(-1, 1) != at.flatten())).any()) for axis, at in zip(AXES, shape, strict=True)}


def axes_of(norm: nn.Module, seed: int) -> dict[str, int]:
    """Return for each axis 2 if outputs answer to inputs along it, 1 if they do in the gradient alone, 0 if not at all."""
    x = normal(seed, N, C, H, W)

    def fresh(x: Tensor) -> Tensor:  # a copy: what a norm learns of one batch must not reach the next
        output: Tensor = copy.deepcopy(norm)(x)
        return output

    moved = reach(found_sets(fresh, [x]))
    torch.manual_seed(0)
    jacobian: Any = torch.autograd.functional.jacobian(lambda x: fresh(x).flatten(), x, vectorize=True)
    slopes = reach(jacobian.flatten(1).abs() > 1e-9 * jacobian.abs().max())
    return {axis: 2 if moved[axis] else int(found) for axis, found in slopes.items()}


def rows_of(spec: str, seed: int) -> str:
    """Tell whether a weight norm takes its statistics over a row of the weight or over all of it."""
    sets = found_sets(lambda weight: normalized_weight(spec, weight), [normal(seed, 5, 4)])
    row = torch.arange(5).repeat_interleave(4)
    return "all" if bool((sets & (row[:, None] != row)).any()) else "row"


def removed(function: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, bool]:
    """Tell whether a function ignores a shift, and a scale, that all entries have in common."""

    def output(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return function(x)

    return {
        "shift": is_invariant(gap(output(x + SHIFT), output(x))),
        "scale": is_invariant(gap(output(FACTOR * x), output(x))),
    }


def memory_of(module: nn.Module, seed: int) -> dict[str, bool]:
    """Let a module see batches in training; tell whether its buffers move, and whether evaluation is another function then."""
    module, x = copy.deepcopy(module).train(), normal(seed, N, C, H, W)
    before = {name: value.clone() for name, value in module.named_buffers()}
    for batch in range(BATCHES):
        module(normal(seed + 1 + batch, N, C, H, W))
    moved = any(not torch.equal(value, before[name]) for name, value in module.named_buffers())
    later = copy.deepcopy(module).eval()
    return {"stores": moved, "differs": gap(module(x), later(x)) > 1e-3}


def learned(module: nn.Module, channels: int) -> str:
    """Count what a norm learns: so many numbers for each channel, and after a plus those that all channels have in common."""
    sizes = [parameter.numel() for parameter in module.parameters()]
    each, rest = sum(size == channels for size in sizes), sum(size for size in sizes if size != channels)
    return f"{each}+{rest}" if rest else f"{each}"


def smallest_batch(module: nn.Module, *positions: int) -> int:
    """Return the least number of samples that a norm accepts in training; 0 if it accepts none of up to eight."""
    for count in range(1, LARGEST + 1):
        try:
            copy.deepcopy(module).train()(normal(0, count, C, *positions))
        except ShapeError:
            continue
        return count
    return 0


@torch.no_grad()
def place(spec: str, seed: int) -> dict[str, Any]:
    """Probe the normalizer of a spec and return one number or word for each question."""
    of_weights = spec in WEIGHT_NORMS
    weight, x = normal(seed + 20, C, 4), normal(seed + 21, N, 4, H, W)
    ignored = {name: is_invariant(moved) for name, moved in invariances(layer_of(spec), weight, x).items()}
    if of_weights:
        layer = parametrize_weight(nn.Conv2d(C, C, 1, bias=False).double(), spec)
        module: nn.Module = layer
        axes, over = dict.fromkeys(AXES, 0), rows_of(spec, seed)
        taken = removed(lambda w: normalized_weight(spec, w), weight)
        weights = layer.parametrizations.weight  # type: ignore[union-attr]
        gains = nn.ParameterList([weights.original0] if hasattr(weights, "original0") else weights[0].parameters())  # type: ignore[union-attr]
    else:
        module = gains = build(spec)  # type: ignore[assignment]
        with torch.enable_grad():
            axes, over = axes_of(module, seed), ""
        taken = removed(layer_of(spec)(torch.eye(C).double()), normal(seed + 22, N, C, H, W))
    return {
        "acts_on": "weights" if of_weights else "activations",
        "over": over,
        **axes,
        **taken,
        **ignored,
        **memory_of(module, seed + 23),
        "learned": learned(gains, C),
        "vectors": 1 if of_weights else smallest_batch(module),
        "maps": smallest_batch(module, H, W),
    }
