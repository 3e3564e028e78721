"""Downloads that leave either a file whose content was checked, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from normlib.data.errors import DamagedDataError, DataError
from normlib.data.places import Places
from normlib.data.recipe import DataFile, Recipe

TIMEOUT_S = (10, 60)  # to connect, and between two pieces


class DownloadError(DataError):
    """A file that could not be fetched: no network, no such address, or not the published content."""


def address(recipe: Recipe, file: DataFile, places: Places) -> str:
    """Return where `file` is fetched from: `MIRROR/NAME/FILE` if there is a mirror, else the official address."""
    if places.mirror:
        return f"{places.mirror.rstrip('/')}/{recipe.name}/{file.name}"
    return recipe.url + file.name


def download(recipe: Recipe, places: Places) -> None:
    """Fetch those files of a set that the cache lacks.

    A file takes its name only after its content was compared with its digest, so an interrupted download leaves
    nothing behind, and what is complete is not fetched again. Processes that want the same set wait for one another.

    Raises:
        DownloadError: naming the address and the reason.
    """
    from filelock import FileLock

    folder = places.cache / recipe.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for file in recipe.files:
                if file.find(folder) is None:
                    _fetch(address(recipe, file, places), file, folder)
    except OSError as problem:
        raise DownloadError(f"cannot write to the cache {folder} ({problem})") from problem


def _fetch(url: str, file: DataFile, folder: Path) -> None:
    partial = folder / f".{file.name}.part"  # the lock is held: what lies there is left over from a killed process
    try:
        with partial.open("wb") as out:
            _transfer(url, file, out)
        try:
            file.read(partial, origin=url)
        except DamagedDataError as problem:
            raise DownloadError(str(problem)) from problem
        partial.replace(folder / file.name)
    finally:
        partial.unlink(missing_ok=True)


def _transfer(url: str, file: DataFile, out: BinaryIO) -> None:
    """Copy what is at `url` into `out`, with a progress bar on a terminal and quietly elsewhere."""
    try:
        import pooch
        from tqdm import tqdm
    except ImportError as problem:
        raise DownloadError(f"downloads need pooch and tqdm: pip install pooch tqdm ({problem})") from problem
    with tqdm(desc=file.name, total=file.size, unit="B", unit_scale=True, disable=None) as bar:
        # Without Accept-Encoding, some servers unpack or wrap a .gz on the way.
        get = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"})
        try:
            get(url, out, None)
        except OSError as problem:  # every error of requests is one
            raise DownloadError(f"{url}: {type(problem).__name__}: {problem}") from problem
