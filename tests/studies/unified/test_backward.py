"""Gradients on their way back: sizes of maps, the stacks that are compared, a closed form, what claims read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from normlib.lab import Config, Verdict
from normlib.probes import record_activations
from normlib.studies.common.arms import images_for
from normlib.studies.unified.lubana2021_backward import SIZES, backward, map_sizes
from normlib.studies.unified.ten import QUICK, TEN, cnn
from normlib.studies.unified.yang2019_explosion import explosion, stack

STACK = {"width": 256, "channels": 8, "samples": 3, "depth": 12, "scale": 1.0, "activation": "identity"}


@pytest.mark.parametrize(("layers", "strides"), [(10, 2), (20, 1)])
def test_maps_have_the_sizes_of_the_network(layers: int, strides: int) -> None:
    c = Config({**QUICK, "strides": strides})
    images, _ = images_for(c, 0)
    names = [f"blocks.{index}.layer" for index in range(layers)]
    found = record_activations(cnn(c, images, "none", 0, layers), images.x_train[:2], names)
    assert [found[name].shape[-1] for name in names] == map_sizes(layers, strides, images.shape[-1])


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_statistic_has_the_values_counted_and_the_scale_is_that_of_all_weights(norm: str) -> None:
    c = Config({**STACK, "norm": norm, "count": 16})
    blocks, x, sent = stack(c, 0)
    large, same, _ = stack(Config({**c, "scale": 10.0}), 0)
    assert (x.shape[0] if norm == "batch" else x[0, 0].numel()) == 16 and sent.shape == x.shape
    assert torch.equal(x, same) and torch.allclose(10 * blocks[0].layer.weight, large[0].layer.weight)
    sums, out = blocks[0].layer(x), blocks[0](x)
    axes = (0,) if norm == "batch" else (2, 3)
    plain = (sums - sums.mean(axes, keepdim=True)) / (sums.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(out, plain, atol=1e-5) and torch.allclose(large(x), blocks(x), atol=0.05)


def test_the_trial_finds_the_closed_form_of_linear_layers() -> None:
    (found,) = explosion.measure(Config({**STACK, "norm": "batch", "count": 8}), [0])
    assert found["growth"] == pytest.approx((6 / 5) ** 0.5, rel=0.03)


def test_claims_read_the_deepest_networks_with_the_smallest_maps() -> None:
    growth = {"none": 0.9, **dict.fromkeys(TEN, 1.0), "batch": 1.2, "instance": 1.4}
    growth |= {key: 1.4 - 0.1 * place for place, key in enumerate(SIZES) if key != "instance"}
    rows = []
    for seed in range(3):
        for norm, value in growth.items():
            for layers in (10, 20):
                for strides in (1, 3):
                    columns = {"layer": [1, layers], "map": [14, 7 if strides == 1 else 2], "gradient": [value**layers, 1.0]}
                    mild = 1 if (layers, strides) == (20, 3) else 0.9
                    here = 1.25 if norm == "instance" and strides == 1 else value * mild
                    arm = {"norm": norm, "layers": layers, "strides": strides, "seed": seed, "growth": here}
                    rows.append(pd.DataFrame(columns).assign(**arm))
    found = {claim.slug: claim.function(pd.concat(rows)) for claim in backward.claims}
    assert np.isclose(found["group-size"].value, 1.4 / 1.3) and found["group-size"].verdict is Verdict.REPRODUCED
    assert np.isclose(found["instance-most"].value, 1.4 / 1.2)
    assert np.isclose(found["depth"].value, 1.2**10) and np.isclose(found["layer-norm"].value, 0.9)
    assert found["single-sample"].verdict is not Verdict.REPRODUCED and np.isclose(found["factor"].value, 1.2)
    assert np.isclose(found["small-maps"].value, 1 - np.log(1.25 / 1.08) / np.log(1.4 / 1.2))
