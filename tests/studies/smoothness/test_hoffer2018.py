"""The scales are those of the formulas, and statistics in half precision are rounded where IEEE says."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from normlib.studies.common.statements import normal
from normlib.studies.smoothness.hoffer2018 import against_deviation
from normlib.studies.smoothness.hoffer2018_half import SCALES, added, first_overflow, half, predicted_overflow, spread, usable


def test_normal_values_have_the_ratio_of_the_constant_and_a_dead_channel_has_none() -> None:
    values = 3 + 2 * normal(0, 4000, 5).unflatten(1, (5,))
    found = against_deviation(values)
    assert found["l1"] == pytest.approx(1, abs=0.02) and found["maximum"] > 1.1
    heavy = against_deviation(values**3)  # heavier tails: a smaller mean deviation, a larger maximum
    assert heavy["l1"] < 0.9 and heavy["maximum"] > found["maximum"]
    assert against_deviation(torch.cat([values, torch.ones(4000, 1).double()], 1)) == found


def test_two_point_values_by_hand() -> None:
    values = torch.tensor([[1.0], [-1.0]]).double().repeat(50, 1)
    found = against_deviation(values)
    assert found["l1"] == pytest.approx(math.sqrt(math.pi / 2))
    assert found["maximum"] == pytest.approx((1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(8 * math.log(100)))


@pytest.mark.parametrize(("statistic", "sums"), [("variance", "float32"), ("variance", "float16"), ("l1", "float16")])
def test_sums_in_half_are_those_of_numpy(statistic: str, sums: str) -> None:
    values = (0.1 * normal(1, 256)).half()
    with np.errstate(over="ignore"):
        terms = values.numpy() * values.numpy() if statistic == "variance" else np.abs(values.numpy())
        while sums == "float16" and len(terms) > 1:
            terms = terms[0::2] + terms[1::2]
    assert terms.dtype == np.float16
    mean = np.float16(terms[0] / np.float16(256)) if sums == "float16" else np.float16(terms.astype(np.float32).mean())
    expected = np.sqrt(mean) if statistic == "variance" else mean
    assert spread(values, statistic, sums) == pytest.approx(float(expected), rel=1e-3)


def test_a_square_overflows_at_256_and_vanishes_below_a_root_of_half_the_smallest_number() -> None:
    for size, expected in ((255.5, 255.5), (256.0, math.inf), (1.7e-4, 0.0), (2.5e-4, 2.5e-4)):
        values = torch.tensor([size, -size]).half()
        assert spread(values, "variance", "float32") == pytest.approx(expected, rel=0.05)
        assert spread(values, "l1", "float32") == pytest.approx(size, rel=0.01)
    assert math.isinf(float(added(torch.full((1024,), 64.0).half(), "float16")))
    assert float(added(torch.full((1024,), 63.0).half(), "float16")) == 63


def test_overflow_is_where_the_closed_form_says() -> None:
    directions = normal(2, 1024)
    for statistic, sums, about in (("variance", "float16", 8), ("l1", "float16", 80), ("variance", "float32", 75)):
        found, said = (f(directions, statistic, sums) for f in (first_overflow, predicted_overflow))
        assert found == pytest.approx(said, rel=0.01) and said == pytest.approx(about, rel=0.2)


def test_usable_scales_are_an_unbroken_range_about_one() -> None:
    ratio = [1.0 if 2**-3 <= scale <= 2**4 or scale == 2**8 else 2.0 for scale in SCALES]
    table = pd.DataFrame({"scale": SCALES, "ratio": ratio, "seed": 0, "statistic": "l1", "sums": "float16", "count": 64})
    assert usable(table, "min").iloc[0, 0] == 2**-3 and usable(table, "max").iloc[0, 0] == 2**4
    assert half.kind == "exact"
