"""Similarity by group size: measures against their definitions, the ends of group norm, what claims read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from normlib.lab import Verdict
from normlib.layers import make_norm
from normlib.probes import mean_cosine, ranks
from normlib.studies.unified.lubana2021_groups import BATCH, against_the_law, bound, compressed, groups, likeness, sizes

MAPS = torch.randn(12, 5, 3, 3, generator=torch.Generator().manual_seed(0)).relu()


def test_the_measures_are_those_of_the_maps_and_of_the_matrix_of_cosines() -> None:
    short = compressed(MAPS)
    assert short.shape == (12, 12) and mean_cosine(short) == pytest.approx(mean_cosine(MAPS))
    rows = MAPS.flatten(1).double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    found = likeness(MAPS)
    assert found["cosine"] == pytest.approx((cosines.sum() - 12) / (12 * 11))
    assert found["stable"] == pytest.approx(12 / np.linalg.eigvalsh(cosines)[-1])
    for column, center in (("centered", "features"), ("plain", "none")):
        assert found[column] == pytest.approx(ranks(MAPS, center)["participation_ratio"])  # type: ignore[arg-type]


def test_the_stable_rank_is_never_above_its_bound() -> None:
    for scale in (0.1, 1.0, 10.0):
        found = likeness(torch.randn(8, 30, generator=torch.Generator().manual_seed(1)) * scale + 1)
        assert found["stable"] <= bound(pd.DataFrame({"batch": [8], "cosine": [found["cosine"]]}))[0] + 1e-9


def test_the_ends_are_instance_and_layer_norm() -> None:
    assert sizes(16) == [1, 2, 4, 8, 16, BATCH]
    x = torch.randn(4, 8, 5, 5)
    for size, spec in ((1, "instance"), (8, "layer")):
        assert torch.allclose(make_norm(f"group:size={size}", 8)(x), make_norm(spec, 8)(x), atol=1e-5)


def test_a_law_that_holds_has_slope_one_and_is_not_called_wrong() -> None:
    cells = [(s, w, n) for s in range(3) for w in (16, 32) for n in sizes(w)]
    table = pd.DataFrame(cells, columns=["seed", "width", "size"]).assign(layers=20, layer=20)
    table["stable"] = (table.width / table["size"].clip(lower=1)) ** 0.5
    assert np.allclose(against_the_law(table), 1)
    law = next(claim for claim in groups.claims if claim.slug == "law")
    assert law.function(table).verdict is not Verdict.REPRODUCED
    assert law.function(table.assign(stable=table.stable**0.2)).verdict is Verdict.REPRODUCED
