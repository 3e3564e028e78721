"""Split batch norm is batch norm of each batch; what is added to the loss is that of a plain loop over batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from normlib.networks import PlainConvNet
from normlib.studies.smoothness.luo2019reg import as_drawn, losses, own_share, slopes, with_batches


@pytest.fixture(scope="module")
def setup():
    """Build a small network with scales of its own, images and labels."""
    net = PlainConvNet(4, 4, 1, 10, "batch", "he", 0, 8)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    generator = torch.Generator().manual_seed(1)
    net.requires_grad_(False)
    return net.double(), torch.randn(24, 1, 8, 8, generator=generator).double(), torch.randint(10, (24,), generator=generator)


def test_the_own_batch_is_batch_norm_in_training(setup) -> None:
    net, x, y = setup
    ghosts = torch.cat([F.cross_entropy(net.train()(a), b, reduction="none") for a, b in zip(x.split(8), y.split(8), strict=True)])
    torch.testing.assert_close(losses(net, x, y, 8, 8), ghosts)


def test_another_batch_is_evaluation_by_its_statistics(setup) -> None:
    net, x, y = setup
    found = losses(net, x[:16], y[:16], 16, 8)[8:]
    first, second = x[:8], x[8:16]
    for position, (convolution, norm, relu) in enumerate(net.blocks):
        first, second = convolution(first), convolution(second)
        mean, var = first.mean((0, 2, 3)), first.var((0, 2, 3), correction=0)
        first, second = (
            relu(F.batch_norm(maps, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)) for maps in (first, second)
        )
        if position in net.pooled:
            first, second = net.pool(first), net.pool(second)
    by_hand = F.cross_entropy(net.head(second.mean((2, 3))), y[8:16], reduction="none")
    torch.testing.assert_close(found, by_hand)


def test_dealing_out_all_images_takes_each_once_in_each_way(setup) -> None:
    net, x, y = setup
    found = with_batches(net, x, y, 8, torch.Generator().manual_seed(5))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    own = losses(net, x[order], y[order], 8, 8).mean()
    assert found["own"] == pytest.approx(float(own)) and found["other"] != pytest.approx(float(own))
    whole = with_batches(net, x, y, 24, torch.Generator().manual_seed(5))
    assert whole["own"] == pytest.approx(whole["other"]) == pytest.approx(float(losses(net, x, y, 24, 24).mean()))


def test_the_slope_is_that_of_a_power_and_is_missing_where_the_loss_falls() -> None:
    sizes = np.array([8, 16, 32, 64])
    table = pd.DataFrame({"images": sizes, "own": 3 / sizes, "other": 2 / sizes, "seed": 0, "steps": 50})
    assert slopes(table).iloc[0] == pytest.approx(-1) and own_share(table, 32).iloc[0] == pytest.approx(1 / 3)
    assert np.isnan(slopes(table.assign(own=table.own - 0.1)).iloc[0])


def test_dealing_is_turned_into_drawing() -> None:
    # a loss h m² + c m a, m the mean of the images that give the statistics, a that of the images that are normalized
    values = torch.arange(12.0).double()
    values = (values - values.mean()) / values.std(correction=0)
    pairs = torch.combinations(torch.arange(12), 4)
    means = values[pairs].mean(1)
    others = -4 * means / 8  # the mean of all is zero
    h, c = 0.7, 0.4
    own_dealt = (h + c) * means.square().mean()
    other_dealt = (h * means.square() + c * means * others).mean()
    found = as_drawn(float(own_dealt), float(other_dealt), 4, 12)
    assert found["own"] == pytest.approx((h + c) / 4) and found["other"] == pytest.approx(h / 4)
