"""Initial weights, by name: each scheme fills a weight of shape (outputs, inputs, *) from a generator passed in.

Every scheme has zero mean. `fan_in` is the number of values that one output sums over, `fan_out` the number of outputs
that one value reaches: both count the positions of a convolution's kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from normlib.errors import NormlibError
from normlib.registry import Registry
from normlib.spec import parse_spec

Initializer = Callable[[Tensor, Generator], Tensor]

INITIALIZATIONS = Registry(
    "initialization",
    {
        "lecun": "normlib.networks.initialization:lecun",
        "glorot_standard": "normlib.networks.initialization:glorot_standard",
        "glorot_normalized": "normlib.networks.initialization:glorot_normalized",
        "he": "normlib.networks.initialization:he",
        "xavier_fan_in": "normlib.networks.initialization:xavier_fan_in",
        "normal": "normlib.networks.initialization:normal",
        "orthogonal": "normlib.networks.initialization:orthogonal",
    },
    hint="A spec reads 'name' or 'name:argument=value', as in 'normal:std=0.01'.",
)


def make_initializer(spec: str) -> Initializer:
    """Return the function `f(weight, generator)` that a spec names; it fills the weight in place and returns it.

    Args:
        spec: for example `"he"` or `"normal:std=0.01"`.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.

    Example:
        >>> weight = make_initializer("he")(torch.empty(200, 50), torch.Generator().manual_seed(0))
        >>> round(float(weight.std()), 2)  # sqrt(2 / 50)
        0.2
    """
    name, arguments = parse_spec(spec, INITIALIZATIONS)
    return functools.partial(INITIALIZATIONS[name], **arguments)


def fans(weight: Tensor) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight of shape (outputs, inputs, *).

    Raises:
        NormlibError: if the weight has fewer than two axes.
    """
    if weight.ndim < 2:
        raise NormlibError(
            f"a weight of shape {tuple(weight.shape)} has no fan-in: expected (outputs, inputs, *). "
            "Biases and gains are set to a constant, not drawn."
        )
    positions = math.prod(weight.shape[2:])
    return weight.shape[1] * positions, weight.shape[0] * positions


@torch.no_grad()
def normal(weight: Tensor, generator: Generator, *, std: float = 0.01) -> Tensor:
    """Fill with N(0, std²)."""
    return weight.normal_(0.0, std, generator=generator)


@torch.no_grad()
def uniform(weight: Tensor, generator: Generator, *, bound: float) -> Tensor:
    """Fill with U[-bound, bound], whose variance is bound² / 3."""
    return weight.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def orthogonal(weight: Tensor, generator: Generator, *, gain: float = 1.0) -> Tensor:
    """Fill with `gain` times rows of length 1 at right angles, as (outputs, inputs · positions); columns, if there are fewer.

    Source: `saxe2014`.
    """
    return nn.init.orthogonal_(weight, gain, generator=generator)


def lecun(weight: Tensor, generator: Generator) -> Tensor:
    """Fill with N(0, 1 / fan_in).

    Source: `lecun1998`, eq. 16.
    """
    return normal(weight, generator, std=fans(weight)[0] ** -0.5)


def glorot_standard(weight: Tensor, generator: Generator) -> Tensor:
    """Fill with U[±1 / sqrt(fan_in)], variance 1 / (3 fan_in): the heuristic that `glorot2010` argues against.

    Source: `glorot2010`, eq. 1.
    """
    return uniform(weight, generator, bound=fans(weight)[0] ** -0.5)


def glorot_normalized(weight: Tensor, generator: Generator) -> Tensor:
    """Fill with U[±sqrt(6 / (fan_in + fan_out))], variance 2 / (fan_in + fan_out).

    Source: `glorot2010`, eq. 16.
    """
    return uniform(weight, generator, bound=math.sqrt(6 / sum(fans(weight))))


def he(weight: Tensor, generator: Generator) -> Tensor:
    """Fill with N(0, 2 / fan_in).

    Source: `he2015`, eq. 10.
    """
    return normal(weight, generator, std=math.sqrt(2 / fans(weight)[0]))


def xavier_fan_in(weight: Tensor, generator: Generator) -> Tensor:
    """Fill with N(0, 1 / fan_in): the "Xavier" arm of `he2015`, which is neither scheme of `glorot2010`.

    Source: `he2015`.
    """
    return lecun(weight, generator)
