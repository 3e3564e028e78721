"""EvoNorm (`liu2020`): normalization and activation in one, found by a search over formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normlib.layers.affine import ChannelAffine
from normlib.layers.batch import batch_moments
from normlib.layers.group import grouped
from normlib.layers.moments import instance_map, instance_moments, per_instance, pooled_moments
from normlib.layers.shapes import affine, channel_affine, check_channels, check_count, per_channel
from normlib.layers.statistics import StatisticNorm
from normlib.mode import by_formula, formula


@formula
def evonorm_b0(
    x: Tensor,
    v: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return `x / max(sqrt(batch var + eps), v x + sqrt(instance var + eps)) * weight + bias`.

    Args:
        x: input of shape (N, C, *).
        v: slope of the second bound, of shape (C,).
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        var: batch variance of shape (C,), or None for the biased variance of this batch.
        eps: added to both variances, under the roots.

    Returns:
        A tensor of the shape of `x`.

    Source: `liu2020`.
    """
    var = batch_moments(x)[1] if var is None else var
    batch_std = (per_channel(var, x) + eps).sqrt()
    instance_std = (per_instance(instance_moments(x)[1], x) + eps).sqrt()
    return channel_affine(x / torch.maximum(batch_std, per_channel(v, x) * x + instance_std), weight, bias)


