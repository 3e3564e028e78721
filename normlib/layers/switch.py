"""Switchable normalization (`luo2019`): the layer learns how much of instance, layer and batch statistics it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normlib.layers.batch import BatchNorm, batch_moments
from normlib.layers.moments import instance_map, instance_moments, pooled_moments
from normlib.layers.shapes import affine, channel_affine, check_channels, check_count, per_channel
from normlib.mode import by_formula, formula


@formula
def switch_norm(
    x: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    batch_mean: Tensor | None = None,
    batch_var: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize by mixed statistics: `(x - Σ w_k mean_k) / sqrt(Σ w'_k var_k + eps) * weight + bias`.

    Args:
        x: input of shape (N, C, *) with at least one axis of positions.
        mean_weight: logits of the weights w of the means, for (instance, layer, batch), or for (instance, layer).
        var_weight: logits of the weights w' of the variances, likewise.
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        batch_mean: the batch's mean of shape (C,), or None for that of `x`.
        batch_var: the batch's variance of shape (C,), or None for the biased variance of `x`.
        eps: added to the mixed variance, under the root.

    Returns:
        A tensor of the shape of `x`.

    Source: `luo2019`.
    """
    positions = tuple(range(2, x.ndim))
    sets = [positions, (1, *positions), (0, *positions)][: len(mean_weight)]  # instance, layer, batch
    means = [x.mean(axes, keepdim=True) for axes in sets]
    variances = [x.var(axes, correction=0, keepdim=True) for axes in sets]
    if batch_mean is not None and batch_var is not None:
        means[2], variances[2] = per_channel(batch_mean, x), per_channel(batch_var, x)
    mean, var = mixed(mean_weight, means), mixed(var_weight, variances)
    return channel_affine((x - mean) / (var + eps).sqrt(), weight, bias)


def mixed(logits: Tensor, statistics: Sequence[Tensor]) -> Tensor:
    """Return the mean of `statistics`, weighted by the softmax of `logits`."""
    total: Any = sum(weight * statistic for weight, statistic in zip(logits.softmax(0), statistics, strict=True))
    return total


class SwitchNorm(BatchNorm):
    r"""Switchable normalization: instance, layer and batch statistics in learned proportion.

    **Idea.** Which statistics suit a layer depends on the layer, the task and the batch size: let the training decide.

    **Formula.** $y = \gamma_c\,(x - \sum_k w_k\mu_k) / \sqrt{\sum_k w'_k\sigma_k^2 + \epsilon} + \beta_c$, with k over
    instance, layer and batch, $w$ = softmax(`mean_weight`) and $w'$ = softmax(`var_weight`), see `switch_norm`.

    **Axes.** Instance: one mean and variance per sample and channel, over all positions; layer: per sample, over channels and
    positions; batch: per channel, over samples and positions. The fast path takes the last two from the first by the law of
    total variance (`pooled_moments`), so that it goes over the input once.

    **Variance.** Biased in the formula; unbiased in `running_var`.

    **eps** is added to the mixed variance, under the root.

    **Train and eval.** Only the batch share differs: in training it is the batch's, and the running statistics move towards
    it, as in `BatchNorm`; in evaluation it is theirs.

    **Departures.** From the paper: running statistics by momentum stand for its average over batches, as in `BatchNorm`. The
    authors' code has an unbiased instance variance, with which the law of total variance holds only nearly; here it is
    exact. torch has no such layer. Vectors (N, C) have no instance statistics.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: as in `BatchNorm`.
        affine: whether to learn `weight` and `bias` of shape (C,).
        track_running_stats: as in `BatchNorm`.
        device: where parameters and buffers are made.
        dtype: their dtype.
        use_batch: False leaves the batch share out: then no sample depends on another, there are no buffers, and
            `mean_weight` and `var_weight` have two entries instead of three.

    Shape:
        Input (N, C, *) with more than one position, output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or there is only one position.

    Example:
        >>> layer = SwitchNorm(3)
        >>> layer.mean_weight.softmax(0)
        tensor([0.3333, 0.3333, 0.3333], grad_fn=<SoftmaxBackward0>)
        >>> layer(5 + 2 * torch.randn(8, 3, 4, 4)).shape
        torch.Size([8, 3, 4, 4])

    Source: `luo2019`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        use_batch: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats and use_batch, device, dtype)
        self.use_batch = use_batch
        self.mean_weight = nn.Parameter(torch.ones(2 + use_batch, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.ones(2 + use_batch, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set scale and shift to one and zero, the weights of the statistics equal, and forget the running statistics."""
        super().reset_parameters()
        for name in ("mean_weight", "var_weight"):
            if name in self._parameters:  # not yet when torch's constructor calls
                nn.init.ones_(self.get_parameter(name))

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, C, *) and, in training, move the running statistics."""
        self._check_input_dim(input)
        if not input.numel():  # it has no statistics
            return channel_affine(input, self.weight, self.bias).to(input.dtype)
        return self._by_equation(input) if by_formula() else self._by_factors(input)

    def _check_input_dim(self, input: Tensor) -> None:
        check_channels(type(self).__name__, input, self.num_features)
        fix = "Its instance statistics need maps (N, C, *) with more than one position; use layer, group or batch here."
        check_count(math.prod(input.shape[2:]), "sample and channel", input, fix)

    def _by_equation(self, input: Tensor) -> Tensor:
        mean = var = None
        if not self._uses_batch:
            mean, var = self._running()
        elif self.track_running_stats:
            mean, var = batch_moments(input)
            self._track(mean, var, input.numel() // self.num_features)
        return switch_norm(input, self.mean_weight, self.var_weight, self.weight, self.bias, mean, var, self.eps)

    def _by_factors(self, input: Tensor) -> Tensor:
        """Compute `x * scale + shift`, where scale and shift come from one pass over the input."""
        mean, var = instance_moments(input)
        moments = [(mean, var), pooled_moments(mean, var, 1)]
        if self.use_batch:
            moments.append(self._batch_share(mean, var, input.numel() // self.num_features))
        means, variances = zip(*moments, strict=True)
        mean, var = mixed(self.mean_weight, means), mixed(self.var_weight, variances)
        scale = affine((var + self.eps).rsqrt(), self.weight, None)
        return instance_map(input, scale, affine(-mean * scale, None, self.bias))

    def _batch_share(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the batch's moments from those of its samples, or in evaluation the running ones."""
        if not self._uses_batch:
            return self._running()
        batch_mean, batch_var = pooled_moments(mean, var, 0)
        if self.track_running_stats:
            self._track(batch_mean, batch_var, count)
        return batch_mean, batch_var

    def _running(self) -> tuple[Tensor, Tensor]:
        """Return copies of the running moments: the buffers move in place, whatever still waits to go backward."""
        return self.get_buffer("running_mean").clone(), self.get_buffer("running_var").clone()

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return super().extra_repr() + ("" if self.use_batch else ", use_batch=False")
