"""What a normalized layer does not notice: the six transformations of weights and data in table 1 of `ba2016`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normlib.errors import NormlibError
from normlib.layers import NORMS
from normlib.spec import arguments_of, parse_spec

Layer = Callable[[Tensor], Tensor]
_FACTOR = 3.0


def _matrix_rescaling(weight: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return _FACTOR * weight, x


def _matrix_recentering(weight: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return weight + shift, x  # the same vector to every row


def _vector_rescaling(weight: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([_FACTOR * weight[:1], weight[1:]]), x


def _data_rescaling(weight: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return weight, _FACTOR * x


def _data_recentering(weight: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return weight, x + shift.view(-1, *[1] * (x.ndim - 2))


def _case_rescaling(weight: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return weight, torch.cat([_FACTOR * x[:1], x[1:]])


TRANSFORMATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "weight matrix rescaling": _matrix_rescaling,
    "weight matrix recentering": _matrix_recentering,
    "weight vector rescaling": _vector_rescaling,
    "dataset rescaling": _data_rescaling,
    "dataset recentering": _data_recentering,
    "single case rescaling": _case_rescaling,
}


def invariances(make_layer: Callable[[Tensor], Layer], weight: Tensor, inputs: Tensor) -> dict[str, float]:
    """Measure how far each transformation of `ba2016` moves the output of a layer.

    Each transformation is applied to the weight or to the inputs, a fresh layer is made, and all its outputs are compared
    with those before. Scales are multiplied by 3; what is added is a random vector, the same in each call. Random numbers
    that a layer draws are the same each time.

    Args:
        make_layer: from a weight of the shape of `weight` to the function that the layer computes, its normalization
            included. A norm acts on what the weight makes of the inputs (see `linear_and_norm`); a weight norm on the
            weight. A norm in evaluation mode, or one that learns from earlier calls, is another function: make it here.
        weight: weight of shape (units, features), best in float64.
        inputs: two cases or more, of shape (N, features, *).

    Returns:
        Name of the transformation to the largest change of an output, relative to the largest output: about the precision
        of the dtype, or as small as the layer's eps, where the layer is invariant; see `is_invariant`.

    Raises:
        NormlibError: if the shapes do not fit, there is one case only, or every output is zero.

    Example:
        >>> weight, inputs = torch.randn(4, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
        >>> moved = invariances(linear_and_norm("layer"), weight, inputs)
        >>> [name for name, deviation in moved.items() if is_invariant(deviation)]
        ['weight matrix rescaling', 'weight matrix recentering', 'dataset rescaling', 'single case rescaling']

    Source: `ba2016`, table 1.
    """
    if weight.ndim != 2 or inputs.ndim < 2 or inputs.shape[1] != weight.shape[1] or len(inputs) < 2:
        raise NormlibError(
            f"expected a weight (units, features) and inputs (N, features, *) of N > 1 cases, but got {tuple(weight.shape)} and "
            f"{tuple(inputs.shape)}. Features are in axis 1 of both."
        )
    shift = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(inputs)
    before = _output(make_layer, weight, inputs)
    largest = float(before.abs().max())
    if not largest:
        raise NormlibError("every output of the layer is zero, so no change can be told. Use other inputs, or random parameters.")
    return {
        name: float((_output(make_layer, *transform(weight, inputs, shift)) - before).abs().max()) / largest
        for name, transform in TRANSFORMATIONS.items()
    }


def is_invariant(deviation: float, tolerance: float = 1e-6) -> bool:
    """Return whether a deviation that `invariances` found is no more than rounding and eps make; NaN is not."""
    return deviation < tolerance


def linear_and_norm(spec: str, eps: float = 1e-12) -> Callable[[Tensor], Layer]:
    """Return what `invariances` takes for a linear layer without bias, followed by a norm: `weight -> (x -> norm(W x))`.

    Over positions (N, features, *) the linear layer is a 1x1 convolution. The norm is fresh and in train mode.

    Args:
        spec: the norm.
        eps: that of the norm, if it takes one and the spec does not set it: an eps breaks the invariance to scale where the
            values are not large beside it.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.
    """
    name, arguments = parse_spec(spec, NORMS)
    if "eps" in arguments_of(NORMS[name]):
        arguments = {"eps": eps, **arguments}

    def make_layer(weight: Tensor) -> Layer:
        norm = NORMS[name](len(weight), **arguments, device=weight.device, dtype=weight.dtype)

        def layer(x: Tensor) -> Tensor:
            output: Tensor = norm(torch.einsum("of,nf...->no...", weight, x))
            return output

        return layer

    return make_layer


@torch.no_grad()
def _output(make_layer: Callable[[Tensor], Layer], weight: Tensor, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        return make_layer(weight)(x)
