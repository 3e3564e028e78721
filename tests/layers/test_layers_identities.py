"""The algebra of normalizers: which are equal where, and what leaves them unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normlib.layers import (
    NORMS,
    BatchNorm,
    ChannelLayerNorm,
    ChannelRMSNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    batch_norm,
    layer_norm,
    make_norm,
    reference,
    rms_norm,
)

N, C = 3, 4
EACH = ["batch", "layer", "rms", "group:groups=2", "instance"]
FITTING = {"group": "group:groups=2", "evonorm_s0": "evonorm_s0:groups=2"}  # for 4 channels
REGISTERED = [FITTING.get(name, name) for name in NORMS if name != "none"]
PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])


def maps(seed: int = 0, batch: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 + 3 * torch.randn(batch, C, 3, 2, generator=generator, dtype=torch.float64)


def made(spec: str, eps: float = 1e-12) -> torch.nn.Module:
    return make_norm(spec + ("," if ":" in spec else ":") + f"eps={eps}", C, dtype=torch.float64)


@PATHS
def test_layer_is_group_with_one_group(formula: bool) -> None:
    x = maps()
    with reference(formula):
        ours = ChannelLayerNorm(C).double()(x)
        torch.testing.assert_close(ours, GroupNorm(1, C).double()(x))
        torch.testing.assert_close(ours, LayerNorm(x.shape[1:]).double()(x))


@PATHS
def test_layer_is_layer_norm_on_vectors(formula: bool) -> None:
    x = maps()[..., 0, 0]
    with reference(formula):
        torch.testing.assert_close(ChannelLayerNorm(C).double()(x), LayerNorm(C).double()(x))
        torch.testing.assert_close(ChannelRMSNorm(C).double()(x), RMSNorm(C).double()(x))


@PATHS
def test_instance_is_group_with_a_group_per_channel(formula: bool) -> None:
    with reference(formula):
        torch.testing.assert_close(InstanceNorm(C).double()(maps()), GroupNorm(C, C).double()(maps()))


@PATHS
def test_batch_of_one_map_is_instance(formula: bool) -> None:
    x = maps(batch=1)
    with reference(formula):
        torch.testing.assert_close(BatchNorm(C).double()(x), InstanceNorm(C).double()(x))


def test_rms_of_the_centered_is_layer() -> None:
    x = maps()
    centered = x - x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(rms_norm(centered, x.shape[1:], eps=1e-5), layer_norm(x, x.shape[1:]))


def test_batch_norm_of_the_transposed_is_layer_norm() -> None:
    x = maps()[..., 0, 0]
    torch.testing.assert_close(batch_norm(x.T).T, layer_norm(x, (C,)))


def test_evaluation_with_the_batch_statistics_is_training() -> None:
    x = maps()
    module = BatchNorm(C, momentum=1.0, dtype=torch.float64)
    y = module(x)
    count = x.numel() // C
    module.running_var *= (count - 1) / count  # unbiased -> biased
    torch.testing.assert_close(module.eval()(x), y)


@pytest.mark.parametrize("spec", REGISTERED)
@PATHS
def test_fast_path_is_the_formula(spec: str, formula: bool) -> None:
    x = maps().requires_grad_()

    def run(formula: bool) -> Tensor:
        torch.manual_seed(0)  # a norm may draw noise, or remember the batch before
        with reference(formula):
            return make_norm(spec, C, dtype=torch.float64)(x)

    one, other = run(formula), run(not formula)
    torch.testing.assert_close(one, other)
    direction = maps(1)
    torch.testing.assert_close(torch.autograd.grad(one, x, direction), torch.autograd.grad(other, x, direction))


@pytest.mark.parametrize("spec", EACH)
def test_scale_of_the_input_does_not_matter(spec: str) -> None:
    torch.testing.assert_close(made(spec)(5 * maps()), made(spec)(maps()))
    torch.testing.assert_close(made(spec)(-maps()), -made(spec)(maps()))


@pytest.mark.parametrize("spec", EACH)
def test_shift_of_the_input_matters_to_rms_alone(spec: str) -> None:
    same = torch.allclose(made(spec)(maps() + 7), made(spec)(maps()))
    assert same == (spec != "rms")


@pytest.mark.parametrize("spec", EACH)
def test_each_channels_own_scale_and_shift_matter_unless_statistics_are_per_channel(spec: str) -> None:
    scale = torch.arange(1.0, C + 1, dtype=torch.float64).view(C, 1, 1)
    same = torch.allclose(made(spec)(maps() * scale + scale), made(spec)(maps()))
    assert same == (spec in ("batch", "instance"))


@pytest.mark.parametrize("spec", EACH)
def test_the_rest_of_the_batch_matters_to_batch_alone(spec: str) -> None:
    x = maps()
    same = torch.allclose(made(spec)(x)[:1], made(spec)(x[:1]))
    assert same == (spec != "batch")


@pytest.mark.parametrize("spec", EACH)
def test_gradient_is_orthogonal_to_what_does_not_matter(spec: str) -> None:
    x = maps().requires_grad_()
    (gradient,) = torch.autograd.grad(made(spec)(x), x, maps(1))
    assert (gradient * x).sum().abs() < 1e-8 < gradient.abs().max()  # the scale
    if spec != "rms":
        assert gradient.sum().abs() < 1e-8  # the shift
