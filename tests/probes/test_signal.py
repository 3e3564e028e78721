import copy
import math

import pytest
import torch
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import BatchNorm
from normlib.networks import ResNet
from normlib.probes.signal import channel_power, signal_propagation

G = torch.Generator().manual_seed(0)


def white(points, channels):
    """Data whose channels have mean 0, variance 1 and no correlation, to rounding."""
    x = torch.randn(points, channels, generator=G, dtype=torch.float64)
    return torch.linalg.qr(x - x.mean(0)).Q * points**0.5


def gaussian(count=100_001):
    """Standard normal numbers without chance: evenly spaced quantiles."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


class QuarterTurn(nn.Module):
    """Orthogonal to its input, and as long: channels (a, b) become (-b, a)."""

    def forward(self, x):
        return torch.stack([-x[:, 1], x[:, 0]], 1)


class Block(nn.Module):
    """A residual block as in most code: the sum is written into the output of the branch."""

    def __init__(self, branch, gain=1.0):
        super().__init__()
        self.branch, self.gain = branch, gain

    def forward(self, x):
        y = self.branch(x)
        y *= self.gain
        y += x
        return y


def blocks(count, gain=1.0, norm=False):
    def branch():
        first = [BatchNorm(2, eps=1e-14, dtype=torch.float64)] if norm else []
        return nn.Sequential(*first, QuarterTurn())

    return nn.Sequential(*[Block(branch(), gain) for _ in range(count)])


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 1), ((5, 3), -1), ((4, 3, 2, 5), 1), ((4, 6, 3), -1), ((4, 6, 3), 2)])
def test_the_parts_are_those_of_the_definition_element_by_element(shape, axis):
    x = torch.randn(shape, generator=G, dtype=torch.float64) + torch.arange(shape[axis]).view(
        [-1 if a == axis % len(shape) else 1 for a in range(len(shape))]
    )
    squared, between, within = [], [], []
    for channel in range(shape[axis]):
        instances = [sample.select(axis - 1 if axis > 0 else axis, channel).flatten().tolist() for sample in x]
        values = [value for instance in instances for value in instance]
        mean, means = sum(values) / len(values), [sum(instance) / len(instance) for instance in instances]
        squared.append(mean**2)
        between.append(sum((m - mean) ** 2 for m in means) / len(means))
        within.append(sum((v - m) ** 2 for instance, m in zip(instances, means, strict=True) for v in instance) / len(values))
    power = channel_power(x, axis)
    assert power == pytest.approx([sum(part) / shape[axis] for part in (squared, between, within)], rel=1e-12, abs=1e-30)
    assert power.squared_mean + power.variance == pytest.approx(float(x.square().mean()), rel=1e-12)


def test_constant_channels_have_a_mean_and_no_variance_also_where_their_means_cancel():
    maps = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1).expand(8, 2, 4, 4)
    assert channel_power(maps) == (4.0, 0.0, 0.0)


def test_a_linear_layer_has_the_bias_for_mean_and_the_length_of_its_rows_for_deviation():
    layer = nn.Linear(4, 3, dtype=torch.float64)
    found = signal_propagation(layer, white(50, 4), ["model"])
    assert found["squared_mean"] == pytest.approx([float(layer.bias.detach().square().mean())], rel=1e-10)
    assert found["variance"] == pytest.approx([float(layer.weight.detach().square().sum(1).mean())], rel=1e-10)
    assert found["between"] == found["variance"]
    assert found["within"] == [0.0]
    assert math.isnan(found["residual_variance"][0])


def test_relu_shifts_the_mean_of_normal_input():
    found = signal_propagation(nn.ReLU(), gaussian()[:, None], nn.ReLU)
    assert found["squared_mean"] == pytest.approx([1 / (2 * math.pi)], rel=1e-5)
    assert found["variance"] == pytest.approx([(1 - 1 / math.pi) / 2], rel=1e-4)


def test_without_a_norm_the_variance_doubles_with_each_block():
    found = signal_propagation(blocks(6), white(30, 2))
    assert found["layer"] == list("012345")
    assert found["variance"] == pytest.approx([2.0**block for block in range(1, 7)], rel=1e-12)
    assert found["residual_variance"] == pytest.approx([2.0**block for block in range(6)], rel=1e-12)
    assert max(found["squared_mean"]) < 1e-20


def test_with_batch_norm_on_the_branch_it_grows_by_one_but_in_eval_mode_of_a_fresh_net_it_doubles():
    net, x = blocks(6, norm=True), white(30, 2)
    trained, fresh = (signal_propagation(net, x, training=mode) for mode in (True, False))
    assert trained["variance"] == pytest.approx([block + 1 for block in range(1, 7)], rel=1e-9)
    assert trained["residual_variance"] == pytest.approx([1.0] * 6, rel=1e-9)
    assert fresh["variance"] == pytest.approx([2.0**block for block in range(1, 7)], rel=1e-9)


@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_a_gain_behind_the_branch_does_not_count_though_it_is_applied_in_place(gain):
    found = signal_propagation(blocks(1, gain), white(30, 2))
    assert found["residual_variance"] == pytest.approx([1.0], rel=1e-12)
    assert found["variance"] == pytest.approx([1 + gain**2], rel=1e-12)


def test_tokens_and_maps_are_the_same_numbers_in_another_order():
    x = torch.randn(4, 2, 3, 5, generator=G, dtype=torch.float64)
    maps = signal_propagation(nn.Identity(), x, nn.Identity)
    tokens = signal_propagation(nn.Identity(), x.flatten(2).transpose(1, 2), nn.Identity, channel_axis=-1)
    assert all(maps[key] == pytest.approx(tokens[key], rel=1e-12, nan_ok=True) for key in maps if key != "layer")


class Other(nn.Module):
    """Keeps its branch elsewhere, in two modules, and the stem of the model after its block."""

    def __init__(self):
        super().__init__()
        self.block = nn.Module()
        self.block.conv1, self.block.conv2 = nn.Linear(2, 2), nn.Linear(2, 2)
        self.block.forward = lambda x: x + self.block.conv2(self.block.conv1(x))
        self.stem = nn.Linear(2, 2)

    def forward(self, x):
        return self.block(self.block(self.stem(x)))


def test_branches_by_path_by_name_and_a_block_that_runs_twice():
    net, x = Other().double(), white(30, 2)
    first = net.stem(x)
    second = net.block(first)
    wanted = [float(net.block.conv2(net.block.conv1(h)).detach().var(0, correction=0).mean()) for h in (first, second)]
    by_path = signal_propagation(net, x, ["stem", "block"], branch="conv2")
    by_name = signal_propagation(net, x, ["stem", "block"], branch={"block": "block.conv2"})
    assert by_path["layer"] == by_name["layer"] == ["stem", "block", "block#2"]
    assert math.isnan(by_path["residual_variance"][0])
    assert by_path["residual_variance"][1:] == pytest.approx(wanted, rel=1e-10)
    assert by_name["residual_variance"][1:] == by_path["residual_variance"][1:]
    assert signal_propagation(net, x, branch="conv2")["layer"] == ["block", "block#2"]


def test_the_blocks_of_a_resnet_add_what_their_branches_hold():
    net = ResNet([2], width=8, in_channels=3, classes=2, norm="batch", seed=0).double()
    x = torch.randn(16, 3, 8, 8, generator=G, dtype=torch.float64)
    found = signal_propagation(net, x, training=True)
    assert found["layer"] == ["blocks.0", "blocks.1"]
    with torch.no_grad():
        inside = net.blocks[0]
        before = net.stem(x)
        added = inside(before) - before
    assert found["residual_variance"][0] == pytest.approx(float(added.var((0, 2, 3), correction=0).mean()), rel=1e-9)
    assert found["variance"][0] == pytest.approx(float(inside(before).detach().var((0, 2, 3), correction=0).mean()), rel=1e-9)


def test_the_model_is_left_as_it_is():
    net = blocks(2, norm=True)
    net[0].branch[0].eval()
    state, modes, random = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], torch.get_rng_state()
    signal_propagation(net, 3 + white(30, 2), training=True)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_does_not_fit_is_refused():
    with pytest.raises(NormlibError, match="no residual block with branch='branch'"):
        signal_propagation(nn.Linear(2, 2), torch.ones(2, 2))
    with pytest.raises(UnknownNameError, match=r"did you mean '0.branch'"):
        signal_propagation(blocks(1), white(9, 2), branch={"0": "0.brunch"})
    for axis in (0, -2, 2):
        with pytest.raises(NormlibError, match="axis 0 is the batch"):
            channel_power(torch.ones(2, 2), axis)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_numbers_are_the_same():
    net, x = blocks(3, norm=True), white(30, 2)
    here, there = signal_propagation(net, x, training=True), signal_propagation(net.cuda(), x.cuda(), training=True)
    assert there["variance"] == pytest.approx(here["variance"], rel=1e-9)
