import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from normlib.errors import NormlibError
from normlib.networks import MLP
from normlib.training import EXECUTIONS, Update, adaptive_clip, train

G = torch.Generator().manual_seed(0)
X = torch.randn(24, 1, 8, 8, generator=G)
Y = torch.randint(3, (24,), generator=G)
ARGS = {"steps": 6, "batch_size": 8, "rate": 0.05, "momentum": 0.9, "seed": 1}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def conv_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten())
    net.add_module("head", nn.Linear(96, 3))
    return net


def trained(update, net=None, x=X, y=Y, **args):
    net = MLP([64, 16, 3], norm="batch", seed=0) if net is None else net
    history = train(net, x, y, **{**ARGS, **args}, update=update)
    return history.loss, [value.clone() for value in net.state_dict().values()]


def close(a, b, tolerance):
    assert a[0] == pytest.approx(b[0], rel=tolerance, abs=tolerance)
    for ours, theirs in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_device=False)


def test_adaptive_clipping_in_the_loop_spares_what_is_exempt():
    net = MLP([64, 16, 3], seed=0)
    twin = copy.deepcopy(net)
    trained(Update(clip="agc:clipping=0.02,exempt=head|*.bias"), net, steps=1, batch_size=None, momentum=0.0)
    nn.functional.cross_entropy(twin(X), Y).backward()
    for (name, now), was in zip(net.named_parameters(), twin.parameters(), strict=True):
        gradient = was.grad if name.startswith("head") or name.endswith("bias") else adaptive_clip(was.grad, was, 0.02)
        torch.testing.assert_close(now, was - 0.05 * gradient)
        assert torch.equal(gradient, was.grad) == (name.startswith("head") or name.endswith("bias"))


def test_clipping_by_the_norm_bounds_the_whole_step():
    net = MLP([64, 16, 3], seed=0)
    start = torch.cat([p.detach().clone().flatten() for p in net.parameters()])
    trained(Update(clip="norm:limit=0.03"), net, steps=1, momentum=0.0)
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - start
    assert float(moved.norm()) == pytest.approx(0.05 * 0.03, rel=1e-3)


@pytest.mark.parametrize(
    ("clip", "message"),
    [("acg", "'agc'"), ("agc:exempt=haed", "'head'"), ("agc:clipping=0", "positive"), ("norm:limit=-1", "positive")],
)
def test_what_is_no_clipping_is_refused(clip, message):
    with pytest.raises(NormlibError, match=message):
        trained(Update(clip=clip))


def test_bfloat16_runs_layers_at_half_the_width_and_keeps_weights_and_loss():
    seen = {}
    net = MLP([64, 16, 3], seed=0)
    net.head.register_forward_hook(lambda module, inputs, output: seen.update(output=output.dtype))
    half = trained(
        Update(precision="bfloat16"), net, loss=lambda o, y: seen.update(loss=o.dtype) or nn.functional.cross_entropy(o, y)
    )
    assert seen == {"output": torch.bfloat16, "loss": torch.float32}
    assert all(value.dtype == torch.float32 for value in half[1])
    whole = trained(Update(), MLP([64, 16, 3], seed=0))
    close(half, whole, 0.03)
    assert (half[0] != whole[0]).any()


def test_channels_last_changes_the_layout_only_and_only_for_the_run():
    net, layouts = conv_net(), []
    filters = next(m for m in net.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1)
    filters.register_forward_pre_hook(
        lambda module, inputs: layouts.extend(
            t.is_contiguous(memory_format=torch.channels_last) for t in (module.weight, inputs[0])
        )
    )
    found = trained(Update(channels_last=True), net)
    assert layouts and all(layouts)
    assert all(p.is_contiguous() for p in net.parameters())
    close(found, trained(Update(), conv_net()), 1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_compiled_update_is_the_eager_one():
    runs = [trained(Update(execution=execution), MLP([64, 4, 3]), steps=3) for execution in ("compile", "eager")]
    close(*runs, 1e-4)


def test_a_graph_is_refused_where_there_is_none():
    with pytest.raises(NormlibError, match="'eager' or 'compile'"):
        trained(Update(execution="graph"))
    with pytest.raises(NormlibError, match="'graph'"):
        trained(Update(execution="grph"))
    with pytest.raises(NormlibError, match="'bfloat16'"):
        trained(Update(precision="float16"))
    assert set(EXECUTIONS) == {"eager", "compile", "graph"}


@cuda
@pytest.mark.parametrize("optimizer", ["sgd", "sgd:nesterov=True", "adam", "adamw"])
@pytest.mark.parametrize("clip", ["none", "agc", "norm"])
def test_the_graph_makes_the_updates_of_the_eager_run(optimizer, clip):
    runs = []
    for execution in ("eager", "graph"):
        args = {"momentum": 0.9 if optimizer.startswith("sgd") else 0.0, "schedule": "cosine:warmup=2", "steps": 12}
        update = Update(optimizer=optimizer, clip=clip, execution=execution)
        runs.append(trained(update, conv_net().cuda(), X.cuda(), Y.cuda(), **args))
    close(*runs, 1e-3)


class Reads(TorchDispatchMode):
    """Counts the operations that wait for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self.WAITING
        return func(*args, **(kwargs or {}))


UPDATES = {
    "plain": Update(),
    "clipped": Update(clip="agc:exempt=head", decay="weights"),
    "norm": Update(clip="norm", optimizer="sgd:nesterov=True"),
    "bfloat16": Update(precision="bfloat16", channels_last=True),
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_no_step_waits_for_the_device_but_those_that_look_at_the_loss(update):
    reads, at_step = Reads(), []

    def rate(step):  # called once a step, after the loss was looked at
        at_step.append(reads.count)
        return 0.01

    args = {"steps": 30, "batch_size": 8, "momentum": 0.9, "weight_decay": 0.1, "seed": 0, "check_every": 10}
    with reads:
        train(
            conv_net(),
            X,
            Y,
            rate=rate,
            **args,
            loss="cross_entropy:smoothing=0.1",
            augment="crop:padding=2 + flip + mixup",
            update=update,
        )
    new = [after - before for before, after in itertools.pairwise(at_step[1:])]  # at_step[0]: before the first step
    assert [step + 1 for step, count in enumerate(new) if count] == [10, 20]


def test_the_counter_of_waits_counts():
    with Reads() as reads:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert reads.count == 2


@cuda
@pytest.mark.parametrize("execution", ["eager", "graph"])
def test_no_step_waits_for_the_gpu(execution):
    steps = functools.partial(trained, Update(execution=execution), conv_net().cuda(), X.cuda(), Y.cuda(), batch_size=None)

    def rate(step):  # the first steps warm up, the last one looks at the loss
        torch.cuda.set_sync_debug_mode("error" if 5 <= step < 19 else "default")
        return 0.01

    try:
        assert len(steps(rate=rate, steps=20, check_every=1000)[0]) == 20
    finally:
        torch.cuda.set_sync_debug_mode("default")
