"""What a definition is, and the sums that most of them share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

CHANNELS = 4
SHAPES = [(3, 4), (2, 4, 3), (2, 4, 3, 2), (2, 4, 2, 1, 3), (2, 4, 2, 1, 2, 2)]
MAPS = SHAPES[1:]
EPS = 0.3  # large, so that its place matters

State = dict[str, Tensor]  # parameters and buffers by their names in state_dict
Share = Callable[[tuple[int, ...]], Hashable]


@dataclass(frozen=True)
class Case:
    """A norm and its definition.

    Attributes:
        spec: what `make_norm` builds for 4 channels; it sets eps to `EPS`, so that the place of eps is tested.
        define: `(x, state, training) -> (output, the buffers that changed)`. It may draw from torch's global generator, in
            the order in which the layer draws.
        shapes: inputs (N, 4, *) to try.
    """

    spec: str
    define: Callable[[Tensor, State, bool], tuple[Tensor, State]]
    shapes: tuple[tuple[int, ...], ...] = tuple(SHAPES)

    def __str__(self) -> str:
        return self.spec


def sets_of(x: Tensor, share: Share) -> dict[Hashable, list[Tensor]]:
    """Group the elements of `x` by the name that `share` gives their index."""
    members: dict[Hashable, list[Tensor]] = defaultdict(list)
    for index in product(*map(range, x.shape)):
        members[share(index)].append(x[index])
    return members


def moments(x: Tensor, share: Share) -> dict[Hashable, tuple[Tensor, Tensor, int]]:
    """Return mean, biased variance and number of elements of each set."""
    found = {}
    for name, values in sets_of(x, share).items():
        mean = torch.stack(values).sum() / len(values)
        found[name] = mean, sum((v - mean) ** 2 for v in values) / len(values), len(values)
    return found


def elementwise(x: Tensor, function: Callable[[tuple[int, ...], Tensor], Tensor]) -> Tensor:
    """Build a tensor of the shape of `x` from `function(index, element)`."""
    return torch.stack([function(index, x[index]) for index in product(*map(range, x.shape))]).reshape(x.shape)


def affine(y: Tensor, state: State) -> Tensor:
    """Apply `weight` and `bias` of `state`, where there are such, along axis 1."""
    weight, bias = state.get("weight"), state.get("bias")
    scaled = y if weight is None else elementwise(y, lambda i, v: v * weight[i[1]])
    return scaled if bias is None else elementwise(scaled, lambda i, v: v + bias[i[1]])


def moved(state: State, mean: Tensor, unbiased: Tensor, rate: float = 0.1) -> State:
    """Return the running statistics after one step towards `mean` and `unbiased`."""
    return {
        "running_mean": (1 - rate) * state["running_mean"] + rate * mean.detach(),
        "running_var": (1 - rate) * state["running_var"] + rate * unbiased.detach(),
        "num_batches_tracked": state["num_batches_tracked"] + 1,
    }
