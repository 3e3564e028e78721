import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.layers import NORMS
from normlib.networks import MLP
from normlib.networks.blocks import block
from normlib.training import train
from normlib.training.probing import Step
from normlib.training.together import train_together
from normlib.weights import WEIGHT_NORMS

G = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=G, dtype=torch.float64)
Y = torch.randint(4, (40,), generator=G)
SIGNED = 2 * nn.functional.one_hot(Y, 4).double() - 1
RATES = [0.3, 0.05, 0.1]
SEEDS = [5, 6, 5]
SPECS = {"group": "group:groups=2", "evonorm_s0": "evonorm_s0:groups=2"}
REFUSED = ("noisy", "spectral", "switch")  # random, written by out=, and by .data
ARGS: dict[str, Any] = {"steps": 12, "batch_size": 9, "momentum": 0.9, "weight_decay": 0.01}


def networks(norm: str = "batch", copies: int = 3, activation: str = "tanh", sizes: tuple[int, ...] = (6, 8, 8, 4)) -> list[MLP]:
    return [MLP(sizes, activation, norm, seed=seed).double() for seed in range(copies)]


def assert_same_as_one_by_one(nets: list[Any], x: Any = X, y: Any = Y, rates: Any = RATES, seeds: Any = SEEDS, **args: Any) -> None:
    twins = copy_of(nets)
    histories = train_together(nets, x, y, rates=rates, seeds=seeds, **args)
    for k, (net, twin) in enumerate(zip(nets, twins, strict=True)):
        data = (x, y) if isinstance(x, Tensor) else (x[k], y[k])
        alone = train(twin, *data, rate=rates[k], seed=seeds[k], **args)
        np.testing.assert_allclose(histories[k].loss, alone.loss, rtol=1e-9)
        assert histories[k].diverged_at == alone.diverged_at
        assert histories[k].probes.keys() == alone.probes.keys()
        for name, column in alone.probes.items():
            np.testing.assert_allclose(histories[k].probes[name], column, rtol=1e-9)
        if alone.diverged_at is None:
            assert_same_state(net, twin)


def copy_of(nets: list[Any]) -> list[Any]:
    return [copy.deepcopy(net) for net in nets]


def assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group:groups=2", "rms", "weight", "centered_weight"])
def test_each_copy_ends_where_it_ends_alone(norm: str) -> None:
    nets = networks(norm)
    before = [parameter.detach().clone() for parameter in nets[0].parameters()]
    assert_same_as_one_by_one(nets, **ARGS)
    assert any(not torch.equal(p, q) for p, q in zip(before, nets[0].parameters(), strict=True))


