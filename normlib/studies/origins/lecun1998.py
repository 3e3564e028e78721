"""LeCun, Bottou, Orr & Müller (1998), Efficient BackProp: what the inputs do to the speed of gradient descent."""

from __future__ import annotations

import numpy as np
import torch
from torch.func import grad

from normlib.lab import Drawing, Judgement, Study, Verdict, judge_identity, number
from normlib.probes import covariance, hessian, second_moment, spectrum, whitening
from normlib.studies.common.inputs import TREATMENTS, load, treat
from normlib.studies.common.looks import BLUE, GRAY, INK, VERMILION, subplots

# ---------------------------------------------------------------------------------------------------------------------------
# Eqs 28-29 and 40: the Hessian of least squares is the second moment of the inputs, so inputs shape the bowl that is descended
# ---------------------------------------------------------------------------------------------------------------------------

hessian_is_second_moment = Study(
    "lecun1998.hessian",
    item="Eqs 13, 28–29, 40",
    title="The Hessian of least squares is the second moment of the inputs, not their covariance",
    kind="exact",
    vary={"inputs": TREATMENTS},
    quick={"points": 300, "data": "digits", "pool": 2, "train": 500},
    laptop={"points": 300, "data": "fashion-mnist", "pool": 7, "train": 2_000},
    full=None,
)
LEVELS = [0.002, 0.02, 0.08, 0.2, 0.4, 0.7]  # of the loss, as shares of the largest in the picture


