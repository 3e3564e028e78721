"""The ends of the row of groups are the layers that they are named after, and the spread is of the right pair."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from normlib import data
from normlib.lab import Config
from normlib.studies.flavors.convnets import convnet
from normlib.studies.flavors.wu2018_groups import GROUPS, WIDTH, count, groups, widest


@pytest.mark.parametrize(("norm", "same"), [(1, "layer"), (4, "group:size=8"), (WIDTH, "instance:affine=True")])
def test_an_arm_is_the_layer_that_it_is_called(norm: int, same: str) -> None:
    images = data.load("digits").standardized()
    c = Config({"depth": 5, "width": WIDTH})
    outputs = [convnet(c, images, spec, 0)(images.x_train[:20]) for spec in (f"group:groups={norm}", same)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_every_number_of_groups_divides_the_channels() -> None:
    assert [count(norm) for norm in groups.vary["norm"]] == GROUPS == sorted(GROUPS)
    assert not any(WIDTH % g for g in GROUPS)


def test_the_pair_furthest_apart_is_chosen_by_medians_and_compared_seed_by_seed() -> None:
    errors = pd.DataFrame({2: [10.0, 11.0, 30.0], 4: [12.0, 12.5, 12.0], 8: [11.5, 11.5, 11.0]})
    assert widest(errors).tolist() == [2.0, 1.5, -18.0]  # medians 11, 12 and 11.5: 4 groups minus 2
