"""Where a data set may lie on this machine, and the search through these places."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from normlib.data.recipe import Recipe


def user_cache() -> Path:
    """Return this user's cache folder for data: platformdirs' choice, else `$XDG_CACHE_HOME` or `~/.cache`."""
    try:
        from platformdirs import user_cache_path  # comes with pooch, which some machines lack

        root = user_cache_path("normlib", appauthor=False)
    except ImportError:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normlib"
    return Path(root) / "data"


@dataclass(frozen=True)
class Places:
    """The folders and the mirror that `load` looks through, in this order: data, cache, system, network.

    Attributes:
        data: the user's own folder, `$NORMLIB_DATA`.
        cache: where downloads go, one folder for each set.
        system: where packages install data sets, one folder for each set.
        mirror: `$NORMLIB_MIRROR`: asked instead of the official hosts, at `MIRROR/NAME/FILE`.
    """

    data: Path | None
    cache: Path
    system: Path = Path("/usr/share/datasets")
    mirror: str = ""

    @classmethod
    def from_environment(cls) -> Places:
        """Read `$NORMLIB_DATA` and `$NORMLIB_MIRROR`."""
        data = os.environ.get("NORMLIB_DATA", "")
        return cls(
            data=Path(data).expanduser() if data else None,
            cache=user_cache(),
            mirror=os.environ.get("NORMLIB_MIRROR", ""),
        )

    def folders(self, recipe: Recipe) -> Iterator[tuple[str, Path]]:
        """Yield what each place is called and the folder in it that may hold the set's published files."""
        if self.data is not None:
            yield "$NORMLIB_DATA", self.data / recipe.name
            if len(recipe.files) == 1:  # one archive has a name of its own; idx files of two sets share theirs
                yield "$NORMLIB_DATA", self.data
        yield "user cache", self.cache / recipe.name
        if recipe.package:
            yield f"Debian package {recipe.package}", self.system / recipe.name


@dataclass(frozen=True)
class Found:
    """A set that is on this machine.

    Attributes:
        source: the place in words that are the same on every machine.
        paths: its files, in the recipe's order; one npz, or none if it comes with a dependency.
    """

    source: str
    paths: tuple[Path, ...] = ()

    @property
    def is_npz(self) -> bool:
        """Whether this is a user's own npz."""
        return len(self.paths) == 1 and self.paths[0].suffix == ".npz"


def search(recipe: Recipe, places: Places) -> tuple[Found | None, list[str]]:
    """Look for a set on this machine, without reading it.

    Returns:
        What was found first, or None, and one line for each place that did not have it.
    """
    tried: list[str] = []
    if recipe.decode is not None and not recipe.files:
        return Found("scikit-learn"), tried
    if places.data is None:
        tried.append("$NORMLIB_DATA: not set")
    elif not places.data.is_dir():
        tried.append(f"$NORMLIB_DATA: {places.data} is not a folder")
    elif (places.data / f"{recipe.name}.npz").is_file():
        return Found("$NORMLIB_DATA", (places.data / f"{recipe.name}.npz",)), tried
    else:
        tried.append(f"$NORMLIB_DATA: no {places.data / recipe.name}.npz")
    for source, folder in places.folders(recipe) if recipe.files else ():
        paths = [file.find(folder) for file in recipe.files]
        missing = [file.name for file, path in zip(recipe.files, paths, strict=True) if path is None]
        if not missing:
            return Found(source, tuple(path for path in paths if path is not None)), tried
        tried.append(f"{source}: {folder} {'lacks ' + ', '.join(missing) if folder.is_dir() else 'does not exist'}")
    return None, tried
