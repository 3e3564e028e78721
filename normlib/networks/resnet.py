"""Residual networks, versions 1 and 2 (`he2016`), with a norm spec for every normalization site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from normlib.activations import make_activation
from normlib.errors import NormlibError, unknown
from normlib.networks.blocks import WeightLayers, block, preactivation
from normlib.surgery import split_kinds
from normlib.weights import parametrize_weight

EXPANSION = {"basic": 1, "bottleneck": 4}
_STEMS = ("cifar", "imagenet")
_ORDERS = ("norm-activation", "activation-norm")


class ResNet(nn.Module):
    r"""Residual network for images: a stem, stages of residual blocks, the mean over positions, a linear head.

    Version 1: $y = \mathrm{relu}(s(x) + f(x))$ with a norm after each convolution of $f$. Version 2 (pre-activation):
    $y = s(x) + f(x)$ with norm and activation before each convolution. The shortcut $s$ is the identity where shapes agree,
    else a 1×1 convolution; in version 2 that one takes the normalized and activated input, as the branch does. Weights are
    drawn as in `MLP`: a seed gives the same ones for any norm.

    Args:
        stages: number of blocks in each stage; every stage but the first halves the map.
        width: channels of the first stage; each further stage doubles them.
        unit: `"basic"`, two 3×3 convolutions, or `"bottleneck"`, 1×1, 3×3, 1×1 with four times the channels at its end.
        version: 1 or 2.
        stem: `"cifar"`, a 3×3 convolution, or `"imagenet"`, 7×7 with stride 2 and a max-pooling with stride 2.
        order: in version 2, `"norm-activation"` or `"activation-norm"` before each convolution.
        in_channels: channels of the images.
        classes: number of outputs.
        norm: a norm spec, see `normlib.surgery.normalize`.
        activation: a key of `ACTIVATIONS`.
        init: an initialization spec, see `make_initializer`.
        padding_mode: of every convolution, `"zeros"` or `"circular"`.
        seed: seed of the initial weights.

    Attributes:
        stem: the first convolution and what belongs to it.
        blocks: every residual block, in order; each has `branch` and `shortcut`.
        final: in version 2 the norm and activation after the last block, else the identity.
        head: the linear layer.

    Shape:
        Input (N, in_channels, H, W), output (N, classes).

    Raises:
        NormlibError: if an argument is none of those named.

    Example:
        >>> import torch
        >>> net = ResNet([1, 1], width=8, classes=10, norm="group:size=4")
        >>> net(torch.ones(2, 3, 8, 8)).shape, len(net.blocks)
        (torch.Size([2, 10]), 2)

    Source: `he2016`.
    """

    def __init__(
        self,
        stages: Sequence[int],
        width: int = 64,
        unit: str = "basic",
        version: int = 2,
        stem: str = "cifar",
        order: str = "norm-activation",
        in_channels: int = 3,
        classes: int = 10,
        norm: str = "batch",
        activation: str = "relu",
        init: str = "he",
        padding_mode: str = "zeros",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(stages, unit, version, stem, order)
        weights = WeightLayers(init, seed)
        make = _Blocks(weights, unit, version, order, norm, activation, padding_mode)
        self.stem = make.stem(stem, in_channels, width)
        channels, blocks = width, []
        for stage, count in enumerate(stages):
            for position in range(count):
                stride = 2 if stage and not position else 1
                blocks.append(make.block(channels, width * 2**stage, stride))
                channels = width * 2**stage * EXPANSION[unit]
        self.blocks = nn.Sequential(*blocks)
        self.final = preactivation(channels, norm, activation, order) if version == 2 else nn.Identity()
        self.head = weights(nn.Linear, channels, classes)

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to outputs (N, classes)."""
        output: Tensor = self.head(self.final(self.blocks(self.stem(input))).mean((2, 3)))
        return output


class ResidualBlock(nn.Module):
    """One block: `after(shortcut(x') + branch(x'))`, where x' is the input after `before`.

    Args:
        branch: the residual branch f.
        shortcut: the map of the input that is added; None adds the input as it came.
        before: what branch and projection share, the norm and activation of version 2.
        after: what follows the sum, the activation of version 1.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.branch, self.after = before, branch, after
        self.shortcut = shortcut

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        ready = self.before(input)
        shortcut = input if self.shortcut is None else self.shortcut(ready)
        output: Tensor = self.after(shortcut + self.branch(ready))
        return output


class _Blocks:
    """Builds the parts of one network; weights are drawn in the order of the calls."""

    def __init__(
        self, weights: WeightLayers, unit: str, version: int, order: str, norm: str, activation: str, padding: str
    ) -> None:
        self.weights, self.unit, self.version, self.order = weights, unit, version, order
        self.weight_norm, self.norm = split_kinds(norm)
        self.activation, self.padding = activation, padding

    def convolution(self, inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
        """Draw a convolution without bias that keeps the size of the map, up to its stride."""
        padding: dict[str, Any] = {"padding": size // 2, "padding_mode": self.padding}
        layer = self.weights(nn.Conv2d, inputs, outputs, size, stride=stride, bias=False, **padding)
        return layer if self.weight_norm is None else parametrize_weight(layer, self.weight_norm)

    def stem(self, kind: str, inputs: int, width: int) -> nn.Module:
        """Build the stem; in version 2 its norm and activation are those of the first block."""
        first = self.convolution(inputs, width, 3) if kind == "cifar" else self.convolution(inputs, width, 7, 2)
        if self.version == 1:
            first = block(first, self.norm, self.activation)
        return first if kind == "cifar" else nn.Sequential(first, nn.MaxPool2d(3, 2, 1))

    def block(self, inputs: int, width: int, stride: int) -> ResidualBlock:
        """Build one residual block from `inputs` channels; its convolutions have `width`."""
        outputs = width * EXPANSION[self.unit]
        plan = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        if self.unit == "bottleneck":
            plan = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        layers = [self.convolution(*step) for step in plan]
        projection = self.convolution(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None
        return self._version1(layers, projection) if self.version == 1 else self._version2(layers, projection)

    def _version1(self, layers: list[nn.Module], projection: nn.Module | None) -> ResidualBlock:
        follows = [self.activation] * (len(layers) - 1) + ["identity"]
        branch = [block(layer, self.norm, activation) for layer, activation in zip(layers, follows, strict=True)]
        shortcut = None if projection is None else block(projection, self.norm, "identity")
        return ResidualBlock(nn.Sequential(*branch), shortcut, nn.Identity(), make_activation(self.activation))

    def _version2(self, layers: list[nn.Module], projection: nn.Module | None) -> ResidualBlock:
        before = [preactivation(layer.in_channels, self.norm, self.activation, self.order) for layer in layers]  # type: ignore[arg-type]
        inner = [part for pair in zip(before[1:], layers[1:], strict=True) for part in pair]
        return ResidualBlock(nn.Sequential(layers[0], *inner), projection, before[0], nn.Identity())


def _check(stages: Sequence[int], unit: str, version: int, stem: str, order: str) -> None:
    if not stages or min(stages) < 1:
        raise NormlibError(f"ResNet got stages={list(stages)}; expected the blocks of each stage, all positive, as [2, 2, 2, 2].")
    if version not in (1, 2):
        raise NormlibError(f"ResNet got version={version!r}; expected 1, norm after each convolution, or 2, norm before it.")
    for kind, value, known in (("unit", unit, EXPANSION), ("stem", stem, _STEMS), ("order", order, _ORDERS)):
        if value not in known:
            raise unknown(f"{kind} of ResNet", value, known)
