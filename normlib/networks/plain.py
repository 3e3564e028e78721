"""Plain convolutional networks: deep, and without shortcuts."""

from __future__ import annotations

from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.networks.blocks import WeightLayers, block

_REDUCTIONS = 2


class PlainConvNet(nn.Module):
    """The very deep plain networks of `he2015` in miniature: 3×3 convolutions of one width, and no shortcuts.

    `depth - 1` convolutions, each followed by the norm and a ReLU; a 2×2 max pooling after one third and after two thirds
    of them; the mean over positions; a linear head. Weights are drawn as in `MLP`: a seed gives the same ones for any norm.

    Args:
        depth: number of weight layers, the head among them; at least 4.
        width: channels of every convolution.
        in_channels: channels of the images.
        classes: number of outputs.
        norm: a norm spec, see `normlib.surgery.normalize`.
        init: an initialization spec, see `make_initializer`; biases start at zero.
        seed: seed of the initial weights.
        image_size: side of the images in pixels; at least 4, so that two poolings leave something. The weights do not
            depend on it, and larger images than said here pass.
        padding_mode: of every convolution, `"zeros"` or `"circular"`.

    Attributes:
        blocks: one per convolution, with the children `layer`, `norm`, `activation`.
        head: the linear layer.
        pooled: the positions in `blocks` that a pooling follows.

    Shape:
        Input (N, in_channels, H, W), output (N, classes).

    Raises:
        NormlibError: if the network would be too shallow or the images too small.

    Example:
        >>> import torch
        >>> net = PlainConvNet(depth=8, width=4, in_channels=1, classes=10, norm="group:groups=2", image_size=8)
        >>> net(torch.ones(2, 1, 8, 8)).shape, net.pooled
        (torch.Size([2, 10]), (1, 3))

    Source: `he2015`, figures 2 and 3.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        in_channels: int,
        classes: int,
        norm: str = "none",
        init: str = "he",
        seed: int = 0,
        image_size: int = 28,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        _check(depth, image_size)
        weights = WeightLayers(init, seed)
        channels = [in_channels] + [width] * (depth - 2)
        layers = [weights(nn.Conv2d, count, width, 3, padding=1, padding_mode=padding_mode) for count in channels]
        self.blocks = nn.Sequential(*[block(layer, norm, "relu") for layer in layers])
        self.head = weights(nn.Linear, width, classes)
        self.pool = nn.MaxPool2d(2)
        self.pooled = tuple(len(channels) * third // (_REDUCTIONS + 1) - 1 for third in range(1, _REDUCTIONS + 1))

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to outputs (N, classes)."""
        for position, convolution in enumerate(self.blocks):
            input = convolution(input)
            if position in self.pooled:
                input = self.pool(input)
        output: Tensor = self.head(input.mean((2, 3)))
        return output


def _check(depth: int, image_size: int) -> None:
    if depth < _REDUCTIONS + 2:
        raise NormlibError(
            f"PlainConvNet got depth={depth}; it needs at least {_REDUCTIONS + 2}: three convolutions, with a pooling "
            "after the first and the second, and the head."
        )
    if image_size < 2**_REDUCTIONS:
        raise NormlibError(f"PlainConvNet got image_size={image_size}; two poolings need {2**_REDUCTIONS} pixels or more.")
