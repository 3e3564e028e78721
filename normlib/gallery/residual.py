"""Faults in what replaces normalization on residual branches: the factor of Fixup, the books of normalizer-free networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normlib.gallery.fault import Effect, Fault, Implementation
from normlib.residual.fixup import fixup_factor
from normlib.residual.nf import BlockVariance, expected_variances


def fixup_by_index(num_branches: int, layers_per_branch: int) -> list[float]:
    """Take the base of Fixup's power for the number of the branch."""
    return [branch ** (-1 / (2 * layers_per_branch - 2)) for branch in range(1, num_branches + 1)]


def fixup_by_depth(num_branches: int, layers_per_branch: int) -> list[float]:
    """Return Fixup's factor of each branch: it is the same for all."""
    return [fixup_factor(num_branches, layers_per_branch)] * num_branches


def first_step(factors: Implementation, num_branches: int) -> float:
    """Return how far the first step moves a network of two-layer branches, relative to one branch that is not scaled."""
    return sum(factor**2 for factor in factors(num_branches, 2))


def check_fixup_by_index(factors: Implementation) -> float:
    """All branches together move the network as far as one branch alone."""
    return abs(first_step(factors, 64) - 1)


FIXUP_BY_INDEX = Fault(
    name="fixup_by_index",
    family="residual",
    title="Fixup scales a branch by its number, not by the number of branches",
    seen="One letter for layer and layer count, as in the text of `hoedt2022`: the factor is L to the power −1 / (2m − 2).",
    symptom="The first branches are not scaled at all, and the step of the network grows with the logarithm of its depth.",
    wrong=fixup_by_index,
    right=fixup_by_depth,
    check=check_fixup_by_index,
    bound=1e-9,
    effect=Effect(
        "change by one step, relative to one branch",
        "branches",
        (1, 4, 16, 64, 256),
        first_step,
        lambda branches: sum(1 / branch for branch in range(1, branches + 1)),
    ),
)


def without_reset(stages: Sequence[int], alpha: float = 0.2) -> list[BlockVariance]:
    """Keep the books of a normalizer-free network as if it had no transitions."""
    blocks = [block for count in stages for block in range(count)]
    return [BlockVariance(math.sqrt(1 + n * alpha**2), 1 + (n + 1) * alpha**2, block == 0) for n, block in enumerate(blocks)]


def without_books(stages: Sequence[int], alpha: float = 0.2) -> list[BlockVariance]:
    """Divide by 1 in every block."""
    return [books._replace(beta=1.0) for books in expected_variances(stages, alpha)]


def variances_into_branches(books: Implementation, stages: Sequence[int], alpha: float = 1.0) -> list[float]:
    """Follow the variance through a network that divides by what the books say, and return what enters each branch.

    Branches keep the variance of their input; the first block of a stage has a projection of the same on its shortcut.
    """
    variance, entering = 1.0, []
    for entry in books(stages, alpha):
        entering.append(variance / entry.beta**2)
        shortcut = entering[-1] if entry.is_transition else variance
        variance = shortcut + alpha**2 * entering[-1]
    return entering


def check_books(books: Implementation) -> float:
    """What enters each branch has variance 1."""
    return max(abs(variance - 1) for variance in variances_into_branches(books, [3, 3]))


def after_transition(books: Implementation, blocks: int) -> float:
    """Return the variance that enters the second branch of the second stage; the first stage has a given number of blocks."""
    return variances_into_branches(books, [blocks, 2])[-1]


def in_one_stage(books: Implementation, block: int) -> float:
    """Return the variance that enters a block of a long stage."""
    return variances_into_branches(books, [16])[block - 1]


WITHOUT_RESET = Fault(
    name="without_reset",
    family="residual",
    title="The expected variance is not reset where a stage begins",
    seen="A running product or sum over all blocks; why a transition resets it is asked, unanswered, of the authors' code.",
    symptom="All later branches see too small a signal, the more so the longer the stages before.",
    wrong=without_reset,
    right=expected_variances,
    check=check_books,
    bound=1e-9,
    effect=Effect(
        "variance into a branch of the second stage",
        "blocks in the first stage",
        (1, 3, 6, 12),
        after_transition,
        lambda n: 2 / (n + 2),
    ),
)

WITHOUT_BOOKS = Fault(
    name="without_books",
    family="residual",
    title="Every block divides by 1: the expected variance is never handed on",
    seen="A port of the networks, in which every block is built with the same β = 1.",
    symptom="Growth by 1 + α² a block instead of by α². At α = 0.2 and nine blocks hardly to be seen, at α = 1 a doubling.",
    wrong=without_books,
    right=expected_variances,
    check=check_books,
    bound=1e-9,
    effect=Effect("variance into the branch", "block", (1, 2, 4, 8, 16), in_one_stage, lambda block: 2.0 ** (block - 1)),
)
