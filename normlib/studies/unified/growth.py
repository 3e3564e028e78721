"""How a variance grows inside the stages of a residual network: two fits, and the closed form of a reflected walk."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from normlib.lab import number
from normlib.studies.unified.ten import normalizer


def reflected_walk(steps: int) -> list[float]:
    """Return the variance of x after 1, 2, … steps of x ← max(x + g, 0) from 0, with g standard normal.

    After n steps x has the law of the largest of 0 and the first n partial sums of such g. By Spitzer's identity its moments
    follow from those of the positive parts of the partial sums, √(k/2π) and k/2. For many steps the variance grows by
    1 − 2/π a step.

    Example:
        >>> [round(variance, 3) for variance in reflected_walk(2)]  # the first is that of a ReLU, (1 - 1/π) / 2
        [0.341, 0.695]
    """
    mean, square = [0.0], [0.0]
    for n in range(1, steps + 1):
        once = [math.sqrt(k / (2 * math.pi)) for k in range(1, n + 1)]
        mean.append(sum(first + mean[n - k] for k, first in enumerate(once, 1)) / n)
        square.append(sum(k / 2 + 2 * first * mean[n - k] + square[n - k] for k, first in enumerate(once, 1)) / n)
    return [second - first**2 for first, second in zip(mean[1:], square[1:], strict=True)]


def fits(table: pd.DataFrame, network: str, norm: str, column: str = "variance") -> pd.DataFrame:
    """Fit a line and an exponential to the variance inside each stage; a row a seed, the mean over stages.

    Returns:
        `slope`, what a block adds; `factor`, by which it multiplies; `line` and `exponential`, the R² of the two fits (the
        exponential's on the logarithm); `halves`, what the second half of the stages adds over what the first half adds.
    """
    rows = {}
    for seed, run in table[(table.network == network) & (table.norm == norm)].groupby("seed"):
        stages = np.stack([stage[column].to_numpy(float) for _, stage in run.groupby("stage")])
        at, middle = np.arange(stages.shape[1]), stages.shape[1] // 2
        with np.errstate(all="ignore"):
            logs = np.log(stages)
            rows[seed] = {
                "slope": np.mean([np.polyfit(at, stage, 1)[0] for stage in stages]),
                "factor": np.exp(np.mean([np.polyfit(at, stage, 1)[0] for stage in logs])),
                "line": np.mean([np.corrcoef(at, stage)[0, 1] ** 2 for stage in stages]),
                "exponential": np.mean([np.corrcoef(at, stage)[0, 1] ** 2 for stage in logs]),
                "halves": (stages[:, -1] - stages[:, middle]).sum() / (stages[:, middle] - stages[:, 0]).sum(),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def measured(table: pd.DataFrame, arms: list[tuple[str, str]], what: str, column: str = "variance") -> pd.DataFrame:
    """Return one number of `fits` for several arms: a row a seed, a column an arm (network, normalizer)."""
    return pd.DataFrame({arm: fits(table, *arm, column)[what] for arm in arms})


def arms(networks: list[str], norms: list[str]) -> list[tuple[str, str]]:
    """Pair every network with every normalizer."""
    return [(network, norm) for network in networks for norm in norms]


def in_words(values: pd.DataFrame) -> str:
    """Say the medians of arms over the seeds in words."""
    names = {arm: f"{normalizer(arm[1]).name} in {arm[0].replace('v', 'version ')}" for arm in values}
    return ", ".join(f"{name} {number(values[arm].median())}" for arm, name in names.items())
