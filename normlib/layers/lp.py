"""Lp batch normalization (`santurkar2018`, `hoffer2018`): batch normalization by another norm than the Euclidean."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from normlib.layers.shapes import channel_affine, per_channel
from normlib.layers.statistics import StatisticNorm, fused_map
from normlib.mode import by_formula, formula
from normlib.spec import SpecError


def lp_moments(x: Tensor, p: float = 1, centered: bool = False) -> tuple[Tensor, Tensor]:
    """Return mean and Lp scale of each channel of `x` (N, C, *), each of shape (C,).

    The scale is the power mean of order p of the absolute values: their mean for p = 1, their root mean square for p = 2,
    their maximum, the limit of power means, for p = inf.

    Args:
        x: input of shape (N, C, *).
        p: 1, 2 or inf.
        centered: take the values about the mean of their channel, and multiply by the constant of `hoffer2018`.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = [0, *range(2, x.ndim)]
    mean, count = x.mean(axes), x.numel() // x.shape[1]
    values = x - per_channel(mean, x) if centered else x
    scale = values.abs().amax(axes) if p == math.inf else torch.linalg.vector_norm(values, p, axes) / count ** (1 / p)
    return mean, scale * gaussian_factor(p, count) if centered else scale


def gaussian_factor(p: float, count: int) -> Tensor:
    r"""Return what brings the Lp scale of centered Gaussian values to their standard deviation, as `hoffer2018` has it.

    It is $\sqrt{\pi/2}$ for p = 1, exact as the count grows. For p = inf it is
    $(1 + \sqrt{\pi \ln 4}) / \sqrt{8 \ln m}$, midway between the inverses of a lower and of an upper bound on the expected
    maximum of m values. That of their absolute values is larger: normalized Gaussian values keep a variance of about one
    half (0.54 at m = 64, 0.50 at m = 1024), which `weight` can make up for.

    Args:
        p: 1, 2 or inf.
        count: number m of values, from 2 up.

    Returns:
        A tensor of shape ().

    Example:
        >>> [round(gaussian_factor(p, 1024).item(), 4) for p in (1, 2, math.inf)]
        [1.2533, 1.0, 0.4145]

    Source: `hoffer2018`.
    """
    if p == math.inf:
        log = torch.scalar_tensor(count, dtype=torch.float64).log()  # of a tensor: an exported count is no number yet
        return (1 + math.sqrt(math.pi * math.log(4))) / (8 * log).sqrt()
    return torch.scalar_tensor(math.sqrt(math.pi / 2) if p == 1 else 1.0, dtype=torch.float64)


@formula
def lp_batch_norm(
    x: Tensor,
    p: float = 1,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-5,
    centered: bool = False,
) -> Tensor:
    """Center each channel and divide by its Lp scale: `(x - mean) / sqrt(scale² + eps) * weight + bias`.

    Args:
        x: input of shape (N, C, *).
        p: 1, 2 or inf, the order of the scale of the batch; see `lp_moments`.
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        mean: mean of shape (C,), or None for the mean of this batch.
        scale: Lp scale of shape (C,), or None for that of this batch.
        eps: added to the square of the scale, under the root.
        centered: take the scale of this batch about its mean; see `lp_moments`.

    Returns:
        A tensor of the shape of `x`. The gradient flows through the mean and the scale of the batch.

    Source: `santurkar2018`, section 3.3.
    """
    if mean is None or scale is None:
        mean, scale = lp_moments(x, p, centered)
    standard = (x - per_channel(mean, x)) / (per_channel(scale, x).square() + eps).sqrt()
    return channel_affine(standard, weight, bias)


class LpBatchNorm(StatisticNorm):
    r"""Lp batch normalization of input of any rank.

    **Idea.** Batch normalization without its variance. In `santurkar2018` the scale is an Lp norm of values that were not
    centered, so that neither the variance nor the range of the output is fixed, and networks still train as well. In
    `hoffer2018` (`centered=True`) L1 and L-infinity stand in for the standard deviation where half precision would overflow
    or cost counts.

    **Formula.** $y = \gamma\,(x - \mu_c) / \sqrt{s_c^2 + \epsilon} + \beta$ with $s = \overline{|x|}$ for p = 1,
    $\sqrt{\overline{x^2}}$ for p = 2, $\max |x|$ for p = inf; see `lp_batch_norm`. With `centered=True` x - μ is put for x
    in s, and s multiplied by a constant, see `gaussian_factor`; p = 2 then is batch normalization.

    **Axes.** One mean and one scale per channel, over the batch and all positions.

    **Variance.** None is taken. The scale is divided by the count in any case; the running scale has no correction.

    **eps** is added to the square of the scale, under the root: at p = 2 and a mean of zero it is batch normalization's.

    **Train and eval.** In training mean and scale are those of the batch, the gradient flows through them, and
    `running_mean` and `running_scale` (the average of s, not of its square) move towards them by `momentum`. In evaluation
    these are used and left as they are. There is no `running_var`: it is None.

    **Departures.** From `santurkar2018`: it gives no eps, does not say what the average of the L-infinity norm is (the
    maximum here, the limit of power means of high order), and does not describe evaluation. From `hoffer2018`: of the largest
    values it also averages several; here it is the maximum alone. torch has no such layer.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running statistics; None takes the mean of all batches so far.
        affine: whether to learn `weight` and `bias`.
        track_running_stats: whether to keep `running_mean`, `running_scale`, `num_batches_tracked`.
        device: where parameters and buffers are made.
        dtype: their dtype.
        p: 1, 2 or inf.
        centered: False for the layer of `santurkar2018`, True for that of `hoffer2018`.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or a channel has one value where batch statistics are used.
        SpecError: from the constructor, if p is none of 1, 2, inf.

    Example:
        >>> x = 5 + 2 * torch.randn(8, 3, 4, 4)
        >>> y = LpBatchNorm(3)(x)
        >>> torch.allclose(y, (x - x.mean((0, 2, 3), keepdim=True)) / x.abs().mean((0, 2, 3), keepdim=True), atol=1e-5)
        True

    Source: `santurkar2018`, section 3.3.
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
        p: float = 1,
        centered: bool = False,
    ) -> None:
        if p not in (1, 2, math.inf):
            raise SpecError(f"LpBatchNorm got p={p!r}. What it takes: p=1, p=2, p=inf, as in 'lp:p=inf'.")
        super().__init__(num_features, eps, momentum, affine, False, device, dtype)
        self.p, self.centered = float(p), centered
        self._keep(track_running_stats, device=device, dtype=dtype)

    def _fresh(self, **place: Any) -> dict[str, Tensor]:
        zeros = torch.zeros(self.num_features, **place)
        return {"running_mean": zeros, "running_scale": torch.ones_like(zeros)}

    def _by_batch(self, input: Tensor) -> Tensor:
        mean, scale = lp_moments(input, self.p, self.centered)
        self._follow(running_mean=mean, running_scale=scale)
        return self._standardized(input, mean, scale)

    def _in_evaluation(self, input: Tensor) -> Tensor:
        return self._standardized(input, self.get_buffer("running_mean"), self.get_buffer("running_scale"))

    def _standardized(self, input: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        if by_formula():
            return lp_batch_norm(input, self.p, self.weight, self.bias, mean, scale, self.eps)
        factor = (scale.square() + self.eps).rsqrt()
        return fused_map(input, factor, -mean * factor, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them, and the norm."""
        return f"{super().extra_repr()}, p={self.p:g}, centered={self.centered}"
