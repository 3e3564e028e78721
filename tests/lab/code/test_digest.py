"""The digest of a trial: it sees every edit that can change a number, and no other. Each case is a small package and one edit."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_studies import code_of

from normlib.errors import NormlibError
from normlib.lab import Study
from normlib.lab.code import digest
from normlib.studies import STUDIES, get_study

PACKAGE: dict[str, str] = {
    "__init__.py": '''
        import importlib
        _PUBLIC = {"lazily": "toy.lazy"}
        def __getattr__(name):
            return getattr(importlib.import_module(_PUBLIC[name]), name)
    ''',
    "study.py": '''
        """A study."""
        from __future__ import annotations
        import numpy as np
        import toy
        import toy.deep.well
        from toy import tools
        from toy.helper import scaled as scale
        from toy.table import THINGS
        STEPS = 3
        study = Study("toy.study", title="a title")

        @study.trial
        def _(c, seed: int) -> dict:
            """Measure."""
            # a comment
            from toy.late import later
            from toy import later_still
            total = 0
            for _ in range(STEPS):
                total = total + scale(seed)
            total += tools.hammer(1) + toy.deep.well.dig() + toy.lazily() + later() + later_still.last()
            return {"x": THINGS[c.thing](total), "y": Box().value, "z": np.sqrt(2)}

        class Box:
            size = 1
            @property
            def value(self):
                return self.size

        def unrelated():
            return "unrelated"

        @study.draw
        def _(table):
            return Drawing("red")

        @study.claim("slug", "a statement", criterion="fixed")
        def _(table):
            return unrelated()
    ''',
    "helper.py": '''
        from toy.inner import FACTOR
        def scaled(x: int) -> int:
            return x * FACTOR
        def bystander():
            return 1
    ''',
    "inner.py": "FACTOR = 2\nOTHER = 3\n",
    "tools.py": "def hammer(x):\n    return x\ndef saw(x):\n    return x\n",
    "lazy.py": "def lazily():\n    return 5\n",
    "late.py": "def later():\n    return 6\n",
    "later_still.py": "def last():\n    return 7\n",
    "deep/__init__.py": "",
    "deep/well.py": "def dig():\n    return 8\n",
    "table.py": '''
        from toy.registry import Registry
        THINGS = Registry(
            "thing",
            {
                "one": "toy.things:one",
                "two": "toy.things:two",
            },
        )
    ''',
    "things.py": '''
        def one(x):
            return unit() * x
        def two(x):
            return 2 * x
        def unit():
            return 1
    ''',
}  # fmt: skip


def dedented(text: str) -> str:
    lines = text.strip("\n").split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines) + "\n"


class ToyPackage:
    """Writes a variant of the package and asks for the digest of its trial. Nothing of it is ever imported."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.patch = patch
        self.count = 0

    def digest(self, edits: dict[str, tuple[str, str]] | None = None, thing: str = "one") -> str:
        self.count += 1
        home = self.root / str(self.count) / "toy"
        for name, text in PACKAGE.items():
            text = dedented(text)
            if edits and name in edits:
                old, new = edits[name]
                assert text.count(old) == 1, f"{old!r} is not once in {name}"
                text = text.replace(old, new)
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
        self.patch.setattr(digest, "PACKAGE", "toy")
        self.patch.setattr(digest, "_ROOT", home)
        line = (home / "study.py").read_text().split("\n").index("@study.trial") + 1
        trial: Any = SimpleNamespace(__module__="toy.study", __code__=SimpleNamespace(co_firstlineno=line))
        return digest.code_digest([trial], [thing])


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyPackage:
    return ToyPackage(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("study.py", "total = 0", "total = 1"),  # the trial
        ("study.py", 'range(STEPS)', 'range(STEPS + 1)'),
        ("study.py", "STEPS = 3", "STEPS = 4"),  # a constant of the module
        ("study.py", "size = 1", "size = 2"),  # a class of the module
        ("study.py", "@property\n", "@cached_property\n"),
        ("study.py", "np.sqrt(2)", "np.cbrt(2)"),
        ("study.py", '"y": Box', '"why": Box'),
        ("study.py", "toy.helper import scaled", "toy.helper import bystander"),
        ("helper.py", "x * FACTOR", "x + FACTOR"),  # from toy.helper import scaled
        ("inner.py", "FACTOR = 2", "FACTOR = 3"),  # two imports away
        ("tools.py", "def hammer(x):\n    return x", "def hammer(x):\n    return -x"),  # from toy import tools
        ("deep/well.py", "return 8", "return 9"),  # import toy.deep.well
        ("lazy.py", "return 5", "return 6"),  # by the package's __getattr__
        ("late.py", "return 6", "return 7"),  # imported in the trial
        ("later_still.py", "return 7", "return 8"),
        ("things.py", "unit() * x", "unit() / x"),  # the registry's entry that the configuration names
        ("things.py", "return 1", "return 0"),
        ("table.py", "toy.things:one", "toy.things:two"),
    ],
)  # fmt: skip
def test_an_edit_of_what_the_trial_uses_is_seen(toy: ToyPackage, file: str, old: str, new: str) -> None:
    assert toy.digest({file: (old, new)}) != toy.digest()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("study.py", "# a comment", "# another comment\n\n    # and one more"),
        ("study.py", '"""Measure."""', '"""Measure it all."""'),
        ("study.py", '"""A study."""', '"""The study.\n\nIts lines move.\n"""'),
        ("study.py", "seed: int) -> dict", "seed: float) -> list"),
        ("study.py", "total = 0", "total = (0)"),
        ("study.py", 'title="a title"', 'title="another title"'),
        ("study.py", 'Drawing("red")', 'Drawing("blue")'),
        ("study.py", "return unrelated()", "return 7"),
        ("study.py", "a statement", "another statement"),
        ("study.py", 'return "unrelated"', 'return "changed"'),
        ("helper.py", "x: int) -> int", "x: float) -> float"),
        ("helper.py", "return 1", "return 2"),
        ("inner.py", "OTHER = 3", "OTHER = 4"),
        ("tools.py", "def saw(x):\n    return x", "def saw(x):\n    return -x"),
        ("table.py", '"two": "toy.things:two",', '"two": "toy.things:two",\n        "three": "toy.things:three",'),
        ("table.py", '"two": "toy.things:two"', '"two": "toy.things:unit"'),
        ("things.py", "2 * x", "3 * x"),  # an entry that the configuration does not name
    ],
)
def test_an_edit_of_anything_else_is_not_seen(toy: ToyPackage, file: str, old: str, new: str) -> None:
    assert toy.digest({file: (old, new)}) == toy.digest()


