"""What normalized recurrent cells share, and `unroll`, which runs any cell along a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlib.layers.shapes import ShapeError


def unroll(cell: nn.Module, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """Run a cell along a sequence.

    Args:
        cell: a cell of this package or of torch, called as `cell(input[t], state)`, or as `cell(input[t], state, t)` if its
            attribute `takes_step` is True.
        input: the sequence (T, N, F), or (T, F) where the cell takes a single sample.
        hx: the state to start from; None for zeros.

    Returns:
        The outputs h of all steps, of shape (T, N, H), and the final state as the cell returns it.

    Raises:
        ShapeError: if the sequence is empty.

    Example:
        >>> outputs, (h, c) = unroll(nn.LSTMCell(3, 5), torch.randn(7, 2, 3))
        >>> outputs.shape, torch.equal(outputs[-1], h)
        (torch.Size([7, 2, 5]), True)
    """
    if input.ndim < 2 or not len(input):
        raise ShapeError(f"unroll expects a sequence (T, N, F) with T from 1 up, but got {tuple(input.shape)}.")
    outputs = []
    for step, x in enumerate(input.unbind()):
        hx = cell(x, hx, step) if getattr(cell, "takes_step", False) else cell(x, hx)
        outputs.append(hx[0] if isinstance(hx, tuple) else hx)
    return torch.stack(outputs), hx


class Cell(nn.RNNCellBase):
    """What the cells share with those of torch: weights, biases and their start, and what they check.

    `takes_step` tells whether a cell is called with the number of the time step.
    """

    takes_step = False

    def reset_parameters(self) -> None:
        """Draw weights and biases as torch does, set gains to their start and the other biases to zero."""
        bound = self.hidden_size**-0.5 if self.hidden_size else 0.0
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)
        for norm in self.children():
            if isinstance(norm, (nn.LayerNorm, _BatchNorm)):
                norm.reset_parameters()

    def _state(self, input: Tensor, hx: Tensor | None, name: str = "hx") -> Tensor:
        """Check input and state, and return the state to start from."""
        layer = type(self).__name__
        if input.ndim not in (1, 2) or input.shape[-1] != self.input_size:
            wanted = f"(N, {self.input_size}) or ({self.input_size},)"
            fix = "Run a sequence (T, N, F) with unroll(cell, input)." if input.ndim > 2 else "Mend input_size."
            raise ShapeError(f"{layer} expects input of shape {wanted}, but got {tuple(input.shape)}. {fix}")
        shape = (*input.shape[:-1], self.hidden_size)
        if hx is None:
            return input.new_zeros(shape)
        if hx.shape != shape:
            raise ShapeError(
                f"{layer} expects {name} of shape {shape} with input of shape {tuple(input.shape)}, but got {tuple(hx.shape)}. "
                "Leave hx out to start from zeros."
            )
        return hx

    def _states(self, input: Tensor, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return the pair of states to start from."""
        if hx is not None and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
            raise ShapeError(f"{type(self).__name__} expects hx to be the pair (h, c), but got {type(hx).__name__}.")
        h, c = (None, None) if hx is None else hx
        return self._state(input, h, "hx[0]"), self._state(input, c, "hx[1]")


def lstm_step(gates: Tensor, c: Tensor, normalize: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the next states (h, c) of an LSTM from its summed inputs, in torch's order i, f, g, o, and its cell state.

    `normalize` acts on the cell state on its way to the output; the cell state itself stays as it is.
    """
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * normalize(c).tanh(), c
