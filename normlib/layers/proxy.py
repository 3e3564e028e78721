"""Proxy normalization (`labatie2021`): the activation is centered and scaled as a learned Gaussian would have it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.activations import make_activation
from normlib.layers.group import GroupNorm, group_norm, grouped
from normlib.layers.moments import instance_map
from normlib.layers.shapes import channel_affine, per_channel
from normlib.mode import by_formula, formula

REACH, POINTS = 7.0, 360  # the Gaussian is integrated over ±7 standard deviations, at so many points

Activation = Callable[[Tensor], Tensor]


@formula
def proxy_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    proxy_weight: Tensor,
    proxy_bias: Tensor,
    activation: Activation = torch.relu,
    eps: float = 1e-5,
    proxy_eps: float = 0.03,
) -> Tensor:
    """Return `(phi(y) - E phi(Y)) / sqrt(Var phi(Y) + proxy_eps)`, where y is `x` after group norm and Y a Gaussian proxy of y.

    Args:
        x: input of shape (N, C, *).
        num_groups: as in `group_norm`.
        weight: scale of y of shape (C,), or None for 1.
        bias: shift of y of shape (C,), or None for 0.
        proxy_weight: the Gaussian's standard deviation less 1, of shape (C,).
        proxy_bias: its mean, of shape (C,).
        activation: phi.
        eps: added to the variance of each group, under the root.
        proxy_eps: added to the variance of phi(Y), under the root.

    Returns:
        A tensor of the shape of `x`.

    Source: `labatie2021`.
    """
    y = group_norm(x, num_groups, weight, bias, eps)
    mean, var = proxy_moments(activation, weight, bias, proxy_weight, proxy_bias)
    return (activation(y) - per_channel(mean, x)) / (per_channel(var, x) + proxy_eps).sqrt()


def proxy_moments(
    activation: Activation, weight: Tensor | None, bias: Tensor | None, proxy_weight: Tensor, proxy_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of `activation(weight * Z + bias)`, Z normal, with a gradient to all four vectors.

    Z has mean `proxy_bias` and standard deviation `1 + proxy_weight`. The integral is the midpoint rule at 360 points over
    ±7 standard deviations. Mean and variance are right to 1e-9 if the activation is smooth, to 1e-4 if it has a kink (ReLU),
    in units where the argument has standard deviation 1. The 256 equally likely quantiles of public implementations are
    right to 5e-3 there, and Gauss-Hermite quadrature with 128 points to 3e-3. A kink costs the gradient two digits more.

    Returns:
        Two tensors of shape (C,), in the dtype of the parameters, float32 at least.

    Example:
        >>> mean, var = proxy_moments(torch.relu, None, None, torch.zeros(1), torch.zeros(1))
        >>> round(mean.item(), 3), round(var.item(), 3)  # 1/√(2π) and 1/2 - 1/(2π)
        (0.399, 0.341)
    """
    dtype = torch.promote_types(proxy_bias.dtype, torch.float32)
    z = (torch.arange(POINTS, device=proxy_bias.device, dtype=dtype) + 0.5) * (2 * REACH / POINTS) - REACH
    density = (-z.square() / 2).softmax(0)[:, None]
    proxy = z[:, None] * (1 + proxy_weight) + proxy_bias  # (POINTS, C)
    value = activation(channel_affine(proxy, weight, bias))
    mean = (density * value).sum(0)
    return mean, (density * (value - mean).square()).sum(0)


class ProxyNorm(GroupNorm):
    r"""Group normalization and an activation that a Gaussian proxy normalizes.

    **Idea.** After layer or group normalization and an activation, channels keep means and scales of their own, where batch
    normalization would have taken them out; through depth each channel drifts towards a constant. What batch normalization
    would subtract and divide by can be had without a batch: from a Gaussian that stands for the channel's values.

    **Formula.** With $y$ the output of group normalization and its affine map, and $\phi$ the activation:
    $z = \big(\phi(y) - \mathbb E\,\phi(\tilde Y_c)\big) / \sqrt{\operatorname{Var} \phi(\tilde Y_c) + \epsilon'}$, where
    $\tilde Y_c = \gamma_c Y + \beta_c$, $Y \sim \mathcal N(\tilde\beta_c, (1 + \tilde\gamma_c)^2)$, see `proxy_norm`. It replaces
    the activation too (`includes_activation`): put none after it.

    **Axes.** Group normalization's, with one group (layer normalization) by default; the proxy has one mean and one variance
    per channel, which do not depend on the input. The gradient flows through them to $\gamma, \beta, \tilde\gamma, \tilde\beta$.

    **Variance.** Biased in the groups; of the proxy, the variance of a distribution, see `proxy_moments` for how exact.

    **eps** is added to the variance of each group, **proxy_eps** to the variance of the proxy, both under the root.

    **Train and eval.** The same; there are no buffers.

    **Departures.** The equation is set down from descriptions of the method, not checked against the paper's text: sure are
    the idea and where the proxy stands, less so the parametrization by `proxy_weight` and `proxy_bias`. `proxy_eps` is that of
    public implementations. torch has no such layer.

    Args:
        num_features: number of channels C.
        groups: number of groups of group normalization; it divides C.
        eps: see above.
        affine: whether to learn `weight` and `bias` of shape (C,); `proxy_weight` and `proxy_bias` are learned always.
        device: where parameters are made.
        dtype: their dtype.
        activation: the name of $\phi$ in `normlib.activations.ACTIVATIONS`.
        proxy_eps: see above.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or the whole input is one value per group; from the constructor, if
            `groups` does not divide C.
        UnknownNameError: from the constructor, if there is no such activation.

    Example:
        >>> y = ProxyNorm(4, proxy_eps=1e-5)(5 + 2 * torch.randn(64, 4, 16, 16))
        >>> bool(y.mean().abs() < 0.02), bool((y.std() - 1).abs() < 0.02)
        (True, True)

    Source: `labatie2021`.
    """

    includes_activation = True

    def __init__(
        self,
        num_features: int,
        groups: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "relu",
        proxy_eps: float = 0.03,
    ) -> None:
        num_groups = grouped(num_features, groups, device="meta").num_groups  # or it says what fits
        super().__init__(num_groups, num_features, eps, affine, device, dtype)
        self.activation, self.proxy_eps = make_activation(activation), proxy_eps
        self.proxy_weight = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.proxy_bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the scale to one, the shift to zero, the proxy to the standard normal distribution."""
        super().reset_parameters()
        for name in ("proxy_weight", "proxy_bias"):
            if name in self._parameters:  # not yet when torch's constructor calls
                nn.init.zeros_(self.get_parameter(name))

    def forward(self, input: Tensor) -> Tensor:
        """Normalize and activate `input` (N, C, *)."""
        self._check_input(input)
        own = self.weight, self.bias, self.proxy_weight, self.proxy_bias
        if by_formula():
            return proxy_norm(input, self.num_groups, *own, self.activation, self.eps, self.proxy_eps)
        y = F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        mean, var = proxy_moments(self.activation, *own)
        scale = (var + self.proxy_eps).rsqrt()
        return instance_map(self.activation(y), scale.expand(input.shape[:2]), -mean * scale)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return f"{self.num_channels}, groups={self.num_groups}, eps={self.eps}, affine={self.affine}, proxy_eps={self.proxy_eps}"
