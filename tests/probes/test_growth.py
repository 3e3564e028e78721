import math

import numpy as np
import pytest
import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.networks import MLP
from normlib.probes.growth import Estimate, autocorrelation, gradient_growth, growth_factor
from normlib.probes.jacobian import model_map, sample_jacobians

G = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def send_back(output, gradient):
    return (output * gradient).sum()


def test_rotations_with_scales_multiply_the_squared_gradient_exactly():
    scales = [0.5, 3.0, 0.2, 1.0]
    net = nn.Sequential(*[nn.Linear(6, 6, bias=False, dtype=torch.float64) for _ in scales])
    for layer, scale in zip(net, scales, strict=True):
        layer.weight.data = scale * torch.linalg.qr(randn(6, 6)).Q
    upstream = randn(9, 6)
    columns = gradient_growth(net, send_back, randn(9, 6), upstream, training=True)
    assert columns["layer"] == ["0", "1", "2", "3"]
    assert columns["growth"][:3] == pytest.approx([9.0, 0.04, 1.0], rel=1e-12)
    assert math.isnan(columns["growth"][3])
    assert columns["squared_norm"][3] == pytest.approx(float(upstream.square().sum()), rel=1e-12)
    assert columns["second_moment"] == pytest.approx([norm / 54 for norm in columns["squared_norm"]], rel=1e-12)
    assert growth_factor(columns["squared_norm"]).value == pytest.approx(0.36 ** (1 / 3), rel=1e-12)


def bn_growth(activation, batch, width=200, depth=14):
    net = MLP([width] * (depth + 1), activation=activation, norm="batch", init="he", seed=0)
    x, upstream = torch.randn(2, batch, width, generator=torch.Generator().manual_seed(1))
    columns = gradient_growth(net, send_back, x, upstream, training=True)
    return growth_factor(columns["squared_norm"][2:-2])


def test_batch_norm_with_relu_grows_as_mean_field_theory_has_it():
    estimate = bn_growth("relu", batch=256)
    assert abs(estimate.value - math.pi / (math.pi - 1)) < 0.06
    assert estimate.standard_error < 0.05
    assert bn_growth("relu", batch=8).value > 1.6


def test_batch_norm_without_nonlinearity_grows_by_the_known_ratio():
    for batch in (5, 8):
        estimate = bn_growth("identity", batch, width=400)
        assert abs(estimate.value - (batch - 2) / (batch - 3)) < 4 * estimate.standard_error
        assert estimate.standard_error < 0.08


def test_growth_factor_is_a_geometric_mean_with_the_spread_of_the_factors():
    logs = randn(400).numpy() * 0.1 + 0.4
    values = np.exp(np.append(0, -np.cumsum(logs)))
    estimate = growth_factor(values)
    assert estimate.value == pytest.approx(math.exp(logs.mean()), rel=1e-10)
    assert estimate.standard_error == pytest.approx(estimate.value * logs.std(ddof=1) / 20, rel=1e-10)
    assert isinstance(estimate, Estimate)


def test_layers_that_no_gradient_reaches_have_nan_and_the_model_is_left():
    net = MLP([4, 6, 2], norm="batch").double()
    net.blocks[0].layer.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    columns = gradient_growth(net, send_back, randn(5, 4), randn(5, 2), training=True)
    assert [math.isnan(value) for value in columns["squared_norm"]] == [True, False]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_autocorrelation_is_the_sum_over_pairs():
    values = randn(30, 2, 3)
    centered = values.flatten(1).numpy() - values.flatten(1).numpy().mean(0)
    slow = [sum(centered[i] @ centered[i + k] for i in range(30 - k)) / (centered**2).sum() for k in range(6)]
    assert autocorrelation(values, 5) == pytest.approx(slow, rel=1e-12)


def test_autocorrelation_of_a_wave_of_noise_and_of_a_constant():
    wave = torch.cos(torch.arange(4000) * 2 * math.pi / 40)
    assert autocorrelation(wave, 20)[::10] == pytest.approx([1, 0, -1], abs=0.01)
    assert np.abs(autocorrelation(randn(4000), 5)[1:]).max() < 4 / 4000**0.5
    assert all(math.isnan(value) for value in autocorrelation(torch.ones(5), 2))


@pytest.mark.parametrize("coupled", [True, False])
def test_gradients_on_a_line_of_inputs(coupled):
    line = torch.linspace(-2, 2, 60, dtype=torch.float64)[:, None]
    function, x = model_map(nn.Sequential(nn.Tanh()), line, training=True)
    gradients = sample_jacobians(function, x, coupled=coupled)
    assert torch.allclose(gradients.flatten(), 1 - line.flatten().tanh() ** 2, rtol=0, atol=1e-12)
    assert autocorrelation(gradients, 1)[1] > 0.9


def test_batch_norm_shatters_the_gradients_of_a_deep_relu_net():
    line = torch.linspace(-2, 2, 48, dtype=torch.float64)[:, None]
    lags = {}
    for norm in ("none", "batch"):
        net = MLP([1] + [40] * 16 + [1], norm=norm, activation="relu", init="he", seed=0).double()
        net.blocks[0].layer.bias.data = randn(40)  # without a bias there is one kink only, at zero
        function, x = model_map(net, line, training=True)
        lags[norm] = autocorrelation(sample_jacobians(function, x, coupled=True), 1)[1]
    assert lags["batch"] < 0.5 < lags["none"]


def test_bad_arguments_are_refused():
    with pytest.raises(NormlibError, match="three positive"):
        growth_factor([1.0, 2.0])
    with pytest.raises(NormlibError, match="three positive"):
        growth_factor([1.0, math.nan, 2.0])
    with pytest.raises(NormlibError, match="max_lag=5 for 5"):
        autocorrelation(torch.ones(5), 5)
