import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import BatchNorm, BatchRenorm
from normlib.probes.shift import internal_covariate_shift
from normlib.training import squared_error

G = torch.Generator().manual_seed(0)
X = torch.randn(24, 4, generator=G, dtype=torch.float64)
Y = torch.randn(24, 2, generator=G, dtype=torch.float64)


def linear(*sizes):
    return nn.Sequential(*[nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in itertools.pairwise(sizes)])


def slow(net, rate, layers, loss_fn=squared_error, training=True):
    """By definition, one copy of the model per layer: `layers` are modules in forward order, with all of their parameters."""

    def gradients(model):
        torch.manual_seed(5)
        params = [p for name in layers for p in model.get_submodule(name).parameters()]
        found = iter(torch.autograd.grad(loss_fn(model(X), Y), params))
        return [[next(found) for _ in model.get_submodule(name).parameters()] for name in layers]

    start = copy.deepcopy(net).train(training)
    before = gradients(copy.deepcopy(start))
    shifts, cosines = [], []
    for i in range(len(layers)):
        stepped = copy.deepcopy(start)
        with torch.no_grad():
            for lower, steps in zip(layers[:i], before[:i], strict=True):
                for p, g in zip(stepped.get_submodule(lower).parameters(), steps, strict=True):
                    p -= rate * g
        after = gradients(stepped)[i]
        g, h = (torch.cat([part.flatten() for part in parts]) for parts in (before[i], after))
        shifts.append(float((g - h).norm()))
        cosines.append(float(nn.functional.cosine_similarity(g, h, dim=0)))
    return shifts, cosines


def test_two_linear_layers_by_hand():
    net, rate = linear(4, 3, 2), 0.3
    W1, W2 = (layer.weight.detach() for layer in net)
    error = (X @ W1.T @ W2.T - Y) / 24
    G1, G2 = W2.T @ error.T @ X, error.T @ (X @ W1.T)
    hidden = X @ (W1 - rate * G1).T
    after = ((hidden @ W2.T - Y) / 24).T @ hidden
    found = internal_covariate_shift(net, squared_error, X, Y, rate, training=True)
    assert found["layer"] == ["0", "1"]
    assert found["gradient_norm"] == pytest.approx([float(G1.norm()), float(G2.norm())], rel=1e-10)
    assert found["shift"] == pytest.approx([0, float((G2 - after).norm())], rel=1e-10)
    assert found["relative_shift"][1] == pytest.approx(float((G2 - after).norm() / G2.norm()), rel=1e-10)
    assert found["cosine"] == pytest.approx([1, float((G2 * after).sum() / G2.norm() / after.norm())], rel=1e-10)


def test_scalars_by_hand_turn_the_gradient_round():
    net = linear(1, 1, 1)
    for layer in net:
        nn.init.ones_(layer.weight)
    one = torch.ones(1, 1, dtype=torch.float64)
    # L = (w2 w1 - d)^2 / 2 at w = 1: both gradients are 1 - d; after the step w1 = 1 - r (1 - d), and G2 = w1 (w1 - d)
    d, r = 3.0, 2.0
    w1 = 1 - r * (1 - d)
    found = internal_covariate_shift(net, squared_error, one, d * one, r, training=True)
    assert found["shift"] == pytest.approx([0, abs((1 - d) - w1 * (w1 - d))])
    assert found["cosine"] == pytest.approx([1, -1])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [BatchNorm, BatchRenorm, nn.LayerNorm])
def test_a_normalized_net_agrees_with_copies_of_it(norm, training):
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(a, b), norm(b), nn.Tanh()) for a, b in ((4, 5), (5, 6))]
    net = nn.Sequential(*units, nn.Dropout(0.3), nn.Linear(6, 2)).double()
    net(X + 1)  # running statistics that differ from those of X
    layers = ["0.0", "0.1", "1.0", "1.1", "3"]
    torch.manual_seed(5)
    found = internal_covariate_shift(net, squared_error, X, Y, 0.5, layers, training=training)
    shifts, cosines = slow(net, 0.5, layers, training=training)
    assert found["layer"] == layers
    assert found["shift"] == pytest.approx(shifts, rel=1e-9, abs=1e-14)
    assert found["cosine"] == pytest.approx(cosines, rel=1e-9)
    assert min(shifts[1:]) > 1e-4


def test_layers_that_are_not_measured_take_the_step_too_and_come_in_the_order_of_the_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(5, 2), nn.BatchNorm1d(5), nn.Linear(4, 5)

        def forward(self, x):
            return self.last(self.middle(self.first(x)).tanh())

    net = Backwards().double()
    shifts, cosines = slow(net, 0.5, ["first", "middle", "last"])
    every = internal_covariate_shift(net, squared_error, X, Y, 0.5, training=True)
    assert every["layer"] == ["first", "last"]
    assert every["shift"] == pytest.approx([shifts[0], shifts[2]], rel=1e-9, abs=1e-14)
    one = internal_covariate_shift(net, squared_error, X, Y, 0.5, ["last"], training=True)
    assert one["cosine"] == pytest.approx([cosines[2]], rel=1e-9)
    by_type = internal_covariate_shift(net, squared_error, X, Y, 0.5, nn.BatchNorm1d, training=True)
    assert by_type["layer"] == ["middle"] and by_type["shift"] == pytest.approx([shifts[1]], rel=1e-9)


