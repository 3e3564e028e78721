"""Batches of one class, and what positions are worth, against independent computation."""

from __future__ import annotations

import pytest
import torch

from normlib.layers import BatchNorm
from normlib.networks import PlainConvNet
from normlib.studies.batch.drawbacks import worth
from normlib.studies.batch.leakage import replaced
from normlib.studies.common.grouped import OfGroups, in_groups


def test_groups_hold_one_class_each_and_every_item_at_most_once() -> None:
    labels = torch.arange(103) % 3
    groups = in_groups(labels, 8, True, 0)
    assert groups.shape == (12, 8)  # 35, 34 and 34 items: four groups of each class
    assert all(len(labels[group].unique()) == 1 for group in groups)
    assert len(groups.unique()) == groups.numel()
    mixed = in_groups(labels, 8, False, 0)
    assert mixed.shape == (12, 8) and any(len(labels[group].unique()) > 1 for group in mixed)
    assert not torch.equal(mixed, in_groups(labels, 8, False, 1))


def test_a_statistic_is_taken_over_a_group() -> None:
    net = PlainConvNet(4, 4, 1, 10, "batch:ghost=4", image_size=8)
    x = torch.randn(3, 4, 1, 8, 8)
    together = OfGroups(net.train())(x)
    apart = torch.cat([net(group) for group in x])
    assert torch.allclose(together, apart, atol=1e-5)


def test_worth_is_what_the_scatter_of_batch_means_says() -> None:
    generator = torch.Generator().manual_seed(0)
    assert worth(torch.randn(4_000, 2, 5, 5, generator=generator)) == pytest.approx(25, rel=0.1)
    one_value = torch.randn(4_000, 2, 1, 1, generator=generator).expand(-1, -1, 5, 5)
    assert worth(one_value) == pytest.approx(1)
    halves = torch.randn(4_000, 1, 2, 1, generator=generator).repeat_interleave(6, dim=2).expand(-1, -1, -1, 4)
    means = torch.stack([halves[i : i + 8].mean() for i in range(0, 4_000, 8)])  # the means of batches of 8 images
    assert worth(halves) == pytest.approx(float(halves.var() / (8 * means.var())), rel=0.2)


def test_the_change_of_the_others_is_that_of_torch() -> None:
    x, new = torch.randn(6, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    layer = BatchNorm(3, eps=1e-12).double()
    torch_layer = torch.nn.BatchNorm1d(3, eps=1e-12).double()
    y = torch.cat([new[None], x[1:]])
    assert torch.allclose(replaced(layer, x, new)[0], (torch_layer(y) - torch_layer(x))[1:].square().mean().sqrt())
