"""The relatives of batch normalization: what each equals where, what its noise and its limits do, and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, stack_module_state, vmap

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import (
    BatchNorm,
    BatchRenorm,
    DecorrelatedBatchNorm,
    LpBatchNorm,
    NoisyBatchNorm,
    ShapeError,
    SpecError,
    VarianceNorm,
    batch_noise,
    batch_norm,
    decorrelated_batch_norm,
    gaussian_factor,
    make_norm,
    reference,
    renorm_limits,
    whitening_matrix,
)

C = 4
QUIET = "noisy:n_mu=0,n_sigma=1,r_mu=0,r_sigma=0"
EACH = ["renorm", "lp:p=1", "lp:p=2,centered=True", "lp:p=inf", QUIET, "variance", "decorrelated", "decorrelated:method=pca"]
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])


def maps(seed: int = 0, mean: float = 2.0, samples: int = 6) -> Tensor:
    """Correlated channels of different scales."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(C, dtype=torch.float64) + torch.tril(torch.ones(C, C, dtype=torch.float64)) / 2
    x = torch.randn(samples, C, 3, 4, generator=generator, dtype=torch.float64)
    return mean + torch.einsum("ij,njhw->nihw", mixing, x)


def made(spec: str, **arguments: object) -> nn.Module:
    pairs = ",".join(f"{key}={value}" for key, value in arguments.items())
    module = make_norm(spec + ("," if ":" in spec else ":") * bool(pairs) + pairs, C, dtype=torch.float64)
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter += 0.3 * maps(20 + seed).flatten()[: parameter.numel()].view_as(parameter)
    return module


def centered(x: Tensor) -> Tensor:
    return x - x.mean((0, 2, 3), keepdim=True)


def same(one: nn.Module, other: nn.Module, x: Tensor, formula: bool) -> None:
    """Two layers agree in values, gradients and running statistics, in training and then in evaluation."""
    for training in (True, True, False):
        found = []
        for module in (one, other):
            with reference(formula):
                y = module.train(training)(x.requires_grad_())
            found.append([y, *torch.autograd.grad(y, [x, *module.parameters()], maps(1)[: len(x)])])
        torch.testing.assert_close(found[0], found[1])
    statistics = {name.replace("cov", "var"): buffer.flatten() for name, buffer in one.named_buffers()}
    torch.testing.assert_close(statistics, {name: buffer.flatten() for name, buffer in other.named_buffers()})


@PATHS
@pytest.mark.parametrize(
    "spec",
    ["renorm:r_max=1,d_max=0", "renorm:track_running_stats=False", QUIET, "decorrelated:size=1", "decorrelated:size=1,method=pca"],
)
def test_what_is_batch_norm(spec: str, formula: bool) -> None:
    other = made("batch:track_running_stats=False" if "track" in spec else "batch")
    same(made(spec), other, maps(), formula)


@PATHS
def test_l2_is_batch_norm_where_the_mean_is_zero_or_taken_out(formula: bool) -> None:
    with reference(formula):
        for eps in (1e-5, 0.3):
            wanted = made("batch", eps=eps)(maps())
            torch.testing.assert_close(made("lp:p=2", eps=eps)(centered(maps())), wanted)
            torch.testing.assert_close(made("lp:p=2,centered=True", eps=eps)(maps()), wanted)
            assert not torch.allclose(made("lp:p=2", eps=eps)(maps()), wanted)


@PATHS
def test_variance_norm_is_batch_norm_and_the_mean_over_the_deviation(formula: bool) -> None:
    module, x = made("variance", eps=0.3), maps()
    mean, std = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + 0.3).sqrt()
    shift = (module.weight * mean / std).view(C, 1, 1)
    with reference(formula):
        torch.testing.assert_close(module(x), made("batch", eps=0.3)(x) + shift)
        torch.testing.assert_close(module(centered(x)), made("batch", eps=0.3)(centered(x)))


# ---------------------------------------------------------------------------------------------------------------------- renorm


