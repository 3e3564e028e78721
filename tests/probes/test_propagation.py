import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from normlib.errors import NormlibError, UnknownNameError
from normlib.networks import MLP, PlainConvNet
from normlib.probes import activation_statistics, gradient_statistics, record_activations, saturation
from normlib.training import squared_error

G = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=G, dtype=torch.float64)
Y = torch.randn(40, 2, generator=G, dtype=torch.float64)
LINEAR = (nn.Linear,)


def orthogonal_chain(scales, width=6):
    """A linear net whose every layer is a rotation times a scale, so that norms are multiplied by it exactly."""
    layers = [nn.Linear(width, width, bias=False, dtype=torch.float64) for _ in scales]
    for layer, scale in zip(layers, scales, strict=True):
        q = torch.linalg.qr(torch.randn(width, width, generator=G, dtype=torch.float64)).Q
        layer.weight.data = scale * q
    return nn.Sequential(*layers)


def test_signals_in_a_rotating_net_scale_by_the_known_factors():
    scales = [0.5, 3.0, 0.2, 1.0]
    net = orthogonal_chain(scales)
    target = torch.zeros(40, 6, dtype=torch.float64)
    outputs = record_activations(net, X)
    gradients = [math.nan] * 4
    for i, output in enumerate(outputs.values()):
        assert float(output.norm() / X.norm()) == pytest.approx(math.prod(scales[: i + 1]), rel=1e-12)
    columns = gradient_statistics(net, squared_error, X, target)
    # dL/ds of the last layer is s / N; going back multiplies its norm by each scale above
    centered = torch.stack([output.square().mean().sqrt() for output in outputs.values()])
    last = float(outputs["3"].norm()) / 40
    for i, (output, weight_norm) in enumerate(zip(outputs.values(), columns["weight_gradient_norm"], strict=True)):
        below = X if i == 0 else outputs[str(i - 1)]
        gradients = last * math.prod(scales[i + 1 :])
        signal = output / output.norm() * gradients  # up to a rotation
        assert columns["gradient_std"][i] == pytest.approx(float(signal.square().mean().sqrt()), rel=0.02)
        assert columns["output_std"][i] == pytest.approx(float(centered[i]), rel=0.02)
        assert weight_norm <= gradients * float(below.norm()) * (1 + 1e-9)


def test_gradients_are_those_of_the_chain_rule_by_hand():
    net = MLP([6, 5, 4, 2], activation="tanh", seed=1).double()
    columns = gradient_statistics(net, squared_error, X, Y)
    W1, W2, W3 = (m.weight.detach() for m in net.modules() if isinstance(m, nn.Linear))
    s1 = X @ W1.T
    z1 = s1.tanh()
    s2 = z1 @ W2.T
    z2 = s2.tanh()
    s3 = z2 @ W3.T
    g3 = (s3 - Y) / 40
    g2 = (g3 @ W3) * (1 - z2**2)
    g1 = (g2 @ W2) * (1 - z1**2)
    weights = [g1.T @ X, g2.T @ z1, g3.T @ z2]
    assert columns["layer"] == ["blocks.0.layer", "blocks.1.layer", "head"]
    assert columns["output_std"] == pytest.approx([s.numpy().std() for s in (s1, s2, s3)], rel=1e-12)
    assert columns["gradient_std"] == pytest.approx([g.numpy().std() for g in (g1, g2, g3)], rel=1e-12)
    assert columns["weight_gradient_std"] == pytest.approx([w.numpy().std() for w in weights], rel=1e-12)
    assert columns["weight_gradient_norm"] == pytest.approx([float(w.norm()) for w in weights], rel=1e-12)


def test_glorot_at_equal_widths_back_propagated_gradients_decay_and_weight_gradients_do_not():
    x = torch.randn(200, 100, generator=G)
    y = torch.arange(200) % 10
    net = MLP([100] * 6 + [10], init="glorot_standard", seed=0)
    columns = gradient_statistics(net, nn.functional.cross_entropy, x, y)
    gradient, weight = (np.array(columns[name][:5]) for name in ("gradient_std", "weight_gradient_std"))
    assert (gradient[1:] / gradient[:-1] > 1.4).all()
    assert weight.max() / weight.min() < 1.6


