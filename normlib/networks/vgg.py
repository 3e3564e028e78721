"""VGG networks in their form for small images, with a norm spec for every convolution."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from normlib.activations import make_activation
from normlib.errors import NormlibError
from normlib.networks.blocks import WeightLayers, block

_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Convolutions 3×3 in five stages, each closed by a 2×2 max pooling; the mean over positions; a head.

    The plans are those of `simonyan2015`. As is usual for CIFAR, the head is one linear layer, as five poolings
    leave a single position of 32×32 pixels. `santurkar2018` trains "a standard VGG" and states neither depth nor head; the
    initial loss in its Fig. 4 suggests `depth=19, hidden=(4096, 4096)`. Weights are drawn as in `MLP`: a seed gives the same
    ones for any norm.

    Args:
        depth: 11, 13, 16 or 19: the number of convolutions and three more, for the dense layers that the original has.
        width: factor on the numbers of channels, 64 to 512.
        in_channels: channels of the images.
        classes: number of outputs.
        norm: a norm spec, see `normlib.surgery.normalize`; norms follow the convolutions, none stands in the head.
        activation: a key of `ACTIVATIONS`.
        init: an initialization spec, see `make_initializer`; biases start at zero.
        hidden: units of the dense layers before the last one.
        dropout: rate of dropout before the head, and before each of `hidden` but the first.
        padding_mode: of every convolution, `"zeros"` or `"circular"`.
        seed: seed of the initial weights.

    Attributes:
        blocks: one per convolution, with the children `layer`, `norm`, `activation`.
        pooled: the positions in `blocks` that a pooling follows; it rounds sizes up, so that small images pass.
        hidden: one per dense layer before the last, with the children `layer`, `activation`.
        head: the last linear layer.

    Shape:
        Input (N, in_channels, H, W), output (N, classes).

    Raises:
        NormlibError: if there is no such depth, or no channel left.

    Example:
        >>> import torch
        >>> net = VGG(11, width=1 / 16, norm="batch")
        >>> net(torch.ones(2, 3, 32, 32)).shape, net.pooled
        (torch.Size([2, 10]), (0, 1, 3, 5, 7))

    Source: `simonyan2015` for the plans; `santurkar2018`, appendix A.1, for the set-up.
    """

    def __init__(
        self,
        depth: int = 16,
        width: float = 1.0,
        in_channels: int = 3,
        classes: int = 10,
        norm: str = "none",
        activation: str = "relu",
        init: str = "he",
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        padding_mode: str = "zeros",
        seed: int = 0,
    ) -> None:
        super().__init__()
        channels = _plan(depth, width)
        weights = WeightLayers(init, seed)
        layers = [
            weights(nn.Conv2d, inputs, outputs, 3, padding=1, padding_mode=padding_mode)
            for inputs, outputs in zip([in_channels, *channels], channels, strict=False)
        ]
        self.blocks = nn.Sequential(*[block(layer, norm, activation) for layer in layers])
        self.pooled = tuple(sum(_CONVOLUTIONS[depth][: stage + 1]) - 1 for stage in range(len(_CHANNELS)))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        sizes = [channels[-1], *hidden]
        dense = [weights(nn.Linear, inputs, outputs) for inputs, outputs in zip(sizes, hidden, strict=False)]
        self.hidden = nn.Sequential(*[_dense(layer, activation, dropout if index else 0.0) for index, layer in enumerate(dense)])
        self.dropout = nn.Dropout(dropout)
        self.head = weights(nn.Linear, sizes[-1], classes)

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to outputs (N, classes)."""
        for position, convolution in enumerate(self.blocks):
            input = convolution(input)
            if position in self.pooled:
                input = self.pool(input)
        output: Tensor = self.head(self.dropout(self.hidden(input.mean((2, 3)))))
        return output


def _dense(layer: nn.Module, activation: str, dropout: float) -> nn.Sequential:
    return nn.Sequential(OrderedDict(dropout=nn.Dropout(dropout), layer=layer, activation=make_activation(activation)))


def _plan(depth: int, width: float) -> list[int]:
    """Return the channels of each convolution."""
    if depth not in _CONVOLUTIONS:
        raise NormlibError(f"VGG got depth={depth!r}; there are plans for {', '.join(map(str, _CONVOLUTIONS))} weight layers.")
    channels = [round(count * width) for count in _CHANNELS]
    if min(channels) < 1:
        raise NormlibError(f"VGG got width={width!r}, a factor on {_CHANNELS[0]} to {_CHANNELS[-1]} channels; it leaves none.")
    return [count for count, repeats in zip(channels, _CONVOLUTIONS[depth], strict=True) for _ in range(repeats)]
