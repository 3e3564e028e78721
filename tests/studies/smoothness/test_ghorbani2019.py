"""The measures of the spectrum against the dense Hessian of a small network."""

from __future__ import annotations

import numpy as np
import torch
from torch.func import grad
from torch.nn.functional import cross_entropy

from normlib.networks import PlainConvNet
from normlib.probes import hessian, model_loss
from normlib.studies.smoothness.ghorbani2019 import TOP, measure


def test_nodes_share_and_trace_are_those_of_the_dense_hessian() -> None:
    torch.manual_seed(0)
    net = PlainConvNet(depth=4, width=2, in_channels=1, classes=4, norm="batch:ghost=16", image_size=4).double()
    x, y = torch.randn(32, 1, 4, 4, dtype=torch.float64), torch.arange(32) % 4
    loss, params = model_loss(net, cross_entropy, x, y, training=True)
    matrix = hessian(loss, params)
    values, vectors = torch.linalg.eigh(matrix)
    gradient = torch.cat([part.reshape(-1) for part in grad(loss)(params).values()])
    found = measure(loss, params, steps=len(gradient), traces=60)
    assert np.allclose(found["node"][:TOP], values.flip(0)[:TOP], rtol=1e-6)
    share = (vectors[:, -TOP:].T @ gradient).square().sum() / gradient.square().sum()
    assert 0.05 < share < 0.999 and abs(found["share"] - float(share)) < 1e-4
    error = (2 * matrix.square().sum() / 60).sqrt()  # of the mean of 60 quadratic forms, at most
    assert abs(found["trace"] - float(matrix.trace())) < 4 * error and abs(float(matrix.trace())) > 2 * error
