"""Batch renormalization (`ioffe2017`): training sees, within limits, what evaluation will see."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.layers.batch import batch_moments, batch_norm
from normlib.layers.shapes import MAX_FUSED_RANK, channel_affine, per_channel
from normlib.layers.statistics import StatisticNorm, fused_map
from normlib.mode import by_formula, formula
from normlib.spec import SpecError


@formula
def batch_renorm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    r_max: float = 3.0,
    d_max: float = 5.0,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each channel by its batch, then correct towards the running statistics: `(x̂ * r + d) * weight + bias`.

    `x̂` is `(x - batch mean) / batch std`, `r` is `batch std / running std`, `d` is `(batch mean - running mean) / running std`.

    Args:
        x: input of shape (N, C, *).
        running_mean: running mean of shape (C,).
        running_var: running variance of shape (C,).
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        r_max: `r` is clipped to the range from 1 / r_max to r_max.
        d_max: `d` is clipped to the range from -d_max to d_max.
        eps: added to both variances, under their roots.

    Returns:
        A tensor of the shape of `x`. The gradient flows through the mean and the variance of the batch, not through r and d.

    Source: `ioffe2017`.
    """
    mean, var = batch_moments(x)
    r, d = _corrections(mean, var, running_mean, running_var, r_max, d_max, eps)
    standard = (x - per_channel(mean, x)) / (per_channel(var, x) + eps).sqrt()
    return channel_affine(standard * per_channel(r, x) + per_channel(d, x), weight, bias)


