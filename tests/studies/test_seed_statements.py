"""The studies of the drafts: their measures against closed forms, and one column for each statement."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from normlib.lab import Config, Study, Verdict
from normlib.layers import batch_norm
from normlib.studies import STUDIES, get_study
from normlib.studies.common.statements import at_most, gap, normal, through_network, verdict_counts
from normlib.studies.drafts import (
    seed001_code,
    seed002_rank,
    seed002_signals,
    seed003_bias,
    seed003_formula,
    seed004_effects,
    seed004_statistics,
    seed004_steps,
)

OF_DRAFTS = [name for name in STUDIES if name.startswith("seed")]
OF_DOTS = [
    "seed001.batch", "seed001.layer", "seed001.code", "seed003.formula", "seed004.statistics", "seed004.effects", "seed004.flavors",
]  # fmt: skip


@pytest.fixture(params=OF_DRAFTS)
def study(request: pytest.FixtureRequest) -> Study:
    return get_study(request.param)


def test_claims_are_of_the_draft_or_said_to_be_of_the_notes_and_their_anchors_are_plain(study: Study) -> None:
    assert {claim.by for claim in study.claims} <= {study.source, "notes"}
    assert any(claim.by == study.source for claim in study.claims)
    assert all(claim.slug.isascii() and claim.slug == claim.slug.lower() for claim in study.claims)


@pytest.mark.parametrize("name", OF_DOTS)
def test_each_statement_is_judged_by_a_column_of_its_own(name: str) -> None:
    study = get_study(name)
    columns = study.trial_function(Config({}), 0)
    assert list(columns) == [claim.slug.replace("-", "_") for claim in study.claims]
    for claim in study.claims:
        wrong = pd.DataFrame([{**dict.fromkeys(columns, 0.0), claim.slug.replace("-", "_"): 9.0}])
        verdicts = {other.slug: other.function(wrong).verdict for other in study.claims}
        assert [slug for slug, verdict in verdicts.items() if verdict is Verdict.NOT_REPRODUCED] == [claim.slug]


def test_gap_is_relative_to_the_larger_side() -> None:
    assert gap(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])) == 0.5
    assert gap(torch.zeros(2), 0.0) == 0.0
    assert gap(torch.tensor([1.0]), -1.0) == 2.0
    assert gap(3, 4) == 0.25


def test_the_seed_that_is_furthest_decides() -> None:
    assert at_most(0.1, pd.Series([0.0, 0.3]), "effect").verdict is Verdict.NOT_REPRODUCED
    assert at_most(0.3, pd.Series([0.0, 0.3]), "effect").value == 0.3
    assert at_most(1.0, pd.Series([0.0, math.nan]), "effect").verdict is Verdict.NOT_REPRODUCED


def test_only_the_statements_of_the_draft_are_counted() -> None:
    columns = [claim.slug.replace("-", "_") for claim in seed004_effects.effects.claims]
    assert verdict_counts(seed004_effects.effects, pd.DataFrame([dict.fromkeys(columns, 0.0)])) == "3 of 3"
    assert verdict_counts(seed004_effects.effects, pd.DataFrame([dict.fromkeys(columns, 9.0)])) == "0 of 3"


def test_a_linear_pass_keeps_its_gradient_in_the_mean() -> None:
    growth = through_network(lambda summed: summed, seed=0, depth=12, width=128).growth()
    assert growth == pytest.approx(1, abs=0.06)  # He's weights keep it in expectation


def test_growth_with_batch_norm_is_that_of_mean_field_theory_whatever_the_scale() -> None:
    growth = [through_network(batch_norm, 0, depth=16, width=128, gain=gain).growth() for gain in (1.4, 14.0)]
    assert growth[0] == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.03)
    assert growth[1] == pytest.approx(growth[0], rel=1e-3)


def test_pass_agrees_with_a_finite_difference() -> None:
    found = through_network(batch_norm, 3, depth=2, width=6)
    draws, eps = normal(3, 4, 6, 6), 1e-6
    losses = []
    for sign in (1, -1):
        moved = found.weights[0].clone()
        moved[1, 2] += sign * eps
        hidden = batch_norm(batch_norm(draws[0] @ moved).relu() @ found.weights[1]).relu()
        losses.append(torch.nn.functional.cross_entropy(hidden @ draws[1] / 6**0.5, torch.arange(6)))
    assert float((losses[0] - losses[1]) / (2 * eps)) == pytest.approx(float(found.weight_gradients[0][1, 2]), rel=1e-4)


def test_branches_of_batch_norm_add_one_share_each() -> None:
    assert seed002_signals.added(batch_norm, seed002_signals.identity, 0, blocks=8, width=256) == pytest.approx(1, abs=0.15)


def test_distances_in_closed_form() -> None:
    narrow = seed001_code.drafted_layer_norm(normal(0, 8, 4))
    assert float(narrow.std(-1, correction=0).mean()) == pytest.approx(math.sqrt(3 / 4), abs=1e-4)
    assert seed001_code.refused_maps(0) == 6 / 8  # it takes widths of 1 and 3
    assert seed001_code.spread_in_evaluation(0, batch=2) == pytest.approx(math.sqrt(2), rel=0.02)
    assert seed003_formula.not_restored(0, batch=16) == pytest.approx(math.sqrt(1.5 / 16), rel=0.1)
    assert seed004_effects.change_of_the_update(0) == pytest.approx(3 / 4, abs=1e-6)
    assert [seed004_statistics.positions(3, padding) for padding in (0, 1)] == [14**2, 16**2]


def test_rank_counts_directions_and_the_cosine_follows_the_noise() -> None:
    y = normal(0, 24, 7) @ normal(1, 7, 32)
    assert seed002_rank.rank_of(y @ y.T) == seed002_rank.rank_of(y.T @ y) == 7
    found = seed002_rank.rank.trial_function(Config({"noise": 1.0}), 0)
    assert found["rank"] == 24 and found["cosine"] == pytest.approx(1 / 2, abs=0.1)  # 1 / (1 + noise²)


def test_a_mean_held_constant_drives_the_bias_and_leaves_the_loss() -> None:
    u = normal(0, 32)
    biases, losses = seed003_bias.descend(u, through_the_mean=False, steps=4, rate=0.25)
    assert biases.tolist() == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])  # the gradient is −2 at every step
    assert losses.tolist() == pytest.approx([float(losses[0])] * 5)
    assert float(seed003_bias.descend(u, through_the_mean=True, steps=4)[0].abs().max()) < 1e-12


def test_the_first_order_misses_a_part_that_is_linear_in_the_rate() -> None:
    assert seed004_steps.unforeseen(2, 1e-3, 0) / seed004_steps.unforeseen(2, 1e-4, 0) == pytest.approx(10, rel=0.05)
