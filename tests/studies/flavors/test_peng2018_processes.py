"""Real processes: what goes wrong in one of them is told, and one process with all images is ordinary training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from normlib.errors import NormlibError
from normlib.studies.flavors.peng2018_processes import in_processes
from normlib.studies.flavors.sync_process import network, run


def batch() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=generator)
    return {"classes": 3, "seed": 1, "x": x, "y": torch.arange(6) % 3, "shards": [2, 4]}


def test_one_process_is_the_gradient_of_the_mean_loss() -> None:
    task = batch()
    net = network("batch", 3, 1)
    F.cross_entropy(net(task["x"]), task["y"]).backward()
    found = run("batch", **task)
    assert torch.allclose(found["gradients"], torch.cat([p.grad.flatten() for p in net.parameters()]))


def test_two_processes_and_a_failure() -> None:
    task = batch()
    whole, found = run("batch", **task), in_processes(task)
    assert torch.allclose(found["sync"]["gradients"], whole["gradients"], atol=1e-12)
    assert not torch.allclose(found["batch"]["gradients"], whole["gradients"], atol=1e-3)
    with pytest.raises(NormlibError, match="failed and printed"):
        in_processes({**task, "y": task["y"][:3], "shards": [6]})
