"""Specs, the table of norms, the reference switch, and what the errors say."""

from __future__ import annotations

import inspect
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import (
    NORMS,
    BatchNorm,
    ChannelLayerNorm,
    ChannelRMSNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    ShapeError,
    SpecError,
    by_formula,
    make_norm,
    parse_spec,
    reference,
)

FUSED = (BatchNorm, InstanceNorm, GroupNorm, LayerNorm, RMSNorm, ChannelLayerNorm, ChannelRMSNorm)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("none", ("none", {})),
        ("batch", ("batch", {})),
        ("batch:momentum=0.01", ("batch", {"momentum": 0.01})),
        ("batch:momentum=None,affine=False", ("batch", {"momentum": None, "affine": False})),
        ("group:groups=8", ("group", {"groups": 8})),
        (" group : size = 8 , eps = 1e-3 ", ("group", {"size": 8, "eps": 1e-3})),
        ("instance:affine=true", ("instance", {"affine": True})),
        ("layer:eps=some", ("layer", {"eps": "some"})),
    ],
)
def test_specs_read(spec: str, wanted: tuple[str, dict[str, object]]) -> None:
    name, kwargs = parse_spec(spec, NORMS)
    assert (name, kwargs) == wanted
    assert [type(value) for value in kwargs.values()] == [type(value) for value in wanted[1].values()]


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("bacth", UnknownNameError, "did you mean 'batch'"),
        ("", UnknownNameError, "Known: .*batch.*none"),
        ("batch:momentun=0.1", UnknownNameError, "did you mean 'momentum'"),
        ("group:group=8", UnknownNameError, "did you mean 'groups'"),
        ("none:eps=1", UnknownNameError, "argument of norm 'none'"),
        ("batch:device=cpu", UnknownNameError, "argument of norm 'batch'"),
        ("batch:", SpecError, "argument=value"),
        ("group:8", SpecError, "'8' should read argument=value"),
        ("group:size=8,", SpecError, "argument=value"),
        ("group:size=8,size=4", SpecError, "gives 'size' twice"),
        (None, SpecError, "got None"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        make_norm(spec, 8)
    assert isinstance(raised.value, NormlibError)


@pytest.mark.parametrize("name", NORMS)
def test_each_norm_keeps_the_contract(name: str) -> None:
    factory = NORMS[name]
    parameters = list(inspect.signature(factory).parameters.values())
    assert {"device", "dtype"} <= {p.name for p in parameters}
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
    assert inspect.getdoc(factory)
    module = make_norm(name, 32, dtype=torch.float64)
    assert all(t.dtype == torch.float64 for t in module.parameters())
    assert module(torch.randn(2, 32, 3, 3, dtype=torch.float64)).shape == (2, 32, 3, 3)
    assert all(p.is_meta for p in make_norm(name, 32, device="meta").parameters())


@pytest.mark.parametrize("name", [name for name in NORMS if name != "none"])
def test_each_norm_cites_its_source(name: str) -> None:
    assert re.search(r"Source: `[a-z]+\d{4}[a-z]*`", inspect.getdoc(NORMS[name]) or "")


def test_what_the_names_make() -> None:
    x = torch.randn(2, 3)
    assert make_norm("none", 3)(x) is x
    assert make_norm("group", 64).num_groups == 32
    assert make_norm("group:size=8", 24).num_groups == 3
    assert make_norm("group:groups=4", 24).num_groups == 4
    assert make_norm("batch:momentum=None", 3).momentum is None


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("group:size=8", r"size=8 does not divide 12 channels\. What fits: size=1, 2, 3, 4, 6, 12\."),
        ("group", r"groups=32 does not divide 12 channels\. What fits: groups=1, 2, 3, 4, 6, 12\."),
        ("group:groups=0", "groups=0 does not divide"),
        ("group:groups=2,size=6", "not both"),
    ],
)
def test_groups_that_do_not_fit(spec: str, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        make_norm(spec, 12)


@pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
@pytest.mark.parametrize(
    ("module", "shape", "says"),
    [
        (BatchNorm(3), (1, 3), "more than 1 value per channel when training.*larger batch"),
        (BatchNorm(3), (1, 3, 1, 1), "more than 1 value per channel"),
        (BatchNorm(3, track_running_stats=False).eval(), (1, 3), "more than 1 value per channel"),
        (InstanceNorm(3), (4, 3), "more than 1 value per sample and channel.*use layer, group or batch"),
        (InstanceNorm(3), (4, 3, 1, 1), "more than 1 value per sample and channel"),
        (GroupNorm(3, 3), (1, 3), "more than 1 value per group.*fewer groups"),
        (BatchNorm(3), (2, 4), r"\(N, 3, \*\).*got \(2, 4\).*as many channels"),
        (BatchNorm(3), (2, 5, 5, 3), "movedim"),
        (InstanceNorm(3), (3, 5, 5), r"x\[None\]"),
        (GroupNorm(1, 3), (3,), r"x\[None\]"),
        (ChannelRMSNorm(3), (2, 4), "ChannelRMSNorm expects"),
        (LayerNorm(3), (2, 4), r"\(\*, 3\).*got \(2, 4\)"),
        (LayerNorm((3, 2)), (2,), "normalized_shape last"),
        (RMSNorm((3, 2)), (3, 1), "RMSNorm expects"),
    ],
)
def test_shapes_that_do_not_fit(module: nn.Module, shape: tuple[int, ...], says: str, formula: bool) -> None:
    with reference(formula), pytest.raises(ValueError, match=says) as raised:
        module(torch.randn(shape))
    assert isinstance(raised.value, NormlibError)


@pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])
def test_an_error_leaves_the_buffers_alone(formula: bool) -> None:
    module = BatchNorm(3)
    with reference(formula), pytest.raises(ShapeError):
        module(torch.randn(1, 3))
    assert module.num_batches_tracked.item() == 0


def test_one_value_per_channel_is_fine_in_evaluation() -> None:
    assert BatchNorm(3).eval()(torch.ones(1, 3)).shape == (1, 3)
    assert InstanceNorm(3, track_running_stats=True).eval()(torch.ones(4, 3)).shape == (4, 3)


def test_reference_nests_and_ends_with_an_error() -> None:
    assert not by_formula()
    with reference():
        with reference(False):
            assert not by_formula()
        assert by_formula()
    with pytest.raises(KeyError), reference():
        raise KeyError
    assert not by_formula()


def test_reference_belongs_to_its_thread() -> None:
    with reference(), ThreadPoolExecutor(1) as pool:
        assert not pool.submit(by_formula).result()
        assert by_formula()


def test_reference_reaches_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a fused operation ran")

    modules = [make_norm(name, 32) for name in NORMS] + [LayerNorm(4), RMSNorm(4)]
    for fused in ("batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm"):
        monkeypatch.setattr(nn.functional, fused, refuse)
    for module in modules:
        with reference():
            assert module(torch.ones(5, 32, 4)).shape == (5, 32, 4)
        if type(module) in FUSED:
            with pytest.raises(AssertionError, match="fused"):
                module(torch.ones(5, 32, 4))
