"""Multi-head self-attention."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.mode import by_formula, formula


@formula
def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Average the values by the match of queries and keys: `softmax(queries @ keys.mT / sqrt(d)) @ values`.

    Args:
        queries: of shape (N, heads, T, d).
        keys: of the same shape.
        values: of the same shape.

    Returns:
        A tensor of the same shape.

    Source: `vaswani2017`, section 3.2.
    """
    scores = queries @ keys.mT / math.sqrt(queries.shape[-1])
    return scores.softmax(-1) @ values


class SelfAttention(nn.Module):
    r"""Every token takes an average of all tokens' values, with weights of its own in each head.

    **Formula.** `attend` in each head, then a linear layer over the heads' outputs side by side. It does not know the order of
    the tokens: permuted tokens give the permuted output.

    The fast path is torch's fused operation. Its derivative has no derivative of its own on some devices: for
    Hessian-vector products run under `normlib.reference`.

    Args:
        qkv: the linear layer from C to 3C features: queries, keys and values.
        out: the linear layer from C to C features.
        heads: number of heads; a divisor of C.

    Shape:
        Input (N, T, C), output the same.

    Raises:
        NormlibError: if the heads do not divide the features.

    Example:
        >>> import torch
        >>> layer = SelfAttention(nn.Linear(8, 24), nn.Linear(8, 8), heads=2)
        >>> layer(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])

    Source: `vaswani2017`, section 3.2.
    """

    def __init__(self, qkv: nn.Linear, out: nn.Linear, heads: int) -> None:
        super().__init__()
        if heads < 1 or out.in_features % heads:
            raise NormlibError(f"attention got heads={heads} with {out.in_features} features; expected a divisor of these.")
        self.qkv, self.out, self.heads = qkv, out, heads

    def forward(self, input: Tensor) -> Tensor:
        """Map tokens (N, T, C) to tokens (N, T, C)."""
        queries, keys, values = self.qkv(input).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = (attend if by_formula() else F.scaled_dot_product_attention)(queries, keys, values)
        output: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return output

    def extra_repr(self) -> str:
        """Return the number of heads as torch prints it."""
        return f"heads={self.heads}"
