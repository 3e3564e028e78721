"""A recurrent network that reads a sequence and then names its class."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from normlib.errors import NormlibError, unknown
from normlib.layers import BatchNormLSTMCell, LayerNormGRUCell, LayerNormLSTMCell, LayerNormRNNCell, unroll
from normlib.layers.recurrent import Cell
from normlib.networks.blocks import WeightLayers
from normlib.networks.initialization import make_initializer
from normlib.spec import split_spec

_CELLS: dict[str, type[Cell]] = {"rnn": LayerNormRNNCell, "lstm": LayerNormLSTMCell, "gru": LayerNormGRUCell}
_ARGUMENTS = {"none": (), "layer": ("eps",), "batch": ("gain", "eps", "momentum")}


class RecurrentClassifier(nn.Module):
    """One recurrent layer, run along the sequence from a state of zeros, and a linear head on its last output.

    Cells are those of `normlib.layers`; without a norm they are torch's. Each gate's weights are drawn by themselves, input
    weights before recurrent ones, then the head: a seed gives the same weights for any norm.

    Args:
        inputs: number of features d of each step.
        hidden: number of hidden units.
        classes: number of outputs.
        cell: `"rnn"`, `"lstm"` or `"gru"`.
        norm: `"none"`, `"layer"`, or for the LSTM `"batch"`; with arguments of the cell as in `"batch:gain=0.5"`.
        init: an initialization spec for input weights and head, see `make_initializer`; all biases start at zero.
        recurrent_init: an initialization spec for the recurrent weights.
        max_length: for `"batch"`, the number of steps with statistics of their own: the length of the longest training sequence.
        seed: seed of the initial weights.

    Attributes:
        cell: the cell.
        head: the linear layer.

    Shape:
        Input (N, T, inputs), output (N, classes).

    Raises:
        NormlibError: if there is no such cell, norm, or normalized cell; if `max_length` is missing; in `forward`, if the input
            is no such sequence.

    Example:
        >>> import torch
        >>> net = RecurrentClassifier(inputs=3, hidden=8, classes=2, cell="lstm", norm="batch:gain=0.5", max_length=7)
        >>> net(torch.randn(4, 7, 3)).shape, float(net.cell.norm_c.weight[0].detach())
        (torch.Size([4, 2]), 0.5)

    Source: `ba2016` and `cooijmans2017` for the normalized cells.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        classes: int,
        cell: str = "lstm",
        norm: str = "none",
        init: str = "glorot_normalized",
        recurrent_init: str = "orthogonal",
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(inputs, hidden, classes) < 1:
            raise NormlibError(
                f"RecurrentClassifier got inputs={inputs}, hidden={hidden}, classes={classes}; expected 1 or more of each."
            )
        weights, recurrent = WeightLayers(init, seed), make_initializer(recurrent_init)
        kind, arguments = _kind(cell, norm, max_length)
        self.cell: Cell = nn.utils.skip_init(kind, inputs, hidden, **arguments)
        for gate in self.cell.weight_ih.split(hidden):
            weights.init(gate, weights.generator)
        for gate in self.cell.weight_hh.split(hidden):
            recurrent(gate, weights.generator)
        _reset_others(self.cell)
        self.head = weights(nn.Linear, hidden, classes)

    def forward(self, input: Tensor) -> Tensor:
        """Map sequences (N, T, inputs) to outputs (N, classes)."""
        if input.ndim != 3 or input.shape[2] != self.cell.input_size or not input.shape[1]:
            raise NormlibError(
                f"RecurrentClassifier expects sequences (N, T, {self.cell.input_size}), but got {tuple(input.shape)}. Images "
                "(N, 1, H, W) are sequences of rows by input.squeeze(1), and of pixels by input.flatten(1).unsqueeze(-1)."
            )
        outputs, _ = unroll(self.cell, input.transpose(0, 1))
        output: Tensor = self.head(outputs[-1])
        return output


def _kind(cell: str, norm: str, max_length: int | None) -> tuple[type[Cell], dict[str, Any]]:
    """Return the class of the cell and the arguments that its norm takes."""
    if cell not in _CELLS:
        raise unknown("recurrent cell", cell, _CELLS)
    name, arguments = split_spec(norm)
    if name not in _ARGUMENTS:
        raise unknown("norm of a recurrent cell", name, _ARGUMENTS)
    for argument in arguments:
        if argument not in _ARGUMENTS[name]:
            raise unknown(f"argument of recurrent norm {name!r}", argument, _ARGUMENTS[name])
    if name != "batch":
        return _CELLS[cell], {"norm": name, **arguments}
    if cell != "lstm":
        raise NormlibError(f"there is no batch-normalized {cell!r} cell. Pass cell='lstm', or norm='layer', which every cell has.")
    if max_length is None:
        raise NormlibError(
            "norm='batch' keeps statistics for each time step. Pass max_length, the length of the training sequences."
        )
    return BatchNormLSTMCell, {"max_length": max_length, **arguments}


def _reset_others(cell: Cell) -> None:
    """Set biases to zero, and the norms to their start."""
    for name, parameter in cell.named_parameters(recurse=False):
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
    for norm in cell.children():
        if not isinstance(norm, nn.Identity):
            norm.reset_parameters()  # type: ignore[operator]
