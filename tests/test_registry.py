"""Registries and the errors on names that they do not know."""

from __future__ import annotations

import collections

import pytest

from normlib.errors import NormlibError, UnknownNameError, unknown
from normlib.registry import Registry


@pytest.fixture
def shapes() -> Registry:
    return Registry("shape", {"ordered": "collections:OrderedDict", "counter": "collections:Counter"}, hint="Ask again.")


def test_a_registry_is_a_mapping_that_imports_when_asked(shapes: Registry) -> None:
    assert list(shapes) == ["ordered", "counter"]
    assert len(shapes) == 2
    assert shapes["ordered"] is collections.OrderedDict
    assert "counter" in shapes
    assert "round" not in shapes
    absent = Registry("thing", {"gone": "normlib.not_there:thing"})
    assert "gone" in absent
    with pytest.raises(ModuleNotFoundError):
        absent["gone"]


def test_an_unknown_name_is_told_with_the_nearest_and_the_hint(shapes: Registry) -> None:
    with pytest.raises(UnknownNameError) as caught:
        shapes["countre"]
    assert str(caught.value) == ("there is no shape named 'countre'; did you mean 'counter'? Known: counter, ordered. Ask again.")
    assert isinstance(caught.value, NormlibError)
    assert isinstance(caught.value, KeyError)


def test_get_gives_the_default(shapes: Registry) -> None:
    assert shapes.get("ordered") is collections.OrderedDict
    assert shapes.get("round") is None


def test_nothing_near_is_no_guess() -> None:
    assert str(unknown("norm", "zzz", ["layer", "batch"])) == "there is no norm named 'zzz'. Known: batch, layer."
