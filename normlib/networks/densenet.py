"""Densely connected networks for small images (`huang2017dense`), with a norm spec for every normalization site, or none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.networks.blocks import WeightLayers, preactivation
from normlib.surgery import split_kinds
from normlib.weights import parametrize_weight


class DenseLayer(nn.Module):
    """One layer of a dense block: it appends what it computes to its input, `[x, branch(x)]`.

    Args:
        branch: from the C channels of the input to those that are appended.

    Shape:
        Input (N, C, H, W), output (N, C + growth, H, W).
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat([input, self.branch(input)], 1)


class DenseNet(nn.Module):
    r"""Densely connected network: within a stage each layer sees the outputs of all layers before it, side by side.

    A 3×3 convolution; stages of layers $x \leftarrow [x, f(x)]$ with $f$ a norm, an activation and a 3×3 convolution to `growth`
    channels; between stages norm, activation, a 1×1 convolution to half of the channels and a 2×2 average pooling; at the end
    norm, activation, the mean over positions, a linear head. Weights are drawn as in `MLP`: a seed gives the same ones for any
    norm.

    Args:
        stages: number of layers in each stage.
        growth: channels that a layer appends.
        in_channels: channels of the images.
        classes: number of outputs.
        norm: a norm spec, see `normlib.surgery.normalize`.
        activation: a key of `ACTIVATIONS`.
        init: an initialization spec, see `make_initializer`.
        seed: seed of the initial weights.
        bias: whether convolutions have a bias.
        padding_mode: of every 3×3 convolution, `"zeros"` or `"circular"`.

    Attributes:
        stem: the first convolution, to twice `growth` channels.
        blocks: every dense layer and every transition, in order; a dense layer has `branch`.
        final: the norm and activation before the mean over positions.
        head: the linear layer.

    Shape:
        Input (N, in_channels, H, W), output (N, classes).

    Raises:
        NormlibError: if a stage has no layer, or nothing grows.

    Example:
        >>> net = DenseNet([2, 2], growth=4, in_channels=1, norm="batch")
        >>> net(torch.ones(2, 1, 8, 8)).shape, net.head.in_features
        (torch.Size([2, 10]), 16)

    Source: `huang2017dense`, with the compression 0.5 and without bottlenecks.
    """

    def __init__(
        self,
        stages: Sequence[int],
        growth: int = 12,
        in_channels: int = 3,
        classes: int = 10,
        norm: str = "batch",
        activation: str = "relu",
        init: str = "he",
        seed: int = 0,
        bias: bool = False,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        if not stages or min(stages) < 1 or growth < 1:
            raise NormlibError(
                f"DenseNet got stages={list(stages)} and growth={growth}; expected layers of each stage, all positive."
            )
        weights, (weight_norm, self_norm) = WeightLayers(init, seed), split_kinds(norm)

        def convolution(inputs: int, outputs: int, size: int) -> nn.Module:
            layer = weights(nn.Conv2d, inputs, outputs, size, padding=size // 2, bias=bias, padding_mode=padding_mode)
            return layer if weight_norm is None else parametrize_weight(layer, weight_norm)

        def unit(inputs: int, outputs: int, size: int) -> nn.Sequential:
            parts = OrderedDict(preactivation(inputs, self_norm, activation).named_children())
            return nn.Sequential(OrderedDict([*parts.items(), ("layer", convolution(inputs, outputs, size))]))

        channels = 2 * growth
        self.stem = convolution(in_channels, channels, 3)
        blocks: list[nn.Module] = []
        for stage, count in enumerate(stages):
            if stage:
                blocks.append(nn.Sequential(unit(channels, channels // 2, 1), nn.AvgPool2d(2, ceil_mode=True)))
                channels //= 2
            for _ in range(count):
                blocks.append(DenseLayer(unit(channels, growth, 3)))
                channels += growth
        self.blocks = nn.Sequential(*blocks)
        self.final = preactivation(channels, self_norm, activation)
        self.head = weights(nn.Linear, channels, classes)

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to outputs (N, classes)."""
        output: Tensor = self.head(self.final(self.blocks(self.stem(input))).mean((2, 3)))
        return output
