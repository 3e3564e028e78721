"""The two orders differ in nothing but the order, and the measures of shape are the textbook's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from normlib import data
from normlib.studies.batch.placement import LAYERS, ORDERS, WIDTHS, make_network, shape


@pytest.mark.parametrize("kind", WIDTHS)
def test_the_orders_share_weights_and_number_of_parameters(kind: str) -> None:
    images = data.load("digits")
    before, after = (make_network(kind, order, images, seed=3) for order in ORDERS)
    assert sum(p.numel() for p in before.parameters()) == sum(p.numel() for p in after.parameters())
    for layer in [*(f"layer{i}" for i in range(LAYERS)), "head"]:
        torch.testing.assert_close(getattr(before, layer).weight, getattr(after, layer).weight, rtol=0, atol=0)


@pytest.mark.parametrize("kind", WIDTHS)
def test_before_relu_the_output_is_not_negative_and_after_it_is_standardized(kind: str) -> None:
    images = data.load("digits")
    before, after = (make_network(kind, order, images, seed=0)[:-1] for order in ORDERS)
    x = images.x_train[:200]
    if kind == "conv":
        before, after = before[:-2], after[:-2]  # without the pooling
    else:
        x = x.flatten(1)
    assert before(x).min() == 0 and abs(float(after(x).detach().mean())) < 1e-5
    # with BN before, the bias of a weight layer is subtracted again; with BN after, it counts
    for net, counts in ((before, False), (after, True)):
        out = net(x)
        torch.nn.init.normal_(net.layer0.bias)
        assert (float((net(x) - out).detach().abs().max()) > 0.1) is counts


def test_shape_is_that_of_scipy_and_leaves_dead_units_out() -> None:
    values = torch.randn(40, 3, 5, 5, generator=torch.Generator().manual_seed(0)).exp()
    rows = values.transpose(0, 1).flatten(1).double().numpy()
    dead = torch.cat([values, torch.zeros(40, 1, 5, 5)], dim=1)
    for found in (shape(values), shape(dead)):
        np.testing.assert_allclose(found["skew"], np.median(np.abs(stats.skew(rows, axis=1))), rtol=1e-9)
        np.testing.assert_allclose(found["kurtosis"], np.median(np.abs(stats.kurtosis(rows, axis=1))), rtol=1e-9)
