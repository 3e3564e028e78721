"""Weight normalization: length and direction of each row apart (`salimans2016`), and with the row centered (`huang2017`)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from normlib.mode import formula
from normlib.weights.rows import check_rows, fusible, row_axes, row_norm


@formula
def weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """Give each row the direction of `v` and the length `g`: `w = v * g / ‖v‖`.

    Args:
        v: directions, of shape (outputs, *).
        g: lengths, of shape (outputs, 1, ...); a negative one turns the direction around.

    Returns:
        A tensor of the shape of `v`. A row of zeros has no direction and gives nan.

    Source: `salimans2016`.
    """
    return v * (g / row_norm(v))


@formula
def centered_weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """Give each row the direction of `v` less its mean and the length `g`: `w = (v - mean) * g / ‖v - mean‖`.

    Args:
        v: raw weights, of shape (outputs, *).
        g: lengths, of shape (outputs, 1, ...).

    Returns:
        A tensor of the shape of `v`, whose rows sum to zero. A row of equal values has no direction and gives nan.

    Source: `huang2017`.
    """
    centered = v - v.mean(row_axes(v), keepdim=True)
    return centered * (g / row_norm(centered))


class WeightNorm(nn.Module):
    r"""Weight normalization, a parametrization of a weight by one length and one direction per output.

    **Idea.** The length of a row and its direction are learned apart. Whatever the direction's gradient does, the length
    stays; and as the gradient is orthogonal to $v$, plain gradient descent can only lengthen $v$, which lowers the rate at
    which the direction turns.

    **Formula.** $w_o = g_o\,v_o / \lVert v_o \rVert$, see `weight_norm`. Hence $\partial L / \partial g = \langle
    \partial L / \partial w, v \rangle / \lVert v \rVert$ and $\partial L / \partial v \perp v$.

    **Axes.** One norm per output (axis 0), over its fan-in.

    **eps.** None, as in torch: a row of zeros gives nan. Draw `v` before you parametrize.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: $g$ starts at $\lVert v \rVert$, so that parametrizing changes no weight;
    `data_dependent_init` starts as the paper does. From torch: none in value and gradient. Second derivatives are right here;
    torch's fused operation takes the norm for a constant in them (seen in 2.13). That is why it is not used, although it
    is faster. Parameters have torch's names, `parametrizations.weight.original0` ($g$) and `original1` ($v$), and
    checkpoints of `torch.nn.utils.parametrizations.weight_norm` load, both ways. As with every parametrization the layer is
    saved by its `state_dict`; it cannot be pickled whole.

    Args:
        weight: the weight to act on; only its shape is looked at.

    Shape:
        `g` (outputs, 1, ...) and `v` (outputs, *), output as `v`.

    Raises:
        WeightError: if the weight has fewer than two axes.

    Example:
        >>> import torch
        >>> from normlib.weights import parametrize_weight
        >>> layer = parametrize_weight(nn.Linear(5, 3), "weight")
        >>> g = layer.parametrizations.weight.original0
        >>> torch.allclose(layer.weight.norm(dim=1, keepdim=True), g)
        True

    Source: `salimans2016`.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        check_rows(type(self).__name__, weight, centers=False)

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Return the weight of lengths `g` and directions `v`."""
        return weight_norm(v, g)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return `g` and `v` that give `weight`."""
        return row_norm(weight), weight


class CenteredWeightNorm(nn.Module):
    r"""Centered weight normalization: as `WeightNorm`, of the row less its mean.

    **Idea.** A row that sums to zero does not answer to what all its inputs have in common, so a mean that the activation
    leaves on them is not passed on.

    **Formula.** $w_o = g_o\,(v_o - \bar v_o) / \lVert v_o - \bar v_o \rVert$, see `centered_weight_norm`. The gradient with
    respect to $v_o$ sums to zero and is orthogonal to $v_o$. It is `ScaledWeightStandardization` with a gain of $g_o$.

    **Axes.** One mean and one norm per output (axis 0), over its fan-in.

    **eps.** None, as in `WeightNorm`: a row of equal values gives nan.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: $g$ starts at the length of the centered row and is learned (in the paper a constant, or
    learned). torch has no such parametrization; names and shapes of the parameters are those of its `weight_norm`.

    Args:
        weight: the weight to act on; only its shape is looked at.

    Shape:
        `g` (outputs, 1, ...) and `v` (outputs, *), output as `v`.

    Raises:
        WeightError: if the weight has fewer than two axes or a fan-in of 1.

    Example:
        >>> from normlib.weights import parametrize_weight
        >>> layer = parametrize_weight(nn.Conv2d(2, 3, 3), "centered_weight")
        >>> bool(layer.weight.sum((1, 2, 3)).abs().max() < 1e-5)
        True

    Source: `huang2017`.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        check_rows(type(self).__name__, weight, centers=True)

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Return the weight of lengths `g` and directions `v` less their means."""
        if not fusible(v):
            return centered_weight_norm(v, g)
        rows = v.view(1, v.shape[0], -1)  # each row a group of one channel: it is standardized, its norm the root of its length
        scale = g.flatten() * rows.shape[-1] ** -0.5
        return F.group_norm(rows, v.shape[0], scale, None, 0.0).view_as(v)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return `g` and `v` that give `weight` less the means of its rows."""
        return row_norm(weight - weight.mean(row_axes(weight), keepdim=True)), weight
