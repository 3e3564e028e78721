"""Fixup (`zhang2019fixup`): an initialization under which one step changes the network as much at any depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.residual.join import Join, ScalarBias
from normlib.residual.scheme import ResidualScheme

WeightLayer = nn.Linear | nn.modules.conv._ConvNd


def fixup_factor(num_branches: int, layers_per_branch: int) -> float:
    r"""Return $L^{-1/(2m - 2)}$, by which all but the last weight layer of each branch are scaled down.

    The last layers start at zero, so what a step does to the output of a branch goes with the squares of its other
    $m - 1$ layers: the factor to the power $2m - 2$, which is $1/L$. The $L$ branches together then move the network as far
    as one branch alone.

    Args:
        num_branches: number of residual branches $L$ in the network.
        layers_per_branch: number of weight layers $m$ in each, 2 or more.

    Raises:
        NormlibError: if there is no branch, or a branch has no layer but its last.

    Example:
        >>> fixup_factor(16, 2), fixup_factor(16, 3)  # basic blocks, bottlenecks
        (0.25, 0.5)

    Source: `zhang2019fixup`.
    """
    if num_branches < 1 or layers_per_branch < 2:
        raise NormlibError(
            f"fixup_factor got {num_branches} branches of {layers_per_branch} weight layers; expected 1 branch or more, of 2 "
            "layers or more: the last layer of a branch starts at zero, and the factor is for the others."
        )
    return float(num_branches ** (-1 / (2 * layers_per_branch - 2)))


@torch.no_grad()
def fixup_init(branches: Sequence[nn.Module], head: nn.Module) -> None:
    """Turn weights drawn by He's rule into Fixup's initial weights, in place.

    The head and the last weight layer of each branch become zero, with their biases; the other weight layers of each branch
    are multiplied by `fixup_factor`. What lies outside the branches, first layer and projections, is left as drawn.

    Args:
        branches: all residual branches of the network, without their shortcuts. The order in which the modules of a branch
            were registered counts as the order in which they run.
        head: the classifier, or a module that ends in it.

    Raises:
        NormlibError: if a branch or the head has no weight layer, or a weight is computed from other parameters.

    Example:
        >>> branches = [nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(4)]
        >>> _ = nn.init.ones_(branches[0][0].weight)
        >>> fixup_init(branches, nn.Linear(2, 3))
        >>> branches[0][0].weight.tolist(), branches[0][2].weight.tolist()
        ([[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]])

    Source: `zhang2019fixup`, rules 1 and 2.
    """
    found = [_weight_layers(branch) for branch in branches]
    *_, classifier = _weight_layers(head)
    for layers in found:
        for layer in layers[:-1]:
            layer.weight.mul_(fixup_factor(len(found), len(layers)))
    for layer in [classifier, *(layers[-1] for layers in found)]:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Fixup(ResidualScheme):
    r"""Residual branches that start at zero, with their other layers scaled down by the depth of the network.

    **Idea.** Without normalization one step of gradient descent changes a deep residual network by an amount that grows with
    its depth. Fixup chooses the initial weights so that it is of the order of the learning rate at any depth.

    **Formula.** (1) Head and last layer of each branch: 0. (2) The other $m - 1$ layers of a branch: He's initialization times
    $L^{-1/(2m - 2)}$, see `fixup_init`. (3) One scalar multiplier per branch, initially 1 (`join`), and one scalar bias,
    initially 0, before each convolution, linear layer and activation (`shift`): $x_{l+1} = x_l + g_l f_l(x_l)$.

    **Departures.** The authors' code draws by He's rule over the fan-out; here the weights are as the network drew them, so a
    seed gives the same draws for every scheme. Ask the network for He's initialization and for weight layers without biases.
    That code trains the scalars at a tenth of the learning rate, and its networks on CIFAR have shortcuts without parameters.
    A branch of one weight layer has no other to scale down; what a step changes then grows with $L$.

    Args:
        stages: see `ResidualScheme`.
        device: see `ResidualScheme`.
        dtype: see `ResidualScheme`.

    Example:
        >>> scheme = Fixup([2, 2])
        >>> scheme.shift(), scheme.join(0, 0)
        (ScalarBias(), Join(shortcut_scale=1, branch_scale=1, gain=1.0))

    Source: `zhang2019fixup`.
    """

    def shift(self) -> nn.Module:
        """Build a scalar bias."""
        return ScalarBias(self.device, self.dtype)

    def join(self, stage: int, block: int) -> nn.Module:
        """Build the sum with a multiplier on the branch."""
        return Join(gain=1.0, device=self.device, dtype=self.dtype)

    def initialize(self, branches: Sequence[nn.Module], head: nn.Module) -> None:
        """Apply `fixup_init`.

        Raises:
            NormlibError: if there are not as many branches as blocks, and as `fixup_init` does.
        """
        if len(branches) != self.depth:
            raise NormlibError(f"Fixup was made for {self.depth} branches, stages {self.stages}, but got {len(branches)}.")
        fixup_init(branches, head)


def _weight_layers(module: nn.Module) -> list[WeightLayer]:
    """Return the linear layers and convolutions of a module."""
    layers = [part for part in module.modules() if isinstance(part, WeightLayer)]
    if not layers:
        raise NormlibError(f"fixup_init found no linear layer and no convolution in this {type(module).__name__}: {module}")
    for layer in layers:
        if not isinstance(layer.weight, nn.Parameter):
            raise NormlibError(
                f"the weight of {layer} is computed from other parameters, so Fixup cannot set it. Use plain weights: "
                "Fixup takes the place of weight normalization and standardization too."
            )
    return layers
