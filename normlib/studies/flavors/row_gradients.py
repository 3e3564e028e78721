"""What standardizing the rows of a weight does to its gradient, by hand and in a network."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrize

from normlib.networks import PlainConvNet
from normlib.studies.common.statements import gap
from normlib.weights import weight_standardization


def standardized_backward(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of the raw weights by hand, from that of the standardized ones: two directions out, then over σ.

    Args:
        weight: raw weights, shape (outputs, *).
        gradient: of the standardized weights, the same shape.
    """
    standard = weight_standardization(weight, eps=0.0)
    axes = tuple(range(1, weight.ndim))
    rest = gradient - gradient.mean(axes, keepdim=True) - standard * (gradient * standard).mean(axes, keepdim=True)
    return rest / weight.std(axes, correction=0, keepdim=True)


def removed(weight: Tensor, gradient: Tensor) -> tuple[float, float]:
    """Return which shares of the squared gradient lie along the mean of the rows, and along the centered rows themselves.

    Args:
        weight: the weights that the layer multiplies by, shape (outputs, *).
        gradient: of these weights.
    """
    standard, g = weight_standardization(weight.detach(), eps=0.0).flatten(1), gradient.flatten(1)
    whole, fan_in = g.square().sum(), g.shape[1]
    along = [g.sum(1).square().sum() / fan_in, (g * standard).sum(1).square().sum() / fan_in]
    mean, row = (float(square / whole) for square in along)
    return mean, row


def convolutions(network: PlainConvNet) -> list[Any]:
    """Return the convolutions of a network, the first of them first."""
    return [block.layer for block in network.blocks]


def shares(network: PlainConvNet, x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    """Return `removed` of each convolution, two lists; the network stays as it is."""
    network = copy.deepcopy(network).train()
    with parametrize.cached():
        weights = [layer.weight for layer in convolutions(network)]
        gradients = torch.autograd.grad(F.cross_entropy(network(x), y), weights)
    along_mean, along_row = zip(*map(removed, weights, gradients), strict=True)
    return list(along_mean), list(along_row)


def identities(network: PlainConvNet, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """Return by how much, in double precision, three exact statements on standardized weights are missed; relative numbers.

    The gradient sums to zero over each row; it is `standardized_backward` of that with respect to the standardized weights; the
    output stays if every filter is scaled and shifted.
    """
    network, x = copy.deepcopy(network).double().train(), x.double()
    raw = [layer.parametrizations.weight.original for layer in convolutions(network)]
    with parametrize.cached():
        standardized = [layer.weight for layer in convolutions(network)]
        output = network(x)
        found = torch.autograd.grad(F.cross_entropy(output, y), [*raw, *standardized])
    slopes, upstream = found[: len(raw)], found[len(raw) :]
    by_hand = max(gap(standardized_backward(*pair).detach(), slope) for *pair, slope in zip(raw, upstream, slopes, strict=True))
    row_sum = max(float(slope.flatten(1).sum(1).abs().max() / slope.flatten(1).norm(dim=1).max()) for slope in slopes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in raw:
            scale, shift = torch.rand(2, len(weight), 1, 1, 1, generator=generator, dtype=torch.float64).to(weight)
            weight.mul_(0.5 + scale).add_(shift * weight.std())
        return {"by_hand": by_hand, "row_sum": row_sum, "affine": gap(network(x), output.detach())}
