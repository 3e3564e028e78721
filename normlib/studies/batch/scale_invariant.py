"""What the studies of the weights' scale share: a network that sees no length of its weights, and measures of that length."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from normlib.layers import BatchNorm
from normlib.networks import MLP
from normlib.probes import effective_rates
from normlib.training import Step

SHARPNESS, TINY = 3.0, 1e-30  # the gain of the outputs; eps → 0


def scale_invariant_mlp(sizes: list[int], norm: str, seed: int) -> nn.Module:
    """Build a ReLU network in float64 whose loss does not depend on the length of any weight vector, if `norm` is "batch".

    Batch normalization without gain or shift follows every layer, the last included, whose outputs have a fixed gain. With "none"
    it is an ordinary network with biases, from the same weights.
    """
    spec = "none" if norm == "none" else f"batch:affine=False,eps={TINY!r}"
    net = MLP(sizes, activation="relu", norm=spec, init="he", bias=norm == "none", seed=seed)
    if norm == "none":
        return net.double()
    top = BatchNorm(sizes[-1], TINY).requires_grad_(False)
    top.weight.fill_(SHARPNESS)
    return nn.Sequential(net, top).double()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights, without biases."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.ndim > 1}


def typical_rate(model: nn.Module, rate: float) -> float:
    """Return η / ‖w‖², the median over the units of a layer, the geometric mean over layers."""
    return geometric_mean(effective_rates(weights_of(model), rate, per_output=True)["effective_rate"])


@torch.no_grad()
def stretched(model: nn.Module, factor: float) -> nn.Module:
    """Copy a model with its weights multiplied by a factor."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            parameter.mul_(factor)
    return model


def gradients_of(step: Step) -> list[Tensor]:
    """Return the gradients of the weights, without biases."""
    return [gradient for gradient in step.gradients().values() if gradient.ndim > 1]


def squares(tensors: list[Tensor]) -> Tensor:
    """Return the squared length of each tensor."""
    return torch.stack([tensor.square().sum() for tensor in tensors])


def geometric_mean(values: list[float]) -> float:
    """Return exp of the mean logarithm."""
    return float(np.exp(np.mean(np.log(values))))


def length(model: nn.Module) -> float:
    """Return the length of all weights as one vector."""
    return float(squares(list(weights_of(model).values())).sum().sqrt())


class Settled:
    """A probe of the rate that acts, which gathers what the balance of decay and gradient says that it should be."""

    def __init__(self) -> None:
        self.squares: list[list[Tensor]] = []

    def __call__(self, step: Step, model: nn.Module) -> dict[str, float]:
        """Note the squared gradient of each unit, times its squared length: that at unit length."""
        pairs = zip(weights_of(model).values(), gradients_of(step), strict=True)
        self.squares.append([w.square().sum(1) * g.square().sum(1) for w, g in pairs])
        return {"rate": typical_rate(model, step.rate)}

    def balanced_rate(self, product: float) -> float:
        """Return √(2ηλ) / ‖g‖ with the root mean square of the gradients at unit length; averaged as `typical_rate` is."""
        layers = [torch.stack(steps).mean(0) for steps in zip(*self.squares, strict=True)]
        return geometric_mean([float((2 * product / layer).sqrt().median()) for layer in layers])
