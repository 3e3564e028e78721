"""The multilayer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.networks.blocks import WeightLayers, block


class MLP(nn.Module):
    r"""Blocks Linear → norm → activation, then a linear head: $h_{l+1} = f(\mathrm{norm}(W_l h_l + b_l))$.

    The weights are drawn in forward order from a generator of their own. So a seed gives the same weights whatever the norm
    and the activation, and arms that differ in the norm differ in nothing else.

    Args:
        sizes: number of inputs, of units in each hidden layer, and of outputs; two numbers give a linear model.
        activation: a key of `ACTIVATIONS`.
        norm: a norm spec, see `normlib.surgery.normalize`.
        init: an initialization spec, see `make_initializer`; biases start at zero.
        bias: whether the linear layers have a bias.
        seed: seed of the initial weights.

    Attributes:
        blocks: `blocks[l]` has the children `layer`, `norm`, `activation`.
        head: the last linear layer.

    Shape:
        Input (N, *) with `sizes[0]` values an item, output (N, sizes[-1]).

    Raises:
        NormlibError: if `sizes` holds fewer than two numbers, or a number below 1.

    Example:
        >>> import torch
        >>> net = MLP([4, 8, 3], activation="relu", norm="batch", init="he")
        >>> net(torch.ones(5, 2, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "tanh",
        norm: str = "none",
        init: str = "lecun",
        bias: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise NormlibError(f"MLP got sizes={list(sizes)}; expected [inputs, hidden ..., outputs], all positive.")
        weights = WeightLayers(init, seed)
        *hidden, last = itertools.pairwise(sizes)
        self.blocks = nn.Sequential(*[block(weights(nn.Linear, *pair, bias=bias), norm, activation) for pair in hidden])
        self.head = weights(nn.Linear, *last, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map `input` (N, *) to outputs (N, sizes[-1])."""
        output: Tensor = self.head(self.blocks(input.flatten(1)))
        return output