@PATHS
def test_unclipped_renorm_trains_on_what_evaluation_returns(formula: bool) -> None:
    module = made("renorm", r_max=1e9, d_max=1e9)
    with reference(formula):
        for seed in range(3):
            before = copy.deepcopy(module).eval()(maps(seed))
            torch.testing.assert_close(module.train()(maps(seed)), before)


@PATHS
def test_renorm_sends_no_gradient_through_its_corrections(formula: bool) -> None:
    module, x = made("renorm", r_max=1e9, d_max=1e9, affine=False), maps().requires_grad_()
    module.running_var *= 4
    r = ((x.var((0, 2, 3), correction=0) + 1e-5) / (module.running_var + 1e-5)).sqrt().detach()
    with reference(formula):
        (gradient,) = torch.autograd.grad(module(x), x, maps(1))
    (plain,) = torch.autograd.grad(batch_norm(x), x, maps(1))
    torch.testing.assert_close(gradient, plain * r.view(C, 1, 1))


@PATHS
def test_renorm_is_clipped_at_its_limits(formula: bool) -> None:
    module = made("renorm", affine=False, eps=1e-12)
    with reference(formula):
        for x, mean, std in [(100 + 50 * maps(), 5.0, 3.0), (-100 + 0.01 * centered(maps()), -5.0, 1 / 3)]:
            y = copy.deepcopy(module)(x)
            torch.testing.assert_close(y.mean((0, 2, 3)), torch.full((C,), mean, dtype=y.dtype))
            torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.full((C,), std, dtype=y.dtype))


def test_limits_start_as_batch_norm_and_widen_to_the_papers() -> None:
    path = [renorm_limits(step) for step in range(0, 50_001, 1_000)]
    assert path[5] == (1.0, 0.0)
    assert path[6][0] > 1 and path[6][1] > 0
    assert path[24][1] < path[25][1] == 5.0
    assert path[39][0] < path[40][0] == path[50][0] == 3.0
    assert path == sorted(path)
    assert renorm_limits(15, warmup=10, r_steps=20, d_steps=20, r_max=2, d_max=1) == (1.5, 0.5)


def test_a_schedule_of_limits_compiles_twice_at_most() -> None:
    torch._dynamo.reset()
    module, counter = made("renorm"), CompileCounterWithBackend("aot_eager")
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True, backend=counter)
    for step in range(0, 50_000, 4_000):
        for layer in (module, twin):
            layer.r_max, layer.d_max = renorm_limits(step)
        torch.testing.assert_close(compiled(10 + maps(step)), module(10 + maps(step)))
    assert counter.frame_count <= 2  # 1 and 0 are compiled in; what comes after is an input


# -------------------------------------------------------------------------------------------------------------------------- lp


@PATHS
@pytest.mark.parametrize("spec", ["lp:p=1", "lp:p=2", "lp:p=inf"])
def test_shift_of_the_input_matters_unless_the_scale_is_of_centered_values(spec: str, formula: bool) -> None:
    with reference(formula):
        assert not torch.allclose(made(spec)(maps() + 7), made(spec)(maps()))
        torch.testing.assert_close(made(f"{spec},centered=True")(maps() + 7), made(f"{spec},centered=True")(maps()))
        torch.testing.assert_close(made(spec, eps=0)(5 * maps()), made(spec, eps=0)(maps()))


@PATHS
def test_output_shrinks_as_p_grows(formula: bool) -> None:
    with reference(formula):
        y1, y2, y3 = (LpBatchNorm(C, p=p, affine=False, dtype=torch.float64)(maps()).abs() for p in (1, 2, math.inf))
    assert bool((y1 > y2).all() and (y2 > y3).all())
    assert y3.max() <= 2


@pytest.mark.parametrize(("p", "count", "variance"), [(1, 4096, 1.0), (2, 4096, 1.0), (math.inf, 64, 0.54), (math.inf, 1024, 0.50)])
def test_variance_of_normalized_gaussians_is_what_the_factor_says(p: float, count: int, variance: float) -> None:
    x = torch.randn(count, 2000, generator=torch.Generator().manual_seed(0))
    y = LpBatchNorm(2000, p=p, centered=True)(x)
    assert y.var(0).mean().item() == pytest.approx(variance, abs=0.01)


