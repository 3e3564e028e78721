"""Weight standardization (`qiao2019`), and scaled so that the layer keeps the variance of what it is given (`brock2021a`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.mode import formula
from normlib.weights.gains import activation_gain
from normlib.weights.rows import check_rows, fusible, per_row, row_axes


@formula
def weight_standardization(weight: Tensor, eps: float = 1e-10) -> Tensor:
    """Standardize each row: `(weight - mean) / sqrt(var + eps)`.

    Args:
        weight: raw weights, of shape (outputs, *).
        eps: added to the biased variance, under the root.

    Returns:
        A tensor of the shape of `weight`.

    Source: `qiao2019`.
    """
    var, mean = torch.var_mean(weight, row_axes(weight), correction=0, keepdim=True)
    return (weight - mean) / (var + eps).sqrt()


@formula
def scaled_weight_standardization(weight: Tensor, gain: Tensor | None = None, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Standardize each row to the norm gamma · gain: `gamma * gain * (weight - mean) / sqrt(max(fan_in * var, eps))`.

    Args:
        weight: raw weights, of shape (outputs, *).
        gain: learned scale of shape (outputs, 1, ...), or None for 1.
        gamma: the constant that makes up for the activation.
        eps: the least value of fan_in times the biased variance.

    Returns:
        A tensor of the shape of `weight`.

    Source: `brock2021a`.
    """
    fan_in = weight[0].numel()
    var, mean = torch.var_mean(weight, row_axes(weight), correction=0, keepdim=True)
    scale = gamma * torch.rsqrt(torch.clamp(fan_in * var, min=eps))
    return (weight - mean) * (scale if gain is None else scale * gain)


class WeightStandardization(nn.Module):
    r"""Weight standardization, a parametrization for convolutions that a normalizer follows.

    **Idea.** What batch normalization does to the activations of a channel is done to the weights that make them. It is meant
    for use with `GroupNorm`, where batches are too small to take statistics over.

    **Formula.** $\hat w_o = (w_o - \mu_o) / \sqrt{\sigma_o^2 + \epsilon}$, see `weight_standardization`, differentiated
    through the statistics.

    **Axes.** One mean and one variance per output (axis 0), over its fan-in.

    **Variance.** Biased.

    **eps** is added to the variance, under the root. It has to be small beside the variance of raw weights, which is about
    1 / fan-in: $10^{-5}$, usual for activations, would take 2 % off the weights of a 3×3 convolution of 512 channels.

    **Train and eval.** The same; there are no buffers.

    **Departures.** The authors' layer divides by $\sigma_o + 10^{-5}$ with the unbiased $\sigma_o$; here stands what the
    equation says, with $\epsilon = (10^{-5})^2$. The two differ by one factor, near 1 and close to the same for every row of
    a layer, that the following normalizer removes. There is no factor for the fan-in: without a normalizer after it the
    layer multiplies the variance by the fan-in. torch has no such parametrization.

    Args:
        weight: the weight to act on; only its shape is looked at.
        eps: see above.

    Shape:
        Weight (outputs, *), output the same.

    Raises:
        WeightError: if the weight has fewer than two axes or a fan-in of 1.

    Example:
        >>> from normlib.weights import parametrize_weight
        >>> layer = parametrize_weight(nn.Conv2d(2, 3, 3), "standardized_weight")
        >>> torch.allclose(layer.weight.std((1, 2, 3), correction=0), torch.ones(3))
        True

    Source: `qiao2019`.
    """

    def __init__(self, weight: Tensor, eps: float = 1e-10) -> None:
        super().__init__()
        check_rows(type(self).__name__, weight, centers=True)
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        """Standardize each row of `weight`."""
        if not fusible(weight):
            return weight_standardization(weight, self.eps)
        return F.layer_norm(weight.flatten(1), (weight[0].numel(),), eps=self.eps).view_as(weight)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"eps={self.eps}"


