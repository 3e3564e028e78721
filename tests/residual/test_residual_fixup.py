"""Fixup: what it does to the weights, and that one step then changes the network as much at any depth."""

from __future__ import annotations

import itertools
import math
from statistics import mean

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from normlib.errors import NormlibError
from normlib.residual import Fixup, Join, fixup_factor, fixup_init, make_residual

DEPTHS = [4, 16, 64]
WIDTH, BATCH, SEEDS = 24, 48, 3


@pytest.mark.parametrize("branches", [1, 4, 54])
def test_factor_of_basic_blocks_and_bottlenecks(branches: int) -> None:
    assert fixup_factor(branches, 2) == pytest.approx(branches**-0.5)
    assert fixup_factor(branches, 3) == pytest.approx(branches**-0.25)
    for layers in range(2, 6):  # what the branches do together is what one does alone
        assert branches * fixup_factor(branches, layers) ** (2 * (layers - 1)) == pytest.approx(1)


class ResidualMLP(nn.Module):
    """Pre-activation blocks of `layers` weight layers, drawn by He's rule; one output."""

    def __init__(self, spec: str, depth: int, layers: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def linear(outputs: int) -> nn.Linear:
            layer = nn.Linear(WIDTH, outputs, bias=False, dtype=torch.float64)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / WIDTH), generator=generator)
            return layer

        scheme = make_residual(spec, [depth], dtype=torch.float64)
        self.branches = nn.ModuleList(
            nn.Sequential(*[part for _ in range(layers) for part in (scheme.shift(), nn.ReLU(), scheme.shift(), linear(WIDTH))])
            for _ in range(depth)
        )
        self.joins = nn.ModuleList(scheme.join(0, block) for block in range(depth))
        self.head = linear(1)
        scheme.initialize(self.branches, self.head)

    def forward(self, x: Tensor) -> Tensor:
        for branch, join in zip(self.branches, self.joins, strict=True):
            x = join(x, branch(x))
        return self.head(x)


def changes(spec: str, depth: int, layers: int, rate: float, steps: int, trained_head: bool) -> list[float]:
    """Return how far each step moves the outputs on a batch: root mean square, then mean over seeds.

    With `trained_head=False` the head is random and fixed, so all that moves the outputs are the branches.
    """
    moved = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(100 + seed)
        x = torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64)
        y, net = x[:, :1] * x[:, 1:2] + x[:, 2:3], ResidualMLP(spec, depth, layers, seed)
        parameters = list(net.parameters()) if trained_head else [*net.branches.parameters(), *net.joins.parameters()]
        if not trained_head:
            nn.init.normal_(net.head.weight, std=WIDTH**-0.5, generator=generator)
        outputs = [net(x).detach()]
        for _ in range(steps):
            gradients = torch.autograd.grad((net(x) - y).square().mean(), parameters)
            with torch.no_grad():
                torch._foreach_sub_(parameters, [rate * gradient for gradient in gradients])
            outputs.append(net(x).detach())
        moved.append([float((new - old).square().mean().sqrt()) for old, new in itertools.pairwise(outputs)])
    return [mean(step) for step in zip(*moved, strict=True)]


@pytest.mark.parametrize("layers", [2, 3])
def test_what_branches_change_in_a_step_does_not_depend_on_the_depth(layers: int) -> None:
    found = [changes("fixup", depth, layers, rate=1e-3, steps=1, trained_head=False)[0] for depth in DEPTHS]
    assert max(found) < 1.5 * min(found)
    assert min(found) > 1e-4  # not because nothing moves


def test_branches_of_one_layer_have_nothing_to_scale() -> None:
    found = [changes("fixup", depth, 1, rate=1e-4, steps=1, trained_head=False)[0] for depth in DEPTHS]
    assert [value / found[0] for value in found] == pytest.approx([depth / DEPTHS[0] for depth in DEPTHS], rel=0.1)


@pytest.mark.parametrize("layers", [2, 3])
def test_each_of_the_first_steps_is_as_large_at_any_depth(layers: int) -> None:
    steps = [changes("fixup", depth, layers, rate=0.01, steps=4, trained_head=True) for depth in DEPTHS]
    for found in zip(*steps, strict=True):
        assert max(found) < 1.5 * min(found)
        assert min(found) > 1e-3


def test_without_fixup_a_step_explodes_with_depth() -> None:
    shallow, deep = (changes("sum", depth, 2, rate=1e-12, steps=1, trained_head=True)[0] for depth in (4, 16))
    assert deep > 1e5 * shallow


def test_init_sets_what_the_rules_say_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    bottlenecks = [nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 1)) for _ in range(16)]
    stem, head = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    net = nn.ModuleList([stem, *bottlenecks, head])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fixup_init(bottlenecks, head)
    for name, value in net.state_dict().items():
        zeroed = name.startswith("17.") or ".3." in name
        scaled = name.endswith("weight") and (".0.weight" in name or ".1.weight" in name) and not name.startswith("17.")
        factor = 0.0 if zeroed else 0.5 if scaled else 1.0
        assert torch.equal(value, factor * before[name]), name
    assert before["1.3.weight"].any()


def test_all_branches_start_shut_and_the_head_too() -> None:
    net = ResidualMLP("fixup", 5, 2, seed=0)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    assert not any(branch(x).any() for branch in net.branches)
    assert not net(x).any()
    assert all(isinstance(join, Join) and join.gain.item() == 1 for join in net.joins)


def test_what_fixup_cannot_set_is_an_error_and_nothing_has_changed() -> None:
    good, head = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 2)
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    before = good[0].weight.clone()
    with pytest.raises(NormlibError, match="computed from other parameters"):
        fixup_init([good, normed], head)
    with pytest.raises(NormlibError, match="no linear layer and no convolution in this ReLU"):
        fixup_init([good, nn.ReLU()], head)
    with pytest.raises(NormlibError, match=r"for 3 branches.*got 1"):
        Fixup([2, 1]).initialize([good], head)
    assert torch.equal(good[0].weight, before)
    for wrong in ((0, 2), (4, 1)):
        with pytest.raises(NormlibError, match="fixup_factor"):
            fixup_factor(*wrong)
