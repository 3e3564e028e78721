"""Each normalizer against its counterpart in torch.nn: value, gradient, buffers, checkpoints."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlib.layers import (
    BatchNorm,
    ChannelLayerNorm,
    ChannelRMSNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    reference,
)

BY_RANK = {
    BatchNorm: {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d},
    InstanceNorm: {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d},
}
SHAPES = {2: (5, 4), 3: (3, 4, 5), 4: (3, 4, 2, 3), 5: (2, 4, 2, 2, 3)}


def pairs() -> list[Any]:
    """(make ours, make torch's, shape) over ranks and arguments."""
    cases = []
    for ours, by_rank in BY_RANK.items():
        for rank, theirs in by_rank.items():
            for affine in (True, False):
                for momentum in (0.1, 1.0, None):
                    for track in (True, False):
                        kwargs = {"affine": affine, "momentum": momentum, "track_running_stats": track}
                        name = f"{ours.__name__}-{rank}d-{affine}-{momentum}-{track}"
                        cases.append(pytest.param(ours, theirs, (4,), kwargs, SHAPES[rank], id=name))
    for rank, shape in SHAPES.items():
        for affine in (True, False):
            cases += [
                pytest.param(GroupNorm, nn.GroupNorm, (2, 4), {"affine": affine}, shape, id=f"GroupNorm-{rank}d-{affine}"),
                pytest.param(
                    LayerNorm,
                    nn.LayerNorm,
                    (shape[1:],),
                    {"elementwise_affine": affine},
                    shape,
                    id=f"LayerNorm-{rank}d-{affine}",
                ),
                pytest.param(
                    RMSNorm,
                    nn.RMSNorm,
                    (shape[-1],),
                    {"elementwise_affine": affine},
                    shape,
                    id=f"RMSNorm-{rank}d-{affine}",
                ),
            ]
    return cases


def sample(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (1 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def randomize(module: nn.Module) -> None:
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = sample(tuple(parameter.shape), 20 + seed).data


def run(module: nn.Module, shape: tuple[int, ...]) -> list[Any]:
    """Two training steps and one evaluation; what each returned and left behind."""
    seen: list[Any] = []
    for step, training in enumerate((True, True, False)):
        module.train(training)
        x = sample(shape, step)
        y = module(x)
        inputs = [x, *module.parameters()]
        seen += [y, *torch.autograd.grad(y, inputs, sample(shape, 7).detach()), *copy.deepcopy(list(module.buffers()))]
    return seen


@pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
@pytest.mark.parametrize(("ours", "theirs", "args", "kwargs", "shape"), pairs())
def test_same_as_torch(
    ours: Callable[..., nn.Module],
    theirs: Callable[..., nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: tuple[int, ...],
    formula: bool,
) -> None:
    mine, torchs = ours(*args, dtype=torch.float64, **kwargs), theirs(*args, dtype=torch.float64, **kwargs)
    randomize(mine)
    torchs.load_state_dict(mine.state_dict())
    with reference(formula):
        got = run(mine, shape)
    torch.testing.assert_close(got, run(torchs, shape))
    assert mine.extra_repr() == torchs.extra_repr()
    fresh = ours(*args, dtype=torch.float64, **kwargs)
    fresh.load_state_dict(torchs.state_dict())
    torch.testing.assert_close(dict(fresh.state_dict()), dict(torchs.state_dict()))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (BatchNorm, nn.BatchNorm2d),
        (InstanceNorm, nn.InstanceNorm2d),
        (LayerNorm, nn.LayerNorm),
        (RMSNorm, nn.RMSNorm),
        (GroupNorm, nn.GroupNorm),
    ],
)
def test_constructor_is_torchs(ours: type, theirs: type) -> None:
    def arguments(layer: type) -> list[Any]:
        return [(p.name, p.default) for p in inspect.signature(layer).parameters.values()]

    extra = [("ghost", None)] if ours is BatchNorm else []
    assert arguments(ours) == arguments(theirs) + extra
    assert ours._version == theirs._version


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("layer", [BatchNorm, InstanceNorm])
def test_rank_six_is_rank_three_flattened(layer: type, track: bool) -> None:
    x = sample((2, 3, 2, 1, 2, 3), 0)
    six = layer(3, affine=True, track_running_stats=track, dtype=torch.float64)
    three = copy.deepcopy(six)
    for training in (True, False):
        torch.testing.assert_close(six.train(training)(x), three.train(training)(x.flatten(2)).view(x.shape))
    torch.testing.assert_close(dict(six.state_dict()), dict(three.state_dict()))


@pytest.mark.parametrize("layer", [BatchNorm, InstanceNorm])
def test_fused_operations_get_no_more_axes_than_cudnn_takes(layer: type, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = []
    for name in ("batch_norm", "instance_norm"):
        fused = getattr(nn.functional, name)
        monkeypatch.setattr(nn.functional, name, lambda x, *a, _f=fused, **k: ranks.append(x.ndim) or _f(x, *a, **k))
    for shape in [(2, 3, 2, 1, 2), (2, 3, 2, 1, 2, 3)]:
        layer(3)(torch.ones(shape))
    assert ranks == [5, 3]


def test_half_input_meets_full_parameters() -> None:
    x = sample((3, 4, 2), 0).bfloat16()
    for module in (BatchNorm(4), InstanceNorm(4, affine=True), GroupNorm(2, 4), ChannelLayerNorm(4), ChannelRMSNorm(4)):
        for formula in (False, True):
            with reference(formula):
                assert module(x).dtype == torch.bfloat16


def test_checkpoint_of_a_torch_network_loads_into_ours() -> None:
    def network(batch: type, group: type) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(2, 4, 3), batch(4), nn.ReLU(), nn.Conv2d(4, 4, 3), group(2, 4)).double()

    theirs, mine = network(nn.BatchNorm2d, nn.GroupNorm), network(BatchNorm, GroupNorm)
    x = sample((3, 2, 6, 6), 0)
    theirs(x)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x))


