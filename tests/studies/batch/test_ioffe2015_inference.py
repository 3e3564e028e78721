"""What evaluation is expected to do, against simulation and by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from normlib.networks import MLP
from normlib.studies.batch.population import second_layer_spread, share_changed, spread_by_layer, start_left
from normlib.surgery import reestimate_statistics


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_the_closed_form_is_what_batches_of_normal_numbers_give(batch: int) -> None:
    x = torch.randn(400_000, batch, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rectified = ((x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)).relu()
    in_evaluation = x.relu().var()
    assert second_layer_spread(batch) == pytest.approx(float((in_evaluation / rectified.var(1).mean()).sqrt()), abs=3e-3)


def test_the_closed_form_at_two_and_at_many() -> None:
    assert second_layer_spread(2) == pytest.approx(math.sqrt(1 - 1 / math.pi))
    assert second_layer_spread(100_000) == pytest.approx(1, abs=1e-4)


def test_without_the_factor_the_first_layer_is_wider_by_its_root() -> None:
    spreads = spread_by_layer(4, width=32, samples=1024, seed=0, device="cpu")
    assert spreads["biased"][0] / spreads["corrected"][0] == pytest.approx(math.sqrt(4 / 3), rel=1e-4)


def test_the_start_fades_as_the_closed_form_says() -> None:
    net, x = MLP([6, 8, 8, 2], "relu", norm="batch"), 3 + torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    fresh = reestimate_statistics(copy.deepcopy(net), [x])
    net.train()
    for steps in range(1, 6):
        net(x)
        assert start_left(net, fresh) == pytest.approx(0.9**steps, rel=1e-4)


def test_classes_depend_on_the_batch_only_where_its_statistics_are_used() -> None:
    x = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
    net = MLP([6, 16, 16, 4], "relu", norm="batch:ghost=2")
    before = copy.deepcopy(net.state_dict())
    assert share_changed(net, x, seed=0) > 0.1
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert share_changed(MLP([6, 16, 16, 4], "relu", norm="layer"), x, seed=0) == 0
