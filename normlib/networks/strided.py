"""Plain convolutional networks that widen and halve their maps by strides, from a plan of channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.networks.blocks import WeightLayers, block


class StridedConvNet(nn.Module):
    """A plain network of 3×3 convolutions without pooling: a plan says the channels, and where a stride halves the map.

    Each convolution is followed by the norm and the activation; then the mean over positions; a linear head. Weights are drawn
    as in `MLP`: a seed gives the same ones for any norm.

    Args:
        channels: of the output of each convolution.
        halved: positions in `channels` of the convolutions with stride 2, the first being 0.
        in_channels: channels of the images.
        classes: number of outputs.
        norm: a norm spec, see `normlib.surgery.normalize`.
        activation: a key of `ACTIVATIONS`.
        init: an initialization spec, see `make_initializer`; biases start at zero.
        seed: seed of the initial weights.
        padding_mode: of every convolution, `"zeros"` or `"circular"`.

    Attributes:
        blocks: one per convolution, with the children `layer`, `norm`, `activation`.
        head: the linear layer.

    Shape:
        Input (N, in_channels, H, W), output (N, classes); a stride rounds sizes up, so that small images pass.

    Raises:
        NormlibError: if there is no convolution, if one has no channels, or if a halved position does not exist.

    Example:
        >>> import torch
        >>> net = StridedConvNet([4, 8, 8], halved=[1], in_channels=1, norm="instance")
        >>> net.blocks(torch.ones(2, 1, 8, 8)).shape
        torch.Size([2, 8, 4, 4])

    Source: the networks without shortcuts of `lubana2021`, by the code of its authors, are such plans.
    """

    def __init__(
        self,
        channels: Sequence[int],
        halved: Sequence[int] = (),
        in_channels: int = 3,
        classes: int = 10,
        norm: str = "none",
        activation: str = "relu",
        init: str = "he",
        seed: int = 0,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        _check(channels, halved)
        weights = WeightLayers(init, seed)
        layers = [
            weights(nn.Conv2d, inputs, outputs, 3, stride=1 + (at in halved), padding=1, padding_mode=padding_mode)
            for at, (inputs, outputs) in enumerate(zip([in_channels, *channels], channels, strict=False))
        ]
        self.blocks = nn.Sequential(*[block(layer, norm, activation) for layer in layers])
        self.head = weights(nn.Linear, channels[-1], classes)

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to outputs (N, classes)."""
        output: Tensor = self.head(self.blocks(input).mean((2, 3)))
        return output


def _check(channels: Sequence[int], halved: Sequence[int]) -> None:
    if not channels or min(channels) < 1:
        raise NormlibError(f"StridedConvNet got channels={list(channels)}; expected one positive number for each convolution.")
    if any(not 0 <= at < len(channels) for at in halved):
        raise NormlibError(
            f"StridedConvNet got halved={list(halved)} for {len(channels)} convolutions; "
            f"expected positions from 0 to {len(channels) - 1}."
        )
