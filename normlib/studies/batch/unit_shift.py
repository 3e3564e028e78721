"""How far a hidden unit's distribution moves, and the classes' given its value, in units of what chance would make of it."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def compare(
    before: Array, after: Array, y_before: Array, y_after: Array, *, bins: int, permutations: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Compare one unit's values on two samples, with the classes of their items; the bins hold equal shares of both together."""
    edges = np.quantile(np.concatenate([before, after]), np.linspace(0, 1, bins + 1)[1:-1])
    classes = int(max(y_before.max(), y_after.max())) + 1
    first, second = counts(before, y_before, edges, classes), counts(after, y_after, edges, classes)
    marginal, conditional = in_units_of_chance(first, second, rng, permutations)
    return {"marginal": marginal, "conditional": conditional, "before": first, "after": second}


def counts(h: Array, y: Array, edges: Array, classes: int) -> Array:
    """Count items by the bin of h (rows) and the class y (columns)."""
    table = np.zeros((len(edges) + 1, classes), dtype=np.int64)
    np.add.at(table, (np.searchsorted(edges, h), y), 1)
    return table


def distances(first: Array, second: Array) -> tuple[float, float]:
    """Return the total variation between two tables of counts: of P(bin), and of P(class given bin).

    The second is a mean over bins, weighted by the smaller of the two shares of a bin: where one side has no items, nothing can
    be said.
    """
    p, q = (table.sum(axis=1) / table.sum() for table in (first, second))
    rows = [table / np.maximum(table.sum(axis=1, keepdims=True), 1) for table in (first, second)]
    overlap = np.minimum(p, q)
    return float(np.abs(p - q).sum() / 2), float(overlap @ np.abs(rows[0] - rows[1]).sum(axis=1) / 2 / overlap.sum())


def in_units_of_chance(first: Array, second: Array, rng: np.random.Generator, permutations: int) -> tuple[float, float]:
    """Return both distances, each divided by what it is on average when items are dealt to the two sides at random.

    For P(bin) all items are dealt anew. For P(class given bin) they are dealt within their bins, so that each side keeps its
    own P(bin): this is how far apart two samples of one conditional lie. A value of 1 is chance.
    """
    both, shares = first + second, first.sum(axis=1)
    chance = []
    for _ in range(permutations):
        rows = rng.multivariate_hypergeometric(both.sum(axis=1), int(shares.sum()))
        dealt = np.stack([rng.multivariate_hypergeometric(row, count) for row, count in zip(both, shares, strict=True)])
        marginal = distances(rows[:, None], (both.sum(axis=1) - rows)[:, None])[0]
        chance.append((marginal, distances(dealt, both - dealt)[1]))
    measured, expected = np.array(distances(first, second)), np.mean(chance, axis=0)
    return float(measured[0] / expected[0]), float(measured[1] / expected[1])


def curves(unit: dict[str, Any]) -> dict[str, Any]:
    """Return, for both samples, P(bin) and P(class given bin) of the class that is likeliest among large values after."""
    bins = len(unit["after"])
    label = int(unit["after"][-bins // 4 :].sum(axis=0).argmax())
    columns: dict[str, Any] = {"at": ((np.arange(bins) + 0.5) / bins).tolist(), "label": label}
    for when in ("before", "after"):
        table = unit[when]
        columns[f"density_{when}"] = (table.sum(axis=1) / table.sum()).tolist()
        columns[f"answer_{when}"] = (table[:, label] / np.maximum(table.sum(axis=1), 1)).tolist()
    return columns
