import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import BatchNorm
from normlib.probes.moments import (
    ChannelMoments,
    channel_moments,
    moment_drift,
    moment_snapshot,
    reduce_activations,
    unit_statistics,
)
from normlib.probes.propagation import activation_statistics
from normlib.probes.watching import record_activations

G = torch.Generator().manual_seed(0)
X = torch.randn(20, 3, 4, 4, generator=G, dtype=torch.float64)
PERCENTILES = (1, 20, 50, 99)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), BatchNorm(5), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(5, 4, 2)]
    return nn.Sequential(*layers).double()


def test_moments_of_a_channel_by_numpy():
    found = channel_moments(X)
    assert np.allclose(found.mean, X.numpy().mean((0, 2, 3)), rtol=1e-12, atol=0)
    assert np.allclose(found.variance, X.numpy().var((0, 2, 3)), rtol=1e-12, atol=0)
    tokens = channel_moments(X.flatten(2).transpose(1, 2), -1)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(found, tokens, strict=True))


def test_moments_of_half_precision_are_taken_in_double():
    x = torch.full((70_000, 1), 100.0, dtype=torch.bfloat16)  # a sum that bfloat16 could not hold
    assert channel_moments(x) == ChannelMoments(
        torch.tensor([100.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
    )


def test_units_by_numpy_on_both_sides_of_a_layer():
    net = network()
    found = unit_statistics(net, X, ["1"], units=[0, 3], sides=["input", "output"], percentiles=PERCENTILES, training=True)
    assert list(found) == ["layer", "side", "unit", "mean", "variance", "p1", "p20", "p50", "p99"]
    assert found["layer"] == ["1"] * 4
    assert found["side"] == ["input", "input", "output", "output"]
    assert found["unit"] == [0, 3, 0, 3]
    before = net[0](X).detach()
    after = (before - before.mean((0, 2, 3), keepdim=True)) / (before.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    for row, (values, unit) in enumerate([(before, 0), (before, 3), (after, 0), (after, 3)]):
        numbers = values[:, unit].numpy()
        wanted = [numbers.mean(), numbers.var(), *np.percentile(numbers, PERCENTILES)]
        assert [found[key][row] for key in list(found)[3:]] == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_pooled_units_are_the_layer():
    net = network()
    pooled = unit_statistics(net, X, (nn.Conv2d,), pooled=True, percentiles=PERCENTILES, training=False)
    whole = activation_statistics(net, X, (nn.Conv2d,), percentiles=PERCENTILES, training=False)
    assert list(pooled) == ["layer", "side", "mean", "variance", "p1", "p20", "p50", "p99"]
    assert pooled["layer"] == whole["layer"]
    assert np.sqrt(pooled["variance"]) == pytest.approx(whole["std"], rel=1e-12)
    assert all(pooled[key] == pytest.approx(whole[key], rel=1e-10) for key in ("mean", "p1", "p20", "p50", "p99"))


@pytest.mark.parametrize(
    ("units", "wanted"), [(None, [0, 1, 2, 3]), (1, [2]), (2, [1, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3]), ([3, 1], [3, 1])]
)
def test_units_are_chosen_by_index_or_spread_evenly(units, wanted):
    assert unit_statistics(nn.Identity(), torch.ones(2, 4), units=units)["unit"] == wanted


def test_a_probe_at_many_steps_follows_the_drift_of_one_unit():
    layer = nn.Linear(2, 2, bias=True)
    medians = []
    for step in range(5):
        nn.init.constant_(layer.bias, float(step))
        medians += unit_statistics(layer, torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), units=[1])["p50"]
    assert medians == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0], abs=1e-6)


def test_input_is_seen_before_a_layer_writes_into_it_and_every_call_is_numbered():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    twice = nn.Sequential(net, net)
    x = torch.randn(8, 2, generator=G)
    found = reduce_activations(twice, x, torch.clone, nn.ReLU, sides=["output", "input"])
    assert list(found) == [("0.1", "input"), ("0.1", "output"), ("0.1#2", "input"), ("0.1#2", "output")]
    first = net[0](x).detach()
    assert (first < 0).any()
    assert torch.equal(found["0.1", "input"], first)
    assert torch.equal(found["0.1#2", "input"], net[0](first.relu()).detach())
    kept = record_activations(twice, x, nn.ReLU)
    assert [torch.equal(found[name, "output"], values) for name, values in kept.items()] == [True, True]


