"""A small vision transformer, with a norm spec for every site, and three orders of norm and residual sum."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.activations import make_activation
from normlib.errors import NormlibError, unknown
from normlib.layers import make_norm
from normlib.networks.attention import SelfAttention
from normlib.networks.blocks import WeightLayers
from normlib.networks.drop_path import drop_paths
from normlib.networks.initialization import normal
from normlib.surgery import split_kinds
from normlib.weights import parametrize_weight

_ORDERS = {"pre": ("before",), "post": ("after",), "peri": ("before", "inside")}
_POSITIONS = ("learned", "fixed", "none")
_POOLS = ("mean", "token")
_STD = 0.02  # of the learned positions and the class token


class ViT(nn.Module):
    r"""Vision transformer: patches become tokens, which attend to each other; their mean, or one token more, is classified.

    A block has two residual sublayers, attention and MLP. Where their norms stand is the `order`: before the sublayer,
    $x + f(\mathrm{N}(x))$; after the sum, $\mathrm{N}(x + f(x))$, as in `vaswani2017`; or before and at the end of
    the sublayer, $x + \mathrm{N}(f(\mathrm{N}(x)))$. But for the order "post" one more norm follows the last block. Weights
    are drawn as in `MLP`: a seed gives the same ones for any norm and order.

    Args:
        image_size: side of the images in pixels.
        patch: side of the patches, a divisor of `image_size`.
        dim: number of features C of a token.
        depth: number of blocks.
        heads: number of attention heads, a divisor of `dim`.
        mlp_ratio: hidden units of the MLPs, in multiples of `dim`.
        in_channels: channels of the images.
        classes: number of outputs.
        norm: a norm spec, see `normlib.surgery.normalize`, for tokens: `"layer"` normalizes each by itself. A norm of weights acts
            on the linear layers of the blocks.
        order: `"pre"`, `"post"` or `"peri"`.
        positions: what is added to the tokens: `"learned"`, `"fixed"` sines and cosines of row and column, or `"none"`.
        pool: `"mean"` of the tokens, or one more `"token"`, the class token, for the head.
        activation: a key of `ACTIVATIONS`, for the MLPs.
        drop_path: rate of stochastic depth in the last block; it grows linearly up to there, see `DropPath`.
        init: an initialization spec, see `make_initializer`; biases start at zero. Queries, keys and values are drawn as one
            matrix, as in `torch.nn.MultiheadAttention`. Learned positions and the class token are N(0, 0.02²).
        seed: seed of the initial weights.

    Attributes:
        patches: the convolution that embeds patches.
        blocks: each with the children `attention` and `mlp`, see `ResidualSublayer`.
        final: the norm after the last block; for "post" the identity.
        head: the linear layer.

    Shape:
        Input (N, in_channels, image_size, image_size), output (N, classes).

    Raises:
        NormlibError: if an argument is none of those named, or sizes do not divide; in `forward`, if the images have another size.

    Example:
        >>> net = ViT(image_size=8, patch=4, dim=16, depth=2, heads=2, norm="layer", order="peri")
        >>> net(torch.ones(3, 3, 8, 8)).shape
        torch.Size([3, 10])

    Source: `dosovitskiy2021`; for the orders "pre" and "post" `xiong2020`, for "peri" `kim2025`.
    """

    token: Tensor | None
    positions: Tensor | None

    def __init__(
        self,
        image_size: int = 32,
        patch: int = 4,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        in_channels: int = 3,
        classes: int = 10,
        norm: str = "layer",
        order: str = "pre",
        positions: str = "learned",
        pool: str = "mean",
        activation: str = "gelu",
        drop_path: float = 0.0,
        init: str = "glorot_normalized",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(image_size, patch, depth, order, positions, pool)
        weights, side = WeightLayers(init, seed), image_size // patch
        self.image_shape, self.pool = (in_channels, image_size, image_size), pool
        self.patches = weights(nn.Conv2d, in_channels, dim, patch, stride=patch)
        paths = drop_paths(drop_path, depth)
        shape = (dim, heads, round(dim * mlp_ratio))
        self.blocks = nn.Sequential(*[_block(weights, *shape, norm, order, activation, path) for path in paths])
        self.final = nn.Identity() if order == "post" else _token_norm(norm, dim)
        self.head = weights(nn.Linear, dim, classes)
        extra = int(pool == "token")
        self.register_parameter("token", _drawn(weights, 1, dim) if extra else None)
        if positions == "fixed":  # the class token has none
            self.register_buffer("positions", F.pad(fixed_positions(side, dim), (0, 0, extra, 0)), persistent=False)
        else:
            self.register_parameter("positions", _drawn(weights, side**2 + extra, dim) if positions == "learned" else None)

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, in_channels, image_size, image_size) to outputs (N, classes)."""
        tokens = self.final(self.blocks(self.embed(input)))
        output: Tensor = self.head(tokens[:, 0] if self.pool == "token" else tokens.mean(1))
        return output

    def embed(self, input: Tensor) -> Tensor:
        """Return the tokens (N, T, C) of images, with their positions; the class token, if there is one, comes first."""
        if input.shape[1:] != self.image_shape:
            raise NormlibError(
                f"ViT expects images (N, {', '.join(map(str, self.image_shape))}), but got {tuple(input.shape)}. Build it with "
                "their in_channels and image_size."
            )
        tokens = self.patches(input).flatten(2).mT
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        return tokens if self.positions is None else tokens + self.positions


