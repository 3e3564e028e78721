"""LeCun, Bottou, Orr & Müller (1998), Efficient BackProp: the spectrum of real images, and how long gradient descent takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.probes import second_moment
from normlib.studies.common.inputs import TREATMENTS, load, treat
from normlib.studies.common.looks import BLUE, GRAY, GREEN, INK, ORANGE, median_and_band, subplots

# ---------------------------------------------------------------------------------------------------------------------------
# Fig 3 and eqs 33-39: four treatments of the same images, their second moments, and how long gradient descent takes
# ---------------------------------------------------------------------------------------------------------------------------

COLORS = dict(zip(TREATMENTS, (GRAY, BLUE, ORANGE, GREEN), strict=True))
CONDITIONS = [2, 5, 10, 20, 50, 100, 200, 500]  # of the images' first principal components, as near as their number allows
LEFT = 0.1  # the share of the excess loss that may be left

spectrum = Study(
    "lecun1998.spectrum",
    item="Fig 3, eqs 33–39",
    title="Centering images removes one huge eigenvalue; the time of gradient descent follows the condition number",
    kind="exact",
    vary={"inputs": TREATMENTS},
    quick={"data": "digits", "train": 1_000, "steps": 2_000},
    laptop={"data": "fashion-mnist", "train": 10_000, "steps": 3_000},
    full=None,
)


@spectrum.trial
def _(c, seed):
    images = load(c, seed).flat()
    pixels, labels = images.x_train.cpu().double(), images.y_train.cpu()
    x = treat(pixels, c.inputs)
    target = torch.nn.functional.one_hot(labels, images.classes).double()
    target = target - target.mean(dim=0)  # there is no bias weight
    moment, cross = second_moment(x), x.T @ target / len(x)
    eigenvalues, axes = _spectrum(moment, len(x))
    removable = (axes.T @ cross).square().sum(dim=1) / eigenvalues  # along each axis: twice the loss that can be removed
    looks = [0, *np.unique(np.geomspace(1, c.steps, 30).astype(int)).tolist()]
    left = descend(moment, cross, looks, float(removable.sum()))
    predicted = [closed_form(eigenvalues, removable, step) for step in looks]
    conditions, usual, best = _steps_of_components(eigenvalues, x @ axes)
    ranks = np.unique(np.geomspace(1, len(eigenvalues), 50).astype(int))
    parts: dict[str, tuple[Any, Any]] = {
        "eigenvalue": (ranks, eigenvalues[ranks - 1].tolist()),
        "left": (looks, left),
        "closed form": (looks, predicted),
        "steps at 1/λmax": (conditions, usual),
        "steps at 2/(λmin+λmax)": (conditions, best),
    }
    return {
        "part": [part for part, (at, _) in parts.items() for _ in at],
        "x": [float(value) for at, _ in parts.values() for value in at],
        "y": [float(value) for _, values in parts.values() for value in values],
        "top": float(eigenvalues[0]),
        "median": float(eigenvalues.median()),
        "off_one": float((eigenvalues - 1).abs().max()),
        "off_closed_form": max(abs(a - b) for a, b in zip(left, predicted, strict=True)),
        "mean_squared": float(pixels.mean(dim=0).square().sum()),
        "needed": steps_needed(eigenvalues, removable),
    }


def _spectrum(moment: torch.Tensor, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues, the largest first, and axes, without those that are zero to rounding."""
    eigenvalues, axes = torch.linalg.eigh(moment)
    kept = eigenvalues > eigenvalues[-1] * points * torch.finfo(eigenvalues.dtype).eps
    return eigenvalues[kept].flip(0), axes[:, kept].flip(1)


def descend(moment: torch.Tensor, cross: torch.Tensor, looks: list[int], removable: float) -> list[float]:
    """Run gradient descent on least squares from zero weights at 1/λmax; return the share of the removable loss that is left."""
    rate = 1 / torch.linalg.eigvalsh(moment)[-1]
    weights, left = torch.zeros_like(cross), []
    for step in range(looks[-1] + 1):
        if step in looks:
            left.append(1 - float((weights * (2 * cross - moment @ weights)).sum()) / removable)
        weights = weights - rate * (moment @ weights - cross)
    return left


def closed_form(eigenvalues: torch.Tensor, removable: torch.Tensor, step: int) -> float:
    """Return what `descend` measures, from the eigenvalues alone: each axis shrinks by (1 - λ/λmax) a step (eqs 33-38)."""
    shrink = 1 - eigenvalues / eigenvalues[0]
    return float((removable * shrink ** (2 * step)).sum() / removable.sum())