def off_center_cloud(points: int, seed: int) -> torch.Tensor:
    """Draw correlated points in the plane, of unequal variances (1 and 0.25) and with a mean of length 2.2."""
    draw = torch.randn(points, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw @ torch.tensor([[1.0, 0.4], [0.0, 0.3]], dtype=torch.float64) + torch.tensor([1.9, 1.1], dtype=torch.float64)


def measure_curvature(x: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """Compare the Hessian of least squares, by automatic differentiation, with what could be its closed form."""
    loss = _least_squares(x, target)
    found = hessian(loss, torch.zeros(x.shape[1], dtype=x.dtype))
    eigenvalues = spectrum(found)
    return {
        "from_second_moment": float((found - second_moment(x)).norm() / found.norm()),
        "from_covariance": float((found - covariance(x)).norm() / found.norm()),
        "from_newton": _newton_gap(x, target),
        "condition": float(eigenvalues[0] / eigenvalues[-1]),
    }


def _least_squares(x, target):
    return lambda weights: (x @ weights - target).square().mean() / 2


def _newton_gap(x: torch.Tensor, target: torch.Tensor, rate: float = 0.3, steps: int = 20) -> float:
    """Run damped Newton on x beside gradient descent on whitened x; return how far their outputs ever part, relatively."""
    x_hat, inverse = whitening(x, center=False)(x), second_moment(x).inverse()
    newton, plain, gap = torch.zeros_like(x[0]), torch.zeros_like(x[0]), 0.0
    for _ in range(steps):
        newton = newton - rate * inverse @ grad(_least_squares(x, target))(newton)
        plain = plain - rate * grad(_least_squares(x_hat, target))(plain)
        gap = max(gap, float((x @ newton - x_hat @ plain).norm() / target.norm()))
    return gap


@hessian_is_second_moment.trial
def _(c, seed):
    cloud = treat(off_center_cloud(c.points, seed), c.inputs)
    noise = torch.randn(c.points, generator=torch.Generator().manual_seed(seed + 1), dtype=cloud.dtype)
    best = torch.tensor([0.6, -0.4], dtype=cloud.dtype)
    target = cloud @ best + 0.1 * noise

    best = torch.linalg.lstsq(cloud, target[:, None]).solution.squeeze()
    matrix = second_moment(cloud)
    low, high = torch.linalg.eigvalsh(matrix).tolist()
    away = [torch.tensor([-0.8, 1.0], dtype=cloud.dtype)]  # from the minimum
    while away[-1].norm() > 1e-3 * away[0].norm() and len(away) < 2_000:
        away.append(away[-1] - 2 / (low + high) * grad(_least_squares(cloud, target))(best + away[-1]))

    pictures = load(c, seed).pooled(c.pool).flat()
    pixels, labels = pictures.x_train.double().cpu(), pictures.y_train.double().cpu()
    real = measure_curvature(treat(pixels[:, pixels.var(dim=0) > 0], c.inputs), labels)
    path = torch.stack(away[:60])
    return {
        "first": path[:, 0].tolist(),
        "second": path[:, 1].tolist(),
        "steps": len(away) - 1,
        "h11": float(matrix[0, 0]),
        "h12": float(matrix[0, 1]),
        "h22": float(matrix[1, 1]),
        **measure_curvature(cloud, target),
        **{f"images_{name}": value for name, value in real.items()},
    }


@hessian_is_second_moment.draw
def _(table):
    figure, axes = subplots(1, 4, height=2.6, sharex=True, sharey=True)
    grid = np.linspace(-1.5, 1.5, 121)
    first, second = np.meshgrid(grid, grid)
    table = table[table.seed == table.seed.min()]
    for ax, treatment in zip(axes, TREATMENTS, strict=True):
        path = table[table.inputs == treatment]
        run = path.iloc[0]
        loss = (run.h11 * first**2 + 2 * run.h12 * first * second + run.h22 * second**2) / 2
        ax.contour(first, second, loss / loss.max(), levels=LEVELS, colors=GRAY, linewidths=0.7)
        ax.plot(path["first"], path["second"], "o-", color=VERMILION, markersize=2.5, linewidth=1)
        ax.plot(0, 0, "+", color=INK, markersize=8)
        ax.set(xlabel="weight 1", aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
        ax.grid(False)
        steps = "1 step" if run.steps == 1 else f"{run.steps} steps"
        ax.set_title(f"{treatment}\nλmax/λmin = {number(run.condition)}\n{steps}", fontsize=9.5)
    axes[0].set_ylabel("weight 2")
    raw = table[table.inputs == "raw"].iloc[0]
    steps = table.groupby("inputs").steps.first()
    return Drawing(
        figure,
        caption="The inputs shape the bowl: the Hessian of least squares is their second moment. Contours of the loss around its "
        "minimum (+), and gradient descent at the best single rate, $2/(\\lambda_\\min+\\lambda_\\max)$, until the distance has "
        f"shrunk a thousandfold: {steps['raw']} steps for raw inputs, {steps['centered']} for centered, {steps['standardized']} "
        f"for standardized, {steps['whitened']} for whitened ones (at most 60 points are drawn). For raw inputs the covariance "
        f"is not the Hessian: they differ by {number(100 * raw.from_covariance)} % (Frobenius norm), for want of the mean.",
        alt="Four contour plots of a quadratic loss over two weights with a gradient descent path each, for raw, centered, "
        "standardized and whitened inputs: from a narrow zigzagging valley to circles.",
    )


@hessian_is_second_moment.claim(
    "second-moment",
    "The Hessian of the least-squares loss is the second moment of the inputs, (1/P) Σ x xᵀ, whatever the targets are.",
    criterion="relative difference at most 1e-12, on the cloud and on images, for every treatment of the inputs",
)
def _(table):
    error = table[["from_second_moment", "images_from_second_moment"]].max().max()
    return judge_identity("largest relative difference of Hessian and second moment", error, 1e-12)


@hessian_is_second_moment.claim(
    "covariance",
    "In linear regression the Hessian is exactly the covariance of the input data.",
    criterion="relative difference at most 1e-12, for every treatment of the inputs, raw ones included",
    by="seed000",
)
def _(table):
    raw = table[table.inputs == "raw"]
    error = table[["from_covariance", "images_from_covariance"]].max().max()
    centered = table[table.inputs != "raw"][["from_covariance", "images_from_covariance"]].max().max()
    return judge_identity(
        "largest relative difference of Hessian and covariance",
        error,
        1e-12,
        f"raw inputs: {number(100 * raw.from_covariance.median())} % off on the cloud, "
        f"{number(100 * raw.images_from_covariance.median())} % on images; centered inputs: {number(centered)}. "
        "The sum that the source writes is the second moment.",
    )


@hessian_is_second_moment.claim(
    "covariance-if-centered",
    "Once the mean of each input is zero, the Hessian is the covariance.",
    criterion="relative difference at most 1e-12 for centered, standardized and whitened inputs",
    by="notes",
)
def _(table):
    error = table[table.inputs != "raw"][["from_covariance", "images_from_covariance"]].max().max()
    return judge_identity("largest relative difference of Hessian and covariance, centered inputs", error, 1e-12)


@hessian_is_second_moment.claim(
    "newton",
    "Newton's method is gradient descent on whitened inputs.",
    criterion="from equivalent weights the outputs of the two differ by at most 1e-10 of the targets over 20 steps; the whitening "
    "is by the inverse root of the second moment",
)
def _(table):
    gap = table[["from_newton", "images_from_newton"]].max().max()
    return judge_identity("largest relative difference of the outputs over 20 steps", gap, 1e-10)


@hessian_is_second_moment.claim(
    "one-step",
    "On whitened inputs every direction has the same curvature: one step reaches the minimum.",
    criterion="one step at the best rate shrinks the distance at least a thousandfold, for every seed",
)
def _(table):
    steps = table[table.inputs == "whitened"].steps.max()
    return judge_identity("steps to shrink the distance a thousandfold, beyond the first", float(steps - 1), 0.0)


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
    laptop={"points": 100, "steps": 400},
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
        step = RATES * (inputs.T @ (inputs @ weights - target[:, None]) / len(inputs))
        weights = np.clip(weights - step, -1e30, 1e30)  # so that a divergence stays a number
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
        caption="Gradient descent converges up to 2/λmax and diverges beyond it (dashed). Without the bias weight the limit is "
        f"{limits[False]:.2f} (the paper prints 2.38); with the bias weight that its network has, it is {limits[True]:.2f}.",
        alt="Distance to the minimum after training against the learning rate, log scale, with and without a bias weight. Each "
        "curve crosses one at its own dashed line.",
    )


def _bracket(table, bias: bool) -> Judgement:
    """Do the largest converging and the smallest diverging rate lie on the two sides of 2/λmax, for every seed?

    A rate that equals the limit is left out: there the distance neither shrinks nor grows.
    """
    arm = table[table.bias == bias]
    gaps = []
    for _, run in arm.groupby("seed"):
        limit = run.limit.iloc[0]
        run = run[(run.rate / limit - 1).abs() > 1e-9]
        converged, diverged = run[run.distance < 1].rate.max(), run[run.distance > 1].rate.min()
        gaps.append(max(abs(converged - limit), abs(diverged - limit)) if converged < limit < diverged else np.inf)
    return judge_identity(f"largest gap between the bracketing rates and 2/λmax = {arm.limit.median():.3f}", max(gaps), 0.05 + 1e-9)


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


@rates.claim(
    "limit-with-bias",
    "With a bias weight the limit is 2.0: the constant input adds an eigenvalue of 1, the largest of the augmented second moment.",
    criterion="2/λmax is 2.0 to 1e-9; for every seed the neighboring rates that converge and diverge, 2.0 itself aside, lie on "
    "its two sides, each within 0.05",
    by="notes",
)
def _(table):
    off = (table[table.bias].limit - 2).abs().max()
    return _bracket(table, bias=True) if off <= 1e-9 else judge_identity("distance of 2/λmax from 2.0", off, 1e-9)