def test_any_update_can_be_the_step():
    net, rate = linear(4, 5, 3, 2), 0.2
    plain = internal_covariate_shift(net, squared_error, X, Y, rate, training=True)
    trained = copy.deepcopy(net)
    optimizer = torch.optim.SGD(trained.parameters(), lr=rate)
    squared_error(trained(X), Y).backward()
    optimizer.step()
    given = internal_covariate_shift(net, squared_error, X, Y, dict(trained.named_parameters()), training=True)
    assert all(given[key] == pytest.approx(plain[key], rel=1e-10) for key in plain if key != "layer")
    part = internal_covariate_shift(net, squared_error, X, Y, {"1.weight": trained[1].weight}, training=True)
    assert part["shift"][:2] == [0, 0] and 0 < part["shift"][2] != pytest.approx(plain["shift"][2])
    none = internal_covariate_shift(net, squared_error, X, Y, 0.0, training=True)
    assert none["shift"] == [0, 0, 0] and none["cosine"] == pytest.approx([1, 1, 1])


def test_a_block_counts_with_all_of_its_parameters_and_its_own_do_not_step():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(2)], nn.Linear(4, 2)).double()
    shifts, cosines = slow(net, 0.5, ["0", "1", "2"])
    found = internal_covariate_shift(net, squared_error, X, Y, 0.5, ["2", "1", "0"], training=True)
    assert found["layer"] == ["0", "1", "2"]
    assert found["shift"] == pytest.approx(shifts, rel=1e-9, abs=1e-14) and found["cosine"] == pytest.approx(cosines, rel=1e-9)


def test_a_parametrized_weight_is_one_layer_and_its_gradient_that_of_what_is_trained():
    torch.manual_seed(0)
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), parametrizations.weight_norm(nn.Linear(3, 2))
    ).double()
    shifts, _ = slow(net, 0.5, ["0", "2"])
    found = internal_covariate_shift(net, squared_error, X, Y, 0.5, training=True)
    assert found["layer"] == ["0", "2"] and found["shift"] == pytest.approx(shifts, rel=1e-9, abs=1e-14)


class Tokens(nn.Module):
    """Parameters of the model itself, attention with a child that never runs, a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 4, 1))
        self.attend = nn.MultiheadAttention(4, 1, batch_first=True)
        self.recur = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = x[:, :, None] + self.position.expand(-1, -1, 4)
        return self.head(self.recur(self.attend(x, x, x, need_weights=False)[0])[0][:, -1])


def test_attention_recurrence_and_parameters_of_the_model_itself():
    torch.manual_seed(0)
    net = Tokens().double()
    shifts, cosines = slow(net, 0.5, ["attend", "recur", "head"])
    frozen = copy.deepcopy(net)
    frozen.position.requires_grad_(False)
    found = internal_covariate_shift(frozen, squared_error, X, Y, 0.5, training=True)
    assert found["layer"] == ["attend", "recur", "head"]
    assert found["shift"] == pytest.approx(shifts, rel=1e-8, abs=1e-14) and found["cosine"] == pytest.approx(cosines, rel=1e-8)
    assert min(shifts[1:]) > 1e-6
    free = internal_covariate_shift(net, squared_error, X, Y, 0.5, training=True)
    assert free["layer"] == ["model", "attend", "recur", "head"]
    assert free["shift"][0] == 0 and free["shift"][1] > 0  # the position below takes its step


@pytest.mark.parametrize("training", [True, False, None])
def test_the_model_is_left_as_it_is(training):
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 5)), BatchNorm(5), nn.Dropout(), nn.Linear(5, 2)).double()
    squared_error(net(X), Y).backward()
    net[1].eval()
    state, gradients = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()]
    params, modes, random = list(net.parameters()), [m.training for m in net.modules()], torch.get_rng_state()
    internal_covariate_shift(net, squared_error, X, Y, 0.5, training=training)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(p is q and torch.equal(p.grad, g) for p, q, g in zip(net.parameters(), params, gradients, strict=True))
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_no_gradient_no_angle_and_divergence_is_a_number():
    net = linear(4, 3, 2)
    dead = internal_covariate_shift(net, lambda output, target: 0 * output.sum(), X, Y, 1.0, training=True)
    assert dead["shift"] == [0, 0] and all(math.isnan(c) for c in [*dead["cosine"], *dead["relative_shift"]])
    wild = internal_covariate_shift(net, squared_error, X, Y, 1e200, training=True)
    assert not math.isfinite(wild["shift"][1])


def test_the_cost_is_one_pass_a_layer_and_two():
    net, passes = linear(4, 4, 4, 4, 2), []
    net.register_forward_hook(lambda *args: passes.append(1))
    internal_covariate_shift(net, squared_error, X, Y, 0.1, training=True)
    assert len(passes) == 4 + 1  # below the first layer nothing moves


def test_what_does_not_fit_is_refused():
    net = linear(4, 3, 2)
    with pytest.raises(UnknownNameError, match=r"no parameter named '1.weigth'; did you mean '1.weight'"):
        internal_covariate_shift(net, squared_error, X, Y, {"1.weigth": X}, training=True)
    with pytest.raises(NormlibError, match=r"'1.weight' at shape \(24, 4\); expected \(2, 3\)"):
        internal_covariate_shift(net, squared_error, X, Y, {"1.weight": X}, training=True)
    with pytest.raises(UnknownNameError, match="no layer named"):
        internal_covariate_shift(net, squared_error, X, Y, 1.0, ["third"], training=True)
    net[0].requires_grad_(False)
    with pytest.raises(NormlibError, match="'0' has no parameter that requires a gradient"):
        internal_covariate_shift(net, squared_error, X, Y, 1.0, ["0"], training=True)
    net.requires_grad_(False)
    with pytest.raises(NormlibError, match="Was it frozen"):
        internal_covariate_shift(net, squared_error, X, Y, 1.0, training=True)