class ScaledWeightStandardization(nn.Module):
    r"""Scaled weight standardization: a layer without normalizer that keeps mean 0 and variance 1.

    **Idea.** A row that sums to zero turns inputs of one common mean into outputs of mean 0; a row of norm $\gamma$ turns
    independent inputs of variance $1/\gamma^2$, which is what the activation makes of a standard normal one, into outputs of
    variance 1. So mean and variance are kept from layer to layer by the weights alone.

    **Formula.** $\hat w_o = \gamma\,g_o\,(w_o - \mu_o) / (\sigma_o \sqrt N)$, see `scaled_weight_standardization`. The gradient
    with respect to $w_o$ sums to zero and is orthogonal to $w_o$.

    **Axes.** One mean and one variance per output (axis 0), over its fan-in $N$: input channels / groups · positions.

    **Variance.** Biased.

    **eps** is the least value that $N \sigma_o^2$ takes, under the root: where the variance is above it, eps has no effect at
    all. A row of zeros gives zeros, with a gradient.

    **Train and eval.** The same; there are no buffers.

    **Departures.** The equation has no $g_o$ and no eps; both are the authors' code's. There $\gamma$ stands in the activation
    and is a constant estimated by sampling (`RELEASED_GAINS`); here it stands in the weight, as in the equation, and is
    exact. Some ports add eps to $\sigma_o^2$, which takes several percent off the variance of wide layers, or take the
    unbiased variance. torch has no such parametrization. `gain` wants no weight decay.

    Args:
        weight: the weight to act on; its shape, device and dtype are those of `gain`'s.
        gain: $\gamma$: a number, or the name of the activation before this layer, for `activation_gain` of it. A layer whose
            input is standardized already (the first one) has `gain="identity"`, which is 1.
        affine: whether to learn `gain` $g$ of shape (outputs, 1, ...), from 1.
        eps: see above.

    Shape:
        Weight (outputs, *), output the same.

    Raises:
        WeightError: if the weight has fewer than two axes or a fan-in of 1.
        UnknownNameError: if there is no such activation; the message holds the nearest match.

    Example:
        >>> from normlib.weights import parametrize_weight
        >>> layer = parametrize_weight(nn.Conv2d(64, 32, 3), "scaled_weight:gain=relu")
        >>> y = layer(torch.randn(8, 64, 10, 10).relu())
        >>> bool(y.mean().abs() < 0.05), bool((y.var() - 1).abs() < 0.1)
        (True, True)

    Source: `brock2021a`.
    """

    gain: Tensor | None

    def __init__(self, weight: Tensor, gain: str | float = "relu", affine: bool = True, eps: float = 1e-4) -> None:
        super().__init__()
        check_rows(type(self).__name__, weight, centers=True)
        self.gamma = activation_gain(gain) if isinstance(gain, str) else float(gain)
        self.affine = affine
        self.eps = eps
        ones = torch.ones(per_row(weight), device=weight.device, dtype=weight.dtype)
        self.register_parameter("gain", nn.Parameter(ones) if affine else None)

    def forward(self, weight: Tensor) -> Tensor:
        """Standardize and scale each row of `weight`."""
        fused = self._fused(weight) if weight.is_cpu and fusible(weight) and not torch.compiler.is_compiling() else None
        return scaled_weight_standardization(weight, self.gain, self.gamma, self.eps) if fused is None else fused

    def _fused(self, weight: Tensor) -> Tensor | None:
        """Standardize in one pass over the rows, each a group of one channel; None if eps has a say, or nobody can tell."""
        outputs, fan_in = weight.shape[0], weight[0].numel()
        scale = weight.new_full((outputs,), self.gamma * fan_in**-0.5)
        scale = scale if self.gain is None else scale * self.gain.flatten()
        rows = weight.view(1, outputs, fan_in)
        output, _, rstd = torch.native_group_norm(rows, scale, None, 1, outputs, fan_in, outputs, 0.0)
        try:
            in_force = bool((rstd.detach() ** -2 * fan_in < self.eps).any())
        except RuntimeError:  # under vmap, or of fake tensors: no values to look at
            return None
        return None if in_force else output.view_as(weight)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"gamma={self.gamma:.6f}, affine={self.affine}, eps={self.eps}"