def test_input_passed_by_keyword_is_found():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            return self.inner(input=x)

    assert reduce_activations(Keyword(), torch.ones(2, 2), lambda t: float(t.sum()), sides=["input"]) == {("inner", "input"): 4.0}


def test_drift_is_that_of_the_weights():
    layer, x = nn.Linear(3, 2, dtype=torch.float64), torch.randn(40, 3, generator=G, dtype=torch.float64)
    earlier = moment_snapshot(layer, x, sides=["input", "output"])
    with torch.no_grad():
        layer.bias += torch.tensor([1.0, -3.0])
    shifted = moment_drift(earlier, moment_snapshot(layer, x, sides=["input", "output"]))
    deviation = layer(x).detach().std(0, correction=0)
    assert shifted["layer"] == ["model", "model"] and shifted["side"] == ["input", "output"]
    assert shifted["mean_drift"] == pytest.approx([0, 2], abs=1e-12)  # signs do not cancel
    assert shifted["variance_drift"] == pytest.approx([0, 0], abs=1e-12)
    assert shifted["relative_mean_drift"][1] == pytest.approx(float((torch.tensor([1.0, 3.0]) / deviation).mean()), rel=1e-9)
    earlier = moment_snapshot(layer, x)
    with torch.no_grad():
        layer.weight *= 2
    scaled = moment_drift(earlier, moment_snapshot(layer, x))
    assert scaled["variance_drift"] == pytest.approx([3 * float(deviation.square().mean())], rel=1e-9)
    assert scaled["relative_variance_drift"] == pytest.approx([3], rel=1e-9)


def test_batch_norm_in_train_mode_takes_the_drift_away():
    net = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), BatchNorm(4, eps=1e-12, dtype=torch.float64))
    x = torch.randn(40, 3, generator=G, dtype=torch.float64)
    earlier = moment_snapshot(net, x, ["1"], sides=["input", "output"], training=True)
    with torch.no_grad():
        net[0].weight *= torch.tensor([[2.0], [0.5], [3.0], [1.5]], dtype=torch.float64)
        net[0].bias += 1
    drift = moment_drift(earlier, moment_snapshot(net, x, ["1"], sides=["input", "output"], training=True))
    assert drift["mean_drift"][0] > 0.5 and drift["variance_drift"][0] > 0.1
    assert drift["mean_drift"][1] < 1e-9 and drift["variance_drift"][1] < 1e-9


def test_channels_without_variance_have_no_relative_drift():
    one, two = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 3.0])
    at = {("0", "output"): ChannelMoments(one, torch.tensor([0.0, 4.0]))}
    assert moment_drift(at, {("0", "output"): ChannelMoments(two, one)})["relative_mean_drift"] == [1.0]
    dead = {("0", "output"): ChannelMoments(one, torch.zeros(2))}
    assert math.isnan(moment_drift(dead, dead)["relative_mean_drift"][0])


@pytest.mark.parametrize("training", [True, False, None])
def test_the_model_is_left_as_it_is(training):
    net = network()
    net[3].eval()
    net(X).sum().backward()
    state, gradients = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()]
    modes, random = [m.training for m in net.modules()], torch.get_rng_state()
    unit_statistics(net, X, sides=["input", "output"], training=training)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_hooks_come_off_after_an_error():
    net = network()
    with pytest.raises(RuntimeError):
        unit_statistics(net, X[:, :2], sides=["input"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_what_does_not_fit_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'output'"):
        reduce_activations(nn.Identity(), X, torch.mean, sides=["outputs"])
    with pytest.raises(NormlibError, match="no units of a layer of 2; expected indices from 0 to 1"):
        unit_statistics(nn.Identity(), torch.ones(3, 2), units=[2])
    with pytest.raises(NormlibError, match="no units"):
        unit_statistics(nn.Identity(), torch.ones(3, 2), units=0)
    with pytest.raises(NormlibError, match="puts out tuple, not one tensor"):
        unit_statistics(nn.Sequential(nn.LSTM(6, 2)), torch.ones(3, 2, 6))
    with pytest.raises(NormlibError, match="axis 0 is the batch"):
        unit_statistics(nn.Identity(), torch.ones(3, 2), channel_axis=0)
    with pytest.raises(NormlibError, match="the same layers and sides"):
        moment_drift(moment_snapshot(nn.Identity(), X), {})
