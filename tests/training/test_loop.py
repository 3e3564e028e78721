import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.networks import MLP
from normlib.training import data_order, squared_error, train

G = torch.Generator().manual_seed(0)
X = torch.randn(20, 3, generator=G, dtype=torch.float64)
D = torch.randn(20, 1, generator=G, dtype=torch.float64)
H = X.T @ X / 20
LIMIT = 2 / float(torch.linalg.eigvalsh(H)[-1])


def linear():
    return MLP([3, 1], bias=False).double()


def test_full_batch_descent_follows_the_closed_form():
    net, rate = linear(), 0.3 * LIMIT
    w = net.head.weight.detach().clone().T
    best = torch.linalg.lstsq(X, D).solution
    history = train(net, X, D, steps=25, batch_size=None, rate=rate, loss="squared_error", seed=0)
    power = torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) - rate * H, 25)
    assert torch.allclose(net.head.weight.T, best + power @ (w - best), rtol=0, atol=1e-12)
    assert history.loss[0] == pytest.approx(float(squared_error(X @ w, D)), rel=1e-12)
    assert history.loss.shape == (25,)


@pytest.mark.parametrize(("factor", "diverges"), [(0.98, False), (1.02, True)])
def test_descent_diverges_just_above_twice_the_inverse_of_the_largest_eigenvalue(factor, diverges):
    history = train(linear(), X, D, steps=2000, batch_size=None, rate=factor * LIMIT, loss="squared_error", seed=0, loss_limit=1e6)
    assert (history.diverged_at is not None) == diverges
    assert np.isfinite(history.loss).all()


@pytest.mark.parametrize("check_every", [1, 7, 1000])
def test_divergence_is_dated_to_the_step_whatever_the_checks(check_every):
    args = {"steps": 5000, "batch_size": None, "rate": 3 * LIMIT, "loss": "squared_error", "seed": 0}
    history = train(linear(), X, D, **args, check_every=check_every)
    assert history.diverged_at == len(history.loss)
    net, step = linear(), 0
    optimizer = torch.optim.SGD(net.parameters(), 3 * LIMIT)
    while math.isfinite((loss := squared_error(net(X), D)).item()):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    assert history.diverged_at == step


def test_minibatch_loop_is_the_textbook_loop():
    net = MLP([3, 5, 4], norm="batch", seed=2).double()
    twin, y = copy.deepcopy(net), torch.arange(20) % 4
    schedule = lambda step: 0.1 / (1 + step)  # noqa: E731
    history = train(net, X, y, steps=9, batch_size=6, rate=schedule, momentum=0.9, weight_decay=0.01, seed=4)
    velocity, losses = [torch.zeros_like(p) for p in twin.parameters()], []
    for step, batch in zip(range(9), data_order(20, 6, seed=4), strict=False):
        loss = nn.functional.cross_entropy(twin(X[batch]), y[batch])
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        losses.append(loss.item())
        with torch.no_grad():
            for p, v, g in zip(twin.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(schedule(step) * v)
    assert history.loss == pytest.approx(losses, rel=1e-12)
    for ours, theirs in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-12, atol=1e-14)


def test_each_epoch_takes_each_item_at_most_once_in_a_new_order():
    batches = [batch.tolist() for batch in itertools.islice(data_order(20, 6, seed=1), 9)]
    epochs = [list(itertools.chain(*batches[i : i + 3])) for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 18 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = [batch.tolist() for batch in itertools.islice(data_order(20, 6, seed=1), 9)]
    assert again == batches
    assert next(data_order(20, 6, seed=2)).tolist() != batches[0]


def test_same_seed_same_run_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    runs = [train(linear(), X, D, steps=30, batch_size=3, rate=0.1, loss=squared_error, seed=s) for s in (5, 5, 6)]
    assert (runs[0].loss == runs[1].loss).all()
    assert (runs[0].loss != runs[2].loss).any()
    assert torch.equal(torch.get_rng_state(), state)


def test_probe_sees_the_model_before_the_update_and_changes_nothing():
    args = {"steps": 6, "batch_size": 4, "rate": 0.1, "loss": "squared_error", "seed": 0}
    bare, probed = linear(), linear()
    start = bare.head.weight.detach().clone()
    plain = train(bare, X, D, **args)
    seen = {}

    def probe(step, model):
        assert model.training
        seen[step] = model.head.weight.detach().clone()
        return {"size": model.head.weight.norm(), "part": ["a", "b"]}

    history = train(probed.eval(), X, D, **args, probe=probe, probe_steps=[6, 0, 3])
    assert not probed.training
    assert (history.loss == plain.loss).all()
    assert torch.equal(seen[0], start)
    assert torch.equal(seen[6], bare.head.weight)
    assert history.probes["step"] == [0, 0, 3, 3, 6, 6]
    assert history.probes["part"] == ["a", "b"] * 3
    assert history.probes["size"][0] == float(start.norm())


def test_no_probe_after_divergence():
    steps = range(0, 1001, 50)
    args = {"batch_size": None, "rate": 30 * LIMIT, "loss": "squared_error", "seed": 0}
    history = train(linear(), X, D, steps=1000, **args, probe=lambda step, model: {"one": 1}, probe_steps=steps)
    assert history.diverged_at is not None
    assert history.probes["step"] == [step for step in steps if step <= history.diverged_at]


def test_what_does_not_fit_is_refused():
    args = {"steps": 1, "rate": 0.1, "seed": 0}
    with pytest.raises(NormlibError, match="as many targets"):
        train(linear(), X, D[:5], batch_size=2, **args)
    with pytest.raises(NormlibError, match="1 to 20"):
        train(linear(), X, D, batch_size=21, **args)
    with pytest.raises(NormlibError, match="steps 0 to 1"):
        train(linear(), X, D, batch_size=2, probe_steps=[2], **args)
    with pytest.raises(UnknownNameError, match="squared_error"):
        train(linear(), X, D, batch_size=2, loss="square_error", **args)
