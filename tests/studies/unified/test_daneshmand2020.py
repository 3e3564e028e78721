"""Rank along a chain: the measure against the library's, the step against its formula, the networks of positive weights."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from normlib.lab import Config
from normlib.probes import ranks
from normlib.studies.unified.daneshmand2020 import ARMS, chain, rank, rank_of, relu_network, slope, starts, unit_rows


def test_r_is_the_participation_ratio() -> None:
    h = starts(6, 0, "cpu")[0]
    found = rank_of(h)
    assert all(float(r) == pytest.approx(ranks(matrix)["participation_ratio"]) for r, matrix in zip(found, h, strict=True))
    assert torch.equal(h[0], h[1]) and float(found[2]) == pytest.approx(1, abs=1e-9)
    assert torch.allclose(unit_rows(h).square().mean(-1), torch.ones(3, 6, dtype=torch.float64))


def test_two_layers_of_the_chain_by_hand() -> None:
    rows = chain(Config({"width": 5, "layers": 2, "step": 0.3}), seed=1)
    h, source = starts(5, 1, "cpu")
    normalized, plain = unit_rows(h[0]), h[1]
    for _ in range(2):
        w = torch.randn(5, 5, generator=source, dtype=torch.float64)
        normalized, plain = unit_rows(normalized + 0.3 * w @ normalized), plain + 0.3 * w @ plain
    last = rows[rows.layer == 2].set_index("arm").r
    assert last["batch"] == pytest.approx(ranks(normalized)["participation_ratio"])
    assert last["none"] == pytest.approx(ranks(plain)["participation_ratio"]), "r does not see the scale"
    assert set(last.index) == set(ARMS["chain"])


def test_networks_differ_in_what_their_arm_says() -> None:
    weights = {arm: [block.layer.weight for block in relu_network(4, 3, arm, 0).blocks] for arm in ARMS["relu"]}
    assert all(torch.equal(w.abs(), p) for w, p in zip(weights["batch"], weights["positive"], strict=True))
    assert all(torch.equal(w, p) for w, p in zip(weights["batch"], weights["none"], strict=True))


def test_the_slope_is_that_of_a_power() -> None:
    cells = [("chain", "batch", width, seed, width**0.7 * (1 + seed)) for width in (8, 16, 32) for seed in range(3)]
    table = pd.DataFrame(cells, columns=["network", "arm", "width", "seed", "level"])
    assert slope(table, "chain", "batch").tolist() == pytest.approx([0.7] * 3)
    claim = next(claim for claim in rank.claims if claim.slug == "root-of-width")
    assert claim.function(table).verdict.value == "reproduced"
