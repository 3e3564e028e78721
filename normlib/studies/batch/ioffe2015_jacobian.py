"""Ioffe & Szegedy (2015), section 3.3: the conjecture that batch norm brings singular values near 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from normlib.activations import make_activation
from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import MLP
from normlib.probes import mean_squared_singular_value, model_map, singular_values
from normlib.studies.common.looks import INK, median_and_band, norm_color, subplots

ACTIVATIONS = {"identity": "linear", "tanh": "tanh", "relu": "ReLU"}
GAUSSIAN = {"identity": "lecun", "tanh": "lecun", "relu": "he"}  # the scale that suits the activation; batch norm ignores it
ORTHOGONAL = {"identity": "orthogonal", "tanh": "orthogonal", "relu": "orthogonal:gain=1.4142135623730951"}
NEAR = 0.2  # a singular value this close to 1 counts as near
LEVELS = np.linspace(0, 1, 41)  # shares of the singular values at which they are recorded


def law(activation: str) -> float:
    """Return √(E f'² / Var f) for a standard normal argument, by a sum over a fine grid (without 0, where kinks are)."""
    x = torch.linspace(-12, 12, 240_000, dtype=torch.float64, requires_grad=True)
    f = make_activation(activation)(x)
    (slope,) = torch.autograd.grad(f.sum(), x)
    density = torch.exp(-x.detach().square() / 2)
    weight, f = density / density.sum(), f.detach()
    return float((weight @ slope.square() / (weight @ f.square() - (weight @ f).square())).sqrt())


def noise(seed: int, *shape: int) -> Tensor:
    """Draw standard normal numbers from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# A single layer, where the conjecture's assumptions are met best: at the start, on Gaussian inputs.
jacobian = Study(
    "ioffe2015.jacobian",
    item="§3.3, conjecture",
    title="Are the singular values of a layer with batch norm near 1? Only a linear layer with orthogonal weights comes close",
    kind="init",
    vary={"activation": list(ACTIVATIONS), "norm": ["none", "batch"], "weights": ["gaussian", "orthogonal"]},
    quick={"width": 10, "samples": 20, "wide": 128, "many": 64},
    laptop={"width": 24, "samples": 64, "wide": 512, "many": 256},
    full={"width": 64, "samples": 128, "wide": 2048, "many": 1024},
)


def between_norms(c: Config, seed: int, width: int, samples: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the map from one normalized vector to the next, through activation, weights and norm, and a batch for it."""
    init = (GAUSSIAN if c.weights == "gaussian" else ORTHOGONAL)[c.activation]
    net = MLP([width] * 4, activation=c.activation, norm=c.norm, init=init, bias=False, seed=seed).to(c.device)
    return model_map(net, noise(seed, samples, width).to(c.device), "blocks.0.norm", "blocks.1.norm", training=True)


@jacobian.trial
def _(c, seed):
    values = singular_values(*between_norms(c, seed, c.width, c.samples)).double().cpu()
    return {
        "share": LEVELS,
        "value": torch.quantile(values, torch.from_numpy(LEVELS)).numpy(),
        "near": float(((values - 1).abs() <= NEAR).double().mean()),
        # in a wide layer, by random probes: all its singular values would be too many
        "root_mean_square": mean_squared_singular_value(*between_norms(c, seed, c.wide, c.many)).value ** 0.5,
        "law": law(c.activation),
    }


@jacobian.draw
def _(table):
    figure, axes = subplots(1, 3, height=3.3, sharey=True)
    for ax, (activation, title) in zip(axes, ACTIVATIONS.items(), strict=True):
        ax.axhspan(1 - NEAR, 1 + NEAR, color=INK, alpha=0.12, linewidth=0)
        for norm, label in (("none", "no norm"), ("batch", "batch norm")):
            for weights, style in (("gaussian", "-"), ("orthogonal", "--")):
                runs = table[(table.activation == activation) & (table.norm == norm) & (table.weights == weights)]
                name = f"{label}, {weights.replace('gaussian', 'Gaussian')}"
                median_and_band(ax, runs, "share", "value", color=norm_color(norm), linestyle=style, label=name)
        ax.set(xlabel="share of values below", xticks=[0, 0.5, 1], title=title)
    axes[0].set(ylabel="singular value", ylim=(-0.1, 3.6))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=1.8)
    near = table.groupby(["activation", "norm", "weights"]).near.median()
    return Drawing(
        figure,
        caption="Singular values of a layer's Jacobian at the start, for the whole batch and through its statistics, from one "
        f"normalized vector to the next. Within {NEAR:g} of 1 (gray) lie, with batch norm and Gaussian weights, "
        f"{near['identity', 'batch', 'gaussian']:.0%} for a linear layer, {near['tanh', 'batch', 'gaussian']:.0%} for tanh and "
        f"{near['relu', 'batch', 'gaussian']:.0%} for ReLU; without a norm {near['identity', 'none', 'gaussian']:.0%}, "
        f"{near['tanh', 'none', 'gaussian']:.0%} and {near['relu', 'none', 'gaussian']:.0%}. With orthogonal weights the linear "
        f"layer has {near['identity', 'batch', 'orthogonal']:.0%} there, and the ReLU layer "
        f"{near['relu', 'batch', 'orthogonal']:.0%}.",
        alt="Sorted singular values of a layer's Jacobian for linear, tanh and ReLU layers, with and without batch norm, Gaussian "
        "and orthogonal weights, over a gray band around 1. Only linear layers with orthogonal weights stay in the band.",
    )