def test_activation_statistics_are_those_of_numpy():
    net = MLP([6, 5, 2], activation="logistic").double()
    columns = activation_statistics(net, X, (nn.Sigmoid, nn.Linear), percentiles=(2, 50, 97.5), bounds=(0, 1))
    assert list(columns) == ["layer", "mean", "std", "p2", "p50", "p97.5", "saturation"]
    assert columns["layer"] == ["blocks.0.layer", "blocks.0.activation", "head"]
    values = torch.sigmoid(X @ net.blocks[0].layer.weight.T).detach().numpy()
    found = [columns[name][1] for name in columns if name not in ("layer", "saturation")]
    assert found == pytest.approx([values.mean(), values.std(), *np.percentile(values, [2, 50, 97.5])], rel=1e-12)
    assert columns["saturation"][1] == ((values <= 0.05) | (values >= 0.95)).mean()


def test_saturation_counts_both_ends():
    assert saturation(torch.tensor([0.01, 0.5, 0.96, 0.97]), (0, 1)) == 0.75


class Branch(nn.Module):
    """Uses one activation twice, in place, and registers its layers against the order in which they run."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(6, 6, dtype=torch.float64)
        self.first = nn.Linear(6, 6, dtype=torch.float64)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))))


def test_order_is_that_of_the_run_and_a_second_call_is_numbered():
    outputs = record_activations(Branch(), X)
    assert list(outputs) == ["first", "relu", "second", "relu#2"]


def test_what_is_written_in_place_afterwards_does_not_reach_the_record():
    net = Branch()
    outputs = record_activations(net, X)
    assert torch.equal(outputs["first"], net.first(X))
    assert (outputs["first"] < 0).any()
    columns = gradient_statistics(net, squared_error, X, X)
    s = net.second(net.first(X).relu())
    slow = torch.autograd.grad(squared_error(s.relu(), X), s)[0]
    assert columns["gradient_std"][1] == pytest.approx(float(slow.std(correction=0)), rel=1e-12)


@pytest.mark.parametrize("training", [True, False, None])
def test_probes_leave_no_trace(training):
    net = PlainConvNet(5, 8, 1, 3, norm="batch", image_size=6)
    x = torch.randn(4, 1, 6, 6, generator=G)
    y = torch.tensor([0, 1, 2, 0])
    nn.functional.cross_entropy(net(x), y).backward()
    net.blocks[0].eval()
    state, gradients = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()]
    modes, random = [m.training for m in net.modules()], torch.get_rng_state()
    activation_statistics(net, x, training=training)
    gradient_statistics(net, nn.functional.cross_entropy, x, y, training=training)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks for m in net.modules())


def test_mode_decides_which_statistics_a_batch_norm_uses():
    net = MLP([6, 8, 2], norm="batch").double()
    names = ["blocks.0.norm"]
    train, evaluated = (record_activations(net, X + 5, names, training=mode)[names[0]] for mode in (True, False))
    assert float(train.mean(0).abs().max()) < 1e-12
    assert float(evaluated.mean(0).abs().max()) > 1


def test_hooks_come_off_after_an_error():
    net = MLP([6, 5, 2]).double()
    with pytest.raises(RuntimeError):
        record_activations(net, X[:, :4])
    assert not any(m._forward_hooks for m in net.modules())


def test_a_parametrized_weight_counts_as_the_weight_that_is_applied():
    plain = nn.Sequential(nn.Linear(6, 2, dtype=torch.float64))
    normed = nn.Sequential(parametrizations.weight_norm(copy.deepcopy(plain[0])))
    names = ["0"]
    expected = gradient_statistics(plain, squared_error, X, Y, names)
    found = gradient_statistics(normed, squared_error, X, Y, names)
    assert found["weight_gradient_norm"] == pytest.approx(expected["weight_gradient_norm"], rel=1e-10)


def test_layers_without_a_weight_or_a_gradient_have_nan():
    net = MLP([6, 5, 2]).double()
    net.blocks[0].layer.requires_grad_(False)
    columns = gradient_statistics(net, squared_error, X, Y, (nn.Linear, nn.Tanh))
    assert columns["layer"] == ["blocks.0.layer", "blocks.0.activation", "head"]
    assert [math.isnan(g) for g in columns["gradient_std"]] == [True, True, False]
    assert [math.isnan(g) for g in columns["weight_gradient_std"]] == [True, True, False]


def test_a_single_layer_is_called_model():
    assert list(record_activations(nn.Linear(6, 2, dtype=torch.float64), X)) == ["model"]


def test_choices_that_do_not_fit_are_refused():
    net = MLP([6, 5, 2]).double()
    with pytest.raises(UnknownNameError, match="did you mean 'head'"):
        record_activations(net, X, ["hed"])
    with pytest.raises(NormlibError, match="Conv2d"):
        record_activations(net, X, nn.Conv2d)
    with pytest.raises(NormlibError, match="not one tensor"):
        record_activations(nn.Sequential(nn.LSTM(6, 2, dtype=torch.float64)), X)
