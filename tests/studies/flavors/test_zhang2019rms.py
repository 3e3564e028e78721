"""The networks with weights off center, what is said of the mean, and the two ways to write a norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normlib.lab import Config
from normlib.layers import LayerNorm, RMSNorm
from normlib.studies.common.inputs import load
from normlib.studies.common.statements import gap, normal
from normlib.studies.flavors import zhang2019rms as mean
from normlib.studies.flavors import zhang2019rms_speed as speed
from normlib.surgery.swap import kind_of

IMAGES = load(Config({"data": "digits", "train": 40}))


@pytest.mark.parametrize("network", list(mean.NETWORKS))
def test_layer_norm_alone_does_not_notice_the_center(network: str) -> None:
    outputs = {}
    for norm in mean.NAMES:
        for center in (0.0, 0.2):
            net = mean.make_network(network, norm, center, 8, IMAGES, 0).double()
            outputs[norm, center] = net(IMAGES.x_train.double()).detach()
            assert {kind_of(module) for module in net.modules()} == {norm, None}
    assert gap(outputs["layer", 0.0], outputs["layer", 0.2]) < 1e-3  # weights were rounded when they were shifted
    assert gap(outputs["rms", 0.0], outputs["rms", 0.2]) > 0.1


def test_the_share_of_the_mean() -> None:
    x = normal(0, 20, 6)
    assert mean.mean_share(nn.Sequential(LayerNorm(6).double()), 3 + 0 * x) == pytest.approx(1)
    assert mean.mean_share(nn.Sequential(RMSNorm(6).double()), x - x.mean(1, keepdim=True)) < 1e-20
    both = torch.tensor([[3.0, 1.0]]).double()  # mean 2, mean square 5
    net = nn.Sequential(RMSNorm(2).double())  # and a module around it, which is no norm
    assert mean.mean_share(net, both) == pytest.approx(4 / 5)
    assert not net[0]._forward_pre_hooks


def test_the_share_of_the_mean_is_that_of_norms_not_of_the_cell() -> None:
    net = mean.make_network("gru", "rms", 0.0, 8, IMAGES, 0)
    found: list[torch.Tensor] = []
    with mean.shares_of_the_mean(net, found):
        net(IMAGES.x_train)
    assert len(found) == 4 * 8  # norms, rows


def test_layer_norm_is_rms_norm_behind_centered_weights() -> None:
    assert mean.centered_weights(0) < 1e-14
    weight, x = normal(0, 5, 3) + 0.2, normal(1, 7, 3)
    centered = weight - weight.mean(0, keepdim=True)
    assert gap((x @ centered.T).mean(1), torch.zeros(7)) > 0 and float((x @ centered.T).mean(1).abs().max()) < 1e-14


@pytest.mark.parametrize("network", list(speed.NETWORKS))
@pytest.mark.parametrize("norm", list(speed.NAMES))
def test_both_ways_to_write_a_norm_make_the_same_step(network: str, norm: str) -> None:
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    after = []
    for written in speed.WRITTEN:
        torch.manual_seed(0)
        net = speed.make_network(network, norm, 8, 8)
        before = [p.detach().clone() for p in net.parameters()]
        speed.training_step(net, x, y, written)()
        assert any(not torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))
        after.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.allclose(*after, atol=1e-6)
