from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from normlib.lab import Verdict
from normlib.studies.batch.ioffe2015_rates import RECIPES, by_arm, rates, runs_of
from normlib.training import make_schedule

TIMES = [0.5, 1, 2, 5, 30]
REACHES = {"none": {0.5: 300, 1: 200, 2: 250}, "batch": {0.5: 120, 1: 100, 2: 60, 5: 20, 30: 40}}  # 0.8, at this step


def handmade(seeds: int = 3) -> pd.DataFrame:
    """Return runs whose accuracy jumps from 0.1 to 0.8 (0.81 for no BN at its best rate); ×5 stays at chance, ×30 diverges."""
    rows = []
    for norm, jumps in REACHES.items():
        for recipe in RECIPES:
            for times in TIMES:
                jump = jumps.get(times, np.inf)
                final = 0.81 if (norm, times) == ("none", 1) else 0.80 + 0.002 * times
                final = np.nan if (norm, times) == ("none", 30) else final if np.isfinite(jump) else 0.1
                run = pd.DataFrame({"step": range(20, 401, 20)})
                run["accuracy"] = np.where(run.step >= jump, 0.82 if norm == "batch" else final, 0.1)
                given = {"norm": norm, "recipe": recipe, "times": times, "base": 0.02, "rate": 0.02 * times, "validation": final}
                rows += [run.assign(**given, test_accuracy=final, status="ok", seed=seed) for seed in range(seeds)]
    return pd.concat(rows, ignore_index=True)


def test_steps_are_counted_to_what_the_tuned_network_without_the_layer_ends_with() -> None:
    runs, best = runs_of(handmade())
    assert best == 1 and len(runs) == 2 * 2 * 5 * 3
    needed = by_arm(handmade(), "needed").iloc[0]
    assert needed[["none", "layer", "x5", "x30"]].tolist() == [200, 100, 20, 40]
    assert np.isinf(needed.none_x5) and np.isinf(needed.none_x30)


def test_claims_read_the_factors_off_the_runs() -> None:
    found = {claim.slug: claim.function(handmade()) for claim in rates.claims}
    assert [found[slug].value for slug in ("layer-alone", "fourteen", "beyond-the-layer")] == [2, 10, 5]
    assert found["larger-part"].value == pytest.approx(np.log(2) / np.log(10))
    assert "0.314" in found["larger-part"].note and found["larger-part"].verdict is Verdict.NOT_REPRODUCED
    assert found["overflow"].value == 0 and found["overflow"].verdict is Verdict.REPRODUCED
    assert found["thirty"].value == pytest.approx(0.05)
    assert "×30" in rates._function("draw")(handmade()).caption


def test_the_new_recipe_has_a_fifth_of_the_decay_and_a_rate_that_falls_six_times_as_fast() -> None:
    (_, old_decay, old), (dropout, new_decay, new) = RECIPES.values()
    assert (dropout, old_decay / new_decay, new / old) == (0, pytest.approx(5), 6)
    schedule = make_schedule(f"exponential:growth={0.5 ** (new / 360)!r}", 1.0, 360)
    assert schedule(60) == pytest.approx(0.5) and schedule(360) == pytest.approx(1 / 64)
