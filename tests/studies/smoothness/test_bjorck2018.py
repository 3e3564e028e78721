"""Rates and gradients: an image's part of the gradient against autograd, its common part, and what claims read off runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from normlib.lab import Verdict
from normlib.networks import PlainConvNet
from normlib.studies.smoothness.bjorck2018 import gradients_at_start, image_terms, rates


def batch(images: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, 1, 8, 8, generator=generator), torch.arange(images) % 3


def test_the_terms_of_the_images_add_up_to_the_gradient() -> None:
    x, y = batch()
    for norm in ("none", "batch"):
        net = PlainConvNet(6, 4, 1, 3, norm, seed=1, image_size=8)
        terms = image_terms(net, x, y)
        convolutions = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
        assert list(terms) == list(convolutions)[1:]
        F.cross_entropy(net(x), y).backward()
        for name, term in terms.items():
            assert torch.allclose(term.sum(0), convolutions[name].weight.grad.flatten(), atol=1e-6)


def test_a_term_is_the_gradient_of_one_image_where_images_do_not_meet() -> None:
    x, y = batch()
    net = PlainConvNet(6, 4, 1, 3, "none", seed=1, image_size=8)
    terms = image_terms(net, x, y)
    (F.cross_entropy(net(x[2:3]), y[2:3]) / len(x)).backward()
    for name, term in terms.items():
        assert torch.allclose(term[2], net.get_submodule(name).weight.grad.flatten(), atol=1e-6)


def test_the_common_part_is_one_for_copies_of_an_image() -> None:
    x, y = batch(1)
    net = PlainConvNet(6, 4, 1, 3, "none", seed=1, image_size=8)
    assert np.isclose(gradients_at_start(net, x.expand(5, -1, -1, -1), y.expand(5))["common"], 1, atol=1e-5)


def handmade() -> pd.DataFrame:
    """Return runs that learn up to 0.1 (0.01 at 20 layers) without BN and up to 3 with it."""
    rows = []
    for seed in range(3):
        for depth in (8, 20):
            for norm, grid in (("none", [0.01, 0.1, 1.0]), ("batch", [0.1, 3.0, 10.0])):
                limit = 3.0 if norm == "batch" else 0.1 if depth == 8 else 0.01
                run = pd.DataFrame({"rate": grid, "length": [0.1, 1.0, 10.0]})
                run["loss"] = np.where(run.rate <= limit, 1.5, [2.3, 2.3, np.inf])
                run["relative_loss"] = [0.9, 40.0 if norm == "none" else 2.0, np.inf]
                run["accuracy"] = np.where(run.rate == 0.1, 0.71 if norm == "batch" else 0.70, np.where(run.rate == 3, 0.8, np.nan))
                given = {"depth": depth, "norm": norm, "seed": seed, "guessing": np.log(10), "steps": 100, "longer": 400}
                measured = {"kurtosis": 9.0 if norm == "none" else 4.5, "common": 0.3 if norm == "none" else 0.03}
                rows.append(run.assign(**given, **measured, scored=8, small=0.1, large=3.0))
    return pd.concat(rows, ignore_index=True)


def test_claims_read_the_largest_usable_rates() -> None:
    found = {claim.slug: claim.function(handmade()) for claim in rates.claims}
    assert np.isclose(found["larger-rates"].value, 30) and "300 at 20" in found["larger-rates"].note
    assert np.isclose(found["depth"].value, 0.1)
    assert [found[slug].value for slug in ("one-step", "heavy-tails")] == [20, 2]
    assert np.isclose(found["input-independent"].value, 10)
    assert np.isclose(found["same-rate"].value, 1) and found["same-rate"].verdict is Verdict.REPRODUCED
    assert "0.01 and 3 at 20 layers" in rates._function("draw")(handmade()).caption


def test_a_network_that_never_learns_leaves_the_claim_open() -> None:
    table = handmade()
    table.loc[(table.norm == "none") & (table.depth == 20), "loss"] = 2.3
    found = {claim.slug: claim.function(table) for claim in rates.claims}
    assert found["larger-rates"].verdict is Verdict.UNRESOLVED
    assert "at no rate" in rates._function("draw")(table).caption
