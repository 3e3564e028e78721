"""The three properties on a network whose factors are known; the speed beside a training by hand; ranks beside SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from normlib.lab import Config
from normlib.studies.common.arms import images_for
from normlib.studies.unified.properties import from_the_others, observed, one_batch, properties, rank_correlation
from normlib.studies.unified.ten import QUICK, cnn, fit

IMAGES, _ = images_for(Config(QUICK), 0)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Known(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.Sequential(Times(1), Times(3), Times(3), Times(3))
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def test_a_block_that_triples_multiplies_variance_by_nine_and_gradients_by_three() -> None:
    x, y = one_batch(IMAGES, 16, 0)
    net = Known()
    found = properties(net, x, y)
    assert math.isclose(found["variance"], math.log(9), rel_tol=1e-5)
    assert math.isclose(found["gradient"], math.log(3), rel_tol=1e-5)
    maps = net.blocks(net.stem(x)).detach().flatten(1).double().numpy()
    pairs = ~np.eye(16, dtype=bool)
    assert np.isclose(found["centered"], np.corrcoef(maps)[pairs].mean())
    rows = maps / np.linalg.norm(maps, axis=1, keepdims=True)
    assert np.isclose(found["cosine"], (rows @ rows.T)[pairs].mean())


def test_speed_is_the_mean_accuracy_on_each_batch_before_its_update() -> None:
    by_hand: list[float] = []

    def probe(step: object, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            by_hand.append(float((model(step.x).argmax(1) == step.y).double().mean()))  # type: ignore[attr-defined]
        return {}

    c = Config({**QUICK, "width": 4})
    fit(cnn(c, IMAGES, "layer", 0), IMAGES, steps=6, rate=0.1, seed=3, batch=32, probe=probe, probe_steps=range(6))
    found = observed(cnn(c, IMAGES, "layer", 0), IMAGES, steps=6, rate=0.1, seed=3, batch=32)
    assert found == {"speed": float(np.mean(by_hand)), "finite": True}


def test_after_divergence_the_accuracy_is_chance() -> None:
    found = observed(cnn(Config({**QUICK, "width": 4}), IMAGES, "none", 0), IMAGES, steps=12, rate=1e12, seed=0, batch=32)
    assert not found["finite"] and 0.08 < found["speed"] < 0.15  # type: ignore[operator]


def test_rank_correlation_is_scipys_and_has_no_value_for_a_constant() -> None:
    a, b = pd.Series([1.0, 2, 2, 5, math.inf]), pd.Series([3.0, 1, 4, 4, 0])
    assert math.isclose(rank_correlation(a, b), spearmanr(a, b).statistic)
    assert math.isnan(rank_correlation(a, pd.Series(np.ones(5))))


def test_held_out_places_follow_a_monotone_rule_and_do_not_use_the_row_itself() -> None:
    x = pd.DataFrame({"a": [0.0, 1, 2, 3, 4, 5], "b": [3.0, 1, 4, 0, 5, 2]})
    rule = 3 - x.a
    assert rank_correlation(from_the_others(x[["a"]], rule), rule) == 1
    changed = rule.copy()
    changed[2] = 99
    assert from_the_others(x, rule)[2] == from_the_others(x, changed)[2] != 0.5
    noise = from_the_others(x[["a"]] * 0, rule)  # nothing to go by: the middle for everyone, not the mean of the others
    assert np.allclose(noise, 0.5)
