"""Networks that a study trains in one batch end where each would have ended alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normlib.networks import MLP, ScaledTanh
from normlib.studies.origins import lecun1998_predicted, wadia2021
from normlib.studies.origins.lecun1998_images import closed_form, descend
from normlib.training import squared_error, train


@pytest.mark.parametrize("hidden", [[], [7]])
def test_wadia_copies_train_as_each_would_alone(hidden: list[int]) -> None:
    x, y = torch.randn(2, 90, 6), torch.randint(3, (2, 90))
    networks = [MLP([6, *hidden, 3], activation="relu", seed=draw) for draw in range(2)]
    together = wadia2021.train_copies(networks, x, y, 80, 5, None, seed=3)
    for i, rate in enumerate(wadia2021.RATES):
        for draw in range(2):
            alone = MLP([6, *hidden, 3], activation="relu", seed=draw)
            train(alone, x[draw, :80], y[draw, :80], steps=5, batch_size=64, rate=rate, momentum=0.9, seed=3)
            torch.testing.assert_close(together[i, draw], alone(x[draw]).detach(), rtol=1e-4, atol=1e-4)


def test_second_order_steps_of_a_linear_model_are_steps_on_whitened_inputs() -> None:
    x, y = torch.randn(60, 5).double() @ torch.randn(5, 5).double() + 1, torch.randint(3, (60,))
    (raw, preconditioner), (whitened, _) = wadia2021.treat(x, 40, "second_order"), wadia2021.treat(x, 40, "whitened_train")
    model = MLP([5, 3], init="normal:std=0").double()
    by_second_order = wadia2021.train_copies([model], raw[None], y[None], 40, 20, preconditioner[None], seed=0)
    by_whitening = wadia2021.train_copies([model], whitened[None], y[None], 40, 20, None, seed=0)
    torch.testing.assert_close(by_second_order, by_whitening, rtol=1e-9, atol=1e-9)


def test_inputs_whitened_together_are_orthogonal_and_of_one_scale() -> None:
    x, preconditioner = wadia2021.treat(torch.rand(30, 50).double(), 20, "whitened_all")
    assert preconditioner is None
    gram = x @ x.T / 50 * (29 / 30)  # the mean was removed: the identity less 1/n, up to scale
    torch.testing.assert_close(gram, torch.eye(30).double() - 1 / 30, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, None])
def test_copies_at_all_ratios_train_as_each_would_alone(batch_size: int | None) -> None:
    x, y = torch.randn(40, 9).double(), torch.randint(10, (40,))
    target = 2 * nn.functional.one_hot(y, 10).double() - 1

    def network() -> nn.Module:
        return nn.Sequential(MLP([9, 6, 10], activation="scaled_tanh", seed=1), ScaledTanh()).double()

    errors, at_one = lecun1998_predicted.train_at_ratios(network(), x, target, 0.02, [3, 6], batch_size, seed=2)
    for i in (0, int(np.abs(lecun1998_predicted.RATIOS - 1).argmin())):
        alone = network()
        rate = float(lecun1998_predicted.RATIOS[i]) * 0.02
        train(alone, x, target, steps=6, batch_size=batch_size, rate=rate, loss=squared_error, seed=2)
        torch.testing.assert_close(errors[1, i], (alone(x) - target).square().mean().detach())
    for weight, expected in zip(at_one, alone.parameters(), strict=True):
        torch.testing.assert_close(weight, expected.detach())


def test_the_spectrum_predicts_the_descent() -> None:
    x, target = torch.randn(50, 4).double(), torch.randn(50, 2).double()
    moment, cross = x.T @ x / 50, x.T @ target / 50
    eigenvalues, axes = torch.linalg.eigh(moment)
    eigenvalues, axes = eigenvalues.flip(0), axes.flip(1)
    removable = (axes.T @ cross).square().sum(dim=1) / eigenvalues
    left = descend(moment, cross, [0, 1, 5, 30], float(removable.sum()))
    assert left == pytest.approx([closed_form(eigenvalues, removable, step) for step in (0, 1, 5, 30)], abs=1e-12)
