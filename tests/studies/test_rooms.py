"""The rooms of the studies: a file's name tells it from all others, so that records need not know the room."""

from __future__ import annotations

from pathlib import Path

import normlib.studies
from normlib.lab.code import digest

FOLDER = Path(normlib.studies.__file__).parent


def test_no_two_rooms_hold_a_file_of_one_name() -> None:
    names = [path.stem for path in FOLDER.glob("*/*.py") if path.stem != "__init__"]
    assert len(names) == len(set(names)) > 20


def test_a_record_does_not_know_the_room_of_its_study() -> None:
    assert digest._without_room("normlib.studies.origins.lecun1998") == "normlib.studies.lecun1998"
    assert digest._without_room("normlib.layers.batch") == "normlib.layers.batch"
