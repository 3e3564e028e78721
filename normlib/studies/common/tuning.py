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


def at_ends(table: pd.DataFrame, arms: list[str], rates: dict[Any, float]) -> list[Any]:
    """List the arms whose best rate is the lowest or the highest that was tried with them; a wider grid may hold a better one.

    Args:
        table: the runs at all rates, as `tuned` takes them.
        arms: the columns that tell one arm from another.
        rates: the rate of each arm, as `tuned` returns them.

    Returns:
        Keys of `rates`, in their order. An arm with fewer than three rates is left out: its grid has nothing but ends.
    """
    tried = table.groupby(arms[0] if len(arms) == 1 else arms, sort=False).rate.unique()
    return [arm for arm, rate in rates.items() if len(tried[arm]) > 2 and rate in (min(tried[arm]), max(tried[arm]))]


def ends_in_words(arms: list[str]) -> str:
    """Write for a caption, after the rates, that those of some arms lie at an end of the grid; nothing if there are none."""
    return f" (at an end of the rates tried: {', '.join(arms)})" if arms else ""


def rates_in_words(rates: dict[Any, float], names: dict[Any, str] | None = None) -> str:
    """Write the chosen rates for a caption: "0.3 for tanh, 1 for logistic"."""
    return ", ".join(f"{number(rate)} for {(names or {}).get(arm, arm)}" for arm, rate in rates.items())
