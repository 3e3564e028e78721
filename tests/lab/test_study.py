"""Studies: what a declaration must hold, which trials it stands for, and the table that is drawn and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import toy_studies as toys
from matplotlib.figure import Figure

from normlib.errors import NormlibError, UnknownNameError
from normlib.lab import Config, Drawing, Judgement, Record, Study, Verdict, judge_identity, table_of

Make = Callable[..., Record]


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(Study.instances)
    yield
    Study.instances.clear()
    Study.instances.update(before)


def declare(**changes: Any) -> Study:
    body: dict[str, Any] = {
        "id": "toy.declared", "item": "Fig 1", "title": "a title", "kind": "exact",
        "vary": {"norm": ["none", "batch"], "depth": [1, 2, 3]},
        "quick": {"width": 4, "depth": [1]}, "laptop": {"width": 8}, "full": None,
    }  # fmt: skip
    return Study(**{**body, **changes})


# -- declaring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "nodot"}, "BibTeX key, a dot and an item"),
        ({"id": "two.dots.here"}, "BibTeX key, a dot and an item"),
        ({"id": "toy."}, "BibTeX key, a dot and an item"),
        ({"id": "../toy.declared"}, "BibTeX key, a dot and an item"),
        ({"kind": "exakt"}, "did you mean 'exact'"),
        ({"vary": {"depth": 3}}, "'depth' needs a list of levels in vary, got 3"),
        ({"vary": {"depth": []}}, "'depth' needs a list of levels"),
        ({"quick": {"depth": 1}}, "'depth' needs a list of levels in quick, got 1"),
        ({"quick": {"depth": []}}, "'depth' needs a list of levels in quick"),
        ({"vary": {"seed": [1]}}, "named 'seed'"),
        ({"quick": {"device": "cpu"}}, "quick has a setting named 'device'"),
        ({"laptop": {"values": 3}}, "laptop has a setting named 'values'"),
        ({"seeds": {"quick": 1}}, "no number for laptop"),
    ],
)
def test_a_malformed_declaration_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NormlibError, match=message):
        declare(**changes)
    assert "toy.declared" not in Study.instances


def test_what_is_not_declared_yet_is_told() -> None:
    study = declare()
    for use in (lambda: study.measure(Config({}), [0]), lambda: study.drawing([]), lambda: study.code({})):
        with pytest.raises(NormlibError, match=r"no (trial|draw) yet|no usable records"):
            use()


def test_a_claim_is_found_by_its_slug_once() -> None:
    study = declare()

    @study.claim("slug", "A statement.", criterion="fixed", by="other2020")
    def judge(table: Any) -> Judgement:
        return judge_identity("error", 0.0, 1.0)

    claim = study.claims[0]
    assert (claim.id, claim.anchor, claim.by) == ("toy.declared/slug", "claim-toy-declared-slug", "other2020")
    with pytest.raises(NormlibError, match="two claims named 'slug'"):
        study.claim("slug", "Another.", criterion="fixed")(judge)
    study.claim("other", "Another.", criterion="fixed")(judge)
    assert [claim.by for claim in study.claims] == ["other2020", "toy"]


# -- trials --------------------------------------------------------------------------------------------------------------


def test_configurations_are_the_product_of_levels_with_the_settings() -> None:
    found = declare().configurations("laptop")
    assert found == [{"width": 8, "norm": n, "depth": d} for n in ("none", "batch") for d in (1, 2, 3)]


def test_a_list_in_a_preset_replaces_the_levels() -> None:
    assert declare().configurations("quick") == [{"width": 4, "norm": n, "depth": 1} for n in ("none", "batch")]


def test_trials_go_seed_by_seed() -> None:
    study = declare()
    assert [seed for _, seed in study.trials("laptop")] == [0] * 6 + [1] * 6 + [2] * 6
    assert len(study.trials("laptop", seeds=1)) == 6
    assert study.presets() == ["quick", "laptop"]
    for preset in ("full", "huge"):
        with pytest.raises(UnknownNameError, match="Known: laptop, quick"):
            study.trials(preset)


def test_names_within_settings_count_for_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def digest(_: Any, names: tuple[str, ...]) -> str:
        seen.append(names)
        return "digest"

    monkeypatch.setattr("normlib.lab.study.code_digest", digest)
    study = declare()
    study.trial(lambda c, seed: {})
    study.code({"norms": ["batch", "layer"], "by": {"a": "group"}, "n": 3})
    assert seen == [("a", "batch", "group", "layer")]


def test_settings_are_read_as_attributes() -> None:
    config = Config({"norm": "batch"}, device="cuda")
    config.note("data", 3)
    assert (config.norm, config["norm"], config.device, config.notes, dict(config)) == (
        "batch", "batch", "cuda", {"data": 3}, {"norm": "batch"},
    )  # fmt: skip
    with pytest.raises(UnknownNameError, match=r"did you mean 'norm'.*Declare it in vary"):
        _ = config.nrom


# -- the table -----------------------------------------------------------------------------------------------------------


def test_a_table_has_a_row_for_each_entry_of_the_columns(make_record: Make) -> None:
    records = [
        make_record(config={"norm": "none"}, seed=0, table={"x": [1.0, 2.0], "limit": 5.0}),
        make_record(config={"norm": "batch"}, seed=1, table={"x": [3.0], "limit": 6.0}, status="diverged"),
        make_record(status="failed", table={}),
    ]
    table = table_of(records)
    assert table.to_dict("list") == {
        "norm": ["none", "none", "batch"], "seed": [0, 0, 1], "status": ["ok", "ok", "diverged"],
        "x": [1.0, 2.0, 3.0], "limit": [5.0, 5.0, 6.0],
    }  # fmt: skip


def test_single_values_make_one_row(make_record: Make) -> None:
    table = table_of([make_record(config={"a": 1}, table={"x": 2.0}), make_record(config={"a": 2}, table={})])
    assert table.a.tolist() == [1, 2]
    assert table.x.isna().tolist() == [False, True]


def test_a_list_among_the_settings_stays_one_value(make_record: Make) -> None:
    table = table_of([make_record(config={"sizes": [64, 10]}, table={"x": [1.0, 2.0, 3.0]})])
    assert table.sizes.tolist() == [[64, 10]] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": {"norm": "layer"}}, r"named like settings: \['norm'\]"),
        ({"table": {"norm": ["batch", "batch"]}}, r"named like settings: \['norm'\]"),
        ({"table": {"seed": 3}}, r"named like settings: \['seed'\]"),
        ({"table": {"status": "fine"}}, r"named like settings: \['status'\]"),
        ({"table": {"x": [1, 2], "y": [1, 2, 3]}}, r"different lengths: \[2, 3\]"),
        ({"status": "failed"}, "no usable records.*normlib run"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(make_record: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NormlibError, match=message):
        table_of([make_record(**changes)])


def test_a_column_may_repeat_a_setting(make_record: Make) -> None:
    assert table_of([make_record(table={"norm": "batch", "x": [1, 2]})]).norm.tolist() == ["batch", "batch"]


# -- drawing and judging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"caption": ""}, "'caption'"), ({"alt": " \n"}, "'alt'"), ({"alt": "x" * 251}, "251 characters.*at most 250")],
)
def test_a_drawing_has_its_two_texts(changes: dict[str, str], message: str) -> None:
    with pytest.raises(NormlibError, match=message):
        Drawing(Figure(), **{"caption": "What is so.", "alt": "What is drawn.", **changes})
    assert Drawing(Figure(), caption="c", alt="x" * 250).alt


def test_records_are_drawn_and_judged(make_record: Make) -> None:
    records = [
        make_record(study="toy.noise", config={"arm": arm}, table={"numpy": 0.5, "threads": threads})
        for arm, threads in ((1, 1), (2, 1), (3, 2))
    ]
    assert toys.noise.drawing(records[:2]).caption == "Noise."
    [(claim, judgement)] = toys.noise.judge(records[:2])
    assert (claim.slug, judgement.verdict) == ("threads", Verdict.REPRODUCED)
    assert toys.noise.judge(records)[0][1].verdict is Verdict.NOT_REPRODUCED
