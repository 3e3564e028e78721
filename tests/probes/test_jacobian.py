import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import reference
from normlib.networks import MLP, PlainConvNet
from normlib.probes.jacobian import (
    batch_jacobian,
    mean_squared_singular_value,
    model_map,
    sample_jacobians,
    singular_values,
    top_singular_values,
)

G = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=G, dtype=torch.float64)


X = randn(6, 4) + 1


def linear_net(*weights):
    layers = [nn.Linear(*w.T.shape, bias=False, dtype=torch.float64) for w in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = weight
    return nn.Sequential(*layers)


def slow_jacobian(function, x):
    x = x.clone().requires_grad_()
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0].flatten() for value in function(x).flatten()]
    return torch.stack(rows)


def test_product_of_known_matrices_block_by_block():
    weights = [randn(5, 4), randn(3, 5), randn(2, 3)]
    function, x = model_map(linear_net(*weights), X, training=True)
    product = functools.reduce(lambda done, weight: weight @ done, weights)
    assert torch.equal(x, X)
    assert torch.allclose(batch_jacobian(function, x), torch.block_diag(*[product] * 6), rtol=0, atol=1e-12)
    for coupled in (True, False):
        blocks = sample_jacobians(function, x, coupled=coupled)
        assert torch.allclose(blocks, product.expand(6, 2, 4), rtol=0, atol=1e-12)
    expected = torch.linalg.svdvals(product).repeat_interleave(6)
    assert torch.allclose(singular_values(function, x)[:12], expected, rtol=1e-10)


def test_orthogonal_net_has_ones_and_tanh_at_zero_is_linear():
    rotations = [torch.linalg.qr(randn(4, 4)).Q for _ in range(5)]
    function, x = model_map(linear_net(*rotations), X, training=False)
    assert torch.allclose(singular_values(function, x), torch.ones(24, dtype=torch.float64), rtol=0, atol=1e-12)
    estimate = mean_squared_singular_value(function, x, probes=4)
    assert estimate == pytest.approx((1, 0), abs=1e-12)
    net = nn.Sequential(linear_net(2 * rotations[0]), nn.Tanh(), linear_net(rotations[1]))
    function, _ = model_map(net, X, training=True)
    assert torch.allclose(singular_values(function, torch.zeros(2, 4, dtype=torch.float64)), 2 * torch.ones(8, dtype=torch.float64))
    assert float(singular_values(function, X)[-1]) < 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "batch:ghost=3"])
@pytest.mark.parametrize("formula", [True, False])
def test_jacobians_agree_with_autograd_row_by_row(norm, training, formula):
    net = MLP([4, 5, 3], norm=norm, seed=1).double()
    net(3 * X)
    with reference(formula):
        function, x = model_map(net, X, training=training)
        dense, blocks = batch_jacobian(function, x), sample_jacobians(function, x, coupled=True)
        slow = slow_jacobian(copy.deepcopy(net).train(training), X)
    assert torch.allclose(dense, slow, rtol=0, atol=1e-10)
    assert torch.allclose(blocks, torch.stack([slow.view(6, 3, 6, 4)[i, :, i] for i in range(6)]), rtol=0, atol=1e-10)


def test_without_coupling_is_said_the_samples_are_summed():
    net = MLP([4, 5, 3], norm="batch", seed=1).double()
    function, x = model_map(net, X, training=True)
    dense = batch_jacobian(function, x).view(6, 3, 6, 4)
    assert torch.allclose(sample_jacobians(function, x, coupled=False), dense.sum(0).transpose(0, 1), rtol=0, atol=1e-10)
    assert float(dense[0, :, 1].abs().max()) > 1e-3
    function, x = model_map(net, X, training=False)
    free, coupled = (sample_jacobians(function, x, coupled=value) for value in (False, True))
    assert torch.allclose(free, coupled, rtol=0, atol=1e-12)


def test_batch_norm_of_one_feature_removes_two_directions_of_the_batch():
    x = randn(8, 1)
    function, _ = model_map(nn.BatchNorm1d(1, eps=1e-30).double(), x, training=True)
    values = singular_values(function, x)
    std = float(x.std(correction=0))
    assert values.numpy() == pytest.approx([1 / std] * 6 + [0, 0], abs=1e-12)


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = linear_net(randn(4, 4)), linear_net(randn(4, 4)), nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + x)


