"""What batch normalization does in evaluation, by numbers: spreads, what is left of the start, what depends on the batch."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from normlib.layers import BatchNorm
from normlib.networks import MLP
from normlib.probes import record_activations
from normlib.surgery import reestimate_statistics

LAYERS = 5  # of the network of random weights


def second_layer_spread(batch: int) -> float:
    """Return the standard deviation, in evaluation, of the normalized second layer of a wide ReLU network on normal inputs.

    Among `batch` normalized numbers any two have the correlation −1/(batch − 1). So while the statistics of the second layer
    are collected, items differ by more than they will in evaluation, where they are independent.
    """
    angle = math.acos(-1 / (batch - 1))
    product = (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)  # E relu(x̂ᵢ) relu(x̂ⱼ) within a batch
    return math.sqrt((1 / 2 - 1 / (2 * math.pi)) / (1 / 2 - product))


def spread_by_layer(batch: int, width: int, samples: int, seed: int, device: str) -> dict[str, list[float]]:
    """Take population statistics from batches of normal inputs; return the spread of each normalized layer on fresh inputs.

    Returns:
        Standard deviations, the lowest layer first: "corrected" by m/(m − 1) in each layer, and "biased".
    """
    net = MLP([width] * (LAYERS + 1) + [1], "relu", norm=f"batch:ghost={batch}", init="he", seed=seed).to(device)
    x = torch.randn(2, samples, width, generator=torch.Generator().manual_seed(seed)).to(device)
    reestimate_statistics(net, [x[0]])
    spreads = {"corrected": spreads_in_evaluation(net, x[1])}
    for norm in norms_of(net):
        norm.get_buffer("running_var").mul_((batch - 1) / batch)
    return {**spreads, "biased": spreads_in_evaluation(net, x[1])}


def spreads_in_evaluation(net: nn.Module, x: Tensor) -> list[float]:
    """Return the standard deviation of the output of each batch norm, the root mean square over its units."""
    outputs = record_activations(net, x, BatchNorm, training=False).values()
    return [float(output.var(0, correction=0).mean().sqrt()) for output in outputs]


def norms_of(net: nn.Module) -> list[BatchNorm]:
    """List the batch norms of a network."""
    return [module for module in net.modules() if isinstance(module, BatchNorm)]


def statistics_of(net: nn.Module) -> Tensor:
    """Lay all running means and variances of a network end to end."""
    return torch.cat([norm.get_buffer(name) for norm in norms_of(net) for name in ("running_mean", "running_var")])


def start_left(net: nn.Module, fresh: nn.Module) -> float:
    """Return which share of their start, 0 and 1, the running statistics still hold; `fresh` has those that are right."""
    new = copy.deepcopy(net)
    for norm in norms_of(new):
        norm.reset_running_stats()
    right = statistics_of(fresh)
    away = statistics_of(new) - right
    return float((statistics_of(net) - right) @ away / away.square().sum())


@torch.no_grad()
def share_changed(net: nn.Module, x: Tensor, seed: int) -> float:
    """Return which share of inputs gets another class when it is batched with other inputs, by the statistics of each batch."""
    net, generator = copy.deepcopy(net).train(), torch.Generator().manual_seed(seed)
    classes = []
    for _ in range(2):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        classes.append(net(x[order]).argmax(1)[order.argsort()])
    return float((classes[0] != classes[1]).float().mean())
