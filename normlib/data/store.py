"""From a name to tensors: search, check, decode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from normlib.data.arrays import Array, Arrays, content_digest, read_npz
from normlib.data.dataset import Dataset
from normlib.data.download import DownloadError, download
from normlib.data.errors import MissingDataError
from normlib.data.places import Found, Places, search
from normlib.data.recipe import Recipe
from normlib.errors import unknown
from normlib.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "digits": "normlib.data.digits:DIGITS",
        "mnist": "normlib.data.mnist:MNIST",
        "fashion-mnist": "normlib.data.mnist:FASHION_MNIST",
        "cifar10": "normlib.data.cifar:CIFAR10",
    },
    hint="A set of your own goes to $NORMLIB_DATA/NAME.npz.",
)


@dataclass(frozen=True)
class Loaded:
    """A set as it was found: arrays of bytes, their digest, and where they come from."""

    arrays: Arrays
    digest: str
    official: bool
    source: str


def obtain(recipe: Recipe, places: Places, fetch: bool = True) -> Loaded:
    """Find the files of a set, check and decode them.

    Args:
        recipe: what the set is made of.
        places: where to look.
        fetch: whether to download what is nowhere on this machine.

    Raises:
        DamagedDataError: if the first files that are found are not what was published; nothing else is used instead.
        MissingDataError: if it is nowhere, with all that was tried.
    """
    found, tried = search(recipe, places)
    if found is None:
        found = _download(recipe, places, fetch, tried)
    if found.is_npz or recipe.decode is None:
        arrays = read_npz(found.paths[0], recipe.name, recipe.classes)
    else:
        files = zip(recipe.files, found.paths, strict=True)
        arrays = recipe.decode([file.read(path) for file, path in files])
    digest = content_digest(arrays)
    checked = bool(recipe.files) and not found.is_npz  # each file equals its published digest
    for array in arrays:
        array.setflags(write=False)
    return Loaded(arrays, digest, checked or digest == recipe.digest, found.source)


def _download(recipe: Recipe, places: Places, fetch: bool, tried: list[str]) -> Found:
    reason = "not asked for"
    if fetch:
        try:
            download(recipe, places)
        except DownloadError as problem:
            reason = str(problem)
        else:
            found, _ = search(recipe, places)
            if found is not None:
                return found
    raise MissingDataError(_missing_text(recipe, places, [*tried, f"download: {reason}"]))


def _missing_text(recipe: Recipe, places: Places, tried: list[str]) -> str:
    files = ", ".join(file.name for file in recipe.files)
    package = f" install the Debian package {recipe.package}, or" if recipe.package else ""
    lines = [f"the data set {recipe.name!r} is not on this machine. Tried:", *(f"  - {line}" for line in tried)]
    lines += [
        "Three ways to get it:",
        f"  1. set $NORMLIB_DATA to a folder that holds {recipe.name}.npz or {recipe.name}/ with {files};",
        f"  2.{package} put these files into {places.cache / recipe.name};",
        f"  3. run `normlib data {recipe.name}` where there is a network ($NORMLIB_MIRROR names another host).",
    ]
    return "\n".join(lines)


def recipe_of(name: str, places: Places) -> Recipe:
    """Return the recipe of a registered set, or one for the user's own `$NORMLIB_DATA/NAME.npz`.

    Raises:
        UnknownNameError: if it is neither; with the nearest match.
    """
    if name in DATASETS:
        recipe: Recipe = DATASETS[name]
        return recipe
    if name not in own_sets(places):
        raise unknown(DATASETS.kind, name, [*DATASETS, *own_sets(places)], DATASETS.hint)
    return Recipe(name)


def own_sets(places: Places) -> list[str]:
    """Return the names of the user's own sets: each `NAME.npz` in `$NORMLIB_DATA` that is not registered."""
    folder = places.data
    stems = {path.stem for path in folder.glob("*.npz")} if folder is not None and folder.is_dir() else set()
    return sorted(stems - set(DATASETS))


@lru_cache(maxsize=2)
def _cached(recipe: Recipe, places: Places, fetch: bool) -> Loaded:
    """Keep the bytes of the last sets of this process: the float tensors that studies change are made anew."""
    return obtain(recipe, places, fetch)


def load(
    name: str,
    *,
    device: str | torch.device = "cpu",
    download: bool = True,
    places: Places | None = None,
) -> Dataset:
    """Return a data set as tensors on `device`.

    Looked for in this order: `$NORMLIB_DATA` (`NAME.npz`, then the published files in `NAME/`), the user cache, a
    system package, the network. What is found first is compared with the published digests and used, or refused.
    "digits" comes with scikit-learn and is looked for nowhere else, so that it is the same set for everyone.

    Args:
        name: "digits", "mnist", "fashion-mnist", "cifar10", or the stem of an npz in `$NORMLIB_DATA`.
        device: where the tensors shall live; bytes are carried there and become floats there.
        download: whether to fetch what is nowhere on this machine.
        places: where to look; by default what the environment says.

    Returns:
        Images as float32 in [0, 1] of shape (N, C, H, W) and int64 labels, in memory of their own.

    Raises:
        UnknownNameError: for a name that is not known.
        DamagedDataError: if what was found is not what was published.
        MissingDataError: if it is nowhere and cannot be fetched.

    Example:
        >>> digits = load("digits")
        >>> digits.x_train.shape, digits.x_train.max().item()
        (torch.Size([1437, 1, 8, 8]), 1.0)
    """
    places = places or Places.from_environment()
    return dataset_of(recipe_of(name, places), places, device, download)


def dataset_of(recipe: Recipe, places: Places, device: str | torch.device = "cpu", fetch: bool = True) -> Dataset:
    """Return what a recipe makes as tensors on `device`; `load` is this for a name."""
    loaded = _cached(recipe, places, fetch)
    arrays = loaded.arrays

    def images(array: Array) -> torch.Tensor:
        return torch.tensor(array, device=device).to(torch.float32).div_(recipe.levels)

    return Dataset(
        name=recipe.name,
        x_train=images(arrays.x_train),
        y_train=torch.tensor(arrays.y_train, device=device),
        x_test=images(arrays.x_test),
        y_test=torch.tensor(arrays.y_test, device=device),
        classes=recipe.classes or 1 + int(max(arrays.y_train.max(), arrays.y_test.max())),
        digest=loaded.digest,
        official=loaded.official,
        source=loaded.source,
    )
