"""Group normalization (`wu2018`): each sample is standardized over groups of its channels and all positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlib.layers.shapes import ShapeError, channel_affine, check_channels, check_count, divisors
from normlib.mode import by_formula, formula


@formula
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each group of channels of each sample: `(x - mean) / sqrt(var + eps) * weight + bias`.

    Args:
        x: input of shape (N, C, *).
        num_groups: the number G of groups of C / G neighboring channels that share mean and biased variance.
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        eps: added to the variance, under the root.

    Returns:
        A tensor of the shape of `x`.

    Source: `wu2018`, equations 1, 2 and 7.
    """
    groups = x.unflatten(1, (num_groups, -1))  # (N, G, C/G, *)
    axes = tuple(range(2, groups.ndim))
    mean = groups.mean(axes, keepdim=True)
    var = groups.var(axes, correction=0, keepdim=True)
    standard = (groups - mean) / (var + eps).sqrt()
    return channel_affine(standard.flatten(1, 2), weight, bias)


class GroupNorm(nn.GroupNorm):
    r"""Group normalization, as `torch.nn.GroupNorm`.

    **Idea.** Between layer normalization (all channels share statistics: G = 1) and instance normalization (none do: G = C).
    No batch is needed.

    **Formula.** $y = \gamma_c\,(x - \mu_{ng}) / \sqrt{\sigma_{ng}^2 + \epsilon} + \beta_c$, see `group_norm`.

    **Axes.** One mean and one variance per sample and group, over the group's channels and all positions.

    **Variance.** Biased. **eps** is added to the variance, under the root.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: none. From torch: none but the text of the errors.

    Args:
        num_groups: number of groups G; it divides C.
        num_channels: number of channels C.
        eps: see above.
        affine: whether to learn `weight` and `bias` of shape (C,).
        device: where parameters are made.
        dtype: their dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or the whole input is one value per group.
        ValueError: from the constructor, if G does not divide C.

    Example:
        >>> y = GroupNorm(2, 6)(5 + 2 * torch.randn(4, 6, 3, 3))
        >>> bool(y.unflatten(1, (2, 3)).mean((2, 3, 4)).abs().max() < 1e-5)
        True

    Source: `wu2018`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each group of channels of each sample of `input` (N, C, *)."""
        self._check_input(input)
        if by_formula():
            return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(input)

    def _check_input(self, input: Tensor) -> None:
        check_channels(type(self).__name__, input, self.num_channels)
        count = input.numel() // self.num_groups  # over the batch, as torch counts: it lets N > 1 pass
        check_count(count, "group", input, "Use fewer groups, so that channels share statistics.")


def grouped(
    num_features: int,
    groups: int | None = None,
    size: int | None = None,
    eps: float = 1e-5,
    affine: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> GroupNorm:
    """Make a `GroupNorm` from the number of groups or from their size: what the spec `"group"` names.

    Args:
        num_features: number of channels C.
        groups: number of groups. With neither `groups` nor `size` it is 32, the choice of `wu2018`.
        size: channels in a group; then there are C / size groups.
        eps: as in `GroupNorm`.
        affine: as in `GroupNorm`.
        device: where parameters are made.
        dtype: their dtype.

    Raises:
        ShapeError: if both are given, or the number does not divide C; the message holds the divisors that fit.

    Example:
        >>> grouped(24, size=8).num_groups
        3

    Source: `wu2018`.
    """
    if groups is not None and size is not None:
        raise ShapeError(f"group takes groups or size, not both; got groups={groups} and size={size}. Leave one out.")
    name, number = ("size", size) if size is not None else ("groups", 32 if groups is None else groups)
    fitting = divisors(num_features)
    if number not in fitting:
        raise ShapeError(
            f"group:{name}={number} does not divide {num_features} channels. What fits: {name}={', '.join(map(str, fitting))}."
        )
    num_groups = num_features // number if name == "size" else number
    return GroupNorm(num_groups, num_features, eps, affine, device, dtype)
