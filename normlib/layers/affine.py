"""The base of modules that learn a scale and a shift per channel."""

from __future__ import annotations

import torch
from torch import nn


class ChannelAffine(nn.Module):
    """Holds `weight` and `bias` of shape (C,), or None for each: a base, of no use by itself.

    Args:
        num_features: number of channels C.
        affine: whether there are `weight` and `bias`.
        device: where they are made.
        dtype: their dtype.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.affine = num_features, affine
        for name in ("weight", "bias"):
            vector = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if affine else None
            self.register_parameter(name, vector)

    def reset_parameters(self) -> None:
        """Set the scale to one, the shift to zero."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)
