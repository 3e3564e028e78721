"""Against torch: its weight_norm and spectral_norm, and what every parametrization has to live with."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations, parametrize

from normlib.weights import WEIGHT_NORMS, parametrize_weight

SPECS = ["weight", "centered_weight", "standardized_weight", "scaled_weight", "scaled_weight:affine=False"]
SCRIPT = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, when jvp is first used
TORCH_LAYERS = [nn.Linear(5, 3), nn.Conv1d(2, 3, 4), nn.Conv2d(3, 2, 2), nn.Conv3d(1, 2, 2), nn.Conv2d(4, 6, 3, groups=2)]


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def convolution(spec: str, dtype: torch.dtype = torch.float64) -> nn.Conv2d:
    layer = nn.Conv2d(3, 4, 2, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(values(4, 3, 2, 2))
    return parametrize_weight(layer, spec)


@pytest.mark.parametrize("layer", TORCH_LAYERS, ids=lambda layer: type(layer).__name__)
def test_weight_norm_is_torchs(layer: nn.Module) -> None:
    mine = parametrize_weight(copy.deepcopy(layer).double(), "weight")
    torchs = parametrizations.weight_norm(copy.deepcopy(layer).double())
    torch.testing.assert_close(dict(mine.state_dict()), dict(torchs.state_dict()))
    for seed, parameter in enumerate(mine.parametrizations.weight.parameters()):
        parameter.data = values(*parameter.shape, seed=seed)
    assert torchs.load_state_dict(mine.state_dict()).missing_keys == []
    torch.testing.assert_close(mine.weight, torchs.weight)
    upstream = values(*mine.weight.shape, seed=3)
    ours = torch.autograd.grad(mine.weight, list(mine.parametrizations.weight.parameters()), upstream)
    theirs = torch.autograd.grad(torchs.weight, list(torchs.parametrizations.weight.parameters()), upstream)
    torch.testing.assert_close(ours, theirs)
    fresh = parametrize_weight(copy.deepcopy(layer).double(), "weight")
    fresh.load_state_dict(torchs.state_dict())
    torch.testing.assert_close(fresh.weight, mine.weight)
    assert set(mine.state_dict()) == {"bias", "parametrizations.weight.original0", "parametrizations.weight.original1"}


def test_parametrizing_by_weight_norm_changes_no_weight() -> None:
    layer = nn.Conv2d(3, 4, 2)
    before = layer.weight.detach().clone()
    torch.testing.assert_close(parametrize_weight(layer, "weight").weight, before)
    layer.weight = 2 * before
    torch.testing.assert_close(layer.weight, 2 * before)
    torch.testing.assert_close(layer.parametrizations.weight.original0.flatten(), 2 * before.flatten(1).norm(dim=1))


def test_assigning_to_a_centered_weight_keeps_its_length() -> None:
    layer, target = convolution("centered_weight"), values(4, 3, 2, 2, seed=2)
    layer.weight = target
    torch.testing.assert_close(layer.weight, target - target.mean((1, 2, 3), keepdim=True))


def test_spectral_is_torchs() -> None:
    linear = nn.Linear(6, 4)
    torch.manual_seed(3)
    mine = parametrize_weight(copy.deepcopy(linear), "spectral:n_power_iterations=2,eps=1e-10")
    torch.manual_seed(3)
    torchs = parametrizations.spectral_norm(copy.deepcopy(linear), n_power_iterations=2, eps=1e-10)
    for _ in range(2):
        assert torch.equal(mine.weight, torchs.weight)
    assert repr(mine) == repr(torchs)
    assert mine.parametrizations.weight[0].eps == torchs.parametrizations.weight[0].eps == 1e-10
    torchs.load_state_dict(mine.state_dict())
    assert torch.equal(mine.eval().weight, torchs.eval().weight)
    assert torch.linalg.matrix_norm(mine.weight, 2).item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("spec", [*SPECS, "spectral"])
def test_state_goes_out_and_in(spec: str) -> None:
    layer = convolution(spec).eval()
    other = parametrize_weight(nn.Conv2d(3, 4, 2, dtype=torch.float64), spec).eval()
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(layer.weight, other.weight)
    other.load_state_dict(pickle.loads(pickle.dumps(layer.state_dict())))
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(layer)


@pytest.mark.parametrize("spec", [*SPECS, "spectral"])
def test_removing_it_leaves_the_normalized_weight(spec: str) -> None:
    layer = convolution(spec).eval()
    x, normalized = values(2, 3, 5, 5), layer.weight.detach().clone()
    y = layer(x)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv2d
    assert isinstance(layer.weight, nn.Parameter) and set(layer.state_dict()) == {"weight", "bias"}
    assert torch.equal(layer.weight, normalized)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("spec", [*SPECS, "spectral"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains(spec: str, dtype: torch.dtype) -> None:
    layer, x = convolution(spec, dtype), values(2, 3, 5, 5, dtype=torch.float32)
    y = layer(x.to(dtype))
    y.float().square().mean().backward()
    assert y.dtype == layer.weight.dtype == dtype
    assert all(bool(p.grad.isfinite().all()) and p.grad.dtype == dtype for p in layer.parameters())


@pytest.mark.parametrize("spec", [*SPECS, "spectral"])
def test_autocast_keeps_the_statistics_wide(spec: str) -> None:
    layer, x = convolution(spec, torch.float32).eval(), values(2, 3, 5, 5, dtype=torch.float32)
    wide = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert torch.equal(layer.weight, layer.parametrizations.weight())
        assert layer.weight.dtype == torch.float32
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wide, rtol=5e-2, atol=5e-2)
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("spec", SPECS)
def test_compiled_whole(spec: str) -> None:
    layer, x = convolution(spec), values(2, 3, 5, 5)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    layer(x).square().sum().backward()
    compiled(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], [p.grad for p in twin.parameters()])


@pytest.mark.parametrize("spec", SPECS)
def test_exported(spec: str) -> None:
    layer, x = convolution(spec), values(2, 3, 5, 5)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@SCRIPT
@pytest.mark.parametrize("spec", SPECS)
def test_functional_call_and_its_transforms(spec: str) -> None:
    weights = convolution(spec).parametrizations.weight
    names = [name for name, _ in weights.named_parameters()]
    stacked = [torch.stack([p.detach(), 2 * p.detach() + values(*p.shape, seed=4)]) for p in weights.parameters()]

    def weight(*arguments: Tensor) -> Tensor:
        return functional_call(weights, dict(zip(names, arguments, strict=True)), ())

    def loss(*arguments: Tensor) -> Tensor:
        return weight(*arguments).pow(3).sum()

    for function in (weight, grad(loss)):
        each = torch.stack([function(*[s[i] for s in stacked]) for i in range(2)])
        torch.testing.assert_close(vmap(function)(*stacked), each)
    primals = tuple(s[0] for s in stacked)
    tangents = tuple(values(*p.shape, seed=5) for p in primals)
    _, along = jvp(weight, primals, tangents)
    step = 1e-6
    ahead, behind = (weight(*[p + s * t for p, t in zip(primals, tangents, strict=True)]) for s in (step, -step))
    torch.testing.assert_close(along, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_copies_of_a_layer_batched(spec: str) -> None:
    layer = convolution(spec)
    layers = [layer, copy.deepcopy(layer)]
    for parameter in layers[1].parameters():
        parameter.data.add_(values(*parameter.shape, seed=8))
    parameters, buffers = torch.func.stack_module_state(layers)
    x = values(2, 3, 5, 5)
    y = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([layer(x) for layer in layers]))


@pytest.mark.parametrize("spec", WEIGHT_NORMS)
def test_meta_device(spec: str) -> None:
    if spec == "spectral":
        pytest.skip("torch draws its vectors on the device of the weight, and iterates")
    layer = parametrize_weight(nn.Conv2d(3, 4, 2, device="meta"), spec)
    assert layer.weight.is_meta and layer.weight.shape == (4, 3, 2, 2)
    real = layer.to_empty(device="cpu")
    real.load_state_dict(convolution(spec, torch.float32).state_dict())
    torch.testing.assert_close(real.weight, convolution(spec, torch.float32).weight)


@pytest.mark.parametrize("spec", SPECS)
def test_memory_format_of_the_raw_weight_is_kept(spec: str) -> None:
    layer = convolution(spec)
    before = layer.weight.detach()
    layer.to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.weight, before)


@pytest.mark.parametrize("spec", ["centered_weight", "standardized_weight", "scaled_weight:gain=1.0"])
def test_a_large_mean_costs_no_more_precision_than_it_must(spec: str) -> None:
    layer, exact = nn.Linear(500, 4), nn.Linear(500, 4, dtype=torch.float64)
    layer.weight.data = (0.1 * values(4, 500) + 100).float()  # of 100, float32 holds 4e-6: of 0.1, that is 4e-5
    exact.weight.data = layer.weight.data.double()
    got, wanted = parametrize_weight(layer, spec).weight.double(), parametrize_weight(exact, spec).weight
    assert ((got - wanted).norm() / wanted.norm()).item() < 2e-4