def _corrections(
    mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor, r_max: float, d_max: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Return r and d of shape (C,), without a graph."""
    batch_std, running_std = (var + eps).sqrt(), (running_var + eps).sqrt()
    one = torch.ones_like(running_std)  # limits as tensors: compiled code takes new ones and is not compiled again
    r = (batch_std / running_std).clamp(one / r_max, one * r_max)
    d = ((mean - running_mean) / running_std).clamp(one * -d_max, one * d_max)
    return r.detach(), d.detach()


class BatchRenorm(StatisticNorm):
    r"""Batch renormalization of input of any rank.

    **Idea.** Batch normalization computes one function in training and another in evaluation; the smaller or the less mixed
    the batch, the more they differ. Renormalization takes the running statistics in training too, written as a correction
    of the batch's own, so that the gradient still knows that the batch was normalized.

    **Formula.** $y = \gamma\,(r\,(x - \mu_c) / \sqrt{\sigma_c^2 + \epsilon} + d) + \beta$, see `batch_renorm`. Where nothing
    is clipped, $\mu$ and $\sigma$ of the batch cancel and y is what evaluation would return. At `r_max=1, d_max=0` it is
    batch normalization.

    **Axes.** As in `BatchNorm`: one mean and one variance per channel, over the batch and all positions.

    **Variance.** The batch's is biased in the formula; unbiased in `running_var`. The running standard deviation in r and d
    is that of evaluation: $\sqrt{\text{running\_var} + \epsilon}$.

    **eps** is added to either variance, under its root.

    **Train and eval.** In training r and d come from the running statistics as they were before this batch; then these move
    by `momentum`, as in `BatchNorm`. Evaluation is that of `BatchNorm`. With `track_running_stats=False` there is nothing to
    correct towards: r is 1, d is 0.

    **Departures.** From the paper: it averages standard deviations; the variance is averaged here, so that buffers and
    `state_dict` are those of `torch.nn.BatchNorm2d`. The limits are attributes, which a schedule may set at any step:
    the paper starts as batch normalization and widens them, see `renorm_limits`. torch has no such layer.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running statistics; None takes the mean of all batches so far.
        affine: whether to learn `weight` and `bias`.
        track_running_stats: whether to keep `running_mean`, `running_var`, `num_batches_tracked`.
        device: where parameters and buffers are made.
        dtype: their dtype.
        r_max: the limit of the scale's correction, from 1 up; also an attribute.
        d_max: the limit of the shift's correction, from 0 up; also an attribute.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or a channel has one value where batch statistics are used.
        SpecError: from the constructor, if a limit is too small.

    Example:
        >>> layer, x = BatchRenorm(3), 0.2 + 1.1 * torch.randn(8, 3, 4, 4)
        >>> before = BatchRenorm(3).eval()(x)
        >>> torch.allclose(layer(x), before, atol=1e-5)  # within the limits: training is evaluation
        True
        >>> layer.r_max, layer.d_max = renorm_limits(step=0)
        >>> torch.allclose(layer(x), batch_norm(x), atol=1e-6)
        True

    Source: `ioffe2017`.
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
        r_max: float = 3.0,
        d_max: float = 5.0,
    ) -> None:
        if r_max < 1 or d_max < 0:
            raise SpecError(
                f"BatchRenorm got r_max={r_max} and d_max={d_max}; it takes r_max from 1 and d_max from 0 up, "
                "and is batch normalization at r_max=1, d_max=0."
            )
        super().__init__(num_features, eps, momentum, affine, False, device, dtype)
        self.r_max, self.d_max = float(r_max), float(d_max)
        self._keep(track_running_stats, device=device, dtype=dtype)

    def _fresh(self, **place: Any) -> dict[str, Tensor]:
        zeros = torch.zeros(self.num_features, **place)
        return {"running_mean": zeros, "running_var": torch.ones_like(zeros)}

    def _by_batch(self, input: Tensor) -> Tensor:
        if not self.track_running_stats:
            return self._by_formula(input, 1) if by_formula() else self._fused(input, 1)
        renormalize = self._renormalize_by_formula if by_formula() else self._renormalize
        return renormalize(input, self.get_buffer("running_mean"), self.get_buffer("running_var"))

    def _in_evaluation(self, input: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if by_formula():
            return batch_norm(input, self.weight, self.bias, mean, var, self.eps)
        factor = (var + self.eps).rsqrt()
        return fused_map(input, factor, -mean * factor, self.weight, self.bias)

    def _renormalize_by_formula(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        y = batch_renorm(x, running_mean, running_var, self.weight, self.bias, self.r_max, self.d_max, self.eps)
        mean, var = batch_moments(x)
        count = x.numel() // self.num_features
        self._follow(running_mean=mean, running_var=var * (count / (count - 1)))
        return y

    def _renormalize(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        """Standardize by the fused op; r and d then go with weight and bias into one map."""
        mean, unbiased = running_mean.clone(), running_var.clone()  # at momentum 1 these become the batch's
        flat = x.flatten(2) if x.ndim > MAX_FUSED_RANK else x
        standard = F.batch_norm(flat, mean, unbiased, None, None, True, 1.0, self.eps).view_as(x)
        count = x.numel() // self.num_features
        var = unbiased * ((count - 1) / count)
        r, d = _corrections(mean, var, running_mean, running_var, self.r_max, self.d_max, self.eps)
        self._follow(running_mean=mean, running_var=unbiased)
        return fused_map(standard, r, d, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them, and the limits."""
        return f"{super().extra_repr()}, r_max={self.r_max:g}, d_max={self.d_max:g}"


def renorm_limits(
    step: int,
    warmup: int = 5_000,
    r_steps: int = 40_000,
    d_steps: int = 25_000,
    r_max: float = 3.0,
    d_max: float = 5.0,
) -> tuple[float, float]:
    """Return `(r_max, d_max)` at a step of training: batch normalization first, then limits that widen.

    They stay at 1 and 0 for `warmup` steps, then grow on a straight line and reach `r_max` at step `r_steps` and `d_max` at
    step `d_steps`. The defaults are the paper's. A training loop sets them before each step:

        for layer in model.modules():
            if isinstance(layer, BatchRenorm):
                layer.r_max, layer.d_max = renorm_limits(step)

    Args:
        step: the number of steps done.
        warmup: steps of batch normalization.
        r_steps: the step from which r_max is at its end; more than `warmup`.
        d_steps: the step from which d_max is at its end; more than `warmup`.
        r_max: where the limit of r ends.
        d_max: where the limit of d ends.

    Example:
        >>> [renorm_limits(step) for step in (0, 5_000, 15_000, 25_000, 40_000)]
        [(1.0, 0.0), (1.0, 0.0), (1.57..., 2.5), (2.14..., 5.0), (3.0, 5.0)]

    Source: `ioffe2017`.
    """

    def done(steps: int) -> float:
        return min(max(step - warmup, 0) / (steps - warmup), 1.0)

    return 1 + (r_max - 1) * done(r_steps), d_max * done(d_steps)
