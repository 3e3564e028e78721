"""The smallest and the wrong inputs, and what a layer keeps from batch to batch, for every registered norm."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from definitions import Case
from every_norm import BATCH_STATISTICS, ONE_EACH, REGISTERED, built, named, run, takes, values
from torch import Tensor, nn

from normlib.layers import NORMS, ShapeError, make_norm

CHANNELS = 4
EACH = pytest.mark.parametrize("case", REGISTERED, ids=str)
KEEPS = pytest.mark.parametrize("case", [c for c in REGISTERED if list(make_norm(c.spec, CHANNELS).buffers())], ids=str)
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
TORCHS = {
    "batch": nn.BatchNorm2d,
    "sync": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "group": lambda channels: nn.GroupNorm(2, channels),
    "instance": nn.InstanceNorm2d,
}
# Torch warns when it takes the variance of nothing, as a formula does; the fused operations do not.
NOTHING = pytest.mark.filterwarnings(r"ignore:var(_mean)?\(\). degrees of freedom is <= 0:UserWarning")


def kept(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


@NOTHING
@PATHS
@EACH
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_empty_batch_returns_an_empty_batch(case: Case, formula: bool, training: bool) -> None:
    module, x = built(case.spec, CHANNELS, training=training), torch.empty(0, CHANNELS, 3, 3, dtype=torch.float64)
    before = kept(module)
    y = run(module, x.requires_grad_(), formula)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    before.pop("num_batches_tracked", None)  # torch counts the batch
    unchanged_statistics = {name: module.state_dict()[name] for name in before}
    torch.testing.assert_close(unchanged_statistics, before, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", [name for name in TORCHS if name in NORMS])
def test_an_empty_batch_leaves_the_buffers_as_torch_does(name: str, training: bool) -> None:
    ours, theirs = (
        make_norm(name + ":groups=2" * (name == "group"), CHANNELS).train(training),
        TORCHS[name](CHANNELS).train(training),
    )
    x = torch.empty(0, CHANNELS, 3, 3)
    assert ours(x).shape == theirs(x).shape
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=0, atol=0)


@PATHS
@pytest.mark.parametrize("case", [case for case in REGISTERED if named(case) in {*BATCH_STATISTICS, "instance"}], ids=str)
def test_one_value_per_channel_is_refused_in_training(case: Case, formula: bool) -> None:
    module = built(case.spec, CHANNELS)
    before = kept(module)
    for shape in ((1, CHANNELS), (1, CHANNELS, 1, 1)):
        with pytest.raises(ShapeError):
            run(module, values(*shape), formula)
    unchanged(module, before)


@PATHS
@pytest.mark.parametrize("case", [case for case in REGISTERED if named(case) != "none"], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3, 4), (4,), (4, 5, 6), ()], ids=str)
def test_wrong_channels_are_refused(case: Case, formula: bool, shape: tuple[int, ...]) -> None:
    for training in (True, False):
        module = built(case.spec, CHANNELS, training=training)
        before = kept(module)
        with pytest.raises(ShapeError, match=r"expects input of shape \(N, 4, \*\).*\.$"):
            run(module, values(*shape), formula)
        unchanged(module, before)


@PATHS
@KEEPS
def test_evaluation_leaves_the_buffers_bit_for_bit(case: Case, formula: bool) -> None:
    module = built(case.spec, CHANNELS, training=False)
    before = kept(module)
    for seed in range(3):
        run(module, values(4, CHANNELS, 3, seed=seed).requires_grad_(), formula).sum().backward()
    unchanged(module, before)


@PATHS
@KEEPS
def test_training_moves_every_statistic(case: Case, formula: bool) -> None:
    module = built(case.spec, CHANNELS)
    before = kept(module)
    run(module, values(4, CHANNELS, 3, seed=1), formula)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in module.named_buffers()}


@PATHS
@EACH
def test_fifty_steps_leave_no_graph_and_no_growth(case: Case, formula: bool) -> None:
    module, sizes = built(case.spec, CHANNELS), []
    for step in range(50):
        # the input's graph reaches back to the step before, so a statistic that kept its own would hold all of them
        run(module, values(4, CHANNELS, 3, seed=step).requires_grad_() + 0, formula).sum().backward()
        assert not any(buffer.requires_grad or buffer.grad_fn for buffer in module.buffers())
        if step in (0, 49):
            sizes.append(len(pickle.dumps(module)))
    assert sizes[0] == sizes[1]
    twin = copy.deepcopy(module)  # refuses a tensor with a graph
    torch.testing.assert_close(dict(twin.state_dict()), dict(module.state_dict()), rtol=0, atol=0)
    x = values(4, CHANNELS, 3)
    torch.testing.assert_close(run(twin, x, formula), run(module, x, formula), rtol=0, atol=0)


@PATHS
@pytest.mark.parametrize("case", [case for case in ONE_EACH if takes(case, "track_running_stats")], ids=str)
def test_without_running_statistics_evaluation_is_training(case: Case, formula: bool) -> None:
    module, x = built(f"{named(case)}:track_running_stats=False", CHANNELS), values(4, CHANNELS, 3)
    assert not list(module.buffers())
    if named(case) != "noisy":
        torch.testing.assert_close(run(module.eval(), x, formula), run(module.train(), x, formula), rtol=0, atol=0)
