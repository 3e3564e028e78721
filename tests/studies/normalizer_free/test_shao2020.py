"""Shares of the branches: the terms sum to the output, and the formula is that of the coefficients."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from normlib.networks import ResNet
from normlib.studies.normalizer_free.shao2020 import growth, late_over_early, shares_by_formula, terms


@pytest.mark.parametrize("residual", ["sum", "rescale", "skipinit:gain=1/sqrt(d)", "nf:alpha=0.2", "scaled_sum"])
def test_the_terms_sum_to_the_output(residual: str) -> None:
    blocks = ResNet([4], 6, norm="none", residual=residual).blocks
    x = torch.randn(3, 6, 4, 4)
    parts = terms(blocks, x)
    assert len(parts) == 5 and torch.allclose(sum(parts), blocks(x), rtol=1e-4, atol=1e-5)


def test_shares_by_formula() -> None:
    shares = shares_by_formula(5)
    assert shares == pytest.approx([4 / 9, *[1 / 9] * 5])


def test_readings_of_a_known_table() -> None:
    rows = [
        {"trick": trick, "seed": s, "layer": layer, "power": 2.0**layer, "share": 2.0 ** (layer * (trick == "sum"))}
        for trick in ("sum", "rescale") for s in range(2) for layer in range(5)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    assert late_over_early(table)["sum"].tolist() == [4.0, 4.0] and late_over_early(table)["rescale"].tolist() == [1.0, 1.0]
    assert growth(table)["sum"].tolist() == [16.0, 16.0]
