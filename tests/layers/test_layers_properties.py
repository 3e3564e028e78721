"""What holds for any shape, dtype and memory layout, of every registered norm."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from definitions import Case
from every_norm import (
    BATCH_STATISTICS,
    CHANNEL_GROUPS,
    NOISE,
    REGISTERED,
    built,
    ghost,
    laid_out,
    layouts,
    least_count,
    least_rank,
    mixes_samples,
    named,
    run,
    values,
    with_argument,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
DRAWN = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=str)


@st.composite
def shapes(draw: st.DrawFn, case: Case) -> tuple[int, ...]:
    """N from 2 up, C a multiple of 4, up to four axes of positions, as far as the norm takes them."""
    rank, channels = draw(st.integers(least_rank(case), 6)), draw(st.sampled_from([4, 8]))
    positions = [draw(st.integers(1, 3)) for _ in range(2, rank)]
    if least_rank(case) > 2:  # statistics of a channel of a sample
        positions[0] = max(positions[0], 2)
    least = max(2, -(-least_count(case, channels) // math.prod(positions)))
    samples = draw(st.integers(least, max(5, least)))
    return -(-samples // ghost(case)) * ghost(case), channels, *positions


@st.composite
def layers(draw: st.DrawFn, case: Case, channels: int) -> nn.Module:
    spec = with_argument(case.spec, affine=draw(st.booleans()))
    return built(spec, channels, draw(st.sampled_from(list(TOLERANCE))), training=draw(st.booleans()))


def dtype_of(module: nn.Module, otherwise: torch.dtype = torch.float64) -> torch.dtype:
    found = [t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    return found[0] if found else otherwise


def derivatives(y: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    direction = values(*y.shape, seed=3, dtype=y.dtype)
    return list(torch.autograd.grad(y, [x, *module.parameters()], direction, materialize_grads=True))


def same(got: object, wanted: object, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got, wanted, **TOLERANCE[dtype])


@each(REGISTERED)
@given(data=st.data())
@DRAWN
def test_fast_path_is_the_formula_and_leaves_the_input_alone(case: Case, data: st.DataObject) -> None:
    shape = data.draw(shapes(case))
    module = data.draw(layers(case, shape[1]))
    dtype = dtype_of(module)
    x = laid_out(values(*shape, dtype=dtype), data.draw(st.sampled_from(layouts(case))))
    before, version = x.clone(), x._version
    x.requires_grad_()
    found = []
    for formula in (False, True):
        layer = copy.deepcopy(module)
        y = run(layer, x, formula)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        found.append((y, derivatives(y, layer, x), dict(layer.named_buffers())))
    assert x._version == version
    assert torch.equal(x, before)
    same(found[0], found[1], dtype)


@each(REGISTERED)
@given(data=st.data())
@DRAWN
def test_memory_does_not_matter(case: Case, data: st.DataObject) -> None:
    shape, formula = data.draw(shapes(case)), data.draw(st.booleans())
    module = data.draw(layers(case, shape[1]))
    dtype = dtype_of(module)
    there = laid_out(values(*shape, dtype=dtype), data.draw(st.sampled_from(layouts(case))))
    here = there.clone(memory_format=torch.contiguous_format)
    found = []
    for x in (here.requires_grad_(), there.requires_grad_()):
        layer = copy.deepcopy(module)
        y = run(layer, x, formula)
        found.append((y, derivatives(y, layer, x), dict(layer.named_buffers())))
    same(found[0], found[1], dtype)


@each(REGISTERED)
@given(data=st.data())
@DRAWN
def test_order_of_the_samples_does_not_matter(case: Case, data: st.DataObject) -> None:
    shape, formula = data.draw(shapes(case)), data.draw(st.booleans())
    module = data.draw(layers(case, shape[1]))
    if ghost(case) > 1 or named(case) in NOISE:  # neighbors are a batch
        module.eval()
    x = values(*shape, dtype=dtype_of(module))
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    y = run(copy.deepcopy(module), x, formula)
    same(run(module, x[order], formula), y[order], x.dtype)


@each([case for case in REGISTERED if named(case) not in CHANNEL_GROUPS])
@given(data=st.data())
@DRAWN
def test_order_of_the_channels_does_not_matter_without_groups(case: Case, data: st.DataObject) -> None:
    shape, formula = data.draw(shapes(case)), data.draw(st.booleans())
    module = data.draw(layers(case, shape[1]))
    if named(case) in NOISE:
        module.eval()
    x = values(*shape, dtype=dtype_of(module))
    order = torch.tensor(data.draw(st.permutations(range(shape[1]))))
    y = run(copy.deepcopy(module), x, formula)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.shape == (shape[1],):
            tensor.data = tensor.data[order]
    same(run(module, x[:, order], formula), y[:, order], x.dtype)


@each([case for case in REGISTERED if not mixes_samples(case, training=False)])
@given(data=st.data())
@DRAWN
def test_a_sample_alone_gives_what_it_gives_in_a_batch(case: Case, data: st.DataObject) -> None:
    shape, formula = data.draw(shapes(case)), data.draw(st.booleans())
    module = data.draw(layers(case, shape[1]))
    if mixes_samples(case, training=True):
        module.eval()
    x, one = values(*shape, dtype=dtype_of(module)), data.draw(st.integers(0, shape[0] - 1))
    alone, together = copy.deepcopy(module), run(module, x, formula)
    same(run(alone, x[one : one + 1], formula), together[one : one + 1], x.dtype)


@each(REGISTERED)
@pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
def test_statistics_are_of_the_batch_where_the_table_says_so(case: Case, formula: bool) -> None:
    shape = (4, 4, *case.shapes[-1][2:])
    module, x, other = built(case.spec, 4), values(*shape), 100 * values(*shape, seed=1)  # beyond any limit of renorm
    other[:1] = x[:1]
    for training in (True, False):
        one, two = (run(copy.deepcopy(module).train(training), batch, formula)[0] for batch in (x, other))
        assert torch.allclose(one, two) != mixes_samples(case, training)


@pytest.mark.parametrize("spec", [case.spec for case in REGISTERED if named(case) in CHANNEL_GROUPS])
def test_channels_are_in_groups_where_the_table_says_so(spec: str) -> None:
    module, x, order = built(with_argument(spec, affine=False), 8).eval(), values(3, 8, 4), torch.tensor([0, 4, 2, 6, 1, 5, 3, 7])
    fast = not torch.allclose(run(module, x[:, order]), run(module, x)[:, order])
    assert fast or "size=1" in spec


def test_every_exception_is_a_norm() -> None:
    known = {named(case) for case in REGISTERED}
    assert set(BATCH_STATISTICS) | set(CHANNEL_GROUPS) | set(NOISE) <= known
