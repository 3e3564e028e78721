"""The random networks of Labatie et al.: the proxy is the library's, and the first layer has the shares that theory gives."""

from __future__ import annotations

import math

import torch

from normlib.lab import Config
from normlib.layers import ProxyNorm, make_norm
from normlib.studies.normalizer_free.labatie2021 import SPREAD, activated, layer_after_layer


def test_the_proxy_is_that_of_the_library() -> None:
    torch.manual_seed(0)
    x, scale, shift = torch.randn(4, 6, 5, 5), 1 + SPREAD * torch.randn(6), SPREAD * torch.randn(6)
    whole = ProxyNorm(6)
    with torch.no_grad():
        whole.weight.copy_(scale), whole.bias.copy_(shift)
    torch.testing.assert_close(activated(make_norm("layer", 6)(x), scale, shift, proxy=True), whole(x))


def test_one_layer_of_relu_gives_the_means_their_share() -> None:
    """Noise has no means in layer 1; behind ReLU they hold 1/π in layer 2, a little more by random shifts."""
    c = Config({"width": 256, "depth": 2})
    x = torch.randn(64, 256, 6, 6)
    first, second = (row["mean"] for row in layer_after_layer(c, "layer", x, 0))
    assert first < 0.01 and abs(second - 1 / math.pi) < 0.05
    assert layer_after_layer(c, "layer + proxy", x, 0)[1]["mean"] < 0.02
