"""Records as one table: what drawings and claims read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from normlib.errors import NormlibError
from normlib.lab.records import Record


def check_columns(study: str, given: Mapping[str, Any], columns: Mapping[str, Any]) -> int:
    """Return how many rows columns have.

    Raises:
        NormlibError: the lists differ in length, or a column is named like a setting and has another value.
    """
    clash = {name for name in columns.keys() & given.keys() if columns[name] != given[name]}
    if clash:
        raise NormlibError(f"{study}: the trial returned columns named like settings: {sorted(clash)}")
    lengths = {len(column) for column in columns.values() if isinstance(column, list)}
    if len(lengths) > 1:
        raise NormlibError(f"{study}: the columns of a trial have different lengths: {sorted(lengths)}")
    return lengths.pop() if lengths else 1


def table_of(records: Iterable[Record]) -> pd.DataFrame:
    """Lay records out as one table: settings, seed and status beside the columns that each trial measured.

    Failed trials have no rows.

    Raises:
        NormlibError: there are no usable records, or the columns of one do not fit together, see `check_columns`.
    """
    frames = []
    for record in records:
        if record.status == "failed":
            continue
        given = {**record.config, "seed": record.seed, "status": record.status}
        rows = check_columns(record.study, given, record.table)
        columns = {**given, **record.table}
        varying = {name for name, value in record.table.items() if isinstance(value, list)}
        frames.append(pd.DataFrame({name: v if name in varying else [v] * rows for name, v in columns.items()}))
    if not frames:
        raise NormlibError("there are no usable records to draw or judge; run the study first: normlib run STUDY")
    return pd.concat(frames, ignore_index=True)
