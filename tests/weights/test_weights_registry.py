"""Specs, the table of weight norms, and what the errors say."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normlib.errors import NormlibError, UnknownNameError
from normlib.mode import reference
from normlib.spec import SpecError
from normlib.weights import WEIGHT_NORMS, ScaledWeightStandardization, WeightError, activation_gain, parametrize_weight


@pytest.mark.parametrize("name", WEIGHT_NORMS)
def test_each_weight_norm_keeps_the_contract(name: str) -> None:
    target = WEIGHT_NORMS[name]
    parameters = list(inspect.signature(target).parameters.values())
    assert parameters[0].name == "weight"
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty for p in parameters[1:])
    assert re.search(r"Source: `[a-z]+\d{4}[a-z]*`", inspect.getdoc(target) or "")
    layer = nn.Conv2d(4, 6, 3, dtype=torch.float64)
    assert parametrize_weight(layer, name) is layer
    assert layer(torch.randn(2, 4, 5, 5, dtype=torch.float64)).shape == (2, 6, 3, 3)
    assert all(t.dtype == torch.float64 for t in layer.state_dict().values())


def test_arguments_of_specs_arrive() -> None:
    made = [
        parametrize_weight(nn.Linear(4, 2), spec).parametrizations.weight[0]
        for spec in ("scaled_weight:gain=relu", "scaled_weight:gain=2,affine=False,eps=1e-3", "scaled_weight:gain=identity")
    ]
    assert all(isinstance(m, ScaledWeightStandardization) for m in made)
    assert [m.gamma for m in made] == [activation_gain("relu"), 2.0, pytest.approx(1.0)]
    assert [m.affine for m in made] == [True, False, True]
    assert made[0].gain.shape == (2, 1) and made[1].gain is None
    assert made[1].eps == 1e-3
    assert repr(made[1]) == "ScaledWeightStandardization(gamma=2.000000, affine=False, eps=0.001)"
    standard = parametrize_weight(nn.Linear(4, 2), "standardized_weight:eps=0.1").parametrizations.weight[0]
    assert repr(standard) == "WeightStandardization(eps=0.1)"


def test_another_weight_than_weight() -> None:
    cell = parametrize_weight(nn.RNNCell(3, 5), "weight", name="weight_hh")
    assert parametrize.is_parametrized(cell, "weight_hh") and not parametrize.is_parametrized(cell, "weight_ih")
    assert cell(torch.ones(2, 3)).shape == (2, 5)


def spectral_already() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("layer", "spec", "error", "says"),
    [
        (nn.Linear(3, 2), "wieght", UnknownNameError, "no weight norm named 'wieght'; did you mean 'weight'"),
        (nn.Linear(3, 2), "weight:eps=1", UnknownNameError, "argument of weight norm 'weight'"),
        (nn.Linear(3, 2), "scaled_weight:gian=1", UnknownNameError, "did you mean 'gain'"),
        (nn.Linear(3, 2), "scaled_weight:gain=rleu", UnknownNameError, "did you mean 'relu'"),
        (nn.Linear(3, 2), "scaled_weight:1", SpecError, "argument=value"),
        (nn.ReLU(), "weight", WeightError, "ReLU has no parameter named 'weight'.*none of its own"),
        (nn.RNNCell(3, 2), "weight", WeightError, "Its parameters: weight_ih, weight_hh"),
        (nn.BatchNorm2d(3, affine=False), "weight", WeightError, "no parameter named 'weight'"),
        (nn.BatchNorm2d(3), "weight", WeightError, r"\(outputs, inputs, \*\), but got \(3,\)"),
        (nn.BatchNorm2d(3), "spectral", WeightError, r"but got \(3,\)"),
        (spectral_already(), "weight", WeightError, "parametrized already, by _SpectralNorm.*remove_parametrizations"),
        (nn.ConvTranspose2d(3, 2, 3), "weight", WeightError, "ConvTranspose2d are axis 1.*dim=1"),
        (nn.Conv2d(3, 3, 1, groups=3), "centered_weight", WeightError, "one value per output.*'weight'"),
        (nn.Linear(1, 3), "standardized_weight", WeightError, r"WeightStandardization.*\(3, 1\)"),
        (nn.Linear(1, 3), "scaled_weight", WeightError, "ScaledWeightStandardization"),
    ],
)
def test_what_does_not_fit_is_told_and_leaves_the_layer_alone(
    layer: nn.Module, spec: str, error: type[Exception], says: str
) -> None:
    before = list(layer.state_dict())
    with pytest.raises(error, match=says) as raised:
        parametrize_weight(layer, spec)
    assert isinstance(raised.value, NormlibError)
    assert list(layer.state_dict()) == before


def test_a_fan_in_of_one_has_a_direction() -> None:
    layer = parametrize_weight(nn.Conv2d(3, 3, 1, groups=3), "weight")
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    assert torch.equal(layer.weight.sign(), v.sign()) and torch.allclose(layer.weight.abs(), g)


@pytest.mark.parametrize("spec", ["centered_weight", "standardized_weight", "scaled_weight"])
def test_under_reference_every_weight_is_computed_by_formula(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a fused operation ran")

    layer = parametrize_weight(nn.Linear(6, 4), spec)
    with reference():
        wanted = layer.weight
    torch.testing.assert_close(layer.weight, wanted)
    for place, name in ((torch, "native_group_norm"), (nn.functional, "layer_norm"), (nn.functional, "group_norm")):
        monkeypatch.setattr(place, name, refuse)
    with reference():
        torch.testing.assert_close(layer.weight, wanted)
    with pytest.raises(AssertionError, match="fused"):
        _ = layer.weight