def convolutional(norm: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    first = block(nn.Conv2d(3, 8, 3), norm, "tanh")
    return nn.Sequential(first, nn.Flatten(), nn.Linear(32, 4)).double()


@pytest.mark.parametrize("norm", sorted({*NORMS, *WEIGHT_NORMS}))
def test_every_norm_is_the_same_or_refused(norm: str) -> None:
    maps = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nets = [convolutional(SPECS.get(norm, norm), seed) for seed in range(2)]
    args: dict[str, Any] = {"rates": RATES[:2], "seeds": SEEDS[:2], "steps": 4, "batch_size": 10}
    if norm in REFUSED:
        with pytest.raises(NormlibError, match="one by one"):
            train_together(nets, maps, Y, **args)
    else:
        assert_same_as_one_by_one(nets, maps, **args)


@pytest.mark.parametrize("batch_size", [7, None])
@pytest.mark.parametrize("seeds", [[1, 2, 3], [4, 4, 4]])
@pytest.mark.parametrize("own", [False, True])
def test_shared_data_and_own_data_in_own_and_in_common_order(own: bool, seeds: list[int], batch_size: int | None) -> None:
    x, y = ([X + k for k in range(3)], [(Y + k) % 4 for k in range(3)]) if own else (X, Y)
    assert_same_as_one_by_one(networks(), x, y, seeds=seeds, steps=8, batch_size=batch_size)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy", "cross_entropy:smoothing=0.1"])
def test_losses_and_schedules(loss: str) -> None:
    y = SIGNED if loss == "squared_error" else Y
    assert_same_as_one_by_one(networks("none"), X, y, loss=loss, schedule="cosine:warmup=3", **ARGS)
    falling = [lambda step, top=rate: top / (1 + step) for rate in RATES]
    assert_same_as_one_by_one(networks("none"), X, y, rates=falling, loss=loss, **ARGS)


@pytest.mark.parametrize("check_every", [1, 7, 1000])
def test_a_copy_that_diverges_says_when_and_disturbs_no_other(check_every: int) -> None:
    def probe(step: int, model: nn.Module) -> dict[str, Any]:
        return {"size": model.head.weight.norm()}

    args: dict[str, Any] = {"steps": 120, "batch_size": 9, "loss": "squared_error", "check_every": check_every}
    nets = networks("none", activation="identity")
    assert_same_as_one_by_one(nets, X, SIGNED, rates=[0.01, 50.0, 0.02], probe=probe, probe_steps=range(0, 121, 20), **args)
    assert not nets[1].head.weight.isfinite().all()
    histories = train_together(networks("none", activation="identity"), X, SIGNED, rates=[50.0] * 3, seeds=SEEDS, **args)
    assert all(history.diverged_at == len(history.loss) for history in histories)


def test_the_loss_limit_counts_as_divergence() -> None:
    assert_same_as_one_by_one(networks("none"), rates=[0.1, 3.0, 1e-4], loss_limit=1.6, **ARGS)


def test_probes_see_each_copy_with_its_own_state_batch_and_rate() -> None:
    def probe(step: Step, model: nn.Module) -> dict[str, Any]:
        assert model.training
        assert step.model is model
        slope = step.gradients()["head.weight"]
        with torch.no_grad():
            loss = step.loss(copy.deepcopy(model)(step.x), step.y)
        return {"loss": loss, "mean": model.blocks[0].norm.running_mean[0], "slope": slope.norm(), "rate": step.rate}

    nets = [net.eval() for net in networks()]
    args = {**ARGS, "schedule": "linear"}
    assert_same_as_one_by_one(nets, probe=probe, probe_steps=[0, 5, 12], **args)
    assert not any(net.training for net in nets)
    several = {"one": lambda step, model: {"size": model.head.bias.norm()}}
    history = train_together(networks(), X, Y, rates=RATES, seeds=SEEDS, **ARGS, probe=several, probe_steps=[3])[0]
    assert history.probes["one"]["step"] == [3]


def test_frozen_and_unused_parameters_stay() -> None:
    nets = networks("none")
    for net in nets:
        net.head.weight.requires_grad_(False)
        net.unused = nn.Parameter(torch.ones(2).double())
    before = nets[1].head.weight.clone()
    assert_same_as_one_by_one(nets, **ARGS)
    assert torch.equal(nets[1].head.weight, before)
    assert torch.equal(nets[1].unused, torch.ones(2).double())


def test_gradients_can_be_changed_before_decay_and_momentum() -> None:
    nets, scaled = networks("none"), networks("none")
    halved = lambda gradients: {name: slope / 2 for name, slope in gradients.items()}  # noqa: E731
    train_together(nets, X, Y, rates=RATES, seeds=SEEDS, change_gradients=halved, **ARGS)
    half = lambda output, target: nn.functional.cross_entropy(output, target) / 2  # noqa: E731
    train_together(scaled, X, Y, rates=RATES, seeds=SEEDS, loss=half, **ARGS)
    for ours, theirs in zip(nets, scaled, strict=True):
        assert_same_state(ours, theirs)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    train_together(networks(), X, Y, rates=RATES, seeds=SEEDS, **ARGS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (lambda: MLP([6, 8, 8, 4], "tanh", "layer"), r"blocks.0.norm.*BatchNorm.*LayerNorm"),
        (lambda: MLP([6, 8, 9, 4], "tanh", "batch"), r"blocks.1.layer.*out_features=8.*out_features=9"),
        (lambda: MLP([6, 8, 8, 4], "tanh", "batch:eps=0.1"), r"blocks.0.norm.*eps=1e-05.*eps=0.1"),
        (lambda: MLP([6, 8, 8, 8, 4], "tanh", "batch").double(), r"blocks.2' is missing in model 0"),
        (lambda: MLP([6, 8, 8, 4], "tanh", "batch").requires_grad_(False), r"weight' is learned float64.*frozen float32"),
    ],
)
def test_models_that_differ_are_refused_and_the_message_says_where(other: Any, names: str) -> None:
    with pytest.raises(NormlibError, match=names):
        train_together([*networks(copies=1), other()], X, Y, rates=[0.1, 0.1], seeds=[0, 1], **ARGS)


def test_what_does_not_fit_is_refused() -> None:
    nets, args = networks(copies=2), {"rates": [0.1, 0.1], "seeds": [0, 1], "steps": 1, "batch_size": 5}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no models", {"models": []}),
        ("share parameters", {"models": [nets[0], nets[0]]}),
        ("no parameter", {"models": [net.requires_grad_(False) for net in networks(copies=2)]}),
        ("2 models, 3 rates, 2 seeds", {"rates": RATES}),
        ("1 x, 2 y", {"x": [X], "y": [Y, Y]}),
        ("a tensor and a list", {"x": [X, X]}),
        ("inputs of copies.* one shape", {"x": [X, X[:5]], "y": [Y, Y]}),
        ("as many targets", {"y": Y[:5]}),
        ("expected 1 to 40", {"batch_size": 41}),
        ("steps 0 to 1", {"probe": lambda step, model: {}, "probe_steps": [2]}),
        ("no execution named 'graf'", {"execution": "graf"}),
    ]
    for message, changed in cases:
        with pytest.raises(NormlibError, match=message):
            train_together(**{"models": nets, "x": X, "y": Y, **args, **changed})
    with pytest.raises(NormlibError, match="one by one"):
        train_together([nn.Sequential(net, nn.Dropout()) for net in nets], X, Y, **args)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.parametrize("execution", ["eager", "graph"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "weight"])
def test_on_cuda_each_copy_ends_where_it_ends_alone(norm: str, execution: str) -> None:
    nets = [net.cuda() for net in networks(norm)]
    twins = copy_of(nets) if norm != "weight" else [net.cuda() for net in networks(norm)]
    train_together(nets, X.cuda(), Y.cuda(), rates=RATES, seeds=SEEDS, execution=execution, schedule="cosine", **ARGS)
    for k, (net, twin) in enumerate(zip(nets, twins, strict=True)):
        train(twin, X.cuda(), Y.cuda(), rate=RATES[k], seed=SEEDS[k], schedule="cosine", **ARGS)
        assert_same_state(net, twin)
