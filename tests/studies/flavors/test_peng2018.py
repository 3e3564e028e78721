"""The simulated workers against torch's moments and automatic differentiation, in cases made to be unequal."""

from __future__ import annotations

import pytest
import torch

from normlib.layers import batch_norm
from normlib.studies.common.statements import gap, normal
from normlib.studies.flavors.peng2018 import EPS, by_workers, exchanged_backward, share_between, sizes_of


@pytest.mark.parametrize("shards", ["equal", "unequal"])
@pytest.mark.parametrize("workers", [2, 16])
def test_every_sample_has_one_worker(shards: str, workers: int) -> None:
    sizes = sizes_of(shards, 64, workers, 0)
    assert len(sizes) == workers and sum(sizes) == 64 and min(sizes) >= 1
    assert (len(set(sizes)) == 1) == (shards == "equal")


def test_two_distant_workers() -> None:
    parts = [torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[10.0], [12.0]]).double()]
    whole = torch.cat(parts)
    assert gap(by_workers(parts, "shared"), batch_norm(whole, eps=EPS)) < 1e-14
    assert (
        gap(by_workers(parts, "averaged"), (whole - 6) / (1 + EPS) ** 0.5) < 1e-14  # not by 26
    )
    assert gap(by_workers(parts, "alone"), torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]).double() / (1 + EPS) ** 0.5) < 1e-14


def test_the_backward_pass_by_hand_is_that_of_one_batch() -> None:
    x, g = (normal(0, 12, 3) + torch.arange(12)[:, None]).requires_grad_(), normal(1, 12, 3)
    expected = torch.autograd.grad(batch_norm(x, eps=EPS), x, g)[0]
    parts, upstream = x.detach().split([1, 3, 8]), g.split([1, 3, 8])
    assert gap(exchanged_backward(list(parts), list(upstream)), expected) < 1e-12
    assert gap(exchanged_backward(list(parts), list(upstream), exchange=False), expected) > 0.1


def test_the_share_between_two_workers() -> None:
    x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    assert float(share_between(x, 2)) == pytest.approx(25 / 26)
    assert float(share_between(x, 4)) == pytest.approx(1.0)