@formula
def evonorm_s0(
    x: Tensor,
    num_groups: int,
    v: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return `x sigmoid(v x) / sqrt(group var + eps) * weight + bias`.

    Args:
        x: input of shape (N, C, *).
        num_groups: the number G of groups of C / G neighboring channels that share a biased variance.
        v: slope inside the sigmoid, of shape (C,).
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        eps: added to the variance, under the root.

    Returns:
        A tensor of the shape of `x`.

    Source: `liu2020`.
    """
    gated = x * torch.sigmoid(per_channel(v, x) * x)
    groups = x.unflatten(1, (num_groups, -1))  # (N, G, C/G, *)
    var = groups.var(tuple(range(2, groups.ndim)), correction=0, keepdim=True)
    normalized = gated.unflatten(1, (num_groups, -1)) / (var + eps).sqrt()
    return channel_affine(normalized.flatten(1, 2), weight, bias)


class EvoNormB0(StatisticNorm):
    r"""EvoNorm-B0: batch normalization without centering, whose denominator bends into an activation.

    **Idea.** A large value is divided by itself, so it levels off at $1/v$; others are divided by the standard deviation of
    the batch. The formula was found by an evolutionary search over graphs of elementary operations.

    **Formula.** $y = \gamma_c\,x / \max(\sqrt{\sigma_c^2 + \epsilon},\; v_c\,x + \sqrt{\sigma_{nc}^2 + \epsilon}) + \beta_c$, see
    `evonorm_b0`. It replaces the activation too (`includes_activation`): put none after it.

    **Axes.** $\sigma_c^2$ per channel, over samples and positions; $\sigma_{nc}^2$ per sample and channel, over positions. On
    vectors (N, C), which the paper does not treat, $\sigma_{nc}^2 = 0$: the variance of one value.

    **Variance.** Biased in the formula, both; unbiased in `running_var`. The mean is subtracted in the variances, not from x.
    **eps** is added to both, under the roots.

    **Train and eval.** In training $\sigma_c^2$ is the batch's, and `running_var` moves towards it; in evaluation it is
    `running_var`. $\sigma_{nc}^2$ is the sample's in both. There is no `running_mean`.

    **Departures.** From the paper: none known. torch has no such layer.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in `running_var`; None takes the mean of all batches so far.
        affine: whether to learn `weight` and `bias` of shape (C,); `v` is learned always.
        track_running_stats: whether to keep `running_var` and `num_batches_tracked`.
        device: where parameters and buffers are made.
        dtype: their dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or a channel has one value where the batch's variance is used.

    Example:
        >>> layer = EvoNormB0(3)
        >>> y = layer(5 + 2 * torch.randn(8, 3, 4, 4))
        >>> bool(y.max() < 1)
        True
        >>> list(layer.state_dict())
        ['weight', 'bias', 'v', 'running_var', 'num_batches_tracked']

    Source: `liu2020`.
    """

    includes_activation = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, False, device, dtype)
        self.v = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self._keep(track_running_stats, device=device, dtype=dtype)

    def _fresh(self, **place: Any) -> dict[str, Tensor]:
        return {"running_var": torch.ones(self.num_features, **place)}

    def reset_parameters(self) -> None:
        """Set the scale and `v` to one, the shift to zero, and forget the running variance."""
        super().reset_parameters()
        if "v" in self._parameters:  # not yet when torch's constructor calls
            nn.init.ones_(self.v)

    def _by_batch(self, input: Tensor) -> Tensor:
        moments = None if by_formula() else instance_moments(input)
        var = batch_moments(input)[1] if moments is None else pooled_moments(*moments, 0)[1].squeeze(0)
        count = input.numel() // self.num_features
        self._follow(running_var=var * (count / (count - 1)))
        return self._divided(input, var, moments)

    def _in_evaluation(self, input: Tensor) -> Tensor:
        return self._divided(input, self.get_buffer("running_var"), None if by_formula() else instance_moments(input))

    def _divided(self, input: Tensor, var: Tensor, moments: tuple[Tensor, Tensor] | None) -> Tensor:
        """Compute the formula; with the moments of each channel of each sample, by a ReLU in place of the maximum."""
        if moments is None:
            return evonorm_b0(input, self.v, self.weight, self.bias, var, self.eps)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        batch_std, instance_std = (var + self.eps).sqrt(), (moments[1] + self.eps).sqrt()
        excess = instance_map(x, self.v.expand(x.shape[:2]), instance_std - batch_std).relu()
        return channel_affine(x / (per_channel(batch_std, x) + excess), self.weight, self.bias).to(input.dtype)


class EvoNormS0(ChannelAffine):
    r"""EvoNorm-S0: a gated value over the standard deviation of its group of channels.

    **Idea.** The search of `EvoNormB0` with batch statistics forbidden: no sample depends on another.

    **Formula.** $y = \gamma_c\,x\,\mathrm{sigmoid}(v_c\,x) / \sqrt{\sigma_{ng}^2 + \epsilon} + \beta_c$, see `evonorm_s0`. It
    replaces the activation too (`includes_activation`): put none after it. $v$ multiplies: the $x\,\mathrm{sigmoid}(x/v)$
    that circulates is the same at $v = 1$ only, where training starts.

    **Axes.** One variance per sample and group of channels, over the group's channels and all positions. On vectors (N, C),
    which the paper does not treat, over the group's channels.

    **Variance.** Biased. The mean is subtracted in the variance, not from x. **eps** is added to the variance, under the root.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: none known. The code of `lubana2021` takes the unbiased variance. torch has no such layer.

    Args:
        num_features: number of channels C.
        groups: number of groups. With neither `groups` nor `size` it is 32.
        size: channels in a group; then there are C / size groups.
        eps: see above.
        affine: whether to learn `weight` and `bias` of shape (C,); `v` is learned always.
        device: where parameters are made.
        dtype: their dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or a group is one value; from the constructor, if both `groups` and
            `size` are given or the number does not divide C.

    Example:
        >>> x = torch.tensor([[-1.0, 1.0]])
        >>> torch.allclose(EvoNormS0(2, groups=1)(x), torch.nn.functional.silu(x), atol=1e-4)
        True
        >>> EvoNormS0(4, groups=2)
        EvoNormS0(4, groups=2, eps=1e-05, affine=True)

    Source: `liu2020`.
    """

    includes_activation = True

    def __init__(
        self,
        num_features: int,
        groups: int | None = None,
        size: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, affine, device, dtype)
        self.num_groups = grouped(num_features, groups, size, device="meta").num_groups  # or it says what fits
        self.eps = eps
        self.v = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale and `v` to one, the shift to zero."""
        super().reset_parameters()
        nn.init.ones_(self.v)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize and activate `input` (N, C, *)."""
        check_channels(type(self).__name__, input, self.num_features)
        fix = "Use fewer groups, so that channels share a variance."
        check_count(input.shape[1:].numel() // self.num_groups, "sample and group", input, fix)
        if by_formula():
            return evonorm_s0(input, self.num_groups, self.v, self.weight, self.bias, self.eps)
        return self._fused(input)

    def _fused(self, input: Tensor) -> Tensor:
        """Compute by one factor for each channel of each sample, of `weight` and the standard deviation."""
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        groups = x.unflatten(1, (self.num_groups, -1))
        var = groups.var(tuple(range(2, groups.ndim)), correction=0)  # (N, G)
        group = torch.arange(x.shape[1], device=x.device) // groups.shape[2]  # looked up: inductor fails to split an expanded axis
        factor = (var + self.eps).rsqrt()[:, group]  # (N, C)
        gated = x * torch.sigmoid(per_channel(self.v, x) * x)
        return instance_map(gated, affine(factor, self.weight, None), self.bias).to(input.dtype)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return f"{self.num_features}, groups={self.num_groups}, eps={self.eps}, affine={self.affine}"
