import copy

import numpy as np
import pytest
import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.networks import MLP
from normlib.probes import hessian, hessian_operator, model_loss
from normlib.probes.density import (
    SpectralDensity,
    extreme_eigenvalues,
    gauss_newton,
    gauss_newton_operator,
    lanczos,
    model_outputs,
    spectral_density,
)
from normlib.probes.parameters import random_unit

G = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=G, dtype=torch.float64)


X = randn(30, 4) + 1
Y = torch.arange(30) % 3
CROSS_ENTROPY = nn.functional.cross_entropy


def curvature(norm="batch"):
    net = MLP([4, 6, 3], norm=norm, seed=1).double()
    loss, params = model_loss(net, CROSS_ENTROPY, X, Y, training=True)
    return loss, params, hessian(loss, params)


def test_lanczos_matrix_is_the_matrix_in_an_orthonormal_basis():
    matrix = randn(30, 30)
    matrix = matrix + matrix.T
    diagonal, beside = lanczos(lambda v: matrix @ v, random_unit(matrix[0], 0), 30)
    small = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    assert np.linalg.eigvalsh(small) == pytest.approx(np.linalg.eigvalsh(matrix.numpy()), abs=1e-11)


def test_orthogonality_is_kept_so_that_a_found_eigenvalue_does_not_return():
    spectrum = torch.cat([torch.linspace(0, 1, 199, dtype=torch.float64), torch.tensor([100.0], dtype=torch.float64)])
    density = spectral_density(lambda v: spectrum * v, spectrum, probes=3, steps=150)
    assert ((density.nodes > 50).sum(1) == 1).all()
    assert density.nodes.max(1) == pytest.approx([100] * 3, rel=1e-12)
    start = random_unit(spectrum, 0)
    assert density.weights[0, -1] == pytest.approx(float(start[-1] ** 2), rel=1e-9)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_moments_of_each_probe_are_exact(norm):
    loss, params, dense = curvature(norm)
    density = spectral_density(hessian_operator(loss, params), params, probes=3, steps=6, seed=5)
    for probe in range(3):
        v = random_unit(dense[0], 5 + probe)
        power = v
        for k in range(12):
            exact = float(v @ power)
            found = float((density.weights[probe] * density.nodes[probe] ** k).sum())
            assert found == pytest.approx(exact, rel=1e-9, abs=1e-12), k
            power = dense @ power


def test_moments_agree_with_the_spectrum_within_their_standard_errors():
    dense = curvature()[-1]
    density = spectral_density(lambda v: dense @ v, dense[0], probes=200, steps=8)
    values = np.linalg.eigvalsh(dense.numpy())
    for k in range(1, 5):
        mean, error = density.moment(k)
        assert abs(mean - (values**k).mean()) < 3.5 * error
        assert error < 0.3 * (np.abs(values) ** k).mean()
    assert density.moment(0) == pytest.approx((1, 0), abs=1e-12)


def test_quantiles_are_those_of_the_dense_hessian():
    dense = curvature()[-1]
    values = np.linalg.eigvalsh(dense.numpy())
    density = spectral_density(lambda v: dense @ v, dense[0], probes=25, steps=len(values))
    shares = np.array([0.05, 0.2, 0.8, 0.95])
    expected = np.quantile(values, shares)
    assert density.quantile(shares) == pytest.approx(expected, abs=0.02 * np.ptp(values))
    assert density.nodes.min() == pytest.approx(values[0], rel=1e-6)
    assert density.nodes.max() == pytest.approx(values[-1], rel=1e-6)


def test_diagonal_quadratic_of_few_eigenvalues_ends_early_with_their_shares():
    spectrum = torch.tensor([-1.0] * 300 + [0.0] * 600 + [4.0] * 100, dtype=torch.float64)
    product = hessian_operator(lambda w: 0.5 * (spectrum * w**2).sum(), torch.zeros(1000, dtype=torch.float64))
    density = spectral_density(product, spectrum, probes=60, steps=20)
    carried = density.weights > 1e-12
    assert (carried.sum(1) == 3).all()
    assert density.nodes[carried].reshape(60, 3) == pytest.approx(np.tile([-1.0, 0, 4], (60, 1)), abs=1e-9)
    assert density.weights[carried].reshape(60, 3).mean(0) == pytest.approx([0.3, 0.6, 0.1], abs=0.01)
    assert density.quantile(np.array([0.1, 0.29, 0.31, 0.89, 0.92])) == pytest.approx([-1, -1, 0, 0, 4], abs=1e-9)


