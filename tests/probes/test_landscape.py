import copy
import math

import pytest
import torch
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import BatchNorm
from normlib.probes.curvature import hessian, model_loss
from normlib.probes.landscape import gradient_landscape, landscape_ranges
from normlib.probes.parameters import cosine, flat, loss_and_gradient
from normlib.probes.spectra import second_moment
from normlib.probes.surface import loss_on_plane, random_direction
from normlib.training import squared_error

G = torch.Generator().manual_seed(0)
X = torch.randn(30, 4, generator=G, dtype=torch.float64) + 0.5
Y = torch.randn(30, 1, generator=G, dtype=torch.float64)
LENGTHS = [0.05, 0.1, 0.4]


def regression():
    """A linear regression, its weight, gradient and Hessian: the loss is a parabola along every line."""
    torch.manual_seed(0)
    net = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    w, H = net.weight.detach()[0], second_moment(X)
    return net, w, H @ w - X.T @ Y[:, 0] / 30, H


def deep():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), BatchNorm(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 1)).double()


@pytest.mark.parametrize("unit", ["rate", "distance", "weight_norm"])
def test_on_a_quadratic_loss_all_is_known(unit):
    net, w, g, H = regression()
    found = gradient_landscape(net, squared_error, X, Y, LENGTHS, unit=unit, training=True)
    scale = float({"rate": 1, "distance": 1 / g.norm(), "weight_norm": w.norm() / g.norm()}[unit])
    steps = [length * scale for length in LENGTHS]
    start = float(squared_error(net(X), Y).detach())
    parabola = [start - s * float(g @ g) + s**2 / 2 * float(g @ H @ g) for s in steps]
    smoothness = float((H @ g).norm() / g.norm())
    assert found["length"] == LENGTHS
    assert found["start_loss"] == pytest.approx([start] * 3, rel=1e-12)
    assert found["gradient_norm"] == pytest.approx([float(g.norm())] * 3, rel=1e-10)
    assert found["distance"] == pytest.approx([s * float(g.norm()) for s in steps], rel=1e-10)
    assert found["loss"] == pytest.approx(parabola, rel=1e-10)
    assert found["gradient_change"] == pytest.approx([s * float((H @ g).norm()) for s in steps], rel=1e-9)
    assert found["smoothness"] == pytest.approx([smoothness] * 3, rel=1e-9)
    assert found["cosine"] == pytest.approx([cosine(g, g - s * H @ g) for s in steps], rel=1e-9)
    ranges = landscape_ranges(found)
    assert ranges["loss_min"] == min(found["loss"]) and ranges["loss_max"] == max(found["loss"])
    assert ranges["change_min"] == found["gradient_change"][0] and ranges["change_max"] == found["gradient_change"][2]
    assert ranges["smoothness"] == pytest.approx(smoothness, rel=1e-9)


def test_along_the_top_eigenvector_the_smoothness_is_the_eigenvalue():
    net, _, _, H = regression()
    values, vectors = torch.linalg.eigh(H)
    for value, vector in zip(values, vectors.T, strict=True):
        found = gradient_landscape(net, squared_error, X, Y, [0.1, 3.0], direction={"weight": vector[None]}, training=True)
        assert found["smoothness"] == pytest.approx([float(value)] * 2, rel=1e-9)
        assert found["distance"] == pytest.approx([0.1, 3.0], rel=1e-9)


def test_short_steps_see_the_hessian_of_a_net_with_batch_norm():
    net = deep()
    net[3] = nn.Identity()
    loss, params = model_loss(net, squared_error, X, Y, training=True)
    g = flat(loss_and_gradient(net, squared_error, X, Y, training=True)[1])
    wanted = float((hessian(loss, params) @ g).norm() / g.norm())
    found = gradient_landscape(net, squared_error, X, Y, [1e-5], unit="distance", training=True)
    assert found["smoothness"] == pytest.approx([wanted], rel=1e-4)


