"""One bundle of three records, and ways to change it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_files import DATE, NAME, members_of, pack, resealed

from normlib.lab import Record, Store
from normlib.lab.exchange.bundles import write_bundle

Make = Callable[..., Record]


@pytest.fixture
def bundle(tmp_path: Path, store: Store, make_record: Make) -> Path:
    """A bundle of three records."""
    store.append_all(make_record(seed=seed) for seed in range(3))
    write_bundle(tmp_path / "bundle.zip", store, ["toy.record"], ["quick"], DATE)
    return tmp_path / "bundle.zip"


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Pack the bundle anew with its second line changed."""

    def change(edit: Callable[[bytes], bytes], seal: bool = True) -> Path:
        members = members_of(bundle)
        lines = members[NAME].split(b"\n")
        lines[1] = edit(lines[1])
        members[NAME] = b"\n".join(lines)
        return pack(tmp_path / "changed.zip", resealed(members) if seal else members)

    return change
