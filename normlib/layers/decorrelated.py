"""Decorrelated batch normalization (`huang2018`): groups of channels are whitened over the batch and all positions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from normlib.layers.shapes import ShapeError, affine, channel_affine, divisors
from normlib.layers.statistics import StatisticNorm
from normlib.layers.whitening import check_method, whitening_matrix
from normlib.mode import by_formula, formula

_SIZE = 16


@formula
def decorrelated_batch_norm(
    x: Tensor,
    size: int,
    method: str = "zca",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    cov: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Whiten each group of channels: `(cov + eps * I)^(-1/2) @ (x - mean) * weight + bias`.

    Args:
        x: input of shape (N, C, *).
        size: the number S of neighboring channels that make a group.
        method: "zca" or "pca", see `whitening_matrix`.
        weight: scale of shape (C,), or None for 1.
        bias: shift of shape (C,), or None for 0.
        mean: mean of shape (C,), or None for the mean of this batch.
        cov: covariances of shape (C / S, S, S), or None for the biased covariance of this batch.
        eps: added to the diagonal of the covariance.

    Returns:
        A tensor of the shape of `x`. The gradient flows through the mean and the covariance of the batch.

    Source: `huang2018`.
    """
    with _without_autocast(x):
        if mean is None or cov is None:
            mean, cov = group_moments(x, size)
        centered = _grouped(x, size) - mean.view(-1, size, 1)
        standard = whitening_matrix(cov, method, eps) @ centered
    return channel_affine(_ungrouped(standard, x), weight, bias)


