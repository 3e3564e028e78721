"""Curves read off the outputs of training are those that a probe measures; setbacks and failures are what they are called."""

from __future__ import annotations

import numpy as np
import torch

from normlib.lab import Config
from normlib.studies.common.arms import images_for
from normlib.studies.unified.ten import QUICK, cnn, fit
from normlib.studies.unified.training_runs import run_of, setback, shares_right

C = Config({**QUICK, "layers": 5, "width": 4, "steps": 10, "batch": 32})
IMAGES, TESTS = images_for(C, 0)


def test_the_curve_is_what_a_probe_sees() -> None:
    seen = run_of(cnn(C, IMAGES, "layer", 0), IMAGES, TESTS, C, 0.1, 0)

    def probe(step, model):
        return {"right": float((model(step.x).argmax(1) == step.y).float().mean())}

    history = fit(cnn(C, IMAGES, "layer", 0), IMAGES, steps=10, rate=0.1, seed=0, batch=32, probe=probe, probe_steps=range(10))
    assert np.allclose(seen["right"], history.probes["right"], atol=1e-6)
    assert seen["step"] == list(range(10)) and np.isclose(seen["speed"], np.mean(history.probes["right"]))
    assert seen["diverged"] == 0 and 0 <= seen["tested"] <= 1


def test_a_diverged_run_is_a_failure_with_wrong_answers() -> None:
    seen = run_of(cnn(C, IMAGES, "none", 0), IMAGES, TESTS, C, 1e6, 0)
    assert seen["diverged"] == seen["failed"] == 1 and seen["setback"] == np.inf
    assert seen["right"][-1] == 0 and np.isnan(seen["tested"]) and np.isnan(seen["held_out"])


def test_a_run_at_chance_is_a_failure_without_divergence() -> None:
    seen = run_of(cnn(C, IMAGES, "batch", 0), IMAGES, TESTS, C, 0.0, 0)
    assert seen["failed"] == 1 and seen["diverged"] == 0


def test_setback_by_a_loop() -> None:
    loss = np.random.default_rng(0).exponential(size=43)
    means = [sum(loss[4 * at : 4 * at + 4]) / 4 for at in range(10)]
    largest = max(later - earlier for at, earlier in enumerate(means) for later in means[at + 1 :])
    assert np.isclose(setback(loss), largest)
    assert setback(np.arange(20.0)[::-1]) == 0 and setback(loss[:5]) == 0


def test_missing_steps_and_outputs_that_are_no_numbers_are_wrong() -> None:
    outputs = [torch.eye(3), torch.full((3, 3), torch.nan)]
    right = shares_right(outputs, torch.tensor([0, 1, 0]), iter([slice(None)] * 9), 4)
    assert np.allclose(right, [2 / 3, 0, 0, 0])
