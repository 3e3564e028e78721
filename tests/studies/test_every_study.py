"""What every registered study must keep to; a new study is tested by being registered."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from normlib.book.payload import StudyPage, study_page
from normlib.lab import PRESETS, Record, Store, Study, Verdict, run
from normlib.lab.reading.results import best_records
from normlib.lab.records import committed_results
from normlib.lab.style import DARK, PAPER, dark, to_svg
from normlib.studies import STUDIES, get_study

ROOT = Path(__file__).resolve().parents[2]
KEYS = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
QUICK_SECONDS = 10


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("results"))


@pytest.fixture(params=list(STUDIES))
def study(request: pytest.FixtureRequest) -> Study:
    return get_study(request.param)


def test_the_declaration_is_whole(study: Study) -> None:
    assert study.presets()[:2] == ["quick", "laptop"]
    assert study.source in KEYS and {claim.by for claim in study.claims} <= KEYS
    assert study.claims, "a study without a claim decides nothing"
    assert all(claim.criterion and claim.statement.endswith(".") for claim in study.claims)
    if study.kind != "exact":
        assert study.seeds["laptop"] >= 3 and (study.full is None or study.seeds["full"] >= 5)


def test_quick_runs_in_time_and_the_same_again(study: Study, store: Store) -> None:
    clock = time.process_time()
    outcome = run(study, "quick", store=store)
    assert outcome.failures == [] and outcome.left == 0
    assert time.process_time() - clock < 2 * QUICK_SECONDS, "twice the preset's bound: this machine may be busy"
    config, seed = study.trials("quick")[0]
    first = next(r for r in store.read(study.id, "quick") if r.config == config and r.seed == seed)
    assert not run(study, "quick", store=store).ran
    other = Store(store.folder / "again")
    study_one = [(config, seed)]
    study.trials = lambda *_, **__: study_one  # type: ignore[method-assign]
    try:
        run(study, "quick", store=other)
    finally:
        del study.trials  # type: ignore[method-assign]
    again = other.read(study.id, "quick")[0].table
    assert again.keys() == first.table.keys()
    assert study.kind == "timing" or again == first.table, "same seed, same device, same record"


def test_quick_is_drawn_and_judged(study: Study, store: Store) -> None:
    run(study, "quick", store=store)
    page = study_page(best_records(study, store, "quick"), None)
    assert 20 < len(page.shown.alt) <= 250 and len(page.shown.caption) > 40
    assert "nan" not in page.shown.caption.lower() and "{" not in re.sub(r"\$[^$]*\$", "", page.shown.caption)
    assert {claim.verdict for claim in page.claims} <= {verdict.value for verdict in Verdict}
    assert StudyPage.from_json(page.to_json()) == page
    night = dark(page.shown.svg)
    assert DARK[PAPER] in night and PAPER not in night
    drawing = study.drawing(best_records(study, store, "quick").records)
    assert to_svg(drawing.figure) == page.shown.svg, "a figure is the same on every run"


def test_committed_records_are_whole_fresh_and_small(study: Study) -> None:
    committed = {p: _committed(study, p) for p in PRESETS if p != "quick" and p in study.presets()}
    assert committed["laptop"], f"no laptop records: normlib run {study.id} --preset laptop"
    for preset, records in committed.items():
        if not records:
            continue
        trials = {(json.dumps(dict(c), sort_keys=True), s) for c, s in study.trials(preset)}
        assert {(json.dumps(r.config, sort_keys=True), r.seed) for r in records} >= trials, f"{preset} is incomplete"
        assert all(study.is_fresh(r) for r in records), f"{preset} is stale: run it again"
        assert all(r.status in ("ok", "diverged") and not r.dirty and r.commit for r in records)
        assert max(len(record.to_line()) for record in records) < 20_000, "at most 60 points a curve, 5 digits a number"


def _committed(study: Study, preset: str) -> list[Record]:
    return Store(committed_results()).read(study.id, preset)


def test_the_folder_of_records_is_small() -> None:
    assert sum(path.stat().st_size for path in committed_results().rglob("*.jsonl")) < 20e6


def test_numbers_of_a_page_are_finite_or_said_to_be_otherwise(study: Study, store: Store) -> None:
    run(study, "quick", store=store)
    for _, judgement in study.judge(store.read(study.id, "quick")):
        assert judgement.effect and (np.isfinite(judgement.value) or judgement.verdict is not Verdict.REPRODUCED)
