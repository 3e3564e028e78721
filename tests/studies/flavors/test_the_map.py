"""The probes behind the map, against layers whose place is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from normlib.layers import NORMS, make_norm
from normlib.studies.flavors.placing import SPECS, normalized_weight, place, smallest_batch
from normlib.weights import WEIGHT_NORMS


def test_every_normalizer_of_the_library_is_on_the_map() -> None:
    names = {spec.partition(":")[0] for spec in SPECS}
    assert names >= {*NORMS, *WEIGHT_NORMS}


@pytest.mark.parametrize(
    ("spec", "axes", "said"),
    [
        ("batch", (2, 0, 2), {"shift": True, "scale": True, "stores": True, "differs": True, "learned": "2", "vectors": 2}),
        ("layer", (0, 2, 2), {"shift": True, "scale": True, "stores": False, "differs": False, "vectors": 1}),
        ("rms", (0, 2, 2), {"shift": False, "scale": True, "learned": "1"}),
        ("dyt", (0, 0, 0), {"shift": False, "scale": False, "learned": "2+1"}),
        ("renorm", (1, 0, 1), {"scale": False, "stores": True, "differs": False}),
        ("decorrelated:size=2", (2, 2, 2), {"vectors": 3, "weight vector rescaling": False}),
        ("weight", (0, 0, 0), {"over": "row", "shift": False, "scale": True, "stores": False, "learned": "1"}),
        ("spectral", (0, 0, 0), {"over": "all", "stores": True, "differs": False}),
    ],
)
def test_places_that_are_known(spec: str, axes: tuple[int, ...], said: dict[str, object]) -> None:
    found = place(spec, 3)
    assert tuple(found[axis] for axis in ("samples", "channels", "positions")) == axes
    assert {name: found[name] for name in said} == said


def test_a_weight_norm_is_probed_at_a_gain_of_one() -> None:
    weight = torch.randn(5, 4, dtype=torch.float64)
    assert torch.allclose(normalized_weight("weight", weight), F.normalize(weight))
    assert torch.equal(normalized_weight("spectral", weight), normalized_weight("spectral", weight))


def test_smallest_batch_of_what_refuses_vectors_is_zero() -> None:
    assert smallest_batch(make_norm("instance", 6).double()) == 0
    assert smallest_batch(make_norm("instance", 6).double(), 2, 2) == 1
