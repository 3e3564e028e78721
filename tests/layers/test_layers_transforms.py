"""What torch does to whole functions and modules: vmap, jvp, compile, export, copies, devices; over every registered norm."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from definitions import Case
from every_norm import NOISE, ONE_EACH, REGISTERED, built, named, values
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from normlib.layers import make_norm, reference
from normlib.spec import split_spec

CHANNELS, SHAPE = 4, (4, 4, 3, 2)
EACH = pytest.mark.parametrize("case", REGISTERED, ids=str)
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
# Torch's own forward derivatives and its compiler are still made with it.
SCRIPT = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
COMPILED = [*ONE_EACH, *(c for c in REGISTERED if c not in ONE_EACH and "momentum" in split_spec(c.spec)[1])]


def quiet(case: Case, training: bool) -> nn.Module:
    """The layer; in evaluation if it draws noise, which a transformed function draws from other numbers."""
    return built(case.spec, CHANNELS, training=training and named(case) not in NOISE)


def call(module: nn.Module, x: Tensor, formula: bool) -> Tensor:
    with reference(formula):
        return module(x)


@contextmanager
def untracked(model: nn.Module) -> Iterator[nn.Module]:
    """Take the running statistics out of the norms that are in train mode, which do not read them, and put them back.

    A function that writes to a buffer cannot be mapped by `torch.vmap`; without the buffer there is nothing to write. Not for a
    norm that reads its running statistics when training (batch renormalization).
    """
    with ExitStack() as stack:
        for module in model.modules():
            if module.training and getattr(module, "track_running_stats", False):
                stack.callback(module.__dict__.update, track_running_stats=True)
                stack.callback(module._buffers.update, dict(module._buffers))
                module.__dict__["track_running_stats"] = False
                module._buffers.update(dict.fromkeys(module._buffers))
        yield model


def derivatives(y: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, [x, *module.parameters()], values(*y.shape, seed=3, dtype=y.dtype), materialize_grads=True))


@PATHS
@MODES
@EACH
def test_vmap_over_batches_is_a_loop(case: Case, training: bool, formula: bool) -> None:
    module, batches = quiet(case, training), values(3, *SHAPE)
    with untracked(module):
        looped = torch.stack([call(module, x, formula) for x in batches])
        torch.testing.assert_close(vmap(lambda x: call(module, x, formula))(batches), looped)
        inside = vmap(lambda x: call(module, x, formula), in_dims=2, out_dims=1)(batches.movedim(0, 2))
    torch.testing.assert_close(inside, looped.movedim(0, 1))


@SCRIPT
@PATHS
@MODES
@EACH
def test_jvp_is_the_slope_along_the_direction(case: Case, training: bool, formula: bool) -> None:
    module, x, direction, step = quiet(case, training), values(*SHAPE), values(*SHAPE, seed=1), 1e-5
    with untracked(module):
        y, slope = jvp(lambda x: call(module, x, formula), (x,), (direction,))
        ahead, behind = (call(module, x + sign * step * direction, formula) for sign in (1, -1))
        torch.testing.assert_close(y, call(module, x, formula))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


@MODES
@EACH
def test_one_gradient_for_each_of_several_batches(case: Case, training: bool) -> None:
    module, batches, direction = quiet(case, training), values(3, *SHAPE), values(*SHAPE, seed=3)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return (functional_call(module, parameters, (x,)) * direction).sum()

    with untracked(module):
        gradients = vmap(grad(loss), in_dims=(None, 0))(dict(module.named_parameters()), batches)
        wanted = [derivatives(module(x), module, x)[1:] for x in batches.requires_grad_()]
    torch.testing.assert_close(list(gradients.values()), [torch.stack(each) for each in zip(*wanted, strict=True)])


@MODES
@EACH
def test_functional_call_takes_other_parameters_and_buffers(case: Case, training: bool) -> None:
    module, x = quiet(case, training), values(*SHAPE)
    before, other = copy.deepcopy(module.state_dict()), copy.deepcopy(module)
    other.load_state_dict({name: 1.5 * v if v.is_floating_point() else v + 1 for name, v in before.items()})
    swapped = functional_call(module, copy.deepcopy(other.state_dict()), (x,))
    torch.testing.assert_close(swapped, other(x))
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)


@pytest.fixture
def no_cache() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same_compiled(module: nn.Module, backend: str) -> None:
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    for seed in (1, 2):
        x = values(*SHAPE, seed=seed).requires_grad_()
        y, wanted = compiled(x), module(x)
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(derivatives(y, twin, x), derivatives(wanted, module, x))
    torch.testing.assert_close(dict(twin.state_dict()), dict(module.state_dict()))


@MODES
@pytest.mark.parametrize("case", COMPILED, ids=str)
@pytest.mark.usefixtures("no_cache")
def test_compiled_in_one_graph_it_is_the_same(case: Case, training: bool) -> None:
    same_compiled(quiet(case, training), "aot_eager")


@SCRIPT
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles with g++")
@pytest.mark.usefixtures("no_cache")
def test_inductor_computes_the_same() -> None:
    """Two norms in one network: most of the time goes into starting the compiler of C++."""
    same_compiled(nn.Sequential(*(built(spec, CHANNELS) for spec in ("batch:eps=0.3", "layer:eps=0.3"))), "inductor")


@SCRIPT
@MODES
@EACH
def test_exported_it_is_the_same(case: Case, training: bool) -> None:
    """For any number of samples, if the norm takes any."""
    module = quiet(case, training)
    twin = copy.deepcopy(module)
    samples = {} if "ghost" in case.spec else {0: torch.export.Dim("samples", min=2)}
    exported = torch.export.export(twin, (values(*SHAPE),), dynamic_shapes=(samples,)).module()
    for x in (values(*SHAPE, seed=1), values(6, *SHAPE[1:]) if samples else values(*SHAPE)):
        torch.testing.assert_close(exported(x), module(x))
    torch.testing.assert_close(dict(exported.named_buffers()), dict(module.named_buffers()))


@PATHS
@MODES
@EACH
def test_copies_and_pickles_compute_the_same(case: Case, training: bool, formula: bool) -> None:
    module, x = quiet(case, training), values(*SHAPE)
    twins = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    wanted = call(module, x, formula)
    for twin in twins:
        assert torch.equal(call(twin, x, formula), wanted)
        assert repr(twin) == repr(module)
        torch.testing.assert_close(dict(twin.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


@PATHS
@MODES
@EACH
def test_on_meta_it_computes_shapes(case: Case, training: bool, formula: bool) -> None:
    module = make_norm(case.spec, CHANNELS, device="meta").train(training)
    y = call(module, torch.empty(SHAPE, device="meta", dtype=torch.bfloat16), formula)
    assert (y.device.type, y.shape, y.dtype) == ("meta", SHAPE, torch.bfloat16)


@EACH
def test_from_meta_it_can_be_filled_and_reset(case: Case) -> None:
    module, fresh = make_norm(case.spec, CHANNELS, device="meta").to_empty(device="cpu"), make_norm(case.spec, CHANNELS)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(7)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    torch.testing.assert_close(dict(module.state_dict()), dict(fresh.state_dict()), rtol=0, atol=0)
    assert torch.equal(module.eval()(values(*SHAPE).float()), fresh.eval()(values(*SHAPE).float()))


@EACH
def test_a_checkpoint_restores_every_number(case: Case) -> None:
    module, fresh, x = built(case.spec, CHANNELS), make_norm(case.spec, CHANNELS, dtype=torch.float64), values(*SHAPE)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh.eval()(x), module.eval()(x))


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modules_move_to_a_dtype(case: Case, dtype: torch.dtype) -> None:
    module = make_norm(case.spec, CHANNELS).to(dtype)
    assert all(t.dtype in (dtype, torch.long) for t in module.state_dict().values())
    assert module(values(*SHAPE, dtype=dtype)).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@PATHS
@MODES
@EACH
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_on_cuda_it_is_the_same(case: Case, training: bool, formula: bool, last: bool) -> None:
    module = quiet(case, training)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        here, there = copy.deepcopy(module).to(dtype), copy.deepcopy(module).to("cuda", dtype)
        x = values(*SHAPE, dtype=dtype)
        moved = x.to("cuda", memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
        y, wanted = call(there, moved, formula), call(here, x.requires_grad_(), formula)
        got = y, derivatives(y.cpu(), there, moved), dict(there.named_buffers())
        torch.testing.assert_close(
            got,
            (wanted, derivatives(wanted, here, x), dict(here.named_buffers())),
            rtol=tolerance,
            atol=tolerance,
            check_device=False,
        )
