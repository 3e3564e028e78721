"""How deep a residual network trains, and what its branches supply: readings of known tables, closed forms, one network by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from normlib.networks import ResNet
from normlib.networks.residual_blocks import ResidualBlock
from normlib.residual import Join
from normlib.studies.normalizer_free.de2020 import LOOKS, deepest, largest_rates, trainable
from normlib.studies.normalizer_free.de2020_shares import against_expected, expected, growth, measured


def test_closed_forms_are_those_of_the_papers() -> None:
    variances, supplied = expected("batch", 9)
    assert supplied == pytest.approx([1 / (block + 1) for block in range(1, 10)]) and variances == pytest.approx(list(range(2, 11)))
    assert expected("none", 5) == (pytest.approx([2, 4, 8, 16, 32]), pytest.approx([0.5] * 5))
    assert expected("scaled_sum", 5) == (pytest.approx([1] * 5), pytest.approx([0.5] * 5))
    assert expected("skipinit_root", 7)[0][-1] == pytest.approx((1 + 1 / 7) ** 7) and math.e > (1 + 1 / 7) ** 7
    variances, supplied = expected("rescale", 4)
    assert variances == pytest.approx([1] * 4) and supplied == pytest.approx([1 / 4, 1 / 5, 1 / 6, 1 / 7])


def test_shares_of_a_network_are_those_of_a_walk_through_it() -> None:
    net = ResNet([3], 6, norm="none", residual="scaled_sum", padding_mode="circular", seed=1)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = measured(net, x)
    with torch.no_grad():
        state = net.stem(x)
        state = state / state.square().mean().sqrt()
        parts, half = [], 0.5**0.5
        for block in net.blocks:
            assert isinstance(block, ResidualBlock) and isinstance(block.join, Join)
            added = half * block.branch(block.entry(block.before(state)))
            state = half * state + added
            parts.append(float(added.square().mean()))
    end = float(state.square().mean())
    assert found["variance"][-1] == pytest.approx(end, rel=1e-4)
    assert found["final_share"] == pytest.approx([parts[0] / 4 / end, parts[1] / 2 / end, parts[2] / end], rel=1e-4)
    assert found["share"][-1] == pytest.approx(parts[2] / end, rel=1e-4)


def a_table_of_shares() -> pd.DataFrame:
    """Make a table in which every share is 1.2 times what is expected."""
    rows = []
    for seed in range(2):
        for trick in ("batch", "rescale"):
            variances, supplied = expected(trick, 4)
            for block in range(1, 5):
                row = {"block": block, "variance": variances[block - 1], "share": 1.2 * supplied[block - 1]}
                rows.append({"trick": trick, "seed": seed, **row})
    return pd.DataFrame(rows)


def test_readings_of_a_known_table_of_shares() -> None:
    table = a_table_of_shares()
    assert against_expected(table, "batch").tolist() == pytest.approx([1.2, 1.2])
    assert growth(table)["batch"].tolist() == pytest.approx([5, 5])


def test_readings_of_a_known_table_of_runs() -> None:
    reached: dict[str, dict[int, int | None]] = {
        "batch": {1: 80, 4: 78, 16: 76},
        "none": {1: 80, 4: 60, 16: None},
        "scaled_sum": {1: 79, 4: 70, 16: 40},
    }
    usual: dict[int, int | None] = {1: 80, 4: 75, 16: 70}
    rows = []
    for seed in range(2):
        for trick in LOOKS:
            for blocks, accuracy in reached.get(trick, usual).items():
                for rate, less in ((0.1, 0), (0.3, 4 if trick == "batch" else 20)):
                    score = float("nan") if accuracy is None else float(accuracy - less)
                    rows.append(
                        {"trick": trick, "blocks": blocks, "rate": rate, "seed": seed, "held_out": score, "accuracy": score}
                    )
    table = pd.DataFrame(rows)
    depths = trainable(table)
    assert depths["batch"].tolist() == [16, 16] and depths["none"].tolist() == [4, 4]
    assert depths["scaled_sum"].tolist() == [4, 4], "40 is less than halfway from 10 to 80"
    assert deepest(table)["skipinit"].tolist() == [70, 70] and deepest(table)["none"].isna().all()
    assert largest_rates(table)["batch"].tolist() == [0.3, 0.3] and largest_rates(table)["skipinit_root"].tolist() == [0.1, 0.1]
