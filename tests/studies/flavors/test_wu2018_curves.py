"""What the curves say of an arm: its errors at its own rate, and when it is down to the end of another."""

from __future__ import annotations

import numpy as np
import pandas as pd

from normlib.studies.flavors.wu2018_curves import LAYER, NONE, final, first_reach

EPOCHS = [1.0, 2.0, 3.0, 4.0]


def run(norm: str, rate: float, seed: int, seen: list[float], held_out: float) -> pd.DataFrame:
    columns = {"norm": norm, "rate": rate, "seed": seed, "epoch": EPOCHS, "seen": seen, "held_out_error": held_out}
    return pd.DataFrame({**columns, "train_error": seen[-1], "test_error": held_out + 1})


def test_errors_are_those_at_the_rate_with_the_lowest_held_out_error() -> None:
    table = pd.concat([run(NONE, 0.1, 0, [40, 30, 20, 10], 12.0), run(NONE, 0.3, 0, [40, 30, 20, 5], 13.0)])
    assert final(table)[NONE].tolist() == [13.0]
    assert final(table, "train_error")[NONE].tolist() == [10.0]


def test_a_rival_is_reached_when_the_training_error_is_down_to_its_last_and_seeds_are_kept_apart() -> None:
    parts = [
        run(NONE, 0.1, 0, [40, 30, 20, 10], 12.0), run(LAYER, 0.3, 0, [30, 10, 9, 8], 11.0),
        run(NONE, 0.1, 1, [40, 30, 20, 10], 12.0), run(LAYER, 0.3, 1, [30, 25, 20, 11], 11.0),
    ]  # fmt: skip
    np.testing.assert_array_equal(first_reach(pd.concat(parts), LAYER, NONE), [0.5, np.inf])
