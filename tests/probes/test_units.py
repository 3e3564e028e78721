import copy
import math

import pytest
import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.networks import MLP, PlainConvNet
from normlib.probes.units import unit_activity, unit_gradients

G = torch.Generator().manual_seed(0)
X = torch.randn(50, 4, generator=G, dtype=torch.float64)


def relu_net(*biases):
    """Units whose ReLU is dead for a bias of -100, linear for one of 100, and open for about half of the inputs for 0."""
    net = nn.Sequential(nn.Linear(4, len(biases)), nn.ReLU(), nn.Linear(len(biases), 1)).double()
    generator = torch.Generator().manual_seed(1)
    for layer in (net[0], net[2]):
        layer.weight.data.normal_(generator=generator)
    net[0].bias.data = torch.tensor(biases, dtype=torch.float64)
    return net


def total(output, target):
    return output.sum()


def test_biases_by_hand_decide_which_units_are_dead():
    net = relu_net(-100.0, 100.0, 0.0, -100.0)
    columns = unit_activity(net, X, nn.ReLU, training=True)
    open_share = float((net[0](X)[:, 2] > 0).double().mean())
    assert columns["layer"] == ["1"]
    assert columns["units"] == [4]
    assert columns["dead"] == [0.5]
    assert columns["sparsity"] == pytest.approx([(2 + 1 - open_share) / 4], rel=1e-12)
    assert 0 < open_share < 1


def test_dead_units_learn_nothing_and_the_gradient_is_as_sparse_as_the_relu():
    net = relu_net(-100.0, 100.0, 0.0)
    columns = unit_gradients(net, total, X, X, training=True)
    activity = unit_activity(net, X, nn.ReLU, training=True)
    assert columns["layer"] == ["0", "2"]
    assert columns["units"] == [3, 1]
    assert columns["without_gradient"] == pytest.approx([1 / 3, 0])
    assert columns["gradient_sparsity"][0] == pytest.approx(activity["sparsity"][0])
    above = unit_gradients(net, total, X, X, nn.ReLU, training=True)
    assert above["without_gradient"] == [0]  # at the output of the ReLU there is one


def test_a_unit_that_nothing_listens_to_has_no_gradient_though_it_is_alive():
    net = relu_net(100.0, 100.0, 100.0)
    net[2].weight.data[:, 1] = 0
    assert unit_activity(net, X, nn.ReLU, training=True)["dead"] == [0]
    assert unit_gradients(net, total, X, X, ["0"], training=True)["without_gradient"] == pytest.approx([1 / 3])


def test_saturated_units_of_a_bounded_activation():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    net[0].weight.data.mul_(0.01)
    net[0].bias.data = torch.tensor([50.0, -50.0, 0.0, 0.0], dtype=torch.float64)
    columns = unit_activity(net, X, nn.Tanh, bounds=(-1, 1), training=True)
    assert list(columns) == ["layer", "units", "dead", "sparsity", "saturated", "saturation"]
    assert columns["saturated"] == columns["saturation"] == [0.5]
    x = torch.tensor([[9.0, 9.0], [-9.0, 0.0]])
    columns = unit_activity(nn.Tanh(), x, bounds=(-1, 1), training=True)
    assert (columns["saturated"], columns["saturation"]) == ([0.5], [0.75])  # at either end


def test_tolerance_counts_what_is_small():
    x = torch.tensor([[1e-4, 1.0], [-1e-4, 0.0]])
    assert unit_activity(nn.Identity(), x, training=True)["dead"] == [0]
    columns = unit_activity(nn.Identity(), x, tolerance=1e-3, training=True)
    assert (columns["dead"], columns["sparsity"]) == ([0.5], [0.75])
    net = relu_net(100.0, 100.0)
    net[2].weight.data[:] = torch.tensor([1e-8, 1.0])
    assert unit_gradients(net, total, X, X, ["0"], tolerance=1e-6, training=True)["without_gradient"] == [0.5]


def test_units_of_maps_are_channels_and_of_tokens_the_last_axis():
    maps = torch.randn(3, 2, 4, 4, generator=G)
    maps[:, 0] = -1
    assert unit_activity(nn.ReLU(), maps, training=True)["units"] == [2]
    assert unit_activity(nn.ReLU(), maps, training=True)["dead"] == [0.5]
    tokens = maps.flatten(2).transpose(1, 2)
    columns = unit_activity(nn.ReLU(), tokens, channel_axis=-1, training=True)
    assert (columns["units"], columns["dead"]) == ([2], [0.5])
    assert columns["sparsity"] == unit_activity(nn.ReLU(), maps, training=True)["sparsity"]
    layer = nn.Linear(2, 5)
    assert unit_gradients(layer, total, tokens, tokens, channel_axis=-1, training=True)["units"] == [5]


def test_batch_norm_revives_what_a_bias_has_killed():
    for norm, dead in (("none", 1.0), ("batch", 0.0)):
        net = MLP([4, 6, 2], norm=norm, activation="relu", seed=0).double()
        net.blocks[0].layer.bias.data.fill_(-100.0)
        assert unit_activity(net, X, nn.ReLU, training=True)["dead"] == [dead]
        found = unit_gradients(net, nn.functional.cross_entropy, X, torch.arange(50) % 2, training=True)["without_gradient"]
        assert found == [dead, 0]


def test_nan_where_nothing_can_be_told():
    net = relu_net(0.0, 0.0)
    net[0].requires_grad_(False)
    columns = unit_gradients(net, total, X, X, ["0", "2"], training=True)
    assert math.isnan(columns["without_gradient"][0])
    assert columns["without_gradient"][1] == 0
    x = X.clone()
    x[0, 0] = math.nan
    columns = unit_activity(net, x, nn.ReLU, bounds=(0, 1), training=True)
    assert all(math.isnan(columns[name][0]) for name in ("dead", "sparsity", "saturated", "saturation"))


def test_the_model_is_left_as_it_is_and_the_mode_counts():
    net = PlainConvNet(5, 8, 1, 3, norm="batch", image_size=8)
    x, y = torch.randn(6, 1, 8, 8, generator=G) + 3, torch.arange(6) % 3
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    train, evaluated = (unit_activity(net, x, nn.ReLU, training=mode)["sparsity"] for mode in (True, False))
    unit_gradients(net, nn.functional.cross_entropy, x, y, training=True)
    assert train != evaluated
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


def test_bad_arguments_are_refused():
    net = relu_net(0.0)
    with pytest.raises(NormlibError, match="tolerance=-1"):
        unit_activity(net, X, training=True, tolerance=-1)
    with pytest.raises(NormlibError, match="tolerance=-1"):
        unit_gradients(net, total, X, X, training=True, tolerance=-1)
    with pytest.raises(NormlibError, match="channel_axis=2"):
        unit_activity(net, X, training=True, channel_axis=2)
    with pytest.raises(NormlibError, match="channel_axis=2"):
        unit_gradients(net, total, X, X, training=True, channel_axis=2)