@pytest.mark.parametrize("training", [True, False, None])
def test_a_net_agrees_with_copies_that_take_the_step(training):
    net = deep()
    net(X + 1)
    net[1].eval()
    torch.manual_seed(3)
    found = gradient_landscape(net, squared_error, X, Y, LENGTHS, training=training)

    def loss_of(model):
        torch.manual_seed(3)  # the same units dropped at every point
        return squared_error(model(X), Y)

    start = copy.deepcopy(net) if training is None else copy.deepcopy(net).train(training)
    base = copy.deepcopy(start)
    g = torch.autograd.grad(loss_of(base), list(base.parameters()))
    for row, length in enumerate(LENGTHS):
        moved = copy.deepcopy(start)
        with torch.no_grad():
            for p, part in zip(moved.parameters(), g, strict=True):
                p -= length * part
        loss = loss_of(moved)
        h = torch.autograd.grad(loss, list(moved.parameters()))
        change = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(g, h, strict=True)))
        assert found["loss"][row] == pytest.approx(float(loss.detach()), rel=1e-10)
        assert found["gradient_change"][row] == pytest.approx(change, rel=1e-9)


def test_the_mode_is_part_of_the_measurement():
    net = deep()
    losses = [gradient_landscape(net, squared_error, X, Y, [0.1], training=mode)["loss"][0] for mode in (True, False)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_gradient_at_other_parameters_and_only_where_it_is_wanted():
    net = deep()
    other = {"4.weight": torch.ones(1, 6, dtype=torch.float64)}
    loss, gradient = loss_and_gradient(net, squared_error, X, Y, other, ["4.bias"], training=False)
    copied = copy.deepcopy(net).eval()
    copied[4].weight.data.fill_(1)
    wanted = squared_error(copied(X), Y)
    assert list(gradient) == ["4.bias"] and loss == pytest.approx(float(wanted.detach()), rel=1e-12)
    assert torch.allclose(gradient["4.bias"], torch.autograd.grad(wanted, copied[4].bias)[0], rtol=1e-10)


def test_a_plane_through_a_quadratic_loss():
    net, w, g, H = regression()
    b = random_direction(net, 1)["weight"]
    grid = ([-1.0, 0.0, 0.5], [0.0, 2.0])
    found = loss_on_plane(net, squared_error, X, Y, {"weight": -g[None]}, {"weight": b}, grid, training=True)
    assert list(zip(found["alpha"], found["beta"], strict=True)) == [(a, b) for a in grid[0] for b in grid[1]]
    start = float(squared_error(net(X), Y).detach())
    for alpha, beta, loss in zip(*found.values(), strict=True):
        move = -alpha * g + beta * b[0]
        assert loss == pytest.approx(start + float(g @ move + move @ H @ move / 2), rel=1e-10)
    assert torch.equal(net.weight.detach()[0], w)


def test_scale_of_a_weight_before_a_batch_norm_does_not_matter_at_matched_steps():
    def bands(scale):
        net = deep()
        net[3] = nn.Identity()
        net[1].eps = 1e-14
        with torch.no_grad():
            net[0].weight *= scale
            net[0].bias *= scale
        net[1:].requires_grad_(False)
        return (gradient_landscape(net, squared_error, X, Y, LENGTHS, unit=unit, training=True) for unit in ("rate", "weight_norm"))

    (rate, matched), (rate_scaled, matched_scaled) = bands(1), bands(7)
    assert matched_scaled["loss"] == pytest.approx(matched["loss"], rel=1e-8)
    assert rate_scaled["loss"] != pytest.approx(rate["loss"], rel=1e-4)
    assert matched_scaled["smoothness"] == pytest.approx([beta / 49 for beta in matched["smoothness"]], rel=1e-8)


def test_a_random_direction_is_that_of_its_seed_and_filterwise_as_long_as_each_filter():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), BatchNorm(3), nn.Linear(4, 2))
    a, again, other = random_direction(net, 1), random_direction(net, 1), random_direction(net, 2)
    assert float(flat(a).norm()) == pytest.approx(1, rel=1e-6)
    assert all(torch.equal(a[name], again[name]) for name in a)
    assert abs(cosine(flat(a), flat(other))) < 0.5
    filters = random_direction(net, 1, filterwise=True)
    lengths = filters["0.weight"].flatten(1).norm(dim=1)
    assert torch.allclose(lengths, net[0].weight.detach().flatten(1).norm(dim=1), rtol=1e-5)
    assert not any(filters[name].any() for name in ("0.bias", "1.weight", "1.bias", "2.bias"))


