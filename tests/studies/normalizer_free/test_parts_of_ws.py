"""Parts of scaled weight standardization: all of them are the normalizer-free network, and each does what it says."""

from __future__ import annotations

import pytest
import torch

from normlib.lab import Config
from normlib.studies.common.arms import images_for
from normlib.studies.normalizer_free.parts_of_ws import NAMES, WHOLE, moments, network
from normlib.studies.normalizer_free.tricks import QUICK, resnet

C = Config(QUICK)
IMAGES, _ = images_for(C, 0)


def test_all_parts_are_the_network_of_the_paper() -> None:
    x = IMAGES.x_train[:8]
    torch.testing.assert_close(network(C, IMAGES, WHOLE, 3)(x), resnet(C, IMAGES, "nf", 3)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", NAMES)
def test_rows_sum_to_zero_and_have_one_length_only_if_asked(chosen: str) -> None:
    convolution = network(C, IMAGES, chosen, 0).blocks[0].branch[0]
    rows = convolution.weight.detach().flatten(1)
    assert bool(rows.sum(1).abs().max() < 1e-5) == ("center" in chosen)
    assert bool(rows.norm(dim=1).std() < 1e-5) == ("scale" in chosen)
    assert len(list(convolution.parametrizations.weight.parameters())) == 1 + ("gain" in chosen)


def test_without_centering_means_appear() -> None:
    x = IMAGES.x_train[:128]
    assert moments(network(C, IMAGES, WHOLE, 0), x)["means"] < moments(network(C, IMAGES, "scale + gain", 0), x)["means"]
