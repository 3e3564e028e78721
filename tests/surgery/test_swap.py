from __future__ import annotations

import pytest
import torch
from torch import nn

from normlib.errors import UnknownNameError
from normlib.layers import NORMS, BatchNorm, ChannelsLast, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, ShapeError, make_norm
from normlib.surgery import SwapError, swap


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32, eps=1e-3), nn.ReLU(), nn.Sequential(nn.Conv2d(32, 8, 3), nn.BatchNorm2d(8))
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net.to(dtype)


def test_every_norm_of_a_kind_is_replaced_and_its_map_carries_over() -> None:
    net = network()
    old = net[1]
    assert swap(net, {"batch": "group:size=8"}) is net
    assert isinstance(net[1], GroupNorm) and isinstance(net[3][1], GroupNorm)
    assert (net[1].num_groups, net[3][1].num_groups) == (4, 1)
    assert torch.equal(net[1].weight, old.weight) and torch.equal(net[1].bias, old.bias)
    assert net[1].eps == 1e-3


def test_what_the_spec_sets_stands_above_what_carries_over() -> None:
    assert swap(network(), {"batch": "group:size=8,eps=0.5"})[1].eps == 0.5


def test_torchs_batch_norm_becomes_ours_and_computes_the_same() -> None:
    net = network()
    net.train()(torch.randn(4, 3, 9, 9))
    x = torch.randn(4, 3, 9, 9)
    wanted = net.eval()(x)
    net[1].momentum = None
    swap(net, {"batch": "batch"})
    assert type(net[1]) is BatchNorm and not net[1].training and net[1].momentum is None
    torch.testing.assert_close(net(x), wanted)
    assert int(net[1].num_batches_tracked) == 1


def test_several_kinds_at_once_and_back() -> None:
    net = nn.Sequential(
        nn.BatchNorm1d(4), nn.InstanceNorm1d(4), nn.LayerNorm(4), nn.RMSNorm(4), make_norm("layer", 4), make_norm("rms", 4)
    )
    swap(net, {"batch": "instance", "instance": "batch", "layer": "rms", "rms": "layer"})
    assert [type(m).__name__ for m in net] == [
        "InstanceNorm", "BatchNorm", "RMSNorm", "LayerNorm", "ChannelRMSNorm", "ChannelLayerNorm",
    ]  # fmt: skip
    assert net[1].weight is None, "torch's instance norm has no affine map, and its replacement neither"


def test_token_norms_keep_their_axis() -> None:
    x = torch.randn(2, 5, 8)
    net = swap(nn.Sequential(nn.LayerNorm(8, eps=1e-3)), {"layer": "rms"})
    assert isinstance(net[0], RMSNorm)
    torch.testing.assert_close(net(x), RMSNorm(8, eps=1e-3)(x))
    batch = swap(nn.Sequential(nn.LayerNorm(8)), {"layer": "batch"})
    assert isinstance(batch[0], ChannelsLast)
    torch.testing.assert_close(batch(x), BatchNorm(8)(x.movedim(-1, 1)).movedim(1, -1))


@pytest.mark.parametrize("name", [name for name in NORMS if name not in ("none", "sync")])
def test_any_norm_replaces_any(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3), make_norm(name, 32))
    other = "group" if name != "group" else "batch"
    swap(net, {name: other})
    assert type(net[1]) is type(make_norm(other, 32))


@pytest.mark.filterwarnings("ignore:the new norms bring their own activation")
@pytest.mark.parametrize("name", NORMS)
def test_batch_becomes_any(name: str) -> None:
    net = swap(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)), {"batch": name})
    assert net(torch.randn(2, 3, 6, 6)).shape == (2, 32, 4, 4)


def test_dtype_mode_frozen_parameters_and_sharing_stay() -> None:
    net = network(torch.float64).eval()
    net[1].weight.requires_grad_(False)
    shared = nn.Sequential(net[1], net[1], net)
    swap(shared, {"batch": "layer"})
    assert shared[0] is shared[1] is net[1]
    assert net[1].weight.dtype == torch.float64 and not net[1].training
    assert not net[1].weight.requires_grad and net[1].bias.requires_grad


def test_a_lone_norm_is_returned_replaced() -> None:
    assert isinstance(swap(nn.BatchNorm2d(8), {"batch": "instance"}), InstanceNorm)


def test_a_norm_with_its_own_activation_warns() -> None:
    with pytest.warns(UserWarning, match="own activation"):
        swap(network(), {"batch": "evonorm_s0:size=8"})


def hooked() -> nn.Module:
    net = network()
    net[3][1].register_forward_hook(lambda *_: None)
    return net


def learned_layer() -> nn.Module:
    layer = nn.LayerNorm(8)
    nn.init.ones_(layer.bias)
    return layer


@pytest.mark.parametrize(
    ("model", "kinds", "error", "says"),
    [
        (network(), {"bacth": "group"}, UnknownNameError, "did you mean 'batch'"),
        (network(), {"batch": "gruop"}, UnknownNameError, "did you mean 'group'"),
        (network(), {"none": "batch"}, UnknownNameError, "kind of norm"),
        (network(), {"layer": "batch"}, SwapError, r"no norm of the kind 'layer'\. It holds: batch \(2\)"),
        (network(), {"batch": "group:size=16"}, ShapeError, "does not divide 8 channels"),
        (nn.Sequential(nn.LayerNorm((4, 3, 3))), {"layer": "batch"}, SwapError, r"'0' normalizes.*ChannelLayerNorm\(4\)"),
        (nn.Sequential(learned_layer()), {"layer": "rms"}, SwapError, "the bias that LayerNorm at '0' has learned"),
        (hooked(), {"batch": "layer"}, SwapError, "'3.1' has hooks"),
    ],
)
def test_what_cannot_be_swapped_says_so_and_the_model_stays(
    model: nn.Module, kinds: dict[str, str], error: type[Exception], says: str
) -> None:
    before = list(model.modules())
    with pytest.raises(error, match=says):
        swap(model, kinds)
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))


def test_norms_of_other_libraries_are_left_alone() -> None:
    class LayerNorm2d(nn.Module):
        """Not a norm that this package knows."""

    net = nn.Sequential(LayerNorm2d(), nn.LayerNorm(3))
    swap(net, {"layer": "rms"})
    assert isinstance(net[0], LayerNorm2d) and not isinstance(net[1], LayerNorm)
