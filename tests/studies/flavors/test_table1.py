"""Single entries of the table, by hand, and how an entry is counted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from normlib.studies.common.statements import gap, normal
from normlib.studies.flavors.ba2016_table1 import MAPS, PRINTED, VECTORS, _off, make_layer


@pytest.mark.parametrize("spec", ["batch", "layer", "weight", "standardized_weight"])
def test_layers_are_those_of_the_formula(spec: str) -> None:
    weight, x = normal(0, 8, 6), normal(1, 16, 6)
    sums = x @ weight.T
    centered = weight - weight.mean(1, keepdim=True)
    expected = {
        "batch": (sums - sums.mean(0)) / sums.std(0, correction=0),
        "layer": F.layer_norm(sums, [8], eps=0.0),
        "weight": x @ F.normalize(weight, dim=1).T,
        "standardized_weight": x @ (centered / weight.std(1, correction=0, keepdim=True)).T,
    }[spec]
    assert gap(make_layer(spec, 1e-12)(weight)(x).detach(), expected) < 1e-10


def test_per_position_is_layer_norm_of_each_position() -> None:
    weight, x = normal(0, 8, 6), normal(1, 16, 6, 5)
    found = make_layer("tokens", 1e-12)(weight)(x).detach()
    assert gap(found[:, :, 2], make_layer("layer", 1e-12)(weight)(x[:, :, 2]).detach()) < 1e-10
    assert make_layer("tokens", 0.5)(weight)(x).std() < found.std(), "eps reaches the layer"


def test_an_entry_between_rounding_and_a_percent_is_off() -> None:
    assert _off([0.0, 1.0], [True, False]) == 0
    assert _off([1e-4, 1e-4], [True, False]) == 2


def test_every_printed_row_has_its_arm() -> None:
    assert set(PRINTED) <= set(VECTORS) and {"layer", "tokens"} <= set(MAPS)
    assert torch.tensor([len(row) for row in PRINTED.values()]).eq(6).all()
