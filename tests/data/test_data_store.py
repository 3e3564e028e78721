"""The search: which place comes first, what is refused, and what the errors say."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from normlib.data import DATASETS, DamagedDataError, DataError, MissingDataError, Places, available, describe, fetch, load
from normlib.data.places import search
from normlib.data.recipe import Recipe
from normlib.data.store import dataset_of, obtain
from normlib.errors import UnknownNameError


def save_npz(folder: Path, name: str, arrays: object) -> Path:
    np.savez(folder / f"{name}.npz", **arrays._asdict())  # type: ignore[attr-defined]
    return folder / f"{name}.npz"


def test_places_are_searched_in_their_order(small, places: Places) -> None:
    small.put(places.system / "small")
    assert obtain(small.recipe, places).source == "Debian package dataset-small"
    small.put(places.cache / "small")
    assert obtain(small.recipe, places).source == "user cache"
    small.put(places.data / "small")
    found, _ = search(small.recipe, places)
    assert (found.source, found.paths[0].parent) == ("$NORMLIB_DATA", places.data / "small")
    npz = save_npz(places.data, "small", small.arrays)
    found, _ = search(small.recipe, places)
    assert (found.source, found.paths) == ("$NORMLIB_DATA", (npz,))


def test_every_form_gives_the_same_tensors_and_digest(small, places: Places) -> None:
    small.put(places.system / "small", **{"x_test.gz": gzip.compress(gzip.decompress(small.files["x_test.gz"]), 1)})
    plain = {name: gzip.decompress(content) for name, content in small.files.items()}
    (places.data / "small").mkdir()
    for name, content in plain.items():
        (places.data / "small" / name.removesuffix(".gz")).write_bytes(content)
    npz_only = replace(places, data=places.cache)
    places.cache.mkdir()
    save_npz(places.cache, "small", small.arrays)
    sets = [dataset_of(small.recipe, where) for where in (places, replace(places, data=None), npz_only)]
    for data in sets:
        assert data.digest == small.recipe.digest
        assert data.official
        assert torch.equal(data.x_train, torch.from_numpy(small.arrays.x_train.copy()).float() / 255)
        assert data.y_test.tolist() == small.arrays.y_test.tolist()


def test_an_npz_of_other_content_is_used_and_not_called_official(small, places: Places) -> None:
    save_npz(places.data, "small", small.arrays._replace(x_train=255 - small.arrays.x_train))
    data = dataset_of(small.recipe, places)
    assert not data.official
    assert data.digest != small.recipe.digest
    assert len(data.x_train) == 30


def test_an_archive_may_lie_in_the_data_folder_itself(small, places: Places) -> None:
    one = replace(small.recipe, files=small.recipe.files[:1])
    (places.data / "x_train.gz").write_bytes(small.files["x_train.gz"])
    assert search(one, places)[0].paths == (places.data / "x_train.gz",)
    assert search(replace(small.recipe, files=small.recipe.files[:2]), places)[0] is None


@pytest.mark.parametrize("where", ["data", "cache", "system"])
@pytest.mark.parametrize("how", ["cut", "other", "garbled"])
def test_a_damaged_file_is_named_and_nothing_else_is_used(small, places: Places, where: str, how: str) -> None:
    good = small.files["x_train.gz"]
    bad = {
        "cut": good[:-20],
        "other": small.files["x_test.gz"],
        "garbled": good[:30] + bytes(30) + good[60:],
    }[how]
    small.put(places.system / "small")
    small.put(getattr(places, where) / "small", **{"x_train.gz": bad})
    with pytest.raises(DamagedDataError) as caught:
        obtain(small.recipe, places)
    text, file = str(caught.value), small.recipe.files[0]
    assert str(getattr(places, where) / "small" / "x_train.gz") in text
    assert f"expected sha256 {file.sha256} ({file.size} bytes" in text
    assert "found    sha256 " in text
    assert file.md5 in text


def test_an_incomplete_folder_is_passed_over_and_said(small, places: Places) -> None:
    folder = small.put(places.data / "small")
    (folder / "y_test.gz").unlink()
    small.put(places.system / "small")
    found, tried = search(small.recipe, places)
    assert found.source == "Debian package dataset-small"
    assert f"$NORMLIB_DATA: {folder} lacks y_test.gz" in tried


def test_a_set_that_is_nowhere_says_what_was_tried_and_three_ways(small, places: Places) -> None:
    with pytest.raises(MissingDataError) as caught:
        dataset_of(small.recipe, replace(places, data=None), fetch=False)
    text = str(caught.value)
    for line in [
        "'small' is not on this machine",
        "$NORMLIB_DATA: not set",
        f"user cache: {places.cache / 'small'} does not exist",
        f"Debian package dataset-small: {places.system / 'small'} does not exist",
        "download: not asked for",
        "1. set $NORMLIB_DATA to a folder that holds small.npz or small/ with x_train.gz, y_train.gz",
        f"2. install the Debian package dataset-small, or put these files into {places.cache / 'small'}",
        "3. run `normlib data small`",
    ]:
        assert line in text
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(MissingDataError, match=r"\$NORMLIB_DATA: .*gone is not a folder"):
        obtain(small.recipe, replace(places, data=places.data / "gone"), fetch=False)


def test_a_set_of_ones_own_needs_no_registration(small, places: Places) -> None:
    save_npz(places.data, "mine", small.arrays)
    mine = load("mine", places=places)
    assert (mine.name, mine.classes, mine.official, mine.source) == ("mine", 10, False, "$NORMLIB_DATA")
    assert mine.x_train.shape == (30, 1, 6, 4)
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        load("minne", places=places)


def test_a_bad_npz_of_a_registered_name_is_not_passed_over(small, places: Places) -> None:
    save_npz(places.data, "small", small.arrays._replace(y_train=small.arrays.y_train + 1))
    small.put(places.system / "small")
    with pytest.raises(DataError, match=r"small.npz: y_train runs from 1 to 10; expected labels from 0 to 9"):
        obtain(small.recipe, places)


def test_unknown_names_name_the_nearest(places: Places) -> None:
    with pytest.raises(UnknownNameError, match=r"data set named 'fashon-mnist'; did you mean 'fashion-mnist'.*NAME\.npz"):
        load("fashon-mnist", places=places)


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_registered_recipe_is_whole(name: str) -> None:
    recipe: Recipe = DATASETS[name]
    assert recipe.name == name
    assert recipe.decode is not None
    assert all(len(file.sha256) == 64 and len(file.md5) == 32 and file.size > 0 for file in recipe.files)
    assert bool(recipe.url) == bool(recipe.files)


def test_the_inventory_tells_where_sets_are(small, places: Places) -> None:
    save_npz(places.data, "mine", small.arrays)
    found = {status.name: status for status in available(places)}
    assert list(found) == [*DATASETS, "mine"]
    assert (found["digits"].source, found["digits"].path) == ("scikit-learn", None)
    assert found["mine"].path == places.data / "mine.npz"
    assert found["mnist"].source == ""
    assert f"user cache: {places.cache / 'mnist'} does not exist" in found["mnist"].tried
    text = describe(places)
    assert "mnist          not here: normlib data mnist" in text
    assert f"mine           $NORMLIB_DATA ({places.data / 'mine.npz'})" in text


def test_fetch_checks_what_is_here(small, places: Places) -> None:
    save_npz(places.data, "mnist", small.arrays)
    assert fetch("mnist", places).path == places.data / "mnist.npz"
    (places.data / "mnist.npz").write_bytes(b"not a zip")
    with pytest.raises(DamagedDataError, match=r"mnist\.npz"):
        fetch("mnist", places)


def test_places_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NORMLIB_DATA", str(tmp_path))
    monkeypatch.setenv("NORMLIB_MIRROR", "http://mirror")
    places = Places.from_environment()
    assert (places.data, places.mirror) == (tmp_path, "http://mirror")
    assert places.cache.name == "data"
    assert "normlib" in str(places.cache)
    monkeypatch.delenv("NORMLIB_DATA")
    assert Places.from_environment().data is None


def test_the_cache_needs_no_platformdirs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "platformdirs", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Places.from_environment().cache == tmp_path / "normlib" / "data"