def test_from_layer_to_layer():
    net = MLP([4, 5, 3], activation="tanh", seed=1).double()
    function, point = model_map(net, X, "blocks.0.layer", "head", training=True)
    assert torch.allclose(point, net.blocks[0].layer(X))
    expected = net.head.weight * (1 - point.tanh() ** 2)[:, None, :]
    assert torch.allclose(sample_jacobians(function, point, coupled=False), expected, rtol=0, atol=1e-12)
    assert torch.allclose(function(point), net(X))
    skip = Skip()
    function, point = model_map(skip, X, "first", "second", training=True)
    expected = skip.second[0].weight * (skip.first(X) > 0)[:, None, :]
    assert torch.allclose(sample_jacobians(function, point, coupled=True), expected, rtol=0, atol=1e-12)
    around = batch_jacobian(model_map(skip, X, training=True)[0], X)
    assert torch.allclose(around, slow_jacobian(skip, X), rtol=0, atol=1e-12)


def test_products_without_the_matrix():
    function, x = model_map(MLP([40, 30, 20], norm="batch", seed=1).double(), randn(5, 40), training=True)
    exact = singular_values(function, x).numpy()
    assert top_singular_values(function, x, 3, tolerance=1e-10) == pytest.approx(exact[:3], rel=1e-8)
    assert top_singular_values(function, x[:2], 2) == pytest.approx(singular_values(function, x[:2])[:2].numpy(), rel=1e-10)
    estimate = mean_squared_singular_value(function, x, probes=100)
    assert abs(estimate.value - (exact**2).mean()) < 4 * estimate.standard_error
    assert 0 < estimate.standard_error < 0.05 * estimate.value
    assert mean_squared_singular_value(function, x, probes=100) == estimate
    assert mean_squared_singular_value(function, x, probes=100, seed=1) != estimate


def test_standard_error_is_that_of_repetition():
    function, x = model_map(linear_net(randn(9, 9)), randn(1, 9), training=True)
    estimates = [mean_squared_singular_value(function, x, probes=20, seed=seed) for seed in range(60)]
    values, errors = np.array(estimates).T
    assert values.std() == pytest.approx(errors.mean(), rel=0.3)
    assert values.mean() == pytest.approx(float((singular_values(function, x) ** 2).mean()), abs=4 * values.std() / 60**0.5)


def test_float32_and_maps():
    net = PlainConvNet(4, 4, 1, 2, norm="batch", image_size=6)
    x = torch.randn(3, 1, 6, 6, generator=G)
    function, _ = model_map(net, x, training=True)
    assert batch_jacobian(function, x).shape == (3 * 2, 3 * 36)
    assert sample_jacobians(function, x, coupled=False).shape == (3, 2, 36)
    assert top_singular_values(function, x)[0] == pytest.approx(float(singular_values(function, x)[0]), rel=1e-4)


@pytest.mark.parametrize("source", [None, "blocks.0.layer"])
def test_model_is_left_as_it_is(source):
    net = MLP([4, 5, 3], norm="batch", seed=1).double()
    net(X).sum().backward()
    net.blocks[0].norm.eval()
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    gradients = [p.grad.clone() for p in net.parameters()]
    function, point = model_map(net, X, source, training=True)
    top_singular_values(function, point)
    result = mean_squared_singular_value(function, point)
    assert isinstance(result.value, float)
    assert not batch_jacobian(function, point).requires_grad
    assert [m.training for m in net.modules()] == modes
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert not any(m._forward_hooks for m in net.modules())


def test_choices_that_do_not_fit_are_refused():
    net = Skip()
    with pytest.raises(UnknownNameError, match="did you mean 'first'"):
        model_map(net, X, "frist", training=True)
    with pytest.raises(NormlibError, match="does not run"):
        model_map(net, X, "unused", training=True)
    with pytest.raises(NormlibError, match="more than once"):
        model_map(net, X, "relu", training=True)
    with pytest.raises(NormlibError, match="not one tensor"):
        model_map(nn.LSTM(4, 2).double(), X, training=True)[0](X)
    function, _ = model_map(net, X, training=True)
    with pytest.raises(NormlibError, match=r"shape \(24, 24\)"):
        top_singular_values(function, X, 25)
    with pytest.raises(NormlibError, match="not finite"):
        top_singular_values(lambda x: x * float("inf"), X)
    with pytest.raises(NormlibError, match="Raise max_restarts"):
        top_singular_values(torch.tanh, randn(200, 1), 5, max_restarts=1, tolerance=1e-12)
    with pytest.raises(NormlibError, match="two or more"):
        mean_squared_singular_value(function, X, probes=1)
    assert not any(m._forward_hooks for m in net.modules())