def test_divergence_is_a_measurement():
    columns = {"loss": [1.0, math.nan, -1.0], "gradient_change": [1.0, math.nan, 2.0], "smoothness": [3.0, math.nan, 4.0]}
    assert landscape_ranges(columns) == {
        "loss_min": -1.0, "loss_max": math.inf, "change_min": 1.0, "change_max": math.inf, "smoothness": math.inf,
    }  # fmt: skip
    net = regression()[0]
    assert landscape_ranges(gradient_landscape(net, squared_error, X, Y, [1.0, 1e300], training=True))["loss_max"] == math.inf


def test_where_nothing_moves_there_is_no_smoothness():
    net = regression()[0]
    found = gradient_landscape(net, lambda output, target: 0 * output.sum(), X, Y, LENGTHS, unit="distance", training=True)
    assert found["distance"] == [0, 0, 0] and found["gradient_change"] == [0, 0, 0]
    assert all(math.isnan(rate) for rate in [*found["smoothness"], landscape_ranges(found)["smoothness"]])


@pytest.mark.parametrize("training", [True, False, None])
def test_the_model_is_left_as_it_is(training):
    net = deep()
    squared_error(net(X), Y).backward()
    net[1].eval()
    state, gradients = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()]
    params, modes, random = list(net.parameters()), [m.training for m in net.modules()], torch.get_rng_state()
    with torch.no_grad():  # as probes are called
        gradient_landscape(net, squared_error, X, Y, LENGTHS, training=training)
        a, b = random_direction(net, 0), random_direction(net, 1, filterwise=True)
        loss_on_plane(net, squared_error, X, Y, a, b, ([0.0, 1.0], [0.0]), training=training)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(p is q and torch.equal(p.grad, g) for p, q, g in zip(net.parameters(), params, gradients, strict=True))
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_the_cost_is_one_pass_a_length_and_one():
    net, passes = regression()[0], []
    net.register_forward_hook(lambda *args: passes.append(1))
    gradient_landscape(net, squared_error, X, Y, LENGTHS, training=True)
    assert len(passes) == 4


def test_what_does_not_fit_is_refused():
    net = regression()[0]
    for lengths in ([], [0.1, 0.0], [-1.0]):
        with pytest.raises(NormlibError, match="expected positive step lengths"):
            gradient_landscape(net, squared_error, X, Y, lengths, training=True)
    with pytest.raises(UnknownNameError, match="did you mean 'distance'"):
        gradient_landscape(net, squared_error, X, Y, [1.0], unit="distances", training=True)
    with pytest.raises(UnknownNameError, match="no parameter named 'bias'"):
        loss_on_plane(net, squared_error, X, Y, {"bias": Y}, {}, ([0.0], [0.0]), training=True)
    with pytest.raises(NormlibError, match=r"shape \(30, 1\); expected \(1, 4\)"):
        gradient_landscape(net, squared_error, X, Y, [1.0], direction={"weight": Y}, training=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_numbers_are_the_same():
    net = regression()[0]
    here = gradient_landscape(net, squared_error, X, Y, LENGTHS, training=True)
    there = gradient_landscape(net.cuda(), squared_error, X.cuda(), Y.cuda(), LENGTHS, training=True)
    assert there["smoothness"] == pytest.approx(here["smoothness"], rel=1e-8)
