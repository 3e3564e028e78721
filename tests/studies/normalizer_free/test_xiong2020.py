"""Where layer norm stands: the stack, its weights, and what is read from its gradients."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from normlib.studies.normalizer_free.xiong2020 import exponents, growth, mean_square, stack, swelling


def a_table() -> pd.DataFrame:
    """Make a table in which what is read is known: gradients of depth^p, streams that grow by a known amount."""
    rows = []
    for seed in range(2):
        for depth in (4, 8):
            for order, power, factor in (("pre", -0.5, 9.0), ("peri", -0.3, 1.0), ("post", 0.0, 1.0)):
                for scale in (1, 3):
                    for block in range(1, depth + 1):
                        stream = (factor if scale == 3 else 1) * (1 + 2.0 * block)
                        row = {"order": order, "depth": depth, "scale": scale, "seed": seed, "block": block}
                        rows.append({**row, "before": stream - 2.0, "stream": stream, "gradient": float(depth) ** power})
    return pd.DataFrame(rows)


def test_readings_of_a_known_table() -> None:
    table = a_table()
    slopes = {name: float(np.median(values)) for name, values in exponents(table).items()}
    assert slopes == pytest.approx({"post": 0.0, "pre": -0.5, "peri": -0.3}, abs=1e-9)
    assert growth(table)["pre"].tolist() == pytest.approx([1.0, 1.0])
    assert swelling(table)["pre"].tolist() == pytest.approx([9.0, 9.0]) and swelling(table)["peri"].eq(1).all()


def test_larger_weights_are_those_of_the_blocks_alone() -> None:
    one, three = (stack("pre", 16, 2, 2, scale, seed=0) for scale in (1, 3))
    for (name, small), large in zip(one.named_parameters(), three.parameters(), strict=True):
        factor = 3 if name.startswith("blocks") and small.ndim == 2 else 1
        assert torch.equal(factor * small, large), name


def test_post_norm_gives_tokens_of_mean_square_one() -> None:
    net = stack("post", 16, 2, 2, 3, seed=0)
    tokens = net.blocks(net.embed(torch.randn(4, 3, 16, 16))).detach()
    assert mean_square(tokens) == pytest.approx(1, abs=1e-4)
    assert mean_square(torch.tensor([3.0, -4.0])) == 12.5
