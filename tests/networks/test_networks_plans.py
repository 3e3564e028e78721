"""VGG networks and the deep linear network: plans, published counts, closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normlib.errors import NormlibError
from normlib.layers import ShapeError
from normlib.networks import VGG, DeepLinearNet

# counted by hand: 9 (in · out) + out for each convolution, 2 · out for its norm, 512 · 10 + 10 for the head
PUBLISHED = {16: 14_728_266, 19: 20_040_522}


@pytest.mark.parametrize(("depth", "parameters"), PUBLISHED.items())
def test_vgg_with_batch_norm_has_the_parameters_that_are_known(depth, parameters):
    assert sum(p.numel() for p in VGG(depth, norm="batch").parameters()) == parameters


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_plan_has_the_depth_in_its_name_and_five_poolings(depth):
    net = VGG(depth, width=1 / 32)
    assert len(net.blocks) == depth - 3
    assert len(net.pooled) == 5 and net.pooled[-1] == depth - 4
    channels = [net.blocks[position].layer.out_channels for position in net.pooled]
    assert channels == [2, 4, 8, 16, 16]


def test_vgg_computes_what_it_says():
    net = VGG(11, width=1 / 32, norm="batch", hidden=(6,), activation="tanh", padding_mode="circular").double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = x
    for position, part in enumerate(net.blocks):
        h = F.conv2d(F.pad(h, (1, 1, 1, 1), mode="circular"), part.layer.weight, part.layer.bias)
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), correction=0, keepdim=True)
        h = torch.tanh((h - mean) / (var + 1e-5).sqrt())
        if position in (0, 1, 3, 5, 7):
            h = F.max_pool2d(h, 2)
    assert h.shape == (3, 16, 1, 1)
    (dense,) = net.hidden
    h = torch.tanh(h.flatten(1) @ dense.layer.weight.T + dense.layer.bias)
    torch.testing.assert_close(net(x), h @ net.head.weight.T + net.head.bias)


@pytest.mark.parametrize("size", [1, 8, 28])
def test_vgg_takes_small_images_as_poolings_round_up(size):
    net = VGG(13, width=1 / 16, in_channels=1)
    assert net(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_vgg_dropout_stands_between_dense_layers():
    net = VGG(11, width=1 / 32, hidden=(6, 7), dropout=0.5)
    assert [part.dropout.p for part in net.hidden] + [net.dropout.p] == [0.0, 0.5, 0.5]
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.eval()(x), VGG(11, width=1 / 32, hidden=(6, 7))(x))


def test_vgg_errors_say_what_fits():
    with pytest.raises(NormlibError, match="it leaves none"):
        VGG(11, width=0.001)
    with pytest.raises(ShapeError):
        VGG(11, width=1 / 64, norm="group:groups=3")


def test_deep_linear_net_is_its_product_of_matrices():
    net = DeepLinearNet(width=6, depth=7, seed=1).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(net(x), x @ net.product().T)
    assert len([m for m in net.modules() if isinstance(m, nn.Linear)]) == 7


def test_orthogonal_weights_make_an_isometry_of_any_depth():
    net = DeepLinearNet(width=10, depth=25, init="orthogonal").double()
    torch.testing.assert_close(net.product().T @ net.product(), torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-5)


def test_identity_weights_and_batch_norms_make_one_batch_norm():
    net, plain = (DeepLinearNet(width=5, depth=25, norm=norm).double() for norm in ("batch", "none"))
    for layer in (m for network in (net, plain) for m in network.modules() if isinstance(m, nn.Linear)):
        nn.init.eye_(layer.weight)
    x = torch.randn(64, 5, dtype=torch.float64) * 3 + 1
    assert torch.equal(plain(x), x)
    torch.testing.assert_close(net(x), (x - x.mean(0)) / x.std(0, correction=0), rtol=1e-3, atol=0)  # 24 times eps


def test_a_norm_follows_every_layer_of_the_deep_linear_net_but_the_last():
    net = DeepLinearNet(norm="batch")
    assert sum(p.numel() for p in net.parameters()) == 25 * 100 + 24 * 20
    assert {type(part.activation) for part in net.blocks} == {nn.Identity}
