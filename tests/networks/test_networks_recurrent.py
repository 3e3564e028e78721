"""The recurrent classifier: against torch's own layers, and what the norms change."""

import pytest
import torch
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.networks import RecurrentClassifier

TORCH = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
ARMS = [
    ("rnn", "none"),
    ("rnn", "layer"),
    ("lstm", "none"),
    ("lstm", "layer"),
    ("lstm", "batch"),
    ("gru", "none"),
    ("gru", "layer"),
]


def build(cell="lstm", norm="none", **arguments):
    return RecurrentClassifier(**{"inputs": 3, "hidden": 5, "classes": 2, "cell": cell, "norm": norm, "max_length": 7, **arguments})


def sequences(batch=8, steps=7, dtype=torch.float64):
    return torch.randn(batch, steps, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cell", TORCH)
def test_without_a_norm_it_is_the_last_output_of_torchs_layer(cell):
    net, layer = build(cell).double(), TORCH[cell](3, 5, batch_first=True).double()
    layer.load_state_dict({f"{name}_l0": tensor for name, tensor in net.cell.state_dict().items()})
    torch.testing.assert_close(net(sequences()), net.head(layer(sequences())[0][:, -1]))


@pytest.mark.parametrize(("cell", "norm"), ARMS)
def test_every_cell_starts_from_the_same_weights_whatever_its_norm(cell, norm):
    net, plain = build(cell, norm, seed=4), build(cell, seed=4)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        assert torch.equal(getattr(net.cell, name), getattr(plain.cell, name))
    assert torch.equal(net.head.weight, plain.head.weight)
    assert not net.cell.bias_ih.any()
    net(sequences(dtype=torch.float32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_each_gate_is_drawn_by_itself(cell, gates):
    for gate in build(cell).cell.weight_hh.detach().split(5):
        torch.testing.assert_close(gate @ gate.T, torch.eye(5))
    wide = build(cell, inputs=200, hidden=300, recurrent_init="normal:std=0").cell
    assert wide.weight_ih.shape == (gates * 300, 200)
    assert float(wide.weight_ih.detach().var()) == pytest.approx(2 / 500, rel=0.03)
    assert not wide.weight_hh.any()


def test_layer_norm_of_the_input_takes_its_scale_out():
    net = build("lstm", "layer:eps=1e-12").double()
    torch.testing.assert_close(net(sequences()), net(7 * sequences()), rtol=1e-6, atol=1e-9)


def test_batch_norm_keeps_statistics_for_each_step_and_takes_gain_and_longer_sequences():
    net = build(norm="batch:gain=0.3,momentum=1.0").double()
    assert torch.equal(net.cell.norm_ih.weight.float(), torch.full((20,), 0.3))
    x = sequences()
    net(x)
    summed = x @ net.cell.weight_ih.T
    torch.testing.assert_close(net.cell.norm_ih.running_mean, summed.mean(0))
    assert net(sequences(steps=9)).shape == (8, 2)
    torch.testing.assert_close(net.eval()(x[:1]), net(x)[:1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"cell": "lstmm"}, "did you mean 'lstm'"),
        ({"norm": "group"}, "Known: batch, layer, none"),
        ({"norm": "layer:gain=1"}, "no argument of recurrent norm 'layer'"),
        ({"cell": "gru", "norm": "batch"}, "cell='lstm', or norm='layer'"),
        ({"norm": "batch", "max_length": None}, "Pass max_length"),
    ],
)
def test_errors_say_what_fits(arguments, says):
    with pytest.raises((NormlibError, UnknownNameError), match=says):
        build(**arguments)


@pytest.mark.parametrize("shape", [(8, 1, 7, 3), (8, 7, 4), (8, 0, 3)])
def test_input_that_is_no_sequence_is_told_how_to_become_one(shape):
    with pytest.raises(NormlibError, match="are sequences of rows"):
        build()(torch.zeros(shape))
