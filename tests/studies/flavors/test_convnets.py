"""The recipe of the comparisons: workers share gradients and not statistics, and every norm starts from the same weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from normlib.lab import Config
from normlib.studies.common.arms import images_for
from normlib.studies.flavors.convnets import Workers, convnet, errors, fit

SMALL = Config({"data": "digits", "train": 256, "test": 64, "validation": 64, "depth": 4, "width": 8})


def test_workers_are_ghost_batches_in_value_and_gradient() -> None:
    tune, _ = images_for(SMALL, 0)
    x, y = tune.x_train[:16], tune.y_train[:16]
    apart, ghosts = Workers(convnet(SMALL, tune, "batch", 0), 4), convnet(SMALL, tune, "batch:ghost=4", 0)
    grads = [torch.autograd.grad(F.cross_entropy(net(x), y), net.parameters()) for net in (apart, ghosts)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))
    assert not torch.allclose(apart(x), convnet(SMALL, tune, "batch", 0)(x), atol=1e-2)
    apart.eval()
    assert torch.equal(apart(x), apart.network(x))


def test_norms_start_alike_and_learn() -> None:
    tune, images = images_for(SMALL, 0)
    nets = {norm: convnet(SMALL, tune, norm, 3) for norm in ("batch", "group:size=4")}
    first = [net.blocks.get_parameter("0.layer.weight") for net in nets.values()]
    assert torch.equal(*first)
    before = errors(nets["batch"], tune, images)
    history = fit(nets["batch"], tune, epochs=5, rate=0.1, seed=0, per_statistic=16)
    after = errors(nets["batch"], tune, images)
    assert history.diverged_at is None and len(history.loss) == 5 * 3
    assert after["train_error"] < before["train_error"] - 30