class ResidualSublayer(nn.Module):
    """A residual branch and the norms around it: `after(x + drop_path(inside(branch(before(x)))))`.

    Args:
        branch: the sublayer.
        norms: `before`, `inside` and `after`, those of them that are there.
        drop_path: stochastic depth of the branch.

    Shape:
        Input (N, T, C), output the same.
    """

    def __init__(self, branch: nn.Module, norms: dict[str, nn.Module], drop_path: nn.Module) -> None:
        super().__init__()
        self.before = norms.get("before", nn.Identity())
        self.branch = branch
        self.inside, self.after = norms.get("inside", nn.Identity()), norms.get("after", nn.Identity())
        self.drop_path = drop_path

    def forward(self, input: Tensor) -> Tensor:
        """Map tokens (N, T, C) to tokens (N, T, C)."""
        output: Tensor = self.after(input + self.drop_path(self.inside(self.branch(self.before(input)))))
        return output


def fixed_positions(side: int, dim: int) -> Tensor:
    r"""Return sines and cosines (side², dim) of row and column at wavelengths from 2π to 2π · 10⁴.

    Args:
        side: number of patches along each axis.
        dim: number of features, a multiple of 4: sines and cosines of the row, then of the column.

    Raises:
        NormlibError: if `dim` is no multiple of 4.

    Example:
        >>> fixed_positions(2, 4)[1]  # row 0, column 1
        tensor([0.0000, 1.0000, 0.8415, 0.5403])

    Source: `vaswani2017`, section 3.5, for a single axis.
    """
    if dim % 4:
        raise NormlibError(f"fixed positions have sines and cosines of row and column: dim={dim} should be a multiple of 4.")
    frequencies = 10_000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves.repeat_interleave(side, 0), waves.repeat(side, 1)
    return torch.cat([rows, columns], 1).to(torch.get_default_dtype())


def _block(
    weights: WeightLayers, dim: int, heads: int, hidden: int, norm: str, order: str, activation: str, drop_path: nn.Module
) -> nn.Sequential:
    """Build one block: children `attention` and `mlp`."""
    weight_norm = split_kinds(norm)[0]

    def linear(inputs: int, outputs: int) -> nn.Linear:
        layer: nn.Linear = weights(nn.Linear, inputs, outputs)  # type: ignore[assignment]
        return layer if weight_norm is None else parametrize_weight(layer, weight_norm)

    def sublayer(branch: nn.Module) -> ResidualSublayer:
        return ResidualSublayer(branch, {place: _token_norm(norm, dim) for place in _ORDERS[order]}, drop_path)

    attention = SelfAttention(linear(dim, 3 * dim), linear(dim, dim), heads)
    mlp = OrderedDict(layer=linear(dim, hidden), activation=make_activation(activation), out=linear(hidden, dim))
    return nn.Sequential(OrderedDict(attention=sublayer(attention), mlp=sublayer(nn.Sequential(mlp))))


def _token_norm(norm: str, dim: int) -> nn.Module:
    return make_norm(split_kinds(norm)[1], dim, channel_axis=-1)


def _drawn(weights: WeightLayers, tokens: int, dim: int) -> nn.Parameter:
    return nn.Parameter(normal(torch.empty(1, tokens, dim), weights.generator, std=_STD))


def _check(image_size: int, patch: int, depth: int, order: str, positions: str, pool: str) -> None:
    if patch < 1 or image_size < patch or image_size % patch:
        raise NormlibError(
            f"ViT got patch={patch} with image_size={image_size}; expected patches that tile the image, as 4 and 32."
        )
    if depth < 1:
        raise NormlibError(f"ViT got depth={depth}; expected the number of blocks, 1 or more.")
    for kind, value, known in (("order", order, _ORDERS), ("positions", positions, _POSITIONS), ("pool", pool, _POOLS)):
        if value not in known:
            raise unknown(f"{kind} of ViT", value, known)
