"""What is where: the answers that the command line gives about data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from normlib.data.places import Places, search
from normlib.data.recipe import Recipe
from normlib.data.store import DATASETS, obtain, own_sets, recipe_of


@dataclass(frozen=True)
class Status:
    """Where a set was found.

    Attributes:
        name: the set.
        source: the place in words, or "" if it is not on this machine.
        path: its folder, or its npz; None if it comes with a dependency or is not here.
        tried: one line for each place that did not have it.
    """

    name: str
    source: str
    path: Path | None
    tried: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.source}{f' ({self.path})' if self.path else ''}"
        return f"{self.name:<14} {where or f'not here: normlib data {self.name}'}"


def available(places: Places | None = None) -> list[Status]:
    """Say for every set where it is on this machine. Nothing is read, checked or fetched."""
    places = places or Places.from_environment()
    names = [*DATASETS, *own_sets(places)]
    return [_status(recipe_of(name, places), places) for name in names]


def _status(recipe: Recipe, places: Places) -> Status:
    found, tried = search(recipe, places)
    if found is None:
        return Status(recipe.name, "", None, tuple(tried))
    path = (found.paths[0] if len(found.paths) == 1 else found.paths[0].parent) if found.paths else None
    return Status(recipe.name, found.source, path, tuple(tried))


def fetch(name: str, places: Places | None = None) -> Status:
    """Make sure that a set is on this machine, downloading it to the user cache if need be, and check its content.

    Returns:
        Where it is.

    Raises:
        UnknownNameError: for a name that is not known.
        DamagedDataError: if what was found is not what was published.
        MissingDataError: if it cannot be fetched.
    """
    places = places or Places.from_environment()
    recipe = recipe_of(name, places)
    obtain(recipe, places)
    return _status(recipe, places)


def describe(places: Places | None = None) -> str:
    """Return a table for people: each set and where it is, or how to get it.

    Example:
        >>> print(describe())
        digits         scikit-learn
        ...
    """
    return "\n".join(map(str, available(places)))