def group_moments(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the mean (C,) and the biased covariances (C / S, S, S) of each group of S = `size` channels of `x` (N, C, *)."""
    groups = _grouped(x.to(torch.promote_types(x.dtype, torch.float32)), size)
    mean = groups.mean(2, keepdim=True)
    centered = groups - mean
    return mean.flatten(), centered @ centered.mT / groups.shape[2]


def _grouped(x: Tensor, size: int) -> Tensor:
    """Turn (N, C, *) into (groups, channels of a group, values of a channel)."""
    return x.transpose(0, 1).reshape(x.shape[1] // size, size, -1)


def _ungrouped(groups: Tensor, x: Tensor) -> Tensor:
    """Undo `_grouped`."""
    return groups.reshape(x.transpose(0, 1).shape).transpose(0, 1)


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast from narrowing the products: eigenvalues do not survive it."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class DecorrelatedBatchNorm(StatisticNorm):
    r"""Decorrelated batch normalization of input of any rank: whitening within groups of channels.

    **Idea.** Batch normalization gives each channel mean 0 and variance 1 and leaves channels correlated. Whitening removes
    the correlations too. Principal components would do, but they swap places and signs from batch to batch, and the paper
    finds that networks do not learn on them; ZCA whitening rotates them back.

    **Formula.** $y = \gamma\,(\Sigma + \epsilon I)^{-1/2} (x - \mu) + \beta$ for each group of channels, see
    `decorrelated_batch_norm` and, for the root, `whitening_matrix`. With `size=1` it is batch normalization.

    **Axes.** One mean vector and one covariance matrix per group of `size` neighboring channels, over the batch and all
    positions.

    **Variance.** Biased in the formula; unbiased in `running_cov`.

    **eps** is added to the diagonal of the covariance, that is to each eigenvalue.

    **Train and eval.** In training mean and covariance are those of the batch, the gradient flows through them, and
    `running_mean` (C,) and `running_cov` (C / S, S, S) move towards them by `momentum`. In evaluation the running covariance
    is whitened by and left as it is. There is no `running_var`: it is None.

    **Departures.** From the authors' code: it averages whitening matrices, not covariances. The mean of inverse roots is not
    the inverse root of the mean: it is too large where a batch has few values, and for "pca" it averages axes that have
    swapped. Covariances average without bias, and at `size=1` are batch normalization's buffer. Groups are of one size; the
    code lets the last be smaller. torch has no such layer.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running statistics; None takes the mean of all batches so far.
        affine: whether to learn `weight` and `bias` of shape (C,).
        track_running_stats: whether to keep `running_mean`, `running_cov`, `num_batches_tracked`.
        device: where parameters and buffers are made.
        dtype: their dtype.
        method: "zca", or "pca", which is there to show what goes wrong.
        size: channels in a group; it divides C. None takes 16, or all channels if there are fewer.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: from the constructor, if `size` does not divide C. From a call, if axis 1 does not hold C channels, or a
            channel has no more values than its group has channels where batch statistics are used.
        UnknownNameError: from the constructor, if the method is neither.

    Example:
        >>> x = torch.randn(64, 4, 2, 2) + torch.randn(64, 1, 2, 2)  # correlated channels
        >>> y = DecorrelatedBatchNorm(4)(x)
        >>> torch.allclose(torch.cov(y.transpose(0, 1).flatten(1), correction=0), torch.eye(4), atol=1e-3)
        True

    Source: `huang2018`.
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
        method: str = "zca",
        size: int | None = None,
    ) -> None:
        size, fitting = min(_SIZE, num_features) if size is None else size, divisors(num_features)
        if size not in fitting:
            fits = ", ".join(map(str, fitting))
            raise ShapeError(f"decorrelated:size={size} does not divide {num_features} channels. What fits: size={fits}.")
        check_method(method)
        super().__init__(num_features, eps, momentum, affine, False, device, dtype)
        self.method, self.size = method, size
        self._keep(track_running_stats, device=device, dtype=dtype)

    def _fresh(self, **place: Any) -> dict[str, Tensor]:
        identity = torch.eye(self.size, **place).repeat(self.num_features // self.size, 1, 1)
        return {"running_mean": torch.zeros(self.num_features, **place), "running_cov": identity}

    def _by_batch(self, input: Tensor) -> Tensor:
        return self._whitened(input)

    def _in_evaluation(self, input: Tensor) -> Tensor:
        wide = torch.promote_types(input.dtype, torch.float32)  # half has no eigenvalues
        return self._whitened(input, self.get_buffer("running_mean").to(wide), self.get_buffer("running_cov").to(wide))

    def _check_input_dim(self, input: Tensor) -> None:
        super()._check_input_dim(input)
        count = input.numel() // self.num_features
        if self._uses_batch and 0 < count <= self.size:
            raise ShapeError(
                f"Expected more than {self.size} values per channel when training, as many as a group has channels, got input "
                f"size {tuple(input.shape)}. Whiten smaller groups (size={max(d for d in divisors(self.size) if d < count)}), "
                "use a larger batch, or call eval()."
            )

    def _whitened(self, input: Tensor, mean: Tensor | None = None, cov: Tensor | None = None) -> Tensor:
        """Whiten by these statistics, or by those of the batch."""
        of_maps = input.is_contiguous() and input.shape[2:].numel() >= self.size  # the fast path makes a matrix per sample
        with _without_autocast(input):
            if of_maps and not by_formula():
                wide = input.to(torch.promote_types(input.dtype, torch.float32))
                return self._maps(wide, mean, cov).to(input.dtype)
            if mean is None or cov is None:
                mean, cov = group_moments(input, self.size)
                self._track_groups(mean, cov, input)
        return decorrelated_batch_norm(input, self.size, self.method, self.weight, self.bias, mean, cov, self.eps)

    def _maps(self, x: Tensor, mean: Tensor | None, cov: Tensor | None) -> Tensor:
        """Whiten maps where they lie, without moving channels to the front; weight and bias go with the matrix."""
        mean = x.mean([0, *range(2, x.ndim)]) if mean is None else mean
        origin = mean.detach()
        gap = (mean - origin).view(-1, self.size, 1)  # 0, but its gradient is that of the mean
        centered = x.reshape(x.shape[0], -1, self.size, x.shape[2:].numel()) - origin.view(-1, self.size, 1)
        if cov is None:
            cov = (centered @ centered.mT).mean(0) / centered.shape[3] - gap @ gap.mT
            self._track_groups(mean, cov, x)
        matrix = affine(whitening_matrix(cov, self.method, self.eps), self._per_group(self.weight), None)
        shift = affine(-matrix @ gap, None, self._per_group(self.bias))
        return (matrix @ centered + shift).view_as(x)

    def _per_group(self, vector: Tensor | None) -> Tensor | None:
        return None if vector is None else vector.view(-1, self.size, 1)

    def _track_groups(self, mean: Tensor, cov: Tensor, x: Tensor) -> None:
        count = x.numel() // self.num_features
        self._follow(running_mean=mean, running_cov=cov * (count / (count - 1)))

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them, and those of the groups."""
        return f"{super().extra_repr()}, method={self.method!r}, size={self.size}"
