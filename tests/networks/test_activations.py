import math

import pytest
import torch

from normlib.errors import UnknownNameError
from normlib.networks import ACTIVATIONS, make_activation

FORMULAS = {
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "scaled_tanh": lambda x: 1.7159 * math.tanh(2 * x / 3),
    "softsign": lambda x: x / (1 + abs(x)),
    "relu": lambda x: max(x, 0.0),
    "identity": lambda x: x,
}


def test_every_activation_has_a_formula_here():
    assert set(ACTIVATIONS) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_value(name):
    points = [-3.0, -1.0, -0.2, 0.0, 0.5, 2.0]
    values = make_activation(name)(torch.tensor(points, dtype=torch.float64))
    assert values.tolist() == pytest.approx([FORMULAS[name](x) for x in points], abs=1e-12)


def test_scaled_tanh_meets_its_targets_where_its_curvature_peaks():
    f = make_activation("scaled_tanh")
    assert float(f(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(1, abs=1e-4)
    x = torch.linspace(0, 3, 3001, dtype=torch.float64)
    curvature = torch.func.vmap(torch.func.grad(torch.func.grad(lambda t: f(t))))(x).abs()
    assert float(x[curvature.argmax()]) == pytest.approx(0.988, abs=1e-3)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'tanh'"):
        make_activation("tahn")
