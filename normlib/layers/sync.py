"""Synchronized batch normalization (`peng2018`): the batch is that of all processes, wherever its samples lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normlib.layers.batch import BatchNorm, batch_norm
from normlib.layers.shapes import channel_affine, check_channels
from normlib.mode import by_formula


def _over_workers(x: Tensor) -> Tensor:
    return x.sum(0)


def combined_moments(
    counts: Tensor,
    means: Tensor,
    variances: Tensor,
    total: Callable[[Tensor], Tensor] = _over_workers,
) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the moments of K workers into those of all their values, by the law of total variance.

    The variance is the mean of the workers' variances plus the variance of their means, each worker weighted by its count.
    Nothing large is subtracted from something large, as it would be in `E[x²] - E[x]²`.

    Args:
        counts: how many values n_k of each channel a worker has, of shape (K,); 0 takes it out.
        means: the workers' means, of shape (K, C), finite also where the count is 0.
        variances: their biased variances, of shape (K, C).
        total: adds up over the workers; by default over axis 0. Where each process holds one worker's moments, of shapes (),
            (C,) and (C,), it is a sum over processes.

    Returns:
        Count, mean and biased variance of all values, of shapes (), (C,) and (C,).

    Example:
        >>> moments = torch.tensor([2.0, 2.0]), torch.tensor([[1.0], [11.0]]), torch.tensor([[1.0], [1.0]])
        >>> combined_moments(*moments)  # of 0 and 2, and of 10 and 12
        (tensor(4.), tensor([6.]), tensor([26.]))

    Source: `peng2018`.
    """
    n = counts.unsqueeze(-1)
    count = total(counts)
    mean = total(n * means) / count
    var = total(n * (variances + (means - mean).square())) / count
    return count, mean, var


class SyncBatchNorm(BatchNorm):
    r"""Batch normalization over the samples of all processes of a group.

    **Idea.** A detector's images are so large that a device holds one or two, too few for statistics of their own: the
    devices share theirs, and K processes compute what one would compute on the concatenated batch.

    **Formula.** `batch_norm` with the moments $n = \sum_k n_k$, $\mu = \sum_k n_k \mu_k / n$ and
    $\sigma^2 = \sum_k n_k (\sigma_k^2 + (\mu_k - \mu)^2) / n$ of all processes, see `combined_moments`. Averaging the
    $\sigma_k^2$ alone would lose how far the processes' means lie apart.

    **Axes.** One mean and one variance per channel, over all processes, the batch of each and all positions. The processes'
    batches may differ in size; one may be empty, not all.

    **Variance.** Biased in the formula; unbiased in `running_var`, by the count of all processes.

    **eps** is added to the variance, under the root.

    **Train and eval.** In training the processes exchange counts, means and centered squares: 2C + 1 numbers forward and 2C
    backward, which are the sums of the gradient and of its product with the normalized input. All processes of the group
    must take part in both. The gradients of `weight` and `bias` are those of the process's own samples, to be summed as
    those of any other layer. In evaluation, without a process group, and in a group of one it is `BatchNorm`.

    **Departures.** From the paper: the counts, so that batches may differ. From `torch.nn.SyncBatchNorm`: that one refuses
    input on the CPU, this one runs wherever the group's backend does (gloo, nccl), can be differentiated twice, by
    `torch.func.grad` and under `vmap` (not forward-mode: `torch.compile` would refuse it), and is a `BatchNorm`, not a
    `torch.nn.SyncBatchNorm`. Constructor, buffers and `state_dict` are the same. There as here, evaluation with
    `track_running_stats=False` takes the statistics of the process's own batch, and a layer that holds a process group can
    be neither copied nor pickled.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running statistics; None takes the mean of all batches so far.
        affine: whether to learn `weight` and `bias`.
        track_running_stats: whether to keep `running_mean`, `running_var`, `num_batches_tracked`.
        process_group: the processes that share statistics; None for all. A process outside of it computes by itself.
        device: where parameters and buffers are made.
        dtype: their dtype.
        bias: False leaves the shift out.

    Shape:
        Input (N, C, *), output the same. N may differ between processes.

    Raises:
        ShapeError: if axis 1 does not hold C channels, or, where nothing is shared, a channel has one value in training.

    Example:
        >>> layer, x = SyncBatchNorm(3), torch.randn(8, 3, 4, 4)  # in one process
        >>> torch.equal(layer(x), BatchNorm(3)(x))
        True

    Source: `peng2018`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, C, *) by the statistics of all processes and, in training, move the running ones."""
        if not self._shares:
            return super().forward(input)
        check_channels(type(self).__name__, input, self.num_features)
        count, mean, var = combined_moments(*_moments(input), self._over_processes)
        if self.track_running_stats:
            self._move(mean, var.detach() * (count / (count - 1).clamp(min=1)))
        if by_formula():
            return batch_norm(input, self.weight, self.bias, mean, var, self.eps)
        return _normalized_at_once(input, self.weight, self.bias, mean, var, self.eps)

    @property
    def _shares(self) -> bool:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return False
        return dist.get_world_size(self.process_group) > 1

    def _over_processes(self, x: Tensor) -> Tensor:
        summed: Tensor = _AllReduce.apply(x, self.process_group)
        return summed


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, means and biased variances of this process; of an empty batch zeros, which have a gradient all the same."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = [0, *range(2, x.ndim)]
    count = x.shape[0] * x.shape[2:].numel()
    if count:
        var, mean = torch.var_mean(x, axes, correction=0)
    else:
        var = mean = x.sum(axes)
    return torch.full((), count, dtype=x.dtype, device=x.device), mean, var


def _normalized_at_once(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Compute `batch_norm` with one scale and one shift per channel: `x` is read once, not three times."""
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    shift = shift if bias is None else shift + bias
    return channel_affine(x, scale, shift).to(x.dtype)  # in between of the dtype of the statistics


class _AllReduce(torch.autograd.Function):
    """Add a tensor up over processes. Each process's tensor goes into all results, so the gradient is the sum of theirs."""

    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        summed = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(gradient, ctx.group), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, group: Any) -> tuple[Tensor, int | None]:
        return _AllReduce.apply(x, group), in_dims[0]
