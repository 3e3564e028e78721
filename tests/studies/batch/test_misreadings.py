"""The studies of misreadings: one column for each statement, and the measures against independent computation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from normlib.lab import Config, Verdict
from normlib.studies import get_study
from normlib.studies.batch import misreadings, misreadings_why
from normlib.studies.common.statements import normal

STUDIES = ["notes.misreadings", "notes.misreadings_why"]


@pytest.mark.parametrize("name", STUDIES)
def test_each_statement_is_judged_by_a_column_of_its_own(name: str) -> None:
    study = get_study(name)
    columns = study.trial_function(Config({}), 0)
    assert list(columns) == [claim.slug.replace("-", "_") for claim in study.claims]
    for claim in study.claims:
        wrong = pd.DataFrame([{**dict.fromkeys(columns, 0.0), claim.slug.replace("-", "_"): 9.0}])
        verdicts = {other.slug: other.function(wrong).verdict for other in study.claims}
        assert [slug for slug, verdict in verdicts.items() if verdict is Verdict.NOT_REPRODUCED] == [claim.slug]


@pytest.mark.parametrize("name", STUDIES)
def test_claims_are_of_a_draft_or_of_the_notes_and_no_draft_has_them_yet(name: str) -> None:
    study = get_study(name)
    drafts = {"seed001", "seed003", "seed004"}
    assert {claim.by for claim in study.claims} <= drafts | {"notes"}
    own = {claim.statement for room in ("batch", "code", "layer") for claim in get_study(f"seed001.{room}").claims} | {
        claim.statement for item in ("statistics", "effects") for claim in get_study(f"seed004.{item}").claims
    }
    assert not own & {claim.statement for claim in study.claims}


def test_the_error_of_a_batch_mean_is_one_over_the_root_of_its_size() -> None:
    data = normal(0, 1, 100_000)
    for batch in (2, 50):
        assert misreadings.error_of_batch_means(data, batch) == pytest.approx(batch**-0.5, rel=0.03)
    assert misreadings.error_of_batch_means(data[:, :80], 80) == pytest.approx(0, abs=1e-12)  # the batch is the data


def test_more_data_would_be_seen_if_the_error_grew_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misreadings, "error_of_batch_means", lambda data: math.log(data.shape[1]))
    assert misreadings.missing_growth(0) == 0.0


def test_statistics_of_a_batch_that_is_shifted_are_remembered_by_a_tenth() -> None:
    x = normal(0, 32, 4)
    assert misreadings.distance_of_memory(20.0, x) < 1e-10
    layer = torch.nn.BatchNorm1d(4).double()
    layer(x + 20)
    assert torch.allclose(layer.running_mean, 0.1 * (x.mean(0) + 20))  # type: ignore[arg-type]


def test_the_slope_of_a_sigmoid_in_closed_form() -> None:
    for x in (0.0, 2.0, 8.0):
        logistic = 1 / (1 + math.exp(-x))
        assert float(misreadings_why.slope(x)) == pytest.approx(logistic * (1 - logistic))


def test_a_bias_follows_the_gradient_of_a_loss_whose_mean_is_held_constant() -> None:
    u = normal(0, 64)
    biases, losses = misreadings_why.follow(u, 0.1)
    of_b = torch.func.grad(lambda b: (u + b - u.mean() - 1).square().mean())(torch.zeros((), dtype=u.dtype))
    assert float(biases[1]) == pytest.approx(-0.1 * float(of_b)) == pytest.approx(0.2)
    assert float(losses[-1]) == pytest.approx(float((u - u.mean() - 1).square().mean()))


def test_scaling_weights_against_each_other_sets_the_ratio_of_the_gradients_and_the_inverse_of_the_shift() -> None:
    found = {by: misreadings_why.gradients_and_shift(3, by) for by in (1.0, 10.0, 0.1)}
    assert [found[by][0] for by in found] == pytest.approx([1, 100, 0.01], rel=1e-6)
    shifts = np.array([found[by][1] for by in found])
    assert shifts / shifts[0] == pytest.approx([1, 0.01, 100], rel=0.05)


def test_moments_do_not_move_without_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misreadings_why, "RATE", 0.0)
    monkeypatch.setattr(misreadings_why, "STEPS", 2)
    assert misreadings_why.largest_move(0) == 0.0
