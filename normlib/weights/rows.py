"""Rows of a weight: what one output sums over. Every normalizer of this package takes its statistics over a row.

A weight is (outputs, *): a linear layer's (outputs, inputs), a convolution's (outputs, inputs / groups, *kernel). The row of
an output is all that follows axis 0, and its number of values is the fan-in, C_in / groups · positions of the kernel.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import Module, ModuleDict
from torch.nn.utils.parametrize import ParametrizationList

from normlib.errors import NormlibError
from normlib.mode import by_formula

_HALF = (torch.float16, torch.bfloat16)


class WeightError(NormlibError, ValueError):
    """A layer or a weight that a weight normalizer cannot work with; the message holds the fix."""


def row_axes(weight: Tensor) -> tuple[int, ...]:
    """Return the axes of a row: all but the first."""
    return tuple(range(1, weight.ndim))


def row_norm(weight: Tensor) -> Tensor:
    """Return the Euclidean norm of each row, of shape (outputs, 1, ...)."""
    return torch.linalg.vector_norm(weight, dim=row_axes(weight), keepdim=True)


def per_row(weight: Tensor) -> tuple[int, ...]:
    """Return the shape (outputs, 1, ...) of a tensor with one value for each row."""
    return weight.shape[0], *[1] * (weight.ndim - 1)


def fusible(weight: Tensor) -> bool:
    """Return whether a fused operation may take the rows of `weight` as they lie, in the precision that it has."""
    return weight.is_contiguous() and weight.dtype not in _HALF and not by_formula()


def parametrization_of(layer: Module, name: str) -> ParametrizationList:
    """Return what torch keeps for a parametrized tensor: its parametrizations, and `original` or `original0`, `original1`."""
    found: ParametrizationList = cast(ModuleDict, layer.parametrizations)[name]  # type: ignore[assignment]
    return found


def check_rows(what: str, weight: Tensor, centers: bool) -> None:
    """Check that `weight` has rows.

    Args:
        what: the normalizer, for the message.
        weight: the weight that it will act on.
        centers: whether it subtracts the mean of a row; then a row holds more than one value.

    Raises:
        WeightError: if the weight has fewer than two axes, or a row is one value that would be centered.
    """
    shape = tuple(weight.shape)
    if weight.ndim < 2:
        raise WeightError(
            f"{what} takes a weight of shape (outputs, inputs, *), but got {shape}. Biases, gains and the weights of "
            "normalizers have no fan-in: parametrize the weight of a linear layer or a convolution."
        )
    if centers and weight[0].numel() == 1:
        raise WeightError(
            f"{what} subtracts from each output's weights their mean, but a weight of shape {shape} has one value per output, "
            "and that less its mean is 0. Use the spec 'weight', which does not center, or a kernel of more than one position."
        )
