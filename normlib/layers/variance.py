"""Variance normalization (`lubana2021`): batch normalization that does not center."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlib.layers.batch import batch_moments
from normlib.layers.shapes import channel_affine, per_channel
from normlib.layers.statistics import StatisticNorm, fused_map
from normlib.mode import by_formula, formula


@formula
def variance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Divide each channel by its standard deviation: `x / sqrt(var + eps) * weight + bias`.

    Args:
        x: input of shape (N, C, *).
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        var: variance of shape (C,), or None for the biased variance of this batch about its mean.
        eps: added to the variance, under the root.

    Returns:
        A tensor of the shape of `x`. The gradient flows through the variance of the batch.

    Source: `lubana2021`.
    """
    if var is None:
        _, var = batch_moments(x)
    return channel_affine(x / (per_channel(var, x) + eps).sqrt(), weight, bias)


class VarianceNorm(StatisticNorm):
    r"""Variance normalization of input of any rank: batch normalization's rescaling without its centering.

    **Idea.** An ablation: what of batch normalization's effect is left if the mean stays? `daneshmand2020` studies the rank
    of features with such a layer; `lubana2021` has it among ten normalizers.

    **Formula.** $y = \gamma\,x / \sqrt{\sigma_c^2 + \epsilon} + \beta$, see `variance_norm`: batch normalization plus
    $\gamma\,\mu_c / \sqrt{\sigma_c^2 + \epsilon}$.

    **Axes.** One variance per channel, over the batch and all positions.

    **Variance.** About the mean of the channel, although that mean is not subtracted; biased in the formula, unbiased in
    `running_var`.

    **eps** is added to the variance, under the root.

    **Train and eval.** In training the variance is that of the batch, the gradient flows through it, and `running_var` moves
    towards it by `momentum`. In evaluation `running_var` is used and left as it is. There is no `running_mean`: it is None.

    **Departures.** From `lubana2021`: its code keeps the biased variance in the running average. torch has no such layer;
    the arguments are those of `torch.nn.BatchNorm2d`, and so are the buffers less `running_mean`.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running variance; None takes the mean of all batches so far.
        affine: whether to learn `weight` and `bias`.
        track_running_stats: whether to keep `running_var` and `num_batches_tracked`.
        device: where parameters and buffers are made.
        dtype: their dtype.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or a channel has one value where the batch's variance is used.

    Example:
        >>> x = 5 + 2 * torch.randn(8, 3, 4, 4)
        >>> y = VarianceNorm(3)(x)
        >>> torch.allclose(y.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)
        True
        >>> torch.allclose(y.mean((0, 2, 3)), x.mean((0, 2, 3)) / x.std((0, 2, 3), correction=0), atol=1e-4)
        True

    Source: `lubana2021`.
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
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, False, device, dtype)
        self._keep(track_running_stats, device=device, dtype=dtype)

    def _fresh(self, **place: Any) -> dict[str, Tensor]:
        return {"running_var": torch.ones(self.num_features, **place)}

    def _by_batch(self, input: Tensor) -> Tensor:
        _, var = batch_moments(input)
        count = input.numel() // self.num_features
        self._follow(running_var=var * (count / (count - 1)))
        return self._divided(input, var)

    def _in_evaluation(self, input: Tensor) -> Tensor:
        return self._divided(input, self.get_buffer("running_var"))

    def _divided(self, input: Tensor, var: Tensor) -> Tensor:
        if by_formula():
            return variance_norm(input, self.weight, self.bias, var, self.eps)
        return fused_map(input, (var + self.eps).rsqrt(), None, self.weight, self.bias)
