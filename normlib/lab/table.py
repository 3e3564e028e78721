"""Records as one table: what drawings and claims read."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from normlib.errors import NormlibError
from normlib.lab.records import Record


def table_of(records: Iterable[Record]) -> pd.DataFrame:
    """Lay records out as one table: settings, seed and status beside the columns that each trial measured.

    Failed trials have no rows. A column that shares its name with a setting of another value is refused.
    """
    frames = []
    for record in records:
        if record.status == "failed":
            continue
        given = {**record.config, "seed": record.seed, "status": record.status}
        clash = {name for name in record.table.keys() & given.keys() if record.table[name] != given[name]}
        if clash:
            raise NormlibError(f"{record.study}: the trial returned columns named like settings: {sorted(clash)}")
        varying = {name for name, value in record.table.items() if isinstance(value, list)}
        lengths = {len(record.table[name]) for name in varying}
        if len(lengths) > 1:
            raise NormlibError(f"{record.study}: the columns of a trial have different lengths: {sorted(lengths)}")
        rows = lengths.pop() if lengths else 1
        columns = {**given, **record.table}
        frames.append(pd.DataFrame({name: v if name in varying else [v] * rows for name, v in columns.items()}))
    if not frames:
        raise NormlibError("there are no usable records to draw or judge; run the study first: normlib run STUDY")
    return pd.concat(frames, ignore_index=True)