def test_factors_are_of_gaussians() -> None:
    assert gaussian_factor(1, 10).item() == pytest.approx(math.sqrt(math.pi / 2))
    assert gaussian_factor(2, 10).item() == 1
    assert gaussian_factor(math.inf, 64) > gaussian_factor(math.inf, 65)


@PATHS
def test_running_scale_is_the_average_of_scales(formula: bool) -> None:
    module, batches = LpBatchNorm(C, momentum=None, p=math.inf, dtype=torch.float64), [maps(seed) for seed in range(3)]
    with reference(formula):
        for x in batches:
            module(x)
    torch.testing.assert_close(module.running_scale, torch.stack([x.abs().amax((0, 2, 3)) for x in batches]).mean(0))
    torch.testing.assert_close(module.running_mean, torch.stack(batches).mean((0, 1, 3, 4)))


# ----------------------------------------------------------------------------------------------------------------------- noisy


def test_noise_has_the_distribution_of_the_paper() -> None:
    torch.manual_seed(0)
    scale, shift = batch_noise(torch.empty(40, 500, 30), n_mu=0.5, n_sigma=1.25, r_mu=0.1, r_sigma=0.1)
    mu, sigma = shift.mean((0, 2)), scale.mean((0, 2))  # of each channel, to within 0.01
    assert shift.sub(mu.view(-1, 1)).abs().max() < 0.11
    assert shift.std((0, 2)).mean().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.01)
    assert scale.std((0, 2)).mean().item() == pytest.approx(0.1, rel=0.01)
    for drawn, low, high in ((mu, -0.5, 0.5), (sigma, 1.0, 1.25)):
        assert low - 0.02 < drawn.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < drawn.max() < high + 0.02
        assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=0.04)
    assert abs(torch.corrcoef(torch.stack([mu, sigma]))[0, 1]) < 0.15


@PATHS
def test_a_seed_repeats_the_noise_in_any_dtype_and_layout(formula: bool) -> None:
    def run(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        with reference(formula):
            return NoisyBatchNorm(C)(x)

    x = maps().float()
    torch.testing.assert_close(run(x), run(x), rtol=0, atol=0)
    torch.testing.assert_close(run(x.to(memory_format=torch.channels_last)), run(x))
    torch.testing.assert_close(run(x.bfloat16()).float(), run(x), rtol=0.05, atol=0.05)


def test_a_seed_repeats_the_noise_of_compiled_code() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(NoisyBatchNorm(C), fullgraph=True, backend="aot_eager")
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs += [compiled(maps().float()), compiled(maps().float())]
    assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[3])
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[4])


