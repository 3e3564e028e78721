"""Notes in Korean on Lubana, Dick and Tanaka (the draft `seed002`): what the rank of inner products says, and what not."""

from __future__ import annotations

import torch

from normlib.lab import Drawing, Study, number
from normlib.studies.common.looks import BLUE, VERMILION, median_and_band, note, subplots
from normlib.studies.common.statements import at_most, normal

VECTORS = 24

rank = Study(
    "seed002.rank",
    item="Informative forward propagation",
    title="Vectors that point nearly the same way can have full rank",
    kind="exact",
    vary={"noise": [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]},
    quick={},
    laptop={},
    full=None,
)


@rank.trial
def _(c, seed):
    y = 1 + c.noise * normal(seed, 32, VECTORS)  # one direction that all columns share, and noise
    directions = y / y.norm(dim=0)
    cosines = (directions.T @ directions)[~torch.eye(VECTORS, dtype=torch.bool)]
    return {"rank": rank_of(y.T @ y), "rank_of_transpose": rank_of(y @ y.T), "cosine": float(cosines.mean())}


def rank_of(matrix):
    """Count the singular values above 1e-10 of the largest."""
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-10))


@rank.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=2.6)
    median_and_band(left, table, "noise", "rank", color=BLUE, marker="o")
    median_and_band(right, table, "noise", "cosine", color=VERMILION, marker="o")
    left.set(xscale="log", xlabel="noise / shared direction", ylabel=f"rank, of {VECTORS}", ylim=(0, VECTORS + 2))
    right.set(xscale="log", xlabel="noise / shared direction", ylabel="mean cosine", ylim=(0, 1.05))
    for axes in (left, right):
        axes.set_xticks([0.1, 1], ["0.1", "1"])
    note(right, "1: all the same way", 0.4, 0.9)
    least = table[table.noise == table.noise.min()]
    return Drawing(
        figure,
        caption=f"{VECTORS} vectors: one direction that all share, plus noise. The rank of their inner products is always full. "
        f"The mean cosine between them is {number(least.cosine.median())} at the least noise: nearly the same way. "
        "The rank does not see how alike they are.",
        alt="Left: the rank of their inner products against the amount of noise, flat at its maximum. Right: the mean cosine, "
        "falling from nearly one to nearly zero.",
    )


@rank.claim(
    "equal-ranks",
    "YYᵀ and YᵀY have the same rank.",
    criterion="no difference, at every amount of noise",
)
def _(table):
    return at_most(0.0, (table["rank"] - table.rank_of_transpose).abs(), "difference of the ranks")


@rank.claim(
    "full-rank-means-diverse",
    "A large rank means that the activations of different inputs point in different directions.",
    criterion="the mean cosine is at most 0.5 (our bound) wherever the rank is full",
)
def _(table):
    full = table[table["rank"] == VECTORS]
    return at_most(0.5, full.cosine, "largest mean cosine at full rank", "rank counts directions, however small")
