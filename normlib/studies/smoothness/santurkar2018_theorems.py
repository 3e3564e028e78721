"""Santurkar et al. (2018), section 4: the theorems on one batch-normalized layer, both sides of each on real batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import batch_norm
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, GRAY, INK, SKY, VERMILION, median_and_band, note, subplots
from normlib.studies.common.statements import gap, normal

TOLERANCE = 1e-9
UNITS = 12
LOSS_SCALES = (0.01, 1.0, 100.0)  # a bound that holds for a loss should hold for a hundred times that loss
Loss = Callable[[Tensor], Tensor]

theorems = Study(
    "santurkar2018.theorems",
    item="Theorems 4.1, 4.2, 4.4, Observation 4.3, Lemma 4.5",
    title="The theorems on the gradient of batch norm are equalities, once a constant is mended",
    kind="exact",
    vary={"batch": [8, 32, 128, 512], "activation": ["relu", "tanh"]},
    quick={"data": "digits", "pool": 1},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 10_000},
    full=None,
)


def rest_of_network(activation: str, labels: Tensor, seed: int) -> Loss:
    """Return what follows the layer, from its outputs (m, units) to the mean cross-entropy: an activation and two dense layers."""
    act = {"relu": torch.relu, "tanh": torch.tanh}[activation]
    first, second = normal(seed + 1, UNITS, 32) / UNITS**0.5, normal(seed + 2, 32, 10) / 32**0.5
    first, second = first.to(labels.device), second.to(labels.device)
    return lambda z: F.cross_entropy(act(act(z) @ first) @ second, labels)


def second_derivative(loss: Loss, at: Tensor, direction: Tensor) -> Tensor:
    """Return directionᵀ H direction, where H is the Hessian of the loss at a point."""
    at = at.detach().requires_grad_()
    slope = (torch.autograd.grad(loss(at), at, create_graph=True)[0] * direction).sum()
    return (torch.autograd.grad(slope, at)[0] * direction).sum()


def of_unit(values: Tensor, unit: int) -> Tensor:
    """Keep one column, and set the others to zero."""
    kept = torch.zeros_like(values)
    kept[:, unit] = values[:, unit]
    return kept


def lemma(x: Tensor, target: Tensor, seed: int) -> dict[str, float]:
    """Put a start and the plain optimum into Lemma 4.5, and ask whether every multiple of the optimum is one with the norm."""
    best = torch.linalg.pinv(x) @ target
    start = normal(seed + 3, len(best)).to(x.device) / len(best) ** 0.5
    start = start * torch.sign(start @ best)
    nearest = (start @ best) / best.square().sum() * best
    said = (start - best).square().sum() - (best.square().sum() - best @ start).square() / best.square().sum()
    fit = [(batch_norm(scale * (x @ best)[:, None], eps=0.0)[:, 0] - target).square().mean() for scale in (1.0, 0.5, 3.0)]
    return {
        "lemma": gap((start - nearest).square().sum(), said),
        "ray": max(gap(fit[0], other) for other in fit[1:]),
    }


@theorems.trial
def _(c: Config, seed: int):
    images = load(c, seed).pooled(c.pool).standardized().flat()
    chosen = torch.randperm(len(images.x_train), generator=torch.Generator().manual_seed(seed))[: c.batch].to(c.device)
    x, labels = images.x_train[chosen].double(), images.y_train[chosen]
    weight = normal(seed, x.shape[1], UNITS).to(c.device) / x.shape[1] ** 0.5
    gamma, beta = (1 + 0.3 * normal(seed + 4, UNITS)).to(c.device), 0.3 * normal(seed + 5, UNITS).to(c.device)
    loss, m = rest_of_network(c.activation, labels, seed), c.batch

    y = (x @ weight).requires_grad_()
    y_hat, sigma = batch_norm(y, eps=0.0).detach(), y.std(0, correction=0).detach()
    z = batch_norm(y, gamma, beta, eps=0.0)
    below = torch.autograd.grad(loss(z), y)[0]  # g, of the loss with the norm
    z = z.detach().requires_grad_()
    above = torch.autograd.grad(loss(z), z)[0]  # ĝ, that of the loss without it at the same input to what follows
    y, z, amplified = y.detach(), z.detach(), gamma.square() / sigma.square()

    whole, mean, slope = above.square().sum(0), above.sum(0).square() / m, (above * y_hat).sum(0).square()
    left = below.square().sum(0)
    mended, printed = (amplified * (whole - mean - slope / divisor) for divisor in (m, m**0.5))

    def with_norm(values: Tensor) -> Tensor:
        return loss(batch_norm(values, gamma, beta, eps=0.0))

    curvature, terms = [], []
    for unit in range(UNITS):
        g = of_unit(below, unit)
        curvature.append(second_derivative(with_norm, y, g))
        tilt = gamma[unit] / (m * sigma[unit] ** 2) * (above[:, unit] @ y_hat[:, unit]) * g.square().sum()
        terms.append(amplified[unit] * second_derivative(loss, z, g) - tilt)
    second_left, second_right = torch.stack(curvature), torch.stack(terms)

    length = torch.linalg.matrix_norm(x, 2)  # λ: the inputs are one of those with a norm of at most λ
    reached = (x.T @ below).square().sum(0) / (length.square() * left)
    worst = length * torch.outer(below[:, 0] / below[:, 0].norm(), weight[:, 0] / weight[:, 0].norm())
    squared = length.square()
    weight_left, weight_right = squared * left, amplified * squared * (whole - m * above.mean(0).square() - slope / m)
    kept = [
        scale**2 * weight_left <= amplified * ((scale**2 * squared * whole) ** 2 - scale**2 * (mean + squared * slope))
        for scale in LOSS_SCALES
    ]
    target = labels.double()
    return {
        "left": left.tolist(),
        "mended": mended.tolist(),
        "printed": printed.tolist(),
        "curvature": second_left.tolist(),
        "terms": second_right.tolist(),
        "mean_share": (mean / whole).tolist(),
        "slope_share": (slope / m / whole).tolist(),
        "reached": reached.tolist(),
        "first": gap(left, mended),
        "second": gap(second_left, second_right),
        "fourth": max(gap(weight_left, weight_right), gap((worst.T @ below[:, 0]).square().sum(), weight_left[0])),
        "observation": gap(batch_norm(y, sigma, y.mean(0), eps=0.0), y),
        **{f"printed_at_{scale:g}": float(holds.double().mean()) for scale, holds in zip(LOSS_SCALES, kept, strict=True)},
        **lemma(x - x.mean(0), target - target.mean(), seed),
    }


@theorems.draw
def _(table):
    figure, (first, second, shares) = subplots(1, 3, height=3.1)
    shown = table[(table.batch == 128) & (table.seed == 0)]
    for axes, against, name, color, marker in (
        (first, "printed", "last term × 1/√m, as printed", VERMILION, "x"),
        (first, "mended", "last term × 1/m", BLUE, "o"),
        (second, "terms", "", BLUE, "o"),
    ):
        of = "left" if axes is first else "curvature"
        scale = shown[of].abs().max()
        axes.plot(shown[against] / scale, shown[of] / scale, marker, color=color, label=name, markerfacecolor="none")
    for axes in (first, second):
        ends = np.array(axes.get_ylim())
        axes.plot(ends, ends, color=INK, linewidth=1)
        axes.set(ylabel="left side", xlabel="right side")
    first.set_title("Theorem 4.1", fontsize=10)
    second.set_title("Theorem 4.2", fontsize=10)
    medians = table.groupby(["batch", "activation", "seed"])[["mean_share", "slope_share"]].median().reset_index()
    for column, label, style, color in (("mean_share", "mean", "-", BLUE), ("slope_share", "slope in ŷ", "--", SKY)):
        for activation, marker in (("relu", "o"), ("tanh", "s")):
            runs = medians[medians.activation == activation]
            named = f"{label}, {activation}"
            median_and_band(shares, runs, "batch", column, color=color, linestyle=style, marker=marker, label=named)
    grid = np.array(sorted(table.batch.unique()), dtype=float)
    shares.plot(grid, 1 / grid, color=GRAY, linewidth=1)
    note(shares, "gray: 1/m", 0.6, 0.92)
    shares.set(xscale="log", yscale="log", xlabel="batch m", ylabel="share taken out of ‖ĝ‖²")
    shares.set_xticks(grid, [f"{value:g}" for value in grid])
    shares.minorticks_off()
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
    parts = medians[medians.batch == medians.batch.max()][["mean_share", "slope_share"]].median()
    return Drawing(
        figure,
        caption=f"One batch-normalized layer on images, float64. Left and middle: {UNITS} units on a batch of 128, both sides in "
        "units of the largest left side. With 1/m in the last term every point lies on the line, so Theorem 4.1 is an equality, "
        "and as printed it is no bound; Theorem 4.2 is an equality as well. Right: what the theorem subtracts, as shares of the "
        f"gradient that arrives. At m = {int(medians.batch.max())} they are {number(parts.mean_share)} and "
        f"{number(parts.slope_share)} (medians over units).",
        alt="Three plots. Left: left side of Theorem 4.1 against its right side; circles on the diagonal, crosses off it. Middle: "
        "the same for Theorem 4.2, on the diagonal. Right: two shares against the batch size, beside a line 1/m.",
    )


@theorems.claim(
    "lipschitz",
    "With the coefficient 1/m in its last term, Theorem 4.1 holds, and as an equality.",
    criterion=f"‖g‖² against γ²/σ² (‖ĝ‖² − ⟨1, ĝ⟩²/m − ⟨ĝ, ŷ⟩²/m), relative to the largest, all units, below {TOLERANCE:g}",
    by="notes",
)
def _(table):
    return judge_identity("largest relative error", table["first"].max(), TOLERANCE)


@theorems.claim(
    "lipschitz-as-printed",
    "Theorem 4.1 holds as printed, with the coefficient 1/√m in its last term.",
    criterion="how far the left side exceeds the right side, as a share of the left, the largest over all units, below 1e-9",
)
def _(table):
    excess = (table.left - table.printed) / table.left
    return judge_identity("largest excess over the bound", excess.max(), TOLERANCE, f"smallest excess {number(excess.min())}")


@theorems.claim(
    "smoothness",
    "Theorem 4.2 holds, and as an equality.",
    criterion=f"gᵀ(∂²L̂/∂y∂y)g against γ²/σ² gᵀHg − γ/(mσ²) ⟨ĝ, ŷ⟩‖g‖², relative to the largest, below {TOLERANCE:g}",
)
def _(table):
    return judge_identity("largest relative error", table.second.max(), TOLERANCE)


@theorems.claim(
    "weights",
    "With λ² on every term and 1/m on the last, Theorem 4.4 holds, and as an equality.",
    criterion=f"both sides, and the worst case put in, relative error below {TOLERANCE:g}",
    by="notes",
)
def _(table):
    share = f"the batch itself reaches {number(table.reached.median())} of the worst case (median)"
    return judge_identity("largest relative error", table.fourth.max(), TOLERANCE, share)


@theorems.claim(
    "weights-as-printed",
    "Theorem 4.4 holds as printed, whatever unit the loss is measured in.",
    criterion="share of the units at which the printed bound fails, the largest of three: the loss times 0.01, 1 and 100; it is 0",
)
def _(table):
    fails = {scale: 1 - table[f"printed_at_{scale:g}"].mean() for scale in LOSS_SCALES}
    words = ", ".join(f"{number(share)} at × {scale:g}" for scale, share in fails.items())
    return judge_identity("largest share of failures", max(fails.values()), 0.0, words)


@theorems.claim(
    "same-activations",
    "For any data and weights some γ and β give the activations of the network without the norm.",
    criterion=f"γ = σ, β = μ: largest relative difference of the outputs below {TOLERANCE:g}",
)
def _(table):
    return judge_identity("largest relative difference", table.observation.max(), TOLERANCE)


@theorems.claim(
    "closer-start",
    "A start is closer to the nearest optimum of the network with the norm, by the length that the lemma says.",
    criterion=f"Lemma 4.5 as an equality, and the loss on positive multiples of the optimum alike, to {TOLERANCE:g}",
)
def _(table):
    return judge_identity("largest relative error", max(table.lemma.max(), table.ray.max()), TOLERANCE)


@theorems.claim(
    "what-is-removed",
    "In a batch of 512 the two removed directions carry less than 2 % of the squared gradient that arrives.",
    criterion="sum of both shares at m = 512, median over units and activations, below 0.02",
    by="notes",
)
def _(table):
    runs = table[table.batch == 512]
    both = (runs.mean_share + runs.slope_share).groupby(runs.seed).median()
    return judge_effect("share of ‖ĝ‖²", both, claimed=(0, 0.02), null=np.nan)
