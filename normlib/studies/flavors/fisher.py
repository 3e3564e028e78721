"""The Fisher matrix of one normalized softmax layer: by automatic differentiation, and as `ba2016` prints it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev

from normlib.layers import batch_norm, layer_norm
from normlib.weights import weight_norm

EPS = 1e-30  # eps → 0: added to any variance here, it does not change a bit of it


def logits(norm: str, weight: Tensor, x: Tensor) -> Tensor:
    """Return the normalized sums of a generalized linear model: x of shape (N, features), W of shape (units, features)."""
    if norm == "weight":
        return x @ weight_norm(weight, torch.ones_like(weight[:, :1])).T
    sums = x @ weight.T
    return batch_norm(sums, eps=EPS) if norm == "batch" else layer_norm(sums, [sums.shape[1]], eps=EPS)


def fisher(norm: str, weight: Tensor, x: Tensor) -> Tensor:
    """Return the Fisher matrix of a softmax of the normalized sums as blocks, of shape (units, units, features, features)."""
    slopes = jacrev(lambda w: logits(norm, w, x))(weight)  # (N, outputs, units, features)
    p = logits(norm, weight, x).softmax(1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nkl,nkia,nljb->ijab", covariance, slopes, slopes) / len(x)


def printed_fisher(norm: str, weight: Tensor, x: Tensor) -> Tensor:
    """Return equation 13: blocks Cov[y_i, y_j | x] / (σ_i σ_j) χ_i χ_jᵀ, with χ_i of equation 14 and a gain of 1."""
    sums, p = x @ weight.T, logits(norm, weight, x).softmax(1)
    if norm == "weight":
        mu, sigma = torch.zeros_like(sums), weight.norm(dim=1).expand_as(sums)
        d_mu, d_sigma = torch.zeros_like(weight), (weight / weight.norm(dim=1, keepdim=True)).expand(len(x), -1, -1)
    elif norm == "batch":
        mu, sigma = sums.mean(0).expand_as(sums), sums.std(0, correction=0).expand_as(sums)
        d_mu = x.mean(0).expand_as(weight)
        d_sigma = (((sums - mu).T @ x) / len(x) / sigma[0][:, None]).expand(len(x), -1, -1)
    else:
        mu, sigma = (m.expand_as(sums) for m in (sums.mean(1, keepdim=True), sums.std(1, correction=0, keepdim=True)))
        d_mu = x[:, None] / sums.shape[1]
        d_sigma = ((sums - mu) / sigma / sums.shape[1])[:, :, None] * x[:, None]
    chi = x[:, None] - d_mu - ((sums - mu) / sigma)[:, :, None] * d_sigma
    covariance = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / (sigma[:, :, None] * sigma[:, None])
    return torch.einsum("nij,nia,njb->ijab", covariance, chi, chi) / len(x)