@PATHS
def test_noise_is_in_training_alone_and_not_in_the_running_statistics(formula: bool) -> None:
    noisy, plain = made("noisy"), made("batch")
    with reference(formula):
        assert not torch.allclose(noisy(maps()), plain(maps()))
        state = torch.get_rng_state()
        torch.testing.assert_close(noisy.eval()(maps(1)), plain.eval()(maps(1)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(noisy.state_dict()), dict(plain.state_dict()))


# ---------------------------------------------------------------------------------------------------------------- decorrelated


@PATHS
@pytest.mark.parametrize("method", ["zca", "pca"])
@pytest.mark.parametrize("size", [2, 4])
def test_covariance_of_the_output_is_the_identity_within_groups(size: int, method: str, formula: bool) -> None:
    with reference(formula):
        y = DecorrelatedBatchNorm(C, 0.0, method=method, size=size, dtype=torch.float64)(maps())
    cov = torch.cov(y.transpose(0, 1).flatten(1), correction=0)
    within = torch.block_diag(*[torch.ones(size, size, dtype=torch.float64)] * (C // size))
    torch.testing.assert_close(cov * within, torch.eye(C, dtype=torch.float64))
    assert (cov * (1 - within)).abs().max() > 0.1 or size == C
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(C, dtype=torch.float64))


def covariance(*eigenvalues: float) -> Tensor:
    basis, _ = torch.linalg.qr(maps().flatten()[: len(eigenvalues) ** 2].view(-1, len(eigenvalues)))
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def test_principal_components_are_a_rotation_of_zca() -> None:
    zca, pca = (whitening_matrix(covariance(0.5, 1.0, 2.0, 7.0), method, 0.1) for method in ("zca", "pca"))
    rotation = pca @ torch.linalg.inv(zca)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(4, dtype=torch.float64))
    assert not torch.allclose(rotation, torch.eye(4, dtype=torch.float64), atol=0.1)
    torch.testing.assert_close(zca, zca.T)


def test_rotated_channels_rotate_zca_and_leave_principal_components_but_for_signs() -> None:
    x, rotation = maps(), torch.linalg.qr(maps(3).flatten()[:16].view(4, 4))[0]
    rotated = torch.einsum("ij,njhw->nihw", rotation, x)
    wanted = torch.einsum("ij,njhw->nihw", rotation, decorrelated_batch_norm(x, C))
    torch.testing.assert_close(decorrelated_batch_norm(rotated, C), wanted)
    pca = decorrelated_batch_norm(x, C, "pca")
    torch.testing.assert_close(decorrelated_batch_norm(rotated, C, "pca").abs(), pca.abs())


def test_axes_of_principal_components_swap_where_zca_hardly_moves() -> None:
    for method, moves in (("zca", False), ("pca", True)):
        one, other = (whitening_matrix(torch.diag(torch.tensor(values)), method) for values in ([1.001, 1.0], [1.0, 1.001]))
        assert ((one - other).abs().max() > 0.9) == moves


def test_equal_eigenvalues_leave_principal_components_without_a_derivative() -> None:
    cov = torch.eye(3, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(whitening_matrix(cov, "pca")[0, 1], cov)
    assert not gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own forward derivatives are made with it
def test_derivatives_of_zca_are_those_of_the_decomposition() -> None:
    def by_eigh(cov: Tensor) -> Tensor:
        values, basis = torch.linalg.eigh(cov)
        return basis @ torch.diag_embed((values + 0.1).rsqrt()) @ basis.mT

    def zca(cov: Tensor) -> Tensor:
        return whitening_matrix(cov, eps=0.1)

    z, direction = maps().flatten()[:24].view(2, 3, 4), maps(1).flatten()[:9].view(3, 3)
    for derivative in (grad, hessian):
        ours, theirs = (vmap(derivative(lambda z, root=root: (root(z @ z.T) * direction).sum()))(z) for root in (zca, by_eigh))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("z", [torch.eye(3), torch.zeros(3, 4), torch.ones(3, 4)], ids=["equal", "zero", "rank one"])
def test_equal_eigenvalues_leave_the_derivatives_of_zca_right(z: Tensor) -> None:
    z = z.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: whitening_matrix(z @ z.T, eps=0.3), (z,))
    assert torch.autograd.gradgradcheck(lambda z: whitening_matrix(z @ z.T, eps=0.3), (z,))


@PATHS
def test_evaluation_whitens_by_the_running_covariance(formula: bool) -> None:
    module, x = made("decorrelated:momentum=1.0,size=2"), maps()
    with reference(formula):
        y = module(x)
        module.running_cov *= (72 - 1) / 72  # unbiased -> biased
        torch.testing.assert_close(module.eval()(x), y)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_costs_its_group_and_raises_nothing(bad: float) -> None:
    x = torch.randn(10, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = bad
    y = DecorrelatedBatchNorm(32, size=16)(x)
    assert y[:, :16].isnan().all()
    assert y[:, 16:].isfinite().all()


@pytest.mark.parametrize(("channels", "size"), [(64, 16), (16, 16), (6, 6), (1, 1)])
def test_groups_are_of_sixteen_or_of_all(channels: int, size: int) -> None:
    assert make_norm("decorrelated", channels).running_cov.shape == (channels // size, size, size)


# ------------------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize(
    ("spec", "channels", "error", "says"),
    [
        ("lp:p=3", 4, SpecError, r"p=3.*p=1, p=2, p=inf"),
        ("renorm:r_max=0.5", 4, SpecError, "r_max=0.5.*from 1"),
        ("renorm:d_max=-1", 4, SpecError, "d_max=-1"),
        ("decorrelated:size=3", 4, ShapeError, r"size=3 does not divide 4 channels\. What fits: size=1, 2, 4\."),
        ("decorrelated", 24, ShapeError, "size=16 does not divide 24 channels.*8, 12, 24"),
        ("decorrelated:method=zcaa", 4, UnknownNameError, "did you mean 'zca'"),
    ],
)
def test_bad_arguments_say_what_fits(spec: str, channels: int, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        make_norm(spec, channels)
    assert isinstance(raised.value, NormlibError)


@PATHS
def test_whitening_needs_more_values_than_channels(formula: bool) -> None:
    module, before = DecorrelatedBatchNorm(C), DecorrelatedBatchNorm(C).state_dict()
    with reference(formula):
        with pytest.raises(ShapeError, match=r"more than 4 values per channel.*got input size \(4, 4\).*size=2.*eval\(\)"):
            module(torch.randn(4, C))
        torch.testing.assert_close(dict(module.state_dict()), dict(before))
        assert module(torch.randn(5, C)).isfinite().all()
        assert module.eval()(torch.randn(1, C)).shape == (1, C)


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (BatchRenorm, ["running_mean", "running_var"]),
        (NoisyBatchNorm, ["running_mean", "running_var"]),
        (LpBatchNorm, ["running_mean", "running_scale"]),
        (VarianceNorm, ["running_var"]),
        (DecorrelatedBatchNorm, ["running_mean", "running_cov"]),
    ],
)
def test_what_is_kept_is_reset_and_loads(layer: type[BatchNorm], names: list[str]) -> None:
    module = layer(C, dtype=torch.float64)
    assert set(module.state_dict()) == {"weight", "bias", "num_batches_tracked", *names}
    fresh = copy.deepcopy(module.state_dict())
    module(maps())
    assert all(not torch.equal(module.state_dict()[name], fresh[name]) for name in names)
    twin = layer(C, dtype=torch.float64)
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(twin.eval()(maps(1)), module.eval()(maps(1)))
    module.reset_parameters()
    torch.testing.assert_close(dict(module.state_dict()), dict(fresh))
    assert not list(layer(C, track_running_stats=False).buffers())


@pytest.mark.parametrize("spec", EACH)
def test_torch_averages_the_statistics_of_batches(spec: str) -> None:
    module, batches = made(spec), [maps(seed) for seed in range(3)]
    statistics = []
    for x in batches:
        single = made(spec, momentum=1.0)
        single(x)
        statistics.append([buffer for name, buffer in single.named_buffers() if "running" in name])
    torch.optim.swa_utils.update_bn(batches, module)
    got = [buffer for name, buffer in module.named_buffers() if "running" in name]
    torch.testing.assert_close(got, [torch.stack(each).mean(0) for each in zip(*statistics, strict=True)])


@PATHS
@pytest.mark.parametrize("spec", [spec for spec in EACH if spec != QUIET])  # as in torch, batch norm's own backward reads them
def test_statistics_may_move_before_the_graph_goes_backward(spec: str, formula: bool) -> None:
    module, x = made(spec), maps().requires_grad_()
    module(maps(1))
    for training in (True, False):
        alone, twin = copy.deepcopy(module).train(training), copy.deepcopy(module).train(training)
        with reference(formula):
            (wanted,) = torch.autograd.grad(alone(x), x, maps(2))
            y = twin(x)
            twin.train()(maps(3))
            twin.train()(maps(4))
        torch.testing.assert_close(torch.autograd.grad(y, x, maps(2))[0], wanted)


@pytest.mark.parametrize("spec", EACH)
def test_copies_trained_together_are_copies_trained_alone(spec: str) -> None:
    copies, batches = [made(spec) for _ in range(3)], torch.stack([maps(seed) for seed in range(3)])
    base = copy.deepcopy(copies[0])
    parameters, buffers = stack_module_state(copies)
    together = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), randomness="different")
    torch.testing.assert_close(
        together(parameters, buffers, batches), torch.stack([m(x) for m, x in zip(copies, batches, strict=True)])
    )
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, torch.stack([m.state_dict()[name] for m in copies]))
