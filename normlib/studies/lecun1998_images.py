"""LeCun, Bottou, Orr & Müller (1998), Efficient BackProp: the spectrum of real images, and a learning rate predicted from curvature."""

from __future__ import annotations

import numpy as np
import torch

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.inputs import TREATMENTS, load, treat
from normlib.studies.looks import BLUE, GRAY, GREEN, INK, ORANGE, VERMILION, median_and_band, subplots

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
    laptop={"data": "fashion-mnist", "train": 10_000, "steps": 10_000},
    full=None,
)


@spectrum.trial
def _(c, seed):
    images = load(c, seed).flat()
    pixels, x = images.x_train.double(), treat(images.x_train.double(), c.inputs)
    target = torch.nn.functional.one_hot(images.y_train, images.classes).double()
    target = target - target.mean(dim=0)  # there is no bias weight
    eigenvalues, axes = torch.linalg.eigh(x.T @ x / len(x))
    eigenvalues, axes = eigenvalues.flip(0), axes.flip(1)
    rank = int((eigenvalues > eigenvalues[0] * max(x.shape) * torch.finfo(x.dtype).eps).sum())
    steps, left, closed_form = descend(x, target, c.steps)
    components = [_count_for(eigenvalues[:rank], condition) for condition in CONDITIONS]
    conditions, usual, best = _steps_of_components(x @ axes, sorted(set(components)))
    ranks = np.unique(np.geomspace(1, rank, 60).astype(int))
    parts = {
        "eigenvalue": (ranks, eigenvalues[ranks - 1].tolist()),
        "left": (steps, left),
        "closed form": (steps, closed_form),
        "steps at 1/λmax": (conditions, usual),
        "steps at 2/(λmin+λmax)": (conditions, best),
    }
    return {
        "part": [part for part, (at, _) in parts.items() for _ in at],
        "x": [float(value) for at, _ in parts.values() for value in at],
        "y": [float(value) for _, values in parts.values() for value in values],
        "top": float(eigenvalues[0]),
        "bottom": float(eigenvalues[rank - 1]),
        "median": float(eigenvalues[:rank].median()),
        "rank": rank,
        "mean_squared": float(pixels.mean(dim=0).square().sum()),
        "needed": _steps_needed(x, target),
    }


def _closed_form(x: torch.Tensor, target: torch.Tensor):
    """Return the excess loss after any number of steps at 1/λmax from zero weights, as the eigenvalues tell it (eqs 33-38)."""
    eigenvalues, axes = torch.linalg.eigh(x.T @ x / len(x))
    kept = eigenvalues > eigenvalues[-1] * max(x.shape) * torch.finfo(x.dtype).eps
    start = (axes[:, kept].T @ (x.T @ target / len(x))).square().sum(dim=1) / eigenvalues[kept]
    shrink = 1 - eigenvalues[kept] / eigenvalues[-1]
    return lambda step: float((start * shrink ** (2 * step)).sum() / start.sum())


def descend(x: torch.Tensor, target: torch.Tensor, steps: int) -> tuple[list[int], list[float], list[float]]:
    """Run gradient descent on least squares at 1/λmax; return steps, the share of the excess loss that is left, its closed form."""
    second_moment, cross = x.T @ x / len(x), x.T @ target / len(x)
    rate = 1 / torch.linalg.eigvalsh(second_moment)[-1]
    closed_form = _closed_form(x, target)
    floor = float((cross * torch.linalg.lstsq(x, target).solution).sum())  # twice the loss that can be removed
    looks = [0, *np.unique(np.geomspace(1, steps, 40).astype(int)).tolist()]
    weights, left = torch.zeros_like(cross), []
    for step in range(steps + 1):
        if step in looks:
            removed = float((weights * (2 * cross - second_moment @ weights)).sum())
            left.append(1 - removed / floor)
        weights = weights - rate * (second_moment @ weights - cross)
    return looks, left, [closed_form(step) for step in looks]


def _steps_needed(x: torch.Tensor, target: torch.Tensor, most: int = 2**40) -> int:
    """Return the first step at which at most `LEFT` of the excess loss is left, by bisection of the closed form."""
    closed_form, low, high = _closed_form(x, target), 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if closed_form(middle) <= LEFT else (middle, high)
    return high


def _count_for(eigenvalues: torch.Tensor, condition: float) -> int:
    """Return how many leading eigenvalues span about this condition number."""
    return int((eigenvalues >= eigenvalues[0] / condition).sum())


def _steps_of_components(z: torch.Tensor, counts: list[int]) -> tuple[list[float], list[int], list[int]]:
    """Run gradient descent on the first principal components, from the worst start; count steps to a thousandth of the distance."""
    conditions, usual, best = [], [], []
    for count in counts:
        second_moment = z[:, :count].T @ z[:, :count] / len(z)
        low, high = torch.linalg.eigvalsh(second_moment)[[0, -1]]
        conditions.append(float(high / low))
        usual.append(_shrinking_steps(second_moment, 1 / high))
        best.append(_shrinking_steps(second_moment, 2 / (low + high)))
    return conditions, usual, best


def _shrinking_steps(second_moment: torch.Tensor, rate: torch.Tensor) -> int:
    away, step = torch.linalg.eigh(second_moment).eigenvectors[:, 0], 0  # along the flattest direction
    while away.norm() > 1e-3 and step < 10_000:
        away, step = away - rate * (second_moment @ away), step + 1
    return step
