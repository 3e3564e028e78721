"""Recurrent cells with layer normalization (`ba2016`), in place of those of torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.errors import unknown
from normlib.layers.layer import LayerNorm
from normlib.layers.recurrent import Cell, lstm_step
from normlib.layers.shapes import affine

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class LayerNormRNNCell(Cell):
    r"""An Elman cell whose summed input is layer-normalized.

    **Idea.** The scale of the summed inputs neither grows nor shrinks from step to step: the recurrence keeps its hidden
    state in range. Statistics of one sample need neither a batch nor a time step of their own.

    **Formula.** $h' = f(g \odot \mathrm{LN}(W_{hh} h + W_{ih} x) + b)$ with LN as in `layer_norm`; $g$ is `norm.weight`, and
    $b$ is `bias_ih` + `bias_hh`. All are the same at every step.

    **Axes.** One mean and one variance per sample and step, over the H summed inputs.

    **Variance.** Biased. **eps** is added to the variance, under the root.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: eps; the bias is drawn as torch draws it, not set to 0. The paper's supplement says that
    gains start at zeros and biases at ones, its section 6 gains 1 and biases 0; with gain 0 nothing would pass the layer, so
    section 6 is meant, and gains start at 1 here. From `torch.nn.RNNCell`: with `norm="none"` none, and checkpoints load both
    ways; else `norm.weight` is added and the biases follow the normalization.

    Args:
        input_size: number of input features F.
        hidden_size: number of hidden units H.
        bias: False leaves `bias_ih` and `bias_hh` out.
        nonlinearity: `"tanh"` or `"relu"`.
        device: where parameters are made.
        dtype: their dtype.
        norm: `"layer"`, or `"none"` for the arm without normalization. Both draw the same weights.
        eps: see above.

    Shape:
        Input (N, F) or (F,), hx and output (N, H) or (H,).

    Raises:
        ShapeError: if input and hx do not fit.
        UnknownNameError: from the constructor, if `norm` or `nonlinearity` is not known.

    Example:
        >>> cell, x, h = LayerNormRNNCell(3, 5, bias=False), torch.randn(2, 3), torch.zeros(2, 5)
        >>> torch.allclose(cell(x, h), cell(10 * x, h), atol=1e-3)
        True

    Source: `ba2016`, equation 4.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str = "layer",
        eps: float = 1e-5,
    ) -> None:
        if nonlinearity not in NONLINEARITIES:
            raise unknown("nonlinearity", nonlinearity, NONLINEARITIES)
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity
        self.norm = _layer_norm(self, norm, hidden_size, eps)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next state from `input` (N, F) and the state `hx` (N, H)."""
        h = self._state(input, hx)
        a = F.linear(h, self.weight_hh) + F.linear(input, self.weight_ih)
        return NONLINEARITIES[self.nonlinearity](affine(affine(self.norm(a), None, self.bias_ih), None, self.bias_hh))


class LayerNormLSTMCell(Cell):
    r"""An LSTM cell whose summed inputs, and whose cell state on its way out, are layer-normalized.

    **Idea.** See `LayerNormRNNCell`. What comes from the input and what comes from the state is normalized apart, so that
    neither drowns the other.

    **Formula.** $(i, f, g, o) = \mathrm{LN}(W_{hh} h; \alpha_1, \beta_1) + \mathrm{LN}(W_{ih} x; \alpha_2, \beta_2)$,
    $c' = \sigma(f) \odot c + \sigma(i) \odot \tanh(g)$, $h' = \sigma(o) \odot \tanh(\mathrm{LN}(c'; \alpha_3, \beta_3))$. The
    gains are `norm_hh.weight`, `norm_ih.weight` and `norm_c.weight`; the biases `bias_hh`, `bias_ih` and `norm_c.bias`.

    **Axes.** One mean and one variance per sample and step: over all four gates' 4H summed inputs, and over the H cell states.

    **Variance.** Biased. **eps** is added to the variance, under the root.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: eps; its third bias b of the gates is left out, as $\beta_1 + \beta_2$ is one already;
    `bias_hh` and `bias_ih` are drawn as torch draws them. Gains start at 1, see `LayerNormRNNCell`. From
    `torch.nn.LSTMCell`: with `norm="none"` none, and checkpoints load both ways; else there are the norms' parameters.

    Args:
        input_size: number of input features F.
        hidden_size: number of hidden units H.
        bias: False leaves out `bias_ih`, `bias_hh` and `norm_c.bias`.
        device: where parameters are made.
        dtype: their dtype.
        norm: `"layer"`, or `"none"` for the arm without normalization. Both draw the same weights.
        eps: see above.

    Shape:
        Input (N, F) or (F,), each of the states in hx and in the output (N, H) or (H,).

    Raises:
        ShapeError: if input and hx do not fit.
        UnknownNameError: from the constructor, if `norm` is not known.

    Example:
        >>> h, c = LayerNormLSTMCell(3, 5)(torch.randn(2, 3))
        >>> h.shape, c.shape
        (torch.Size([2, 5]), torch.Size([2, 5]))

    Source: `ba2016`, equations 20 to 22.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str = "layer",
        eps: float = 1e-5,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)
        self.norm_ih = _layer_norm(self, norm, 4 * hidden_size, eps)
        self.norm_hh = _layer_norm(self, norm, 4 * hidden_size, eps)
        self.norm_c = _layer_norm(self, norm, hidden_size, eps, bias)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the next states (h, c) from `input` (N, F) and the states `hx`, a pair of (N, H)."""
        h, c = self._states(input, hx)
        of_state = affine(self.norm_hh(F.linear(h, self.weight_hh)), None, self.bias_hh)
        of_input = affine(self.norm_ih(F.linear(input, self.weight_ih)), None, self.bias_ih)
        return lstm_step(of_state + of_input, c, self.norm_c)


class LayerNormGRUCell(Cell):
    r"""A gated recurrent unit whose summed inputs are layer-normalized.

    **Idea.** See `LayerNormRNNCell` and `LayerNormLSTMCell`.

    **Formula.** $(r, z) = \mathrm{LN}(W_h h; \alpha_1, \beta_1) + \mathrm{LN}(W_x x; \alpha_2, \beta_2)$,
    $n = \tanh(\mathrm{LN}(W x; \alpha_3, \beta_3) + \sigma(r) \odot \mathrm{LN}(U h; \alpha_4, \beta_4))$,
    $h' = (1 - \sigma(z)) \odot n + \sigma(z) \odot h$. The first 2H rows of `weight_hh` are $W_h$, its last H are $U$; so with
    `weight_ih`, $W_x$ and $W$. The gains are the weights of `norm_hh`, `norm_ih`, `norm_in` and `norm_hn` in this order; the
    biases are the parts of `bias_ih` and `bias_hh`.

    **Axes.** One mean and one variance per sample and step: over the 2H summed inputs of both gates, and over the H of the
    candidate n.

    **Variance.** Biased. **eps** is added to the variance, under the root.

    **Train and eval.** The same; there are no buffers.

    **Departures.** From the paper: eps; z weighs the old state, as in torch, where the paper's weighs the candidate; biases
    are drawn as torch draws them. Gains start at 1, see `LayerNormRNNCell`. From `torch.nn.GRUCell`: with `norm="none"` none,
    and checkpoints load both ways; else there are the gains.

    Args:
        input_size: number of input features F.
        hidden_size: number of hidden units H.
        bias: False leaves `bias_ih` and `bias_hh` out.
        device: where parameters are made.
        dtype: their dtype.
        norm: `"layer"`, or `"none"` for the arm without normalization. Both draw the same weights.
        eps: see above.

    Shape:
        Input (N, F) or (F,), hx and output (N, H) or (H,).

    Raises:
        ShapeError: if input and hx do not fit.
        UnknownNameError: from the constructor, if `norm` is not known.

    Example:
        >>> LayerNormGRUCell(3, 5)(torch.randn(2, 3)).shape
        torch.Size([2, 5])

    Source: `ba2016`, equations 26 to 28.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str = "layer",
        eps: float = 1e-5,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.norm_ih = _layer_norm(self, norm, 2 * hidden_size, eps)
        self.norm_hh = _layer_norm(self, norm, 2 * hidden_size, eps)
        self.norm_in = _layer_norm(self, norm, hidden_size, eps)
        self.norm_hn = _layer_norm(self, norm, hidden_size, eps)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next state from `input` (N, F) and the state `hx` (N, H)."""
        h = self._state(input, hx)
        gates_x, x_n = self._parts(F.linear(input, self.weight_ih), self.bias_ih, self.norm_ih, self.norm_in)
        gates_h, h_n = self._parts(F.linear(h, self.weight_hh), self.bias_hh, self.norm_hh, self.norm_hn)
        r, z = (gates_x + gates_h).sigmoid().chunk(2, -1)
        n = (x_n + r * h_n).tanh()
        return (1 - z) * n + z * h

    def _parts(self, summed: Tensor, bias: Tensor | None, *norms: nn.Module) -> tuple[Tensor, Tensor]:
        """Normalize the summed inputs of the gates and those of the candidate, each with its part of the bias."""
        sizes = [2 * self.hidden_size, self.hidden_size]
        biases = (None, None) if bias is None else bias.split(sizes)
        gates, candidate = (
            affine(norm(part), None, b) for norm, part, b in zip(norms, summed.split(sizes, -1), biases, strict=True)
        )
        return gates, candidate


def _layer_norm(cell: Cell, norm: str, size: int, eps: float, bias: bool = False) -> nn.Module:
    """Make the layer norm of one summed input; its bias is torch's own, and follows."""
    if norm not in ("layer", "none"):
        raise unknown(f"norm of {type(cell).__name__}", norm, ["layer", "none"])
    if norm == "none":
        return nn.Identity()
    return LayerNorm(size, eps, bias=bias, device=cell.weight_ih.device, dtype=cell.weight_ih.dtype)