def test_the_entry_that_counts_is_the_one_that_the_configuration_names(toy: ToyPackage) -> None:
    edit = {"things.py": ("2 * x", "3 * x")}
    assert toy.digest(edit, "one") == toy.digest(thing="one") == toy.digest(thing="one:width=3")
    assert toy.digest(edit, "two") != toy.digest(thing="two")
    assert toy.digest(edit, "two:width=3") != toy.digest(thing="two:width=3")


def test_the_source_of_a_page_reaches_drawings_and_claims(toy: ToyPackage) -> None:
    page = "import toy.study\ntoy.study.study.show()"

    def digest_of(**edits: tuple[str, str]) -> str:
        toy.digest({f"{name}.py": edit for name, edit in edits.items()})
        return digest.source_digest(page)

    assert digest_of() == digest_of(helper=("return 1", "return 2"))
    for edit in [('Drawing("red")', 'Drawing("blue")'), ("a statement", "no statement"), ("total = 0", "total = 1")]:
        assert digest_of(study=edit) != digest_of()


def test_a_study_without_a_source_is_told(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__nowhere__"}
    exec("def trial(c, seed): return {}", names)
    with pytest.raises(NormlibError, match="write the study into a module"):
        digest.code_digest([names["trial"]])


@pytest.mark.parametrize("study_id", STUDIES)
def test_every_registered_study_has_a_digest(study_id: str) -> None:
    try:
        study = get_study(study_id)
    except (ModuleNotFoundError, AttributeError) as error:
        pytest.skip(f"not written yet: {error}")
    assert isinstance(study, Study)
    assert study.id == study_id
    codes = {study.code(config) for preset in study.presets() for config in study.configurations(preset)}
    assert codes
    assert all(len(code) == 16 and int(code, 16) >= 0 for code in codes)
    modules = digest.modules_behind([study._function("trial")])
    assert study.module in modules
    assert not [
        name
        for name in modules
        if name.startswith(("normlib.lab.running.engine", "normlib.lab.records.store", "normlib.lab.code.digest", "normlib.cli"))
    ]


def test_the_digest_is_the_same_in_another_process(pool: Executor) -> None:
    config = get_study("lecun1998.rates").configurations("quick")[0]
    found = pool.submit(code_of, "lecun1998.rates", config).result(timeout=60)
    assert found == get_study("lecun1998.rates").code(config)
