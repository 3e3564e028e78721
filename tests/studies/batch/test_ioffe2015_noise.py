"""The measures of the noise study: by hand, and against simulation."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch

from normlib.data import load
from normlib.networks import MLP
from normlib.studies.batch.companions import fit, roughness, share_of_inputs, variance_of_batch_means
from normlib.studies.batch.ioffe2015_noise import _gap_ratio
from normlib.training import train


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_the_variance_of_a_mean_is_that_of_one_item_over_their_number(batch: int) -> None:
    values = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).exp()
    assert variance_of_batch_means(values, batch, seed=1) == pytest.approx(1 / batch, rel=0.1)


def test_a_share_is_one_if_all_inputs_count_alike() -> None:
    assert share_of_inputs(torch.tensor([[2.0, -2.0, 2.0, 2.0]])) == pytest.approx(1)
    assert share_of_inputs(torch.tensor([[0.0, 3.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])) == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_roughness_is_one_for_independent_weights_and_zero_for_a_constant() -> None:
    assert roughness(torch.randn(500, 100, generator=torch.Generator().manual_seed(0)), (1, 10, 10)) == pytest.approx(1, abs=0.02)
    assert roughness(torch.ones(3, 100), (1, 10, 10)) == 0


def test_groups_of_one_train_as_the_loop_does() -> None:
    images = load("digits").subset(64, 32)
    nets = [MLP([64, 8, 10], "relu", norm="batch:ghost=4") for _ in range(2)]
    assert not fit(nets[0], images, 10, 16, 0.1, seed=3)
    train(nets[1], images.x_train, images.y_train, steps=10, batch_size=16, rate=0.1, momentum=0.9, seed=3)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_images_of_a_group_stay_together_whatever_the_order_of_the_groups() -> None:
    """With all groups in one update a ghost batch is a group, so the order of the groups cannot matter."""
    images = load("digits").subset(64, 32)
    start = MLP([64, 8, 10], "relu", norm="batch:ghost=4")
    together, apart = [], []
    for seed in (0, 1):
        for group, results in ((4, together), (1, apart)):
            net = copy.deepcopy(start)
            fit(net, images, 3, 64, 0.1, seed, group)
            results.append(net.head.weight.detach())
    torch.testing.assert_close(*together, atol=1e-5, rtol=1e-4)
    assert (apart[0] - apart[1]).abs().max() > 1e-3


def test_the_ratio_of_gaps_is_the_geometric_mean_over_equal_rates() -> None:
    rows = [("4 plain", 0.1, 0, 2.0), ("256 plain", 0.1, 0, 1.0), ("4 plain", 0.3, 0, 2.0), ("256 plain", 0.3, 0, 4.0)]
    table = pd.DataFrame(rows, columns=["arm", "rate", "seed", "gap"]).assign(batch=4, way="plain")
    assert _gap_ratio(table, "4 plain", "256 plain").tolist() == pytest.approx([1.0])
