"""Noise without norm: what it draws, in which units, and that it is off in evaluation; noisy norms that are silenced."""

from __future__ import annotations

import torch
from torch import nn

from normlib.layers import BatchNorm
from normlib.layers.noisy import NoisyBatchNorm
from normlib.studies.smoothness.santurkar2018_fig2 import ChannelNoise, silenced


def test_scaled_noise_is_that_of_noisy_batch_norm_in_units_of_the_channel() -> None:
    x = torch.tensor([0.01, 3.0, 50.0]).view(3, 1, 1) * torch.randn(64, 3, 6, 6)
    x = x - x.mean((0, 2, 3), keepdim=True)
    deviation = x.std((0, 2, 3), correction=0, keepdim=True)
    torch.manual_seed(1)
    behind_norm = NoisyBatchNorm(3, eps=1e-12, affine=False)(x)
    torch.manual_seed(1)
    assert torch.allclose(ChannelNoise(True)(x) / deviation, behind_norm, atol=1e-4)


def test_absolute_noise_ignores_the_size_of_its_input_and_is_off_in_evaluation() -> None:
    noise, x = ChannelNoise(False), torch.randn(16, 4, 5, 5)
    torch.manual_seed(1)
    zero = noise(torch.zeros_like(x))
    torch.manual_seed(1)
    factor = (noise(0.1 * x) - zero) / (0.1 * x)
    assert (factor.mean((0, 2, 3)) - 1.125).abs().max() < 0.2 and factor.min() > 0.3 and factor.max() < 2
    means = zero.mean((0, 2, 3))
    assert means.abs().max() < 0.52 and (zero - means.view(4, 1, 1)).abs().max() < 0.12  # U(-0.5, 0.5), then 0.1 about it
    assert noise.eval()(x) is x


def test_silenced_is_batch_norm_with_the_statistics_of_the_given_inputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 3, 4, 4)
    noisy = nn.Sequential(nn.Conv2d(3, 3, 3), NoisyBatchNorm(3), nn.Conv2d(3, 3, 1), NoisyBatchNorm(3))
    plain = nn.Sequential(noisy[0], BatchNorm(3, momentum=None), noisy[2], BatchNorm(3, momentum=None))
    for part in x.split(128):
        plain(part)
    quiet = silenced(noisy, x).eval()
    assert torch.allclose(quiet(x), plain.eval()(x), atol=1e-5)
    assert noisy[1].n_mu == 0.5 and quiet[1].n_mu == 0.0