def test_old_checkpoint_without_batch_count_loads() -> None:
    state = nn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    module = BatchNorm(3)
    module.load_state_dict(state)
    assert module.num_batches_tracked.item() == 0


def test_channel_norms_load_the_checkpoints_of_vectors() -> None:
    x = sample((3, 4), 0)
    for theirs, ours in [
        (nn.LayerNorm(4, dtype=torch.float64), ChannelLayerNorm(4, dtype=torch.float64)),
        (nn.GroupNorm(1, 4, dtype=torch.float64), ChannelLayerNorm(4, dtype=torch.float64)),
        (nn.RMSNorm(4, dtype=torch.float64), ChannelRMSNorm(4, dtype=torch.float64)),
    ]:
        randomize(theirs)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
@pytest.mark.parametrize("layer", [BatchNorm, InstanceNorm])
def test_running_statistics_carry_no_graph_and_rest_in_evaluation(layer: type, formula: bool) -> None:
    module = layer(3, track_running_stats=True, dtype=torch.float64)
    with reference(formula):
        module(sample((4, 3, 5), 0))
        assert not any(buffer.requires_grad for buffer in module.buffers())
        before = copy.deepcopy(module.state_dict())
        module.eval()(sample((4, 3, 5), 1))
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)


def test_torch_tools_know_batch_norm() -> None:
    module = BatchNorm(3)
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module)), nn.SyncBatchNorm)
    batches = [torch.randn(4, 3, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    torch.optim.swa_utils.update_bn(batches, module)
    torch.testing.assert_close(module.running_mean, torch.stack(batches).mean((0, 1)))
    assert module.momentum == 0.1


@pytest.mark.parametrize(
    "module",
    [BatchNorm(4), InstanceNorm(4), GroupNorm(2, 4), LayerNorm((4, 2)), RMSNorm(2), ChannelLayerNorm(4), ChannelRMSNorm(4)],
    ids=lambda module: type(module).__name__,
)
def test_copies_pickles_and_half(module: nn.Module) -> None:
    x = sample((3, 4, 2), 0).float()
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), module(x))
    half = copy.deepcopy(module).bfloat16()
    for formula in (False, True):
        with reference(formula):
            y = half(x.bfloat16())
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.float(), module(x.bfloat16().float()), atol=2e-2, rtol=2e-2)


def test_channels_last_memory_gives_the_same() -> None:
    x = sample((2, 4, 3, 3), 0).detach()
    for module in (BatchNorm(4), InstanceNorm(4), GroupNorm(2, 4), ChannelLayerNorm(4), ChannelRMSNorm(4)):
        module = module.double()
        torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), module(x))
