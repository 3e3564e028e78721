"""The deep linear network of `santurkar2018`: products of matrices, and nothing else that could be hard to optimize."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.networks.mlp import MLP


class DeepLinearNet(MLP):
    r"""Square linear layers, one after the other, without activations: $y = W_L \cdots W_1 x$.

    The function is linear however deep the network, and yet its loss is not convex in the weights. A norm follows every layer
    but the last, whose outputs are compared to the target: the paper does not say whether that one is normalized too, and a
    target of a scale of its own could not be met.

    Args:
        width: number of inputs, of units in each layer, and of outputs; 10 in the paper.
        depth: number of layers $L$; 25 in the paper.
        norm: a norm spec, see `normlib.surgery.normalize`.
        init: an initialization spec, see `make_initializer`.
        bias: whether the linear layers have a bias; those of a batch norm follow anyway.
        seed: seed of the initial weights.

    Attributes:
        blocks: `blocks[l]` has the children `layer`, `norm`, `activation`, the last of which is the identity.
        head: the last linear layer.

    Shape:
        Input (N, width), output the same.

    Raises:
        NormlibError: if width or depth is below 1.

    Example:
        >>> net = DeepLinearNet(norm="batch")
        >>> net(torch.randn(4, 10)).shape, len(net.blocks)
        (torch.Size([4, 10]), 24)

    Source: `santurkar2018`, appendix A.1.
    """

    def __init__(
        self,
        width: int = 10,
        depth: int = 25,
        norm: str = "none",
        init: str = "glorot_normalized",
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        if width < 1 or depth < 1:
            raise NormlibError(f"DeepLinearNet got width={width} and depth={depth}; expected 1 or more of both, as 10 and 25.")
        super().__init__([width] * (depth + 1), "identity", norm, init, bias, seed)

    def product(self) -> Tensor:
        r"""Return $W_L \cdots W_1$ (width, width): the whole network, where it has neither biases nor norms of activations."""
        layers = [module for module in self.modules() if isinstance(module, nn.Linear)]
        return functools.reduce(lambda product, layer: torch.mm(layer.weight, product), layers[1:], layers[0].weight)
