"""Where a number comes from: the state of the checkout, the versions, the device."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
import toy_studies as toys

from normlib.lab import Store, run
from normlib.lab.code import provenance
from normlib.lab.code.provenance import best_device, checkout, device_name, git_state, peak_memory_mb, versions


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository with the shape of this one, in the place of the checkout."""
    root = tmp_path / "clone"
    for name in ("pyproject.toml", "normlib/code.py", "results/toy.a/full.jsonl", ".gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("__pycache__/\n" if name == ".gitignore" else "first\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "checkout", lambda: root)
    return root


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("second\n")


@pytest.mark.parametrize("name", [None, "results/toy.a/full.jsonl", "results/toy.b/full.jsonl", "notes.txt", "scratch.py",
                                  "normlib/__pycache__/code.py", "normlib/picture.png"])  # fmt: skip
def test_what_leaves_the_code_clean(clone: Path, name: str | None) -> None:
    if name:
        write(clone / name)
    assert git_state() == (git(clone, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("name", ["normlib/code.py", "pyproject.toml", "normlib/new.py", "normlib/studies/new.py"])
def test_what_makes_it_dirty(clone: Path, name: str) -> None:
    write(clone / name)
    assert git_state() == (git(clone, "rev-parse", "HEAD"), True)
    git(clone, "add", "-A")
    assert git_state()[1]
    git(clone, "commit", "-q", "-m", "second")
    assert not git_state()[1]


def test_a_removed_file_makes_it_dirty(clone: Path) -> None:
    (clone / "normlib" / "code.py").unlink()
    assert git_state()[1]


def test_a_record_tells_the_commit_and_that_the_code_was_dirty(clone: Path, store: Store) -> None:
    write(clone / "normlib" / "code.py")
    run(toys.noise, store=store)
    found = {(r.commit, r.dirty) for r in store.read("toy.noise", "quick")}
    assert found == {(git(clone, "rev-parse", "HEAD"), True)}


def test_without_git_the_commit_is_unknown(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state() == (None, False)


def test_outside_a_checkout_the_commit_is_what_pip_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noted:
        def __init__(self, text: str | None) -> None:
            self.text = text

        def read_text(self, _: str) -> str | None:
            return self.text

    monkeypatch.setattr(provenance, "checkout", lambda: None)
    for text, commit in [('{"vcs_info": {"commit_id": "abc"}}', "abc"), ('{"dir_info": {}}', None), (None, None)]:
        monkeypatch.setattr(provenance.metadata, "distribution", lambda _, text=text: Noted(text))
        assert git_state() == (commit, False)


def test_this_checkout_is_found() -> None:
    root = checkout()
    assert root is None or (root / "normlib" / "lab" / "code" / "provenance.py").is_file()


def test_versions_and_devices_are_named() -> None:
    assert versions()["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"python", "numpy"} <= versions().keys()
    assert device_name("cpu").endswith(" cores")
    assert best_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert peak_memory_mb("cpu") > 10