def _near(table, activation, norm="batch", weights="gaussian"):
    runs = table[(table.activation == activation) & (table.norm == norm) & (table.weights == weights)]
    return runs.groupby("seed").near.first()


@jacobian.claim(
    "near-one",
    "Batch normalization may lead the Jacobian of a layer to have singular values close to 1.",
    criterion="of a tanh and of a ReLU layer with Gaussian weights, at the start, more than half of the singular values lie within "
    "0.2 of 1 (the smaller of the two shares)",
)
def _(table):
    tanh, relu = _near(table, "tanh"), _near(table, "relu")
    note = f"tanh {number(tanh.median())}, ReLU {number(relu.median())}, linear {number(_near(table, 'identity').median())}"
    return judge_effect("share within 0.2 of 1", np.minimum(tanh, relu), claimed=(0.5, 1), null=np.nan, note=note)


@jacobian.claim(
    "nearer-than-without",
    "They are closer to 1 with batch normalization than without it, even where the weights already have the right scale.",
    criterion="the share of singular values within 0.2 of 1, with batch norm minus without, is above 0.05 for tanh and for ReLU "
    "layers with Gaussian weights (the smaller of the two)",
    by="notes",
)
def _(table):
    gains = [_near(table, activation) - _near(table, activation, "none") for activation in ("tanh", "relu")]
    note = f"tanh {number(gains[0].median())}, ReLU {number(gains[1].median())}"
    return judge_effect("gain in the share", np.minimum(*gains), claimed=(0.05, 1), null=0, note=note)


@jacobian.claim(
    "where-the-argument-holds",
    "Where the paper's argument applies, in a linear layer with orthogonal weights, they are near 1, but for "
    "the two in every batch and unit that mean and variance take away.",
    criterion="at least 0.9 of the singular values within 0.2 of 1",
    by="notes",
)
def _(table):
    note = f"batches of {table.samples.max()}, in which σ scatters; at most {number(1 - 2 / table.samples.max())} can be near 1"
    near = _near(table, "identity", weights="orthogonal")
    return judge_effect("share within 0.2 of 1", near, claimed=(0.9, 1), null=np.nan, note=note)


@jacobian.claim(
    "root-mean-square",
    "In a layer with batch norm their root mean square is √(E f'² / Var f): above 1 for tanh and for ReLU.",
    criterion="within 5 % in a wide layer, for linear, tanh and ReLU, Gaussian weights, every seed",
    by="notes",
)
def _(table):
    runs = table[(table.norm == "batch") & (table.weights == "gaussian")]
    error = (runs.root_mean_square / runs.law - 1).abs().max()
    found = runs.groupby("activation").root_mean_square.median()
    listed = ", ".join(f"{name} {number(found[key])}" for key, name in ACTIVATIONS.items())
    return judge_identity("largest relative distance from the law", error, 0.05, f"measured: {listed}")
