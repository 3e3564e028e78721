"""Recurrent batch normalization (`cooijmans2017`): an LSTM with statistics of its own for each time step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.layers.batch import BatchNorm, batch_moments, batch_norm
from normlib.layers.recurrent import Cell, lstm_step
from normlib.layers.shapes import ShapeError, affine
from normlib.mode import by_formula


class StepBatchNorm(BatchNorm):
    r"""Batch normalization whose running statistics are kept for each time step apart.

    **Idea.** The first steps of a sequence are unlike the later ones, so one set of running statistics fits none of them.

    **Formula.** `batch_norm`. `weight` and `bias` are the same at every step.

    **Axes.** One mean and one variance per channel and step, over the batch and all positions.

    **Variance.** Biased in the formula; unbiased in `running_var`. **eps** is added to the variance, under the root.

    **Train and eval.** In training the statistics are those of the batch, and those kept for the step move towards them; in
    evaluation the kept ones are used. All steps from `max_length` - 1 on share the last row.

    **Departures.** From `BatchNorm`: the buffers are matrices, a row per step, and the scale starts at `gain`.

    Args:
        num_features: number of channels C.
        eps: see above.
        momentum: the weight of the newest batch in the running statistics; None takes the mean of all batches so far.
        device: where parameters and buffers are made.
        dtype: their dtype.
        bias: False leaves the shift out.
        max_length: number of steps with statistics of their own: the length of the longest sequence in training.
        gain: what `weight` starts from.

    Shape:
        Input (N, C, *), output the same.

    Raises:
        ShapeError: as in `BatchNorm`, if `max_length` is not at least 1, or the step is negative.

    Example:
        >>> layer = StepBatchNorm(3, momentum=1.0, max_length=2)
        >>> y = layer(torch.tensor([[1.0, 1, 1], [3, 3, 3]]), step=1)
        >>> layer.running_mean
        tensor([[0., 0., 0.],
                [2., 2., 2.]])

    Source: `cooijmans2017`.
    """

    gain: float = 0.1

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        max_length: int,
        gain: float = 0.1,
    ) -> None:
        if not isinstance(max_length, int) or max_length < 1:
            raise ShapeError(f"max_length={max_length!r} is no number of steps. Pass the length of the longest training sequence.")
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype, bias=bias)
        self.max_length, self.gain = max_length, gain
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(max_length, num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.empty(max_length, dtype=torch.long, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to `gain`, the shift to zero, and forget the running statistics."""
        super().reset_parameters()
        nn.init.constant_(self.weight, self.gain)

    def forward(self, input: Tensor, step: int) -> Tensor:  # type: ignore[override]  # to forget the step would go unseen
        """Normalize `input` (N, C, *) of a time step, counted from 0, and, in training, move the statistics of that step."""
        self._check_input_dim(input)
        if step < 0:
            raise ShapeError(f"step={step} is no time step. Count from 0.")
        row = min(step, self.max_length - 1)
        assert self.running_mean is not None and self.running_var is not None
        # copies: the running statistics may move before the backward pass, and the fused op overwrites what it is given
        mean, var = self.running_mean[row].clone(), self.running_var[row].clone()
        if by_formula():
            mean, var = self._of_batch(input, row) if self.training else (mean, var)
            return batch_norm(input, self.weight, self.bias, mean, var, self.eps)
        if not self.training:
            return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        y = F.batch_norm(input, mean, var, self.weight, self.bias, True, 1.0, self.eps)  # momentum 1: now those of the batch
        self._move_row(row, mean, var)
        return y

    def _of_batch(self, input: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance of the batch, and move the running statistics of the step."""
        mean, var = batch_moments(input)
        count = input.numel() // self.num_features
        self._move_row(row, mean, var * (count / max(count - 1, 1)))
        return mean, var

    @torch.no_grad()
    def _move_row(self, row: int, mean: Tensor, unbiased: Tensor) -> None:
        """Move one row of the running statistics."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        tracked = self.num_batches_tracked[row].add_(1)
        rate = tracked.to(self.running_mean.dtype).reciprocal() if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running[row].lerp_(new.detach().to(running.dtype), rate)

    def extra_repr(self) -> str:
        """Return the arguments as torch prints them."""
        return f"{super().extra_repr()}, max_length={self.max_length}, gain={self.gain}"


class BatchNormLSTMCell(Cell):
    r"""An LSTM cell whose summed inputs, and whose cell state on its way out, are batch-normalized at each step.

    **Idea.** Batch normalization along time as well as along depth: each step has statistics of its own, and the gains start
    small, as the paper found gradients to vanish on their way back in time at gain 1, where tanh saturates.

    **Formula.** $(i, f, g, o) = \mathrm{BN}(W_{hh} h; \gamma_h) + \mathrm{BN}(W_{ih} x; \gamma_x) + b$,
    $c' = \sigma(f) \odot c + \sigma(i) \odot \tanh(g)$, $h' = \sigma(o) \odot \tanh(\mathrm{BN}(c'; \gamma_c, \beta_c))$. The
    gains are `norm_hh.weight`, `norm_ih.weight` and `norm_c.weight`; $b$ is `bias_ih` + `bias_hh`, $\beta_c$ `norm_c.bias`.
    All are the same at every step. The gates' norms have no shift, as $b$ is one.

    **Axes.** One mean and one variance per summed input and step, over the batch.

    **Variance.** Biased in the formula; unbiased in `running_var`. **eps** is added to the variance, under the root.

    **Train and eval.** See `StepBatchNorm`.

    **Departures.** From the paper: a running mean of the statistics; `momentum=None` takes the mean over all batches. Weights
    and $b$ are drawn as torch draws them, the same as those of `LayerNormLSTMCell`. From `torch.nn.LSTMCell`: a batch is
    needed, the time step is an argument, and there are the norms' parameters and buffers.

    **Where all samples agree**, as in the black first pixels of images or in a state of zeros, the variance is 0 and eps
    alone divides: the output is 0, and its gradient is large. A little noise in hx helps the latter.

    Args:
        input_size: number of input features F.
        hidden_size: number of hidden units H.
        bias: False leaves out `bias_ih`, `bias_hh` and `norm_c.bias`.
        device: where parameters and buffers are made.
        dtype: their dtype.
        max_length: number of steps with statistics of their own: the length of the longest sequence in training. Later steps
            share the last.
        gain: what all gains start from.
        eps: see above.
        momentum: see `StepBatchNorm`.

    Shape:
        Input (N, F), each of the states in hx and in the output (N, H).

    Raises:
        ShapeError: if input and hx do not fit, the batch is of one in training, or the step is negative.

    Example:
        >>> cell = BatchNormLSTMCell(3, 5, max_length=7)
        >>> h, c = cell(torch.randn(2, 3), None, step=0)
        >>> cell.norm_c.running_var.shape
        torch.Size([7, 5])

    Source: `cooijmans2017`.
    """

    takes_step = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_length: int,
        gain: float = 0.1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

        def norm(size: int, bias: bool) -> StepBatchNorm:
            return StepBatchNorm(size, eps, momentum, device, dtype, bias=bias, max_length=max_length, gain=gain)

        self.norm_ih, self.norm_hh = norm(4 * hidden_size, False), norm(4 * hidden_size, False)
        self.norm_c = norm(hidden_size, bias)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None, step: int) -> tuple[Tensor, Tensor]:
        """Return the next states (h, c) from `input` (N, F), the states `hx` or None for zeros, and the time step from 0."""
        h, c = self._states(input, hx)
        of_state = self.norm_hh(F.linear(h, self.weight_hh), step)
        of_input = self.norm_ih(F.linear(input, self.weight_ih), step)
        gates = affine(affine(of_state + of_input, None, self.bias_ih), None, self.bias_hh)
        return lstm_step(gates, c, lambda c: self.norm_c(c, step))
