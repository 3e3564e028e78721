"""Signal propagation: the moments of the channels at each block, and the variance that its residual branch adds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from normlib.errors import NormlibError, unknown
from normlib.probes.moments import channels_first
from normlib.probes.watching import Columns, Layers, chosen_layers, reduce_activations


class ChannelPower(NamedTuple):
    r"""The mean square of activations in three parts, each averaged over the channels.

    Attributes:
        squared_mean: $\frac1C \sum_c \mu_c^2$, with $\mu_c$ over the batch and all positions.
        between: variance, over the batch, of the means that a channel has in single instances.
        within: variance over the positions of one instance, averaged over the batch; 0 for vectors (N, C).
    """

    squared_mean: float
    between: float
    within: float

    @property
    def variance(self) -> float:
        r"""Return $\frac1C \sum_c \sigma_c^2$, over the batch and all positions."""
        return self.between + self.within


def channel_power(x: Tensor, channel_axis: int = 1) -> ChannelPower:
    r"""Split the mean square of activations into squared mean, variance between instances, variance within instances.

    With $\mu_c$ and $\sigma_c^2$ mean and biased variance of channel $c$ over batch **and** positions, the mean square is
    $\frac1C \sum_c \mu_c^2 + \frac1C \sum_c \sigma_c^2$. Moments over the channels, or averaged before they are squared, are
    something else: channels of opposite means would cancel.

    Args:
        x: activations, see `channels_first`.
        channel_axis: which axis holds the channels.

    Raises:
        NormlibError: if there is no such axis beside that of the batch.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])  # two instances of one channel at two positions
        >>> channel_power(maps), channel_power(maps).variance
        (ChannelPower(squared_mean=16.0, between=4.0, within=1.0), 5.0)

    Source: `brock2021a`, section 3; the three parts, `labatie2021`.
    """
    maps = channels_first(x, channel_axis)
    maps = maps.reshape(*maps.shape[:2], -1)
    means = maps.mean(2)
    return ChannelPower(
        squared_mean=float(means.mean(0).square().mean()),
        between=float(means.var(0, correction=0).mean()),
        within=float(maps.var(2, correction=0).mean()),
    )


def signal_propagation(
    model: nn.Module,
    x: Tensor,
    layers: Layers = None,
    *,
    branch: str | Mapping[str, str] = "branch",
    channel_axis: int = 1,
    training: bool | None = None,
) -> Columns:
    r"""Measure the three quantities of a signal propagation plot, layer by layer. Cost: one forward pass.

    The residual variance is that of the output of the branch module, before it is added. So of a branch whose factor α or
    learned gain stands outside the module it is the variance before them, as in the paper; a gain inside it counts.

    Args:
        model: any model.
        x: one batch of inputs: data, or standard normal noise of their shape.
        layers: see `record_activations`; None for every residual block, that is each module in which `branch` is found.
        branch: where a block keeps its branch: a name within the block, such as `"branch"` or `"residual.conv2"`; or names of
            layers and, for each, the name of the module at the end of its branch, as in `model.named_modules()`.
        channel_axis: 1 for (N, C) and maps (N, C, H, W), -1 for tokens (N, T, C).
        training: see `record_activations`. In eval mode the batch norms of a fresh model are the identity.

    Returns:
        Columns with one entry a layer, each an average over its channels: `layer`; `squared_mean` and `variance` of its output;
        `between` and `within`, the two parts of this variance (`ChannelPower`); `residual_variance`, NaN without a branch.
        The output of a block is what the module puts out, so after whatever it applies to the sum.

    Raises:
        UnknownNameError: if no module has a given name.
        NormlibError: if the model has no residual block and no layer was chosen, or what `reduce_activations` refuses.

    Example:
        >>> import torch
        >>> class Double(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.branch = nn.Identity()
        ...     def forward(self, x):
        ...         return x + self.branch(x)
        >>> found = signal_propagation(nn.Sequential(Double(), Double()), torch.tensor([[1.0], [-1.0]]))
        >>> found["layer"], found["variance"], found["residual_variance"]
        (['0', '1'], [4.0, 16.0], [1.0, 4.0])

    Source: `brock2021a`, section 3 and figure 1.
    """
    branches = _branches(model, branch)
    if layers is None and not branches:
        raise NormlibError(
            f"{type(model).__name__} has no residual block with branch={branch!r}. Say where its blocks keep "
            "their branch, or name layers."
        )
    names = list(branches) if layers is None else list(chosen_layers(model, layers))
    watched = [*names, *(branches[name] for name in names if name in branches)]
    found = reduce_activations(model, x, lambda t: channel_power(t, channel_axis), watched, training=training)
    columns: Columns = {key: [] for key in ("layer", "squared_mean", "variance", "between", "within", "residual_variance")}
    ended: dict[str, float] = {}  # branches that have run, and whose block has not come to its end
    for (call, _), power in found.items():
        name = call.partition("#")[0]
        if name in names:
            residual = ended.pop(branches.get(name, ""), math.nan)
            row = (call, power.squared_mean, power.variance, power.between, power.within, residual)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
        ended[name] = power.variance
    return columns


def _branches(model: nn.Module, branch: str | Mapping[str, str]) -> dict[str, str]:
    """Return the names of the blocks, each with the name of its branch."""
    modules = {name or "model": module for name, module in model.named_modules()}
    if isinstance(branch, str):
        paths = {name: branch if name == "model" else f"{name}.{branch}" for name in modules}
        return {name: path for name, path in paths.items() if path in modules}
    for name in (*branch, *branch.values()):
        if name not in modules:
            raise unknown("layer", name, modules)
    return dict(branch)
