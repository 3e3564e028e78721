"""LeCun, Bottou, Orr & Müller (1998), Efficient BackProp: what the inputs do to the speed of gradient descent."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Judgement, Study, Verdict, judge_identity, number
from normlib.studies.looks import BLUE, INK, VERMILION, subplots

# ---------------------------------------------------------------------------------------------------------------------------
# Figs 6, 9-12: two Gaussian clouds, one linear unit, and the largest rate at which gradient descent converges
# ---------------------------------------------------------------------------------------------------------------------------

RATES = np.arange(0.5, 2.76, 0.05)
CENTERS = np.array([[-0.4, -0.8], [0.4, 0.8]])
WITHIN = 0.19  # standard deviation within a class; puts the eigenvalues near the paper's 0.84 and 0.036


def two_clouds(points: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the paper's two classes, half of the points each, with targets −1 and +1; the sample mean is moved to zero."""
    rng = np.random.default_rng(seed)
    label = np.arange(points) % 2
    x = CENTERS[label] + WITHIN * rng.standard_normal((points, 2))
    return x - x.mean(axis=0), 2.0 * label - 1.0


rates = Study(
    "lecun1998.rates",
    item="Figs 6, 9–12",
    title="Gradient descent converges below 2/λmax, and the bias weight lowers that limit",
    kind="exact",
    vary={"bias": [False, True]},
    quick={"points": 100, "steps": 400},
    laptop={"points": 100, "steps": 4_000},
    full=None,
)


@rates.trial
def _(c, seed):
    x, target = two_clouds(c.points, seed)
    inputs = np.column_stack([x, np.ones(len(x))]) if c.bias else x
    hessian = inputs.T @ inputs / len(inputs)
    best = np.linalg.lstsq(inputs, target, rcond=None)[0]
    weights = np.full((len(best), len(RATES)), 0.5)  # one column per rate
    start = np.linalg.norm(weights[:, 0] - best)
    for _ in range(c.steps):
        weights = weights - RATES * (inputs.T @ (inputs @ weights - target[:, None]) / len(inputs))
    distance = np.linalg.norm(weights - best[:, None], axis=0) / start
    return {"rate": RATES, "distance": np.minimum(distance, 1e30), "limit": 2 / np.linalg.eigvalsh(hessian)[-1]}


@rates.draw
def _(table):
    figure, axes = subplots()
    for bias, color in ((False, BLUE), (True, VERMILION)):
        arm = table[table.bias == bias]
        curve = arm.groupby("rate").distance.median()
        limit = arm.limit.median()
        label = "with" if bias else "without"
        axes.semilogy(curve.index, curve, "o-", color=color, label=f"{label} bias weight, 2/λmax = {limit:.2f}")
        axes.axvline(limit, color=color, linestyle="--", linewidth=1)
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set(xlabel="learning rate", ylabel="distance to the minimum,\nend / start", ylim=(1e-18, 1e12))
    axes.legend(loc="upper left")
    limits = table.groupby("bias").limit.median()
    return Drawing(
        figure,
        caption=f"Gradient descent converges up to 2/λmax and diverges beyond it (dashed). Without the bias weight the limit is "
        f"{limits[False]:.2f}, near the 2.38 that the paper prints; with the bias weight that its network has, it is {limits[True]:.2f}.",
        alt="Distance to the minimum after training against the learning rate, log scale, with and without a bias weight. Each "
        "curve crosses one at its own dashed line.",
    )


def _bracket(table, bias: bool) -> Judgement:
    """Do the largest converging and the smallest diverging rate lie on the two sides of 2/λmax, for every seed?"""
    arm = table[table.bias == bias]
    gaps = []
    for _, run in arm.groupby("seed"):
        limit = run.limit.iloc[0]
        converged, diverged = run[run.distance < 1].rate.max(), run[run.distance > 1].rate.min()
        gaps.append(max(abs(converged - limit), abs(diverged - limit)) if converged < limit < diverged else np.inf)
    return judge_identity(f"largest gap between the bracketing rates and 2/λmax = {arm.limit.median():.3f}", max(gaps), 0.05)


@rates.claim(
    "limit",
    "With two weights and no bias, gradient descent converges for rates below 2/λmax and diverges above.",
    criterion="for every seed the neighboring rates that converge and diverge lie on the two sides of 2/λmax, each within 0.05",
)
def _(table):
    return _bracket(table, bias=False)


@rates.claim(
    "printed-limit",
    "The largest rate for the network drawn in the paper, two weights and a bias, is 2/0.84 = 2.38.",
    criterion="the measured limit with the bias weight lies within 5 % of 2.38",
)
def _(table):
    limit = table[table.bias].limit
    reproduced = bool((limit / 2.38 - 1).abs().max() <= 0.05)
    return Judgement(
        "2/λmax with the bias weight",
        float(limit.median()),
        float(limit.min()),
        float(limit.max()),
        Verdict.REPRODUCED if reproduced else Verdict.NOT_REPRODUCED,
        f"the constant input of the bias adds an eigenvalue of 1, so the limit is {number(limit.median())}",
    )
