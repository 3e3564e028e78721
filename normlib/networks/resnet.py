"""Residual networks, versions 1 (`he2016`) and 2 (`he2016identity`), with a norm spec for every normalization site, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from normlib.errors import NormlibError, unknown
from normlib.networks.blocks import WeightLayers
from normlib.networks.residual_blocks import UNITS, BlockBuilder, BlockStyle
from normlib.residual import NormalizerFree, ResidualScheme, make_residual

_STEMS = ("cifar", "imagenet")
_ORDERS = ("norm-activation", "activation-norm")


class ResNet(nn.Module):
    r"""Residual network for images: a stem, stages of residual blocks, the mean over positions, a linear head.

    Version 1: $y = \mathrm{relu}(s(x) + f(x))$ with a norm after each convolution of $f$. Version 2 (pre-activation):
    $y = s(x) + f(x)$ with norm and activation before each convolution. The shortcut $s$ is the identity where shapes agree,
    else a 1×1 convolution; in version 2 that one takes the normalized and activated input, as the branch does. Weights are
    drawn as in `MLP`: a seed gives the same ones for any norm.

    What stands in for norms on the branches is named by `residual`: version 2 with scaled weight standardization and
    `residual="nf"` is the normalizer-free ResNet of `brock2021a`, see `nf_resnet`.

    Args:
        stages: number of blocks in each stage; every stage but the first halves the map.
        width: channels of the first stage; each further stage doubles them.
        unit: `"basic"`, two 3×3 convolutions; `"bottleneck"`, 1×1, 3×3, 1×1 with four times the channels at its end; or
            `"inverted"`, 1×1, 3×3, 1×1 with six times the channels inside, which with `group_size=1` is that of `tan2019`.
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
        residual: a spec of how branches join their shortcuts, see `normlib.residual.make_residual`; `"sum"` only adds. The books
            of `"nf"` take the output of the stem for standardized: there `"scaled_weight"` has gain 1 in the stem, whose input
            is an image and no activation.
        drop_path: rate of stochastic depth at the last block; it grows linearly up to there, see `DropPath`.
        group_size: channels in each group of the 3×3 convolution of a bottleneck or inverted unit: 1 makes it depthwise;
            None, one group.
        bias: whether convolutions have a bias; without norms of activations nothing else shifts their outputs.
        dropout: rate of dropout before the head.

    Attributes:
        stem: the first convolution and what belongs to it.
        blocks: every residual block, in order; each has `branch` and `shortcut`.
        final: in version 2 the norm and activation after the last block, else the identity; `"fixup"` adds its biases.
        head: the linear layer.

    Shape:
        Input (N, in_channels, H, W), output (N, classes).

    Raises:
        NormlibError: if an argument is none of those named; if `residual` is `"nf"` in version 1, where its books do not hold.

    Example:
        >>> import torch
        >>> net = ResNet([1, 1], width=8, classes=10, norm="group:size=4")
        >>> net(torch.ones(2, 3, 8, 8)).shape, len(net.blocks)
        (torch.Size([2, 10]), 2)

    Source: `he2016` for version 1, `he2016identity` for version 2, `tan2019` for the inverted unit.
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
        residual: str = "sum",
        drop_path: float = 0.0,
        group_size: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(stages, unit, version, stem, order)
        scheme = _scheme(residual, stages, version)
        weights = WeightLayers(init, seed)
        style = BlockStyle(unit, version, order, norm, activation, padding_mode, bias, group_size)
        make = BlockBuilder(style, scheme, weights, drop_path)
        self.stem = make.stem(stem, in_channels, width)
        channels, blocks = width, []
        for stage, count in enumerate(stages):
            for position in range(count):
                blocks.append(make.block(channels, width * 2**stage, stage, position))
                channels = width * 2**stage * UNITS[unit][1]
        self.blocks = nn.Sequential(*blocks)
        self.final = make.final(channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = weights(nn.Linear, channels, classes)
        scheme.initialize([made.branch for made in blocks], self.head)

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to outputs (N, classes)."""
        features = self.final(self.blocks(self.stem(input))).mean((2, 3))
        output: Tensor = self.head(self.dropout(features))
        return output


def nf_resnet(
    stages: Sequence[int], alpha: float = 0.2, gain: float | None = None, activation: str = "relu", **arguments: Any
) -> ResNet:
    r"""Build the normalizer-free ResNet: scaled weight standardization, and branches by the books.

    **Formula.** $x_{l+1} = x_l + \alpha f_l(x_l / \beta_l)$ with $\beta_l$ from `normlib.residual.expected_variances`; weights
    standardized and scaled by the gain of the activation, with a learned gain per channel, and biases.

    **Departures.** In the paper's code the head starts at N(0, 0.01²), here as `init` says; its SkipInit scalar is `gain=0`, and
    None leaves the variances at initialization as in the books. Zero padding takes some percent off them, see `padding_mode`.

    Args:
        stages: number of blocks in each stage.
        alpha: the factor $\alpha$ of the branches.
        gain: initial value of a learned scalar on each branch; None for none.
        activation: a key of `ACTIVATIONS`.
        **arguments: others of `ResNet`; `norm` too, for an arm with other weights.

    Raises:
        NormlibError: as `ResNet` does.

    Example:
        >>> net = nf_resnet([1, 2], width=8, drop_path=0.1)
        >>> net.blocks[2].entry, net.blocks[2].join, net.blocks[2].drop_path
        (Scale(0.9806), Join(shortcut_scale=1, branch_scale=0.2, gain=None), DropPath(0.1))

    Source: `brock2021a`.
    """
    arguments = {"norm": f"scaled_weight:gain={activation}", "bias": True, "init": "lecun", **arguments}
    return ResNet(stages, version=2, residual=f"nf:alpha={alpha},gain={gain}", activation=activation, **arguments)


def _scheme(residual: str, stages: Sequence[int], version: int) -> ResidualScheme:
    scheme = make_residual(residual, stages)
    if version == 1 and isinstance(scheme, NormalizerFree):
        raise NormlibError(
            f"ResNet got residual={residual!r} with version=1, where an activation follows each sum and the variances are not "
            "those of its books. Pass version=2."
        )
    return scheme


def _check(stages: Sequence[int], unit: str, version: int, stem: str, order: str) -> None:
    if not stages or min(stages) < 1:
        raise NormlibError(f"ResNet got stages={list(stages)}; expected the blocks of each stage, all positive, as [2, 2, 2, 2].")
    if version not in (1, 2):
        raise NormlibError(f"ResNet got version={version!r}; expected 1, norm after each convolution, or 2, norm before it.")
    for kind, value, known in (("unit", unit, UNITS), ("stem", stem, _STEMS), ("order", order, _ORDERS)):
        if value not in known:
            raise unknown(f"{kind} of ResNet", value, known)
