import copy

import numpy as np
import pytest
import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.layers import reference
from normlib.networks import MLP
from normlib.probes import (
    hessian,
    hessian_operator,
    hessian_vector_product,
    model_loss,
    second_moment,
    top_eigenvalue,
    top_eigenvalues,
)
from normlib.training import squared_error

G = torch.Generator().manual_seed(0)
X = torch.randn(30, 4, generator=G, dtype=torch.float64) + 1
Y = torch.arange(30) % 3
SYMMETRIC = torch.randn(60, 60, generator=G, dtype=torch.float64)
SYMMETRIC = SYMMETRIC + SYMMETRIC.T


def quadratic(w):
    return 0.5 * w @ SYMMETRIC @ w + w.sum()


def network(norm="none"):
    return MLP([4, 6, 3], norm=norm, seed=1).double()


def slow_hessian(net):
    """The Hessian row by row, by autograd twice, with the model in the mode that it is in."""
    params = list(net.parameters())
    loss = nn.functional.cross_entropy(net(X), Y)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, create_graph=True)])
    rows = [torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True) for entry in gradient]
    return torch.stack([torch.cat([r.flatten() for r in row]) for row in rows])


@pytest.mark.parametrize("bias", [False, True])
def test_linear_regression_has_the_second_moment_of_its_inputs(bias):
    net = MLP([4, 1], bias=bias).double()
    loss, params = model_loss(net, squared_error, X, torch.zeros(30, dtype=torch.float64), training=True)
    assert torch.allclose(hessian(loss, params), second_moment(X, bias=bias), rtol=0, atol=1e-13)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("formula", [True, False])
def test_dense_hessian_and_products_agree_with_autograd(norm, training, formula):
    net = network(norm)
    net(3 * X)  # running statistics that differ from those of X
    with reference(formula):
        loss, params = model_loss(net, nn.functional.cross_entropy, X, Y, training=training)
        dense = hessian(loss, params)
        vector = torch.randn(len(dense), generator=G, dtype=torch.float64)
        product = hessian_vector_product(loss, params, vector)
        top = top_eigenvalue(loss, params, tolerance=1e-10)
        state = copy.deepcopy(net.state_dict())
        slow = slow_hessian(net.train(training))
    assert torch.allclose(dense, slow, rtol=1e-9, atol=1e-10)
    assert torch.allclose(product, slow @ vector, rtol=1e-9, atol=1e-10)
    assert top == pytest.approx(float(torch.linalg.eigvalsh(slow)[-1]), rel=1e-8)
    assert training or all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_model_is_left_as_it_is():
    net = network("batch")
    net.blocks[0].norm.eval()
    nn.functional.cross_entropy(net(X), Y).backward()
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    gradient = net.head.weight.grad.clone()
    loss, params = model_loss(net, nn.functional.cross_entropy, X, Y, training=True)
    top_eigenvalue(loss, params)
    assert [m.training for m in net.modules()] == modes
    assert net.blocks[0].norm.track_running_stats
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert torch.equal(net.head.weight.grad, gradient)


def test_the_mode_is_part_of_the_loss():
    net = network("batch")
    values = []
    for training in (True, False):
        loss, params = model_loss(net, nn.functional.cross_entropy, X, Y, training=training)
        values.append(float(loss(params)))
    assert abs(values[0] - values[1]) > 1e-3


def test_frozen_parameters_are_left_out():
    net = network()
    net.blocks.requires_grad_(False)
    loss, params = model_loss(net, nn.functional.cross_entropy, X, Y, training=True)
    assert list(params) == ["head.weight", "head.bias"]
    assert hessian(loss, params).shape == (21, 21)


def test_quadratic_is_recovered_at_any_point():
    point = torch.randn(60, generator=G, dtype=torch.float64)
    assert torch.allclose(hessian(quadratic, point), SYMMETRIC, rtol=0, atol=1e-12)
    product = hessian_operator(quadratic, point)
    assert torch.allclose(product(point), SYMMETRIC @ point, rtol=0, atol=1e-12)
    assert torch.allclose(product(2 * point), 2 * SYMMETRIC @ point, rtol=0, atol=1e-12)


def test_lanczos_takes_the_algebraically_largest():
    values = np.linalg.eigvalsh(SYMMETRIC.numpy())
    start = torch.zeros(60, dtype=torch.float64)
    assert top_eigenvalues(quadratic, start, 4, tolerance=1e-10) == pytest.approx(values[::-1][:4], rel=1e-8)
    assert top_eigenvalues(quadratic, start, 60) == pytest.approx(values[::-1], rel=1e-8)
    negative = lambda w: -(w**2 * torch.arange(1, 61)).sum() / 2  # noqa: E731
    assert top_eigenvalue(negative, start, tolerance=1e-8) == pytest.approx(-1, rel=1e-5)


def test_power_iteration_takes_the_largest_in_magnitude_with_its_sign():
    diagonal = torch.linspace(-9, 5, 60, dtype=torch.float64)
    found = top_eigenvalue(lambda w: 0.5 * (diagonal * w**2).sum(), diagonal, method="power", tolerance=1e-6)
    assert found == pytest.approx(-9, rel=1e-5)


def test_parameters_of_any_shape_and_float32():
    x = X.float()
    found = top_eigenvalue(lambda w: 0.5 * (x @ w.T).square().sum() / 30, torch.zeros(20, 4))
    assert found == pytest.approx(float(torch.linalg.eigvalsh(second_moment(X))[-1]), rel=1e-4)


def test_failures_say_what_to_do():
    start = torch.zeros(60, dtype=torch.float64)
    with pytest.raises(NormlibError, match="lanczos, power"):
        top_eigenvalue(quadratic, start, method="qr")
    with pytest.raises(NormlibError, match="has not converged"):
        top_eigenvalue(quadratic, start, method="power", max_products=3, tolerance=1e-12)
    with pytest.raises(NormlibError, match="Raise max_restarts"):
        top_eigenvalues(quadratic, start, 5, max_restarts=1, tolerance=1e-14)
    with pytest.raises(NormlibError, match="not finite"):
        top_eigenvalue(lambda w: (w**3).sum(), start * float("nan"))
    with pytest.raises(NormlibError, match="60 parameters"):
        top_eigenvalues(quadratic, start, 61)
