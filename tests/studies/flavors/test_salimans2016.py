"""The start from data: mean-only batch norm, the network of each arm, and the walk that watches the lengths of v."""

from __future__ import annotations

import pytest
import torch

from normlib.lab import Config
from normlib.layers import batch_norm
from normlib.studies.common.arms import images_for
from normlib.studies.flavors.salimans2016 import (
    AT_ONCE,
    MEAN_ONLY,
    PLAIN,
    SMALL,
    STARTED,
    MeanOnlyNorm,
    descent,
    network_of,
    preactivations,
    start,
)

SIZES = {**start.quick, "depth": 4, "width": 12, "batch": 32}


def built(arm: str):
    c = Config({**SIZES, "arm": arm})
    images = images_for(c, 0)[0]
    x = images.x_train[:32].double()
    return network_of(c, images, x, 0), x, images.y_train[:32]


def test_mean_only_batch_norm_is_batch_norm_that_divides_by_one() -> None:
    layer, x = MeanOnlyNorm(3), 2 + torch.randn(8, 3)
    layer.bias.data += 1
    expected = batch_norm(x, None, layer.bias, x.mean(0), torch.ones(3), eps=0.0)
    assert torch.allclose(layer(x), expected)
    for _ in range(200):
        layer(x)
    assert torch.allclose(layer.eval()(x[:1]), expected[:1], atol=1e-5)


def test_directions_are_the_same_and_lengths_are_not() -> None:
    nets = {arm: built(arm)[0] for arm in ("weight", PLAIN, STARTED)}
    rows = {arm: net.blocks[1].layer.weight.detach() for arm, net in nets.items()}
    assert all(
        torch.allclose(torch.nn.functional.normalize(row), torch.nn.functional.normalize(rows["weight"])) for row in rows.values()
    )
    assert abs(float(rows[PLAIN].std()) / SMALL - 1) < 0.2
    assert torch.allclose(rows[PLAIN] * (2 / 12) ** 0.5 / SMALL, rows["weight"])


def test_only_a_start_layer_by_layer_standardizes_the_second_layer() -> None:
    worst = {
        arm: [float((t.std(0, correction=0) - 1).abs().max()) for t in preactivations(*built(arm)[:2])]
        for arm in (STARTED, AT_ONCE)
    }
    assert max(worst[STARTED]) < 1e-10 and worst[AT_ONCE][0] < 1e-10 < 0.1 < worst[AT_ONCE][1]


@pytest.mark.parametrize(("options", "shorter"), [({}, False), ({"weight_decay": 0.1}, True)])
def test_lengths_of_v_follow_pythagoras_in_plain_descent_only(options: dict[str, float], shorter: bool) -> None:
    cosine, error, lost = descent(*built(STARTED), **options)
    assert cosine < 1e-10
    assert (lost > 1e-6) == shorter and (error > 1e-6) == shorter


def test_mean_only_stands_behind_every_hidden_layer_and_removes_its_bias() -> None:
    net, x, _ = built(MEAN_ONLY)
    before = net(x).detach()
    for block in net.blocks:
        block.layer.bias.data += 1
    assert torch.allclose(net(x), before)
