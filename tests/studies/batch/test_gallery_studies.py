"""The studies of the gallery: every fault of the family is shown, and the measures do what they say."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from normlib.gallery import FAULTS, faults
from normlib.gallery.running import Textbook
from normlib.gallery.samples import noise
from normlib.lab import Config, Verdict
from normlib.lab.code.digest import code_digest
from normlib.layers import batch_norm
from normlib.studies.batch import gallery, gallery_effects, gallery_trained
from normlib.training import accuracy

FAMILY = [fault.name for fault in faults("batch")]


def table_of(study) -> pd.DataFrame:
    runs = [{**c, "seed": seed, **study.measure(Config(c), [seed])[0]} for c, seed in study.trials("quick")]
    return pd.concat([pd.DataFrame(run, index=None if isinstance(run.get("setting"), list) else [0]) for run in runs])


def verdict_of(study, slug, table) -> Verdict:
    return next(claim for claim in study.claims if claim.slug == slug).function(table).verdict


@pytest.fixture(scope="module")
def checked() -> pd.DataFrame:
    return table_of(gallery.batch)


def test_every_fault_of_the_family_is_shown_and_drawn_once() -> None:
    assert sorted(gallery.batch.vary["fault"]) == sorted(FAMILY)
    assert sorted(gallery_effects.effects.vary["fault"] + gallery_effects.running.vary["fault"]) == sorted(FAMILY)
    assert set(gallery_trained.ARMS[1:]) <= set(gallery_effects.running.vary["fault"])


def test_a_record_follows_its_own_fault() -> None:
    digests = {code_digest([gallery.batch.trial_function], [name]) for name in FAMILY}
    assert len(digests) == len(FAMILY)


def test_the_usual_test_sees_what_it_should() -> None:
    assert gallery.usual_test(batch_norm) < 1e-5
    assert gallery.usual_test(Textbook) < 1e-5
    assert gallery.usual_test(FAULTS["unbiased_forward"].wrong) == pytest.approx(1 - math.sqrt(63 / 64), abs=1e-5)
    assert gallery.usual_test(lambda x: x) > 1
    assert gallery.usual_test(lambda x: batch_norm(x) + 0.1) == pytest.approx(0.1, abs=1e-5)


def test_a_fault_that_escapes_and_a_sound_layer_that_does_not_change_the_verdict(checked: pd.DataFrame) -> None:
    assert verdict_of(gallery.batch, "caught", checked) is Verdict.REPRODUCED
    for column, value in (("wrong", 0.0), ("right", 1.0), ("right", math.nan)):
        changed = checked.reset_index(drop=True)
        changed.loc[3, column] = value
        assert verdict_of(gallery.batch, "caught", changed) is Verdict.NOT_REPRODUCED


def test_a_test_that_torch_fails_changes_the_verdict(checked: pd.DataFrame) -> None:
    assert verdict_of(gallery.batch, "torch-passes", checked) is Verdict.REPRODUCED
    assert verdict_of(gallery.batch, "torch-passes", checked.assign(torch=1.0)) is Verdict.NOT_REPRODUCED
    assert verdict_of(gallery.batch, "usual-test", checked.assign(usual=1.0)) is Verdict.NOT_REPRODUCED
    assert verdict_of(gallery.batch, "five-in-one-class", checked.assign(usual=math.nan)) is Verdict.NOT_REPRODUCED


def test_a_curve_that_leaves_its_closed_form_changes_the_verdict() -> None:
    table = table_of(gallery_effects.running)
    assert verdict_of(gallery_effects.running, "closed-forms", table) is Verdict.REPRODUCED
    worse = table.assign(wrong=table.wrong.where(table.fault != "biased_buffer", table.wrong + 1e-3))
    assert verdict_of(gallery_effects.running, "closed-forms", worse) is Verdict.NOT_REPRODUCED
    faster = table.assign(wrong=table.wrong.where(table.setting != 32, 2 * table.wrong))
    assert verdict_of(gallery_effects.running, "graph-grows", faster) is Verdict.NOT_REPRODUCED


@pytest.fixture(scope="module")
def nets() -> dict[str, list[float]]:
    """Scores on noise in two orders, and that of the library's own evaluation, of one untrained network a layer."""
    c = Config({"width": 8, "hidden": 2})
    x = torch.cat([noise(500, 6), 3 + noise(500, 6, seed=1)]).float()
    y, images = torch.arange(1000) % 3, pd.Series({"x_test": x, "classes": 3})
    found = {}
    for name in gallery_trained.ARMS:
        net = gallery_trained.network(FAULTS[name].wrong if name in FAULTS else Textbook, images, c, seed=0)
        mixed = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
        before = {key: value.clone() for key, value in net.state_dict().items()}
        scores = [gallery_trained.score(net, x, y), gallery_trained.score(net, x[mixed], y[mixed])]
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "scoring leaves the network alone"
        found[name] = [*scores, accuracy(net, x, y, statistics="eval", batch_size=16)]
    return found


def test_the_order_matters_to_the_two_faults_of_modes_alone(nets: dict[str, list[float]]) -> None:
    differ = {name for name, (one, other, _) in nets.items() if one != other}
    assert differ == {"updated_in_evaluation", "batch_in_evaluation"}


def test_the_score_is_the_librarys_accuracy(nets: dict[str, list[float]]) -> None:
    assert all(one == library for one, _, library in nets.values())
