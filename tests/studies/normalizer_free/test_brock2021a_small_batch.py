"""Small batches: the runs, the arms, and the averages over all training batches."""

from __future__ import annotations

import pandas as pd
import torch
from torch import nn

from normlib.lab import Config
from normlib.layers import BatchNorm, GroupNorm
from normlib.studies.common.arms import images_for, population_accuracy
from normlib.studies.normalizer_free.brock2021a_small_batch import BASE, MOST, SIZES, TRIED, lead, network, read, runs

SETTINGS = {"data": "digits", "train": 128, "validation": 32, "test": 64, "stages": [1, 1], "width": 8}


def test_each_arm_has_its_chosen_rate_at_every_batch() -> None:
    listed = [read(run) for run in runs(SIZES, TRIED)]
    assert len(listed) == len(set(listed))
    for arm, rate in BASE.items():
        assert rate in TRIED[arm]
        assert [size for name, size, base in listed if (name, base) == (arm, rate)] == SIZES
        assert {size for name, size, base in listed if name == arm and base != rate} == {MOST}


def test_arms_differ_in_their_norms_and_group_norm_has_the_weights_of_batch_norm() -> None:
    c = Config(SETTINGS)
    images, _ = images_for(c, 0)
    batch, group, free = (network(c, images, arm, 0) for arm in ("batch", "group", "nf"))
    count = sum(isinstance(m, BatchNorm) for m in batch.modules())
    assert count == sum(isinstance(m, GroupNorm) for m in group.modules()) > 0
    assert not any(isinstance(m, (BatchNorm, GroupNorm)) for m in free.modules())
    for old, new in zip(batch.parameters(), group.parameters(), strict=True):
        assert torch.equal(old, new)


def test_renewed_statistics_are_those_of_the_training_images() -> None:
    """A norm of inputs alone: means over all pairs of images are the means of all images."""
    x, y = 3 + 2 * torch.randn(64, 2), torch.randint(2, (64,))
    norm = BatchNorm(2, affine=False)
    by_hand = float((((x - x.mean(0)) / x.var(0)).argmax(1) == y).float().mean())
    assert abs(population_accuracy(nn.Sequential(norm), x.split(2), x, y) - by_hand) < 0.1
    assert torch.equal(norm.running_mean, torch.zeros(2)), "the network itself stays as it was"


def test_the_lead_is_taken_seed_by_seed_at_the_fixed_rate() -> None:
    rows = [("batch", 2, BASE["batch"], 50.0), ("nf", 2, BASE["nf"], 60.0), ("nf", 2, 99.0, 0.0)]
    table = pd.DataFrame([(*row, seed) for seed in (0, 1) for row in rows], columns=["arm", "images", "rate", "tested", "seed"])
    assert lead(table)[2].tolist() == [10.0, 10.0]
