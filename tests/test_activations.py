import math

import pytest
import torch

from normlib.activations import ACTIVATIONS, make_activation
from normlib.errors import UnknownNameError


def logistic(x):
    return 1 / (1 + math.exp(-x))


FORMULAS = {
    "logistic": logistic,
    "tanh": math.tanh,
    "scaled_tanh": lambda x: 1.7159 * math.tanh(2 * x / 3),
    "softsign": lambda x: x / (1 + abs(x)),
    "relu": lambda x: max(x, 0.0),
    "standard_relu": lambda x: (max(x, 0.0) - 1 / math.sqrt(2 * math.pi)) / math.sqrt((1 - 1 / math.pi) / 2),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky_relu": lambda x: max(x, 0.01 * x),
    "elu": lambda x: max(x, 0.0) + min(0.0, math.expm1(x)),
    "celu": lambda x: max(x, 0.0) + min(0.0, math.expm1(x)),
    "selu": lambda x: 1.0507009873554805 * (max(x, 0.0) + 1.6732632423543772 * min(0.0, math.expm1(x))),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x * logistic(x),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "log_sigmoid": lambda x: math.log(logistic(x)),
    "identity": lambda x: x,
}


def test_every_activation_has_a_formula_here():
    assert set(ACTIVATIONS) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_value(name):
    points = [-3.5, -1.0, -0.2, 0.0, 0.5, 2.0, 6.5]
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
