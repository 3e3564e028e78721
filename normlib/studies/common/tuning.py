"""The learning rate of each arm: chosen once, on a validation split, for all seeds together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from normlib.lab import number


def tuned(table: pd.DataFrame, arms: list[str], score: str, *, low: bool = False) -> tuple[pd.DataFrame, dict[Any, float]]:
    """Keep of each arm the runs at its best rate.

    Args:
        table: has the columns `rate` and `seed`, and one score per run. A rate at which a run has no finite score (it diverged)
            is chosen only if there is no other.
        arms: the columns that tell one arm from another.
        score: column that is compared by its median over seeds; it should come from validation data.
        low: whether lower scores are better (a loss) instead of higher ones (an accuracy).

    Returns:
        The rows of the runs kept, and the rate of each arm; its key is the level, or a tuple of levels for several columns.
    """
    runs = table.groupby([*arms, "rate", "seed"], sort=False)[score].first().reset_index()
    runs = runs.assign(diverged=~np.isfinite(runs[score].astype(float)))
    rates = runs.groupby([*arms, "rate"], sort=False).agg(diverged=("diverged", "sum"), median=(score, "median")).reset_index()
    ranked = rates.sort_values(["diverged", "median", "rate"], ascending=[True, low, True])
    best = ranked.groupby(arms, sort=False).first().reset_index()
    kept = table.merge(best[[*arms, "rate"]], on=[*arms, "rate"])
    keys = best[arms[0]] if len(arms) == 1 else best[arms].itertuples(index=False, name=None)
    return kept, dict(zip(keys, best.rate.astype(float), strict=True))


def rates_in_words(rates: dict[Any, float], names: dict[Any, str] | None = None) -> str:
    """Write the chosen rates for a caption: "0.3 for tanh, 1 for logistic"."""
    return ", ".join(f"{number(rate)} for {(names or {}).get(arm, arm)}" for arm, rate in rates.items())
