"""What is read from the records of `santurkar2018.surface`: one network over the other, and lines that are cut finer."""

from __future__ import annotations


def found(table, what: str, init: str):
    """Return one measurement for an initialization: rows are seeds and steps (and intervals), columns the two networks."""
    rows = table[(table.what == what) & (table.init == init)]
    return rows.pivot_table(index=["seed", "step", "a"], columns="norm", values="value").reindex(columns=["none", "batch"])


def during(table, what: str, init: str = "glorot_normalized"):
    """Return, for each seed, the median over looks after the start of a measurement without the norm over that with it."""
    values = found(table, what, init)
    values = values[values.index.get_level_values("step") > 0]
    return (values["none"] / values["batch"]).groupby("seed").median()


def in_training(table, what: str, init: str = "glorot_normalized"):
    """Return the measurement on the line of the second map: rows are seeds, columns the network and the number of intervals."""
    values = found(table, what, init)
    step = table[table.what == "plane"].step.max()
    return values.xs(step, level="step").unstack("a")


def kink(table, init: str = "glorot_normalized"):
    """Return the largest change of slope between neighbors of the finest line over the range of slopes: seeds by networks."""
    finest = in_training(table, "slope_jump", init).xs(table[table.what == "slope_jump"].a.max(), axis=1, level="a")
    return finest / in_training(table, "slope_range", init).xs(0, axis=1, level="a")


def shrink(table, what: str):
    """Return the largest change between neighbors over that of the coarsest line: seeds by networks and intervals."""
    changes = in_training(table, what)
    return changes.div(changes.xs(table[table.what == what].a.min(), axis=1, level="a"), level="norm")
