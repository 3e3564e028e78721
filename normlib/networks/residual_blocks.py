"""The blocks of residual networks: what is in one, and how the blocks of one network are built alike."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from normlib.activations import make_activation
from normlib.errors import NormlibError
from normlib.networks.blocks import WeightLayers, block, preactivation
from normlib.networks.drop_path import drop_paths
from normlib.residual import Join, NormalizerFree, ResidualScheme
from normlib.spec import split_spec
from normlib.surgery import split_kinds
from normlib.weights import parametrize_weight

UNITS = {"basic": (1, 1), "bottleneck": (1, 4), "inverted": (6, 1)}
"""Channels inside a unit and at its end, in multiples of the stage's width."""


class ResidualBlock(nn.Module):
    """One block: `after(join(shortcut(h), drop_path(branch(h))))` with `h = entry(before(x))`.

    Args:
        branch: the residual branch f.
        shortcut: the map of h that is added; None adds the input x as it came.
        before: what branch and projection share, the norm and activation of version 2.
        after: what follows the sum, the activation of version 1.

    Attributes:
        entry: what a residual scheme puts there, see `ResidualScheme.entry`; the identity, unless it is replaced.
        join: how shortcut and branch are put together, see `ResidualScheme.join`; their sum, unless it is replaced.
        drop_path: stochastic depth of the branch; the identity, unless it is replaced.

    Shape:
        Input (N, C, H, W), output (N, C', H', W').
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.branch, self.after = before, branch, after
        self.shortcut = shortcut
        self.entry: nn.Module = nn.Identity()
        self.join: nn.Module = Join()
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        ready = self.entry(self.before(input))
        shortcut = input if self.shortcut is None else self.shortcut(ready)
        output: Tensor = self.after(self.join(shortcut, self.drop_path(self.branch(ready))))
        return output


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network have in common; see `ResNet` for each."""

    unit: str
    version: int
    order: str
    norm: str
    activation: str
    padding_mode: str
    bias: bool
    group_size: int | None


class BlockBuilder:
    """Builds the parts of one network; weights are drawn in the order of the calls.

    Args:
        style: what the blocks have in common.
        scheme: what joins branches and shortcuts.
        weights: draws the weights.
        drop_path: rate of stochastic depth of the last block.
    """

    def __init__(self, style: BlockStyle, scheme: ResidualScheme, weights: WeightLayers, drop_path: float) -> None:
        self.style, self.scheme, self.weights = style, scheme, weights
        self.weight_norm, self.norm = split_kinds(style.norm)
        self.drop_paths = drop_paths(drop_path, scheme.depth)

    def stem(self, kind: str, inputs: int, width: int) -> nn.Module:
        """Build the stem; in version 2 its norm and activation are those of the first block."""
        size, stride = (3, 1) if kind == "cifar" else (7, 2)
        first = self._convolution(inputs, width, size, stride, weight_norm=self._weight_norm_of_stem())
        if self.style.version == 1:
            first = self._shifted(block(first, self.norm, self.style.activation), at_end=False)
        return first if kind == "cifar" else nn.Sequential(first, nn.MaxPool2d(3, 2, 1))

    def block(self, inputs: int, width: int, stage: int, position: int) -> ResidualBlock:
        """Build a block from `inputs` channels: the one at `position` in a stage of that width."""
        inner, outputs = (width * factor for factor in UNITS[self.style.unit])
        stride = 2 if stage and not position else 1
        groups = self._groups(inner)
        if self.style.unit == "basic":
            plan = [(inputs, inner, 3, stride, 1), (inner, outputs, 3, 1, 1)]
        else:
            plan = [(inputs, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, outputs, 1, 1, 1)]
        layers = [self._convolution(*step) for step in plan]
        projection = self._convolution(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None
        made = self._version1(layers, projection) if self.style.version == 1 else self._version2(layers, projection)
        made.entry, made.join = self.scheme.entry(stage, position), self.scheme.join(stage, position)
        made.drop_path = self.drop_paths[self.scheme.position(stage, position)]
        return made

    def final(self, channels: int) -> nn.Module:
        """Build what stands between the last block and the mean over positions."""
        if self.style.version == 1:
            return self.scheme.shift()
        return self._shifted(preactivation(channels, self.norm, self.style.activation, self.style.order))

    def _version1(self, layers: list[nn.Module], projection: nn.Module | None) -> ResidualBlock:
        """Put a block together with norm and activation behind each convolution."""
        branch = [self._shifted(block(layer, self.norm, self.style.activation)) for layer in layers[:-1]]
        last = block(layers[-1], self.norm, "identity")
        shortcut = None if projection is None else block(projection, self.norm, "identity")
        shift, activation = self.scheme.shift(), make_activation(self.style.activation)
        after = activation if isinstance(shift, nn.Identity) else nn.Sequential(shift, activation)
        return ResidualBlock(nn.Sequential(*branch, last), shortcut, self.scheme.shift(), after)

    def _version2(self, layers: list[nn.Module], projection: nn.Module | None) -> ResidualBlock:
        """Put a block together with norm and activation in front of each convolution."""
        style = self.style
        units = [preactivation(layer.in_channels, self.norm, style.activation, style.order) for layer in layers]  # type: ignore[arg-type]
        before, *others = [self._shifted(unit) for unit in units]
        inner = [part for pair in zip(others, layers[1:], strict=True) for part in pair]
        return ResidualBlock(nn.Sequential(layers[0], *inner), projection, before, nn.Identity())

    def _convolution(
        self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, weight_norm: str | None = None
    ) -> nn.Module:
        """Draw a convolution that keeps the size of the map, up to its stride."""
        padding: dict[str, Any] = {"padding": size // 2, "padding_mode": self.style.padding_mode}
        shape = {"stride": stride, "groups": groups, "bias": self.style.bias}
        layer = self.weights(nn.Conv2d, inputs, outputs, size, **shape, **padding)
        weight_norm = weight_norm or self.weight_norm
        return layer if weight_norm is None else parametrize_weight(layer, weight_norm)

    def _weight_norm_of_stem(self) -> str | None:
        """Return the weight norm of the first convolution: its input is no activation, and the books of `nf` start at 1."""
        if not isinstance(self.scheme, NormalizerFree) or self.weight_norm is None:
            return self.weight_norm
        name, arguments = split_spec(self.weight_norm)
        arguments |= {"gain": "identity"} if name == "scaled_weight" else {}
        return f"{name}:{','.join(f'{key}={value}' for key, value in arguments.items())}" if arguments else name

    def _shifted(self, unit: nn.Sequential, at_end: bool = True) -> nn.Sequential:
        """Put the shift of the scheme before the activation, and at the end, which is before the next weight layer."""
        if isinstance(self.scheme.shift(), nn.Identity):
            return unit
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for name, part in unit.named_children():
            if name == "activation":
                parts["shift"] = self.scheme.shift()
            parts[name] = part
        if at_end:
            parts["shift_at_end"] = self.scheme.shift()
        return nn.Sequential(parts)

    def _groups(self, channels: int) -> int:
        """Return how many groups the 3×3 convolution of a unit has."""
        size = self.style.group_size
        if size is None:
            return 1
        if self.style.unit == "basic" or size < 1 or channels % size:
            raise NormlibError(
                f"ResNet got group_size={size} with unit={self.style.unit!r}, whose 3×3 convolution has {channels} channels; "
                "expected a divisor of these (1 for a depthwise convolution), and the unit 'bottleneck' or 'inverted'."
            )
        return channels // size
