from __future__ import annotations

import pytest
import torch

from normlib.errors import UnknownNameError
from normlib.lab import Config
from normlib.studies.common.inputs import TREATMENTS, load, treat


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(200, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 5, generator=generator).double() + 3
    return torch.cat([mixed, torch.full((200, 1), 0.5, dtype=torch.float64)], dim=1)  # the last input never varies


def test_each_treatment_does_what_it_says(x: torch.Tensor) -> None:
    assert treat(x, "raw") is x
    for treatment in TREATMENTS[1:]:
        assert treat(x, treatment).mean(dim=0).abs().max() < 1e-12
    assert treat(x, "centered").shape == x.shape
    standardized, whitened = treat(x, "standardized"), treat(x, "whitened")
    assert standardized.shape == whitened.shape == (200, 5)
    torch.testing.assert_close(standardized.square().mean(dim=0), torch.ones(5).double())
    torch.testing.assert_close(whitened.T @ whitened / 200, torch.eye(5).double())


def test_unknown_treatment_names_the_nearest(x: torch.Tensor) -> None:
    with pytest.raises(UnknownNameError, match="whitened"):
        treat(x, "whitend")


def test_load_notes_the_content_and_takes_the_part_asked_for() -> None:
    c = Config({"data": "digits", "train": 50, "test": 20})
    found = load(c, seed=1)
    assert found.x_train.shape == (50, 1, 8, 8)
    assert len(found.x_test) == 20
    assert c.notes["data"] == {"name": "digits", "digest": found.digest, "official": True}
    assert not torch.equal(found.x_train, load(c, seed=2).x_train)
    assert len(load(Config({"data": "digits"})).x_train) == 1437