def test_density_is_a_sum_of_gaussians_that_integrates_to_one():
    density = SpectralDensity(np.array([[0.0, 2.0], [0.0, 4.0]]), np.array([[0.5, 0.5], [1.0, 0.0]]))
    grid = np.linspace(-3, 6, 4001)
    values = density.density(grid, 0.1)
    assert float(np.sum(values) * (grid[1] - grid[0])) == pytest.approx(1, rel=1e-6)
    peak = 1 / (0.1 * np.sqrt(2 * np.pi))
    assert density.density(np.array([0.0, 2.0, 4.0]), 0.1) == pytest.approx([0.75 * peak, 0.25 * peak, 0], abs=1e-12)
    assert density.density(np.array([0.0])) == pytest.approx([0.75 / (0.02 * np.sqrt(2 * np.pi))])
    uniform = torch.linspace(0, 1, 2000, dtype=torch.float64)
    flat = spectral_density(lambda v: uniform * v, uniform, probes=10, steps=60).density(np.linspace(0.2, 0.8, 7), 0.05)
    assert flat == pytest.approx(np.ones(7), abs=0.1)


def test_extremes_are_the_ends_of_the_dense_spectrum():
    loss, params, dense = curvature()
    values = np.linalg.eigvalsh(dense.numpy())
    above, below = extreme_eigenvalues(loss, params, largest=3, smallest=2, tolerance=1e-9)
    assert above == pytest.approx(values[::-1][:3], rel=1e-6)
    assert below == pytest.approx(values[:2], rel=1e-6)
    assert below[0] < 0 < above[-1]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_gauss_newton_is_the_sum_of_outer_products_by_autograd(norm, training):
    net = MLP([4, 5, 3], norm=norm, seed=1).double()
    net(3 * X)
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    outputs, params = model_outputs(net, X, training=training)
    loss = lambda output: CROSS_ENTROPY(output, Y)  # noqa: E731
    dense, product = gauss_newton(outputs, loss, params), gauss_newton_operator(outputs, loss, params)
    vector = randn(len(dense))
    slow = torch.zeros_like(dense)
    logits = copy.deepcopy(net).train(training)
    values = logits(X)
    slopes = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(v, list(logits.parameters()), retain_graph=True)])
            for v in values.flatten()
        ]
    ).view(30, 3, -1)
    for p, jacobian in zip(values.softmax(1).detach(), slopes, strict=True):
        slow += jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian / 30
    assert torch.allclose(dense, slow, rtol=0, atol=1e-11)
    assert torch.allclose(product(vector), slow @ vector, rtol=0, atol=1e-10)
    assert float(torch.linalg.eigvalsh(dense)[0]) > -1e-12
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_gauss_newton_of_a_linear_softmax_is_its_hessian_and_its_fisher_information():
    weight = randn(3, 4)
    loss = lambda output: CROSS_ENTROPY(output, Y)  # noqa: E731
    outputs = lambda w: X @ w.T  # noqa: E731
    dense = gauss_newton(outputs, loss, weight)
    assert torch.allclose(dense, hessian(lambda w: loss(outputs(w)), weight), rtol=0, atol=1e-12)
    probabilities = outputs(weight).softmax(1)
    fisher = torch.zeros_like(dense)
    for x, p in zip(X, probabilities, strict=True):
        for label in range(3):  # the mean over labels that the model draws, of the score's outer product
            score = torch.outer(torch.eye(3, dtype=torch.float64)[label] - p, x).flatten()
            fisher += p[label] * torch.outer(score, score) / 30
    assert torch.allclose(dense, fisher, rtol=0, atol=1e-12)


def test_density_of_a_gauss_newton_operator_has_no_negative_part():
    net = MLP([4, 6, 3], norm="batch", seed=1).double()
    outputs, params = model_outputs(net, X, training=True)
    product = gauss_newton_operator(outputs, lambda output: CROSS_ENTROPY(output, Y), params)
    density = spectral_density(product, params, probes=3, steps=20)
    assert density.nodes.min() > -1e-10
    dense = gauss_newton(outputs, lambda output: CROSS_ENTROPY(output, Y), params)
    assert density.nodes.max() == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-8)


def test_float32_and_repeated_seeds():
    spectrum = torch.linspace(-1, 3, 500)
    first, again, other = (spectral_density(lambda v: spectrum * v, spectrum, probes=2, steps=40, seed=s) for s in (0, 0, 2))
    assert (first.nodes == again.nodes).all()
    assert (first.nodes != other.nodes).any()
    mean, error = first.moment(1)
    assert abs(mean - 1) < 0.2
    assert error > 0
    assert -1 - 1e-5 < first.nodes.min() < first.nodes.max() < 3 + 1e-5


def test_bad_arguments_and_matrices_are_refused():
    ones = torch.ones(5, dtype=torch.float64)
    with pytest.raises(NormlibError, match="steps=0"):
        spectral_density(lambda v: v, ones, steps=0)
    with pytest.raises(NormlibError, match="not finite"):
        spectral_density(lambda v: v * float("nan"), ones)
    single = spectral_density(lambda v: 2 * v, ones, probes=1)
    assert single.nodes.shape == (1, 5)
    assert np.isnan(single.moment(1)[1])
    with pytest.raises(NormlibError, match="got a width of 0"):
        single.density(np.zeros(3))
    with pytest.raises(NormlibError, match="there are 5 parameters"):
        extreme_eigenvalues(lambda w: w.square().sum(), ones, largest=6)