def steps_needed(eigenvalues: torch.Tensor, removable: torch.Tensor, most: int = 2**50) -> int:
    """Return the first step at which at most `LEFT` of the removable loss is left, by bisection of the closed form."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if closed_form(eigenvalues, removable, middle) <= LEFT else (middle, high)
    return high


def _steps_of_components(eigenvalues: torch.Tensor, z: torch.Tensor) -> tuple[list[float], list[int], list[int]]:
    """Descend on the first principal components z, from the worst start, until a thousandth of the distance is left.

    Returns:
        Condition numbers, steps at 1/λmax, steps at 2/(λmin + λmax).
    """
    conditions, usual, best = [], [], []
    for count in sorted({int((eigenvalues >= eigenvalues[0] / condition).sum()) for condition in CONDITIONS}):
        moment = second_moment(z[:, :count])
        low, high = torch.linalg.eigvalsh(moment)[[0, -1]]
        conditions.append(float(high / low))
        usual.append(_shrinking_steps(moment, 1 / high))
        best.append(_shrinking_steps(moment, 2 / (low + high)))
    return conditions, usual, best


def _shrinking_steps(moment: torch.Tensor, rate: torch.Tensor) -> int:
    away, step = torch.linalg.eigh(moment).eigenvectors[:, 0], 0  # along the flattest direction
    while away.norm() > 1e-3 and step < 10_000:
        away, step = away - rate * (moment @ away), step + 1
    return step


@spectrum.draw
def _(table):
    figure, (left, middle, right) = subplots(1, 3, height=3.1)
    for treatment in TREATMENTS:
        arm, color = table[table.inputs == treatment], COLORS[treatment]
        values = arm[arm.part == "eigenvalue"]
        median_and_band(left, values.assign(y=values.y / values.top), "x", "y", color=color, label=treatment)
        visible = arm[(arm.x > 0) & (arm.y > 2e-3)]
        median_and_band(middle, visible[visible.part == "closed form"], "x", "y", color=color, linewidth=1)
        measured = visible[visible.part == "left"].groupby("x").y.median()
        middle.plot(measured.index, measured, "o", color=color, markersize=3)
        for part, marker in (("steps at 1/λmax", "o"), ("steps at 2/(λmin+λmax)", "x")):
            runs = arm[(arm.part == part) & (arm.x > 1.2)]
            right.plot(runs.x, runs.y, marker, color=color, markersize=4)
    middle.axhline(LEFT, color=INK, linewidth=0.8)
    middle.plot([1, 1], [1, 2.2e-3], "v-", color=COLORS["whitened"], markersize=6, markevery=[1])
    middle.text(1.6, 2.2e-3, "whitened: 1 step", fontsize=8.5, va="center")
    condition = np.geomspace(1.5, 500, 50)
    right.plot(condition, np.log(1e3) * condition, color=INK, linewidth=0.8, zorder=0)
    right.plot(condition, np.log(1e3) * condition / 2, color=INK, linewidth=0.8, linestyle="--", zorder=0)
    right.text(1.4, 1_200, "● rate 1/λmax\n× 2/(λmin+λmax)", fontsize=8.5, va="bottom")
    left.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue / largest", title="spectrum", ylim=(1e-6, 2))
    middle.set(xscale="log", yscale="log", xlabel="steps", ylabel="", title="removable loss left", ylim=(1.5e-3, 1.5))
    right.set(xscale="log", yscale="log", xlabel="λmax/λmin", title="steps needed")
    left.legend(loc="lower left", handlelength=1.2, labelspacing=0.3)
    runs = table.drop_duplicates(["inputs", "seed"]).groupby("inputs")[["top", "median", "needed"]].median()
    ratio = (runs.top / runs["median"]).map(number)
    return Drawing(
        figure,
        caption=f"The second moment of the images' pixels. Left: its eigenvalues; largest over median is {ratio['raw']} raw, "
        f"{ratio['centered']} centered, {ratio['standardized']} standardized, {ratio['whitened']} whitened. Middle: gradient "
        f"descent on least squares at $1/\\lambda_\\max$ (dots) and its closed form (lines) remove {1 - LEFT:.0%} of what can be "
        f"removed in {runs.needed['raw']:.0f}, {runs.needed['centered']:.0f}, {runs.needed['standardized']:.0f} and "
        f"{runs.needed['whitened']:.0f} steps. Right: on leading principal components alone, from a start in the flattest "
        "direction. The lines are $\\kappa\\ln 1000$ for the rate $1/\\lambda_\\max$, where "
        "$\\kappa=\\lambda_\\max/\\lambda_\\min$, and half of it (dashed) for $2/(\\lambda_\\min+\\lambda_\\max)$.",
        alt="Three log-log plots for raw, centered, standardized and whitened images: eigenvalues by rank, share of the removable "
        "loss left by step, and steps needed against condition number for two learning rates.",
    )


def _per_seed(table, treatment: str):
    return table[table.inputs == treatment].groupby("seed").first()


@spectrum.claim(
    "mean",
    "A mean other than zero makes one huge eigenvalue.",
    criterion="λmax of the raw second moment is at least the squared length of the mean, for every seed, and at least twice that "
    "of the centered images (interval over seeds)",
)
def _(table):
    raw, centered = _per_seed(table, "raw"), _per_seed(table, "centered")
    shortfall = (1 - raw.top / raw.mean_squared).max()
    if shortfall > 1e-9:
        return judge_identity("λmax falls short of the squared mean by", shortfall, 1e-9)
    text = f"λmax is {number(raw.top.median())}, the squared mean {number(raw.mean_squared.median())}"
    return judge_effect("λmax raw / centered", raw.top / centered.top, claimed=(2, np.inf), null=1, note=text)


@spectrum.claim(
    "centering",
    "Moving the mean of each input to zero makes gradient descent faster.",
    criterion="at 1/λmax, at least twice as many steps for raw as for centered images to remove 90 % of the removable loss",
)
def _(table):
    ratio = _per_seed(table, "raw").needed / _per_seed(table, "centered").needed
    return judge_effect("steps raw / centered", ratio, claimed=(2, np.inf), null=1)


@spectrum.claim(
    "equal-scale",
    "Giving the centered inputs equal variance makes gradient descent faster still.",
    criterion="at 1/λmax, at least 1.2 times as many steps for centered as for standardized images to remove 90 % of the "
    "removable loss",
)
def _(table):
    ratio = _per_seed(table, "centered").needed / _per_seed(table, "standardized").needed
    return judge_effect("steps centered / standardized", ratio, claimed=(1.2, np.inf), null=1)


@spectrum.claim(
    "decorrelating",
    "Whitened inputs have a second moment with all eigenvalues one.",
    criterion="every eigenvalue that is not zero to rounding is 1 within 1e-6, for every seed",
)
def _(table):
    return judge_identity("largest |λ − 1|", table[table.inputs == "whitened"].off_one.max(), 1e-6)


@spectrum.claim(
    "recursion",
    "The error shrinks by 1 − ηλ a step along each eigenvector, so the spectrum alone predicts the whole descent.",
    criterion="share of the removable loss left, measured and predicted, differ by at most 1e-6 at every step looked at",
)
def _(table):
    return judge_identity("largest difference", table.off_closed_form.max(), 1e-6)


@spectrum.claim(
    "proportional",
    "The time to converge is proportional to the condition number λmax/λmin.",
    criterion="log-log slope of steps at 1/λmax against λmax/λmin, where that is above 5, between 0.95 and 1.05",
)
def _(table):
    runs = table[(table.part == "steps at 1/λmax") & (table.x > 5)]
    slopes = [np.polyfit(np.log(run.x), np.log(run.y), 1)[0] for _, run in runs.groupby("seed")]
    return judge_effect("log-log slope", slopes, claimed=(0.95, 1.05), null=0)


@spectrum.claim(
    "fastest",
    "With one rate for all weights, convergence is fastest at 1/λmax.",
    criterion="from the flattest direction, no more than 5 % fewer steps at 2/(λmin + λmax), where λmax/λmin is above 5",
)
def _(table):
    runs = table[table.part.str.startswith("steps") & (table.x > 5)]
    steps = runs.pivot_table(index=["seed", "inputs", "x"], columns="part", values="y")
    ratio = (steps["steps at 1/λmax"] / steps["steps at 2/(λmin+λmax)"]).groupby("seed").median()
    note = "the constant rate that is best in the worst case is 2/(λmin + λmax), nearly twice 1/λmax"
    return judge_effect("steps at 1/λmax / steps at 2/(λmin + λmax)", ratio, claimed=(0, 1.05), null=1, note=note)
