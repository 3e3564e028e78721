"""Every fault is caught, its sound counterpart passes, and what it costs is what the algebra says."""

from __future__ import annotations

import ast
import copy
import inspect
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normlib
from normlib.errors import UnknownNameError
from normlib.gallery import FAULTS, Fault, faults, scoreboard
from normlib.gallery.running import GraphInBuffers, LateBuffers, Textbook
from normlib.gallery.samples import noise
from normlib.gallery.table import FAMILIES
from normlib.lab.code.digest import modules_behind

PACKAGE = Path(normlib.__file__).parent
EACH = pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in FAULTS.items()])


def imported(path: Path) -> set[str]:
    """The names that a file imports, dots and all."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


@EACH
def test_the_check_catches_the_fault_and_passes_its_counterpart(fault: Fault) -> None:
    wrong, right = fault.deviations()
    assert fault.catches(fault.wrong), wrong
    assert not fault.catches(fault.right), right
    assert math.isnan(wrong) or wrong > 10 * fault.bound, "caught by a hair"
    assert right <= fault.bound / 2, "passes by a hair"


@EACH
def test_the_effect_is_that_of_the_closed_form(fault: Fault) -> None:
    columns = fault.columns()
    assert list(columns)[:3] == [fault.effect.over, "wrong", "right"]
    assert all(math.isfinite(value) for column in columns.values() for value in column)
    assert columns["wrong"] != pytest.approx(columns["right"], rel=1e-2), "it costs nothing at any setting"
    if "predicted" in columns:
        assert columns["wrong"] == pytest.approx(columns["predicted"], rel=1e-5, abs=1e-9)


@EACH
def test_both_implementations_are_called_alike(fault: Fault) -> None:
    wrong, right = (inspect.signature(implementation).parameters for implementation in (fault.wrong, fault.right))
    needed = [[name for name, p in each.items() if p.default is p.empty] for each in (wrong, right)]
    assert needed[0] == needed[1]
    common = [name for name in wrong if name in right]
    assert common == [name for name in right if name in wrong]
    assert all(wrong[name].default == right[name].default for name in common)


@EACH
def test_the_label_is_complete(fault: Fault) -> None:
    assert FAULTS[fault.name] is fault
    assert fault.family in FAMILIES
    assert not fault.title.endswith(".")
    assert all(text.endswith(".") for text in (fault.seen, fault.symptom))
    assert fault.test.startswith("def check_")
    assert fault.test.splitlines()[1].strip().startswith('"""')
    assert fault.code.startswith(("def ", "class "))
    assert len(fault.test.splitlines()) <= 8, "a test that a chapter prints is short"


@pytest.mark.parametrize("name", [fault.name for fault in faults("batch") if inspect.isclass(fault.wrong)])
def test_the_frame_of_the_running_faults_is_sound(name: str) -> None:
    fault = FAULTS[name]
    assert issubclass(fault.wrong, Textbook)
    assert not fault.catches(Textbook)
    assert not fault.catches(nn.BatchNorm1d)


def torch_batch_norm(x, weight=None, bias=None, eps=1e-5):
    weight, bias = (None if vector is None else vector.to(x.dtype) for vector in (weight, bias))
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


TORCH = {
    "per_position": torch_batch_norm,
    "last_axis_affine": torch_batch_norm,
    "last_axis_statistics": torch_batch_norm,
    "affine_on_input": torch_batch_norm,
    "one_pass_variance": torch_batch_norm,
    "eps_on_std": torch_batch_norm,
    "unbiased_forward": torch_batch_norm,
    "detached_statistics": torch_batch_norm,
    "unbiased_std": F.layer_norm,
    "eps_beside_std": F.layer_norm,
    "over_the_batch": F.layer_norm,
    "averaged_layer_norm": nn.LayerNorm,
    "half_statistics": F.rms_norm,
    "per_channel_layer": lambda x: F.group_norm(x, 1),
    "rms_over_positions": lambda x: F.rms_norm(x, x.shape[1:]),
    "interleaved_groups": F.group_norm,
}


@pytest.mark.parametrize("name", TORCH)
def test_the_layers_of_torch_pass(name: str) -> None:
    assert not FAULTS[name].catches(TORCH[name])


def test_a_deviation_that_is_not_a_number_is_caught() -> None:
    assert FAULTS["unbiased_std"].catches(lambda x, shape: x * math.nan)


def test_a_parameter_along_the_last_axis_fails_unless_the_map_is_as_wide_as_it_has_channels() -> None:
    for name in ("last_axis_affine", "last_axis_statistics"):
        norm = FAULTS[name].wrong
        assert norm(noise(8, 5, 5, 5), noise(5)).shape == (8, 5, 5, 5)
        with pytest.raises(RuntimeError, match="must match the size"):
            norm(noise(8, 3, 5, 5), noise(3))


def test_a_checkpoint_of_late_buffers_does_not_load() -> None:
    layer = LateBuffers(3)
    layer(noise(4, 3))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\)"):
        LateBuffers(3).load_state_dict(layer.state_dict())


def test_the_graph_in_the_buffers_grows_by_the_same_amount_each_step_and_cannot_be_copied() -> None:
    columns = FAULTS["graph_in_buffers"].columns()
    first, *later = zip(columns["steps"], columns["wrong"], strict=True)
    grown = {(nodes - first[1]) / (step - first[0]) for step, nodes in later}
    assert len(grown) == 1
    assert grown.pop() > 0
    layer = GraphInBuffers(1).double()
    layer(noise(4, 1).requires_grad_())
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)


def test_the_scoreboard_has_a_row_for_each_fault() -> None:
    board = scoreboard()
    assert board["fault"] == list(FAULTS)
    assert all(board["caught"])
    assert board["wrong"][0] == pytest.approx(1.0)
    assert set(board["family"]) == set(FAMILIES)
    with pytest.raises(UnknownNameError, match="did you mean 'residual'"):
        faults("residuals")


def test_nothing_but_studies_imports_the_gallery() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("gallery", "studies")]
    assert len(files) > 40
    guilty = [str(path) for path in files if any("gallery" in name.split(".") for name in imported(path))]
    assert guilty == []


def test_the_gallery_imports_downwards_only() -> None:
    below = {"gallery", "layers", "weights", "residual", "activations", "spec", "registry", "errors"}
    names = {name for path in (PACKAGE / "gallery").glob("*.py") for name in imported(path)}
    assert {name.split(".")[1] for name in names if name.startswith("normlib.")} <= below


def measured(name: str) -> list[float]:
    return FAULTS["by_module_name"].columns()[name]


def test_a_record_of_a_fault_follows_its_counterpart_in_the_layers_above() -> None:
    behind = modules_behind([measured])
    assert "normlib.gallery.clipping" in behind
    assert "normlib.training.clipping" in behind
    assert "normlib.gallery.residual" not in behind


def test_the_gallery_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    scoreboard()
    assert torch.equal(before, torch.get_rng_state())
