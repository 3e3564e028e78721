import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from normlib.errors import NormlibError
from normlib.training import OPTIMIZERS, make_optimizer, weights_and_others
from normlib.training.optimizers import set_rate

G = torch.Generator().manual_seed(0)
X = torch.randn(6, 3, generator=G, dtype=torch.float64)
RATE, DECAY = 0.05, 0.3


def gradient(w):
    return torch.autograd.functional.jacobian(lambda w: (X @ w).tanh().square().sum(), w)


def sgd(w, steps, momentum=0.0, nesterov=False):
    velocity = torch.zeros_like(w)
    for _ in range(steps):
        g = gradient(w) + DECAY * w
        velocity = momentum * velocity + g
        w = w - RATE * (g + momentum * velocity if nesterov else velocity)
    return w


def adam(w, steps, beta1=0.9, beta2=0.999, decoupled=False):
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(1, steps + 1):
        g = gradient(w) + (0 if decoupled else DECAY * w)
        first, second = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g**2
        w = w - (RATE * DECAY * w if decoupled else 0)
        w = w - RATE * (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + 1e-8)
    return w


DEFINITIONS = {
    "sgd": lambda w, steps: sgd(w, steps),
    "sgd:momentum=0.8": lambda w, steps: sgd(w, steps, 0.8),
    "sgd:momentum=0.8,nesterov=True": lambda w, steps: sgd(w, steps, 0.8, True),
    "adam:beta1=0.7": lambda w, steps: adam(w, steps, beta1=0.7),
    "adamw:beta2=0.9": lambda w, steps: adam(w, steps, beta2=0.9, decoupled=True),
}


@pytest.mark.parametrize("spec", DEFINITIONS)
def test_optimizer_follows_its_definition(spec):
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    start = model.weight.detach().clone().T
    optimizer = make_optimizer(spec, model, RATE, weight_decay=DECAY)
    for _ in range(5):
        optimizer.zero_grad()
        model(X).tanh().square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(model.weight.detach().T, DEFINITIONS[spec](start, 5), rtol=1e-9, atol=1e-12)


def test_every_optimizer_has_a_definition_here():
    assert {spec.partition(":")[0] for spec in DEFINITIONS} == set(OPTIMIZERS)


def test_momentum_stands_in_the_call_or_in_the_spec():
    model = nn.Linear(3, 2)
    for found in (make_optimizer("sgd:nesterov=True", model, 0.1, momentum=0.9), make_optimizer("sgd:momentum=0.9", model, 0.1)):
        assert found.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("held", [False, True], ids=["number", "tensor"])
def test_the_rate_of_each_step_can_be_set_as_a_number_or_in_place(held):
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    optimizer = make_optimizer("sgd", model, torch.tensor(9.0) if held else 9.0, momentum=0.5, decay="weights")
    rate, expected, velocity = optimizer.param_groups[0]["lr"], model.weight.detach().clone(), 0
    for step in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        set_rate(optimizer, 0.1 / (1 + step))
        optimizer.step()
        velocity = 0.5 * velocity + 1
        expected -= 0.1 / (1 + step) * velocity
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-6, atol=1e-7)
    assert (optimizer.param_groups[0]["lr"] is rate) == held


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.maps = nn.LayerNorm([4, 2, 2])
        self.normed = parametrizations.weight_norm(nn.Linear(4, 5))
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(5, 2)


def test_weights_are_told_from_biases_gains_and_norms():
    net = Net()
    names = {parameter: name for name, parameter in net.named_parameters()}
    weights, others = weights_and_others(net)
    assert [names[p] for p in weights] == ["conv.weight", "normed.parametrizations.weight.original1", "head.weight"]
    assert {*weights, *others} == set(net.parameters())
    assert len(weights) + len(others) == len(list(net.parameters()))


def test_decay_of_weights_alone_leaves_the_others_where_they_are():
    net = Net()
    before = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer("sgd", net, 0.5, weight_decay=0.1, decay="weights").step()
    weights = {name for name, _ in net.named_parameters() if name in ("conv.weight", "head.weight") or name.endswith("original1")}
    for (name, now), was in zip(net.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, was) if name not in weights else torch.allclose(now, 0.95 * was)


@pytest.mark.parametrize(
    ("spec", "more", "message"),
    [
        ("sdg", {}, "'sgd'"),
        ("adam", {"momentum": 0.9}, "no argument of optimizer 'adam' named 'momentum'"),
        ("sgd:momentum=0.9", {"momentum": 0.9}, "Leave one out"),
        ("sgd:nesterov=True", {}, "needs a momentum"),
        ("sgd", {"decay": "weight"}, "'weights'"),
    ],
)
def test_what_is_no_optimizer_is_refused(spec, more, message):
    with pytest.raises(NormlibError, match=message):
        make_optimizer(spec, nn.Linear(2, 2), 0.1, **more)
