"""Peng et al. (2018), MegDet: batch normalization over the samples of all workers, and what a shortcut would lose."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import batch_norm, combined_moments
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, GRAY, INK, VERMILION, median_and_band, subplots
from normlib.studies.common.statements import gap, normal

EPS = 1e-5
UNITS, SHUFFLES = 12, 4_000

sync = Study(
    "peng2018.sync",
    item="§3.3",
    title="K workers that share counts, means and variances are one big batch; averaging their variances is not",
    kind="exact",
    vary={"workers": [2, 4, 8, 16, 32], "shards": ["equal", "unequal"], "order": ["shuffled", "by class"]},
    quick={"data": "digits", "pool": 2, "train": 64, "workers": [2, 8, 32]},
    laptop={"data": "fashion-mnist", "pool": 4, "train": 64},
    full=None,
)


def sizes_of(shards: str, total: int, workers: int, seed: int) -> list[int]:
    """Return how many samples each worker holds, one at least."""
    if shards == "equal":
        return [total // workers] * workers
    cuts = np.random.default_rng(seed).choice(np.arange(1, total), workers - 1, replace=False)
    return np.diff([0, *sorted(cuts), total]).tolist()


def moments(parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what each worker knows alone: counts (K,), means and biased variances (K, C)."""
    counts = torch.tensor([float(len(part)) for part in parts], dtype=torch.float64)
    return counts, torch.stack([part.mean(0) for part in parts]), torch.stack([part.var(0, correction=0) for part in parts])


def by_workers(parts: list[Tensor], how: str) -> Tensor:
    """Normalize the samples of all workers.

    Args:
        parts: the samples of each worker, (n_k, C).
        how: "shared": by the moments of all, `combined_moments`; "averaged": by the mean of the means and of the variances, samples
            counted; "uncounted": by the law of total variance as if all workers held equally many; "alone": each by its own.
    """
    counts, means, variances = moments(parts)
    if how == "alone":
        return torch.cat([batch_norm(part, eps=EPS) for part in parts])
    if how == "uncounted":
        counts = torch.ones_like(counts)
    _, mean, var = combined_moments(counts, means, variances)
    if how == "averaged":
        var = (counts[:, None] * variances).sum(0) / counts.sum()
    return torch.cat([batch_norm(part, mean=mean, var=var, eps=EPS) for part in parts])


def exchanged_backward(parts: list[Tensor], upstream: list[Tensor], exchange: bool = True) -> Tensor:
    """Send a gradient back by hand: each worker needs of the others the sums of g and of g·x̂, or takes its own means."""
    counts, means, variances = moments(parts)
    count, mean, var = combined_moments(counts, means, variances)
    s = (var + EPS).sqrt()
    standard = [(part - mean) / s for part in parts]
    sums = [(g.sum(0), (g * z).sum(0)) for g, z in zip(upstream, standard, strict=True)]
    total, product = (sum(pair[i] for pair in sums) for i in (0, 1))
    found = []
    for g, z, (own, own_product) in zip(upstream, standard, sums, strict=True):
        a, b, n = (total, product, count) if exchange else (own, own_product, len(g))
        found.append((g - a / n - z * b / n) / s)
    return torch.cat(found)


def share_between(x: Tensor, workers: int) -> Tensor:
    """Return for each channel the variance of the means of `workers` equal shards, as a share of the whole variance."""
    return x.unflatten(0, (workers, -1)).mean(1).var(0, correction=0) / x.var(0, correction=0)


@sync.trial
def _(c, seed):
    images = load(c, seed).pooled(c.pool).standardized().flat()
    sums = images.x_train.double().cpu() @ normal(seed, images.x_train.shape[1], UNITS) / images.x_train.shape[1] ** 0.5
    shuffle = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sums), generator=shuffle) if c.order == "shuffled" else images.y_train.cpu().argsort(stable=True)
    x = sums[order].requires_grad_()
    sizes, g = sizes_of(c.shards, len(x), c.workers, seed), normal(seed + 1, *x.shape)
    parts, upstream = list(x.split(sizes)), list(g.split(sizes))

    big = batch_norm(x, eps=EPS)
    slope = torch.autograd.grad(big, x, g)[0]
    shared = by_workers(parts, "shared")
    slope_of_workers = torch.autograd.grad(shared, x, g)[0]
    with torch.no_grad():
        counts, means, variances = moments(parts)
        between = (counts[:, None] * (means - x.mean(0)).square()).sum(0) / counts.sum()
        averaged = (counts[:, None] * variances).sum(0) / counts.sum()
        whole = x.var(0, correction=0)
        orders = torch.rand(SHUFFLES, len(x), generator=shuffle).argsort(1)
        random = share_between(x[orders].movedim(0, 1).flatten(1), c.workers)
        return {
            "forward": gap(shared, big),
            "backward": gap(slope_of_workers, slope),
            "by_hand": gap(exchanged_backward(parts, upstream), slope),
            "own_sums": gap(exchanged_backward(parts, upstream, exchange=False), slope),
            "averaged": gap(by_workers(parts, "averaged"), big),
            "uncounted": gap(by_workers(parts, "uncounted"), big),
            "alone": gap(by_workers(parts, "alone"), big),
            "from_total_variance": gap(averaged + between, whole),
            "missing": float((between / whole).mean()),
            "missing_at_random": float(random.mean()),
            "expected": (c.workers - 1) / (len(x) - 1),
        }


WAYS = {
    "forward": ("shared: output", BLUE),
    "backward": ("shared: gradient", BLUE),
    "by_hand": ("two sums exchanged: gradient", BLUE),
    "own_sums": ("own sums: gradient", VERMILION),
    "averaged": ("averaged variances: output", VERMILION),
    "uncounted": ("counts left out: output", VERMILION),
    "alone": ("no exchange: output", GRAY),
}


def distances(axes: Axes, table: pd.DataFrame, ways: dict[str, tuple[str, str]]) -> None:
    """Draw how far each way to share lies from one big batch, in equal shards and in unequal ones: the largest of all runs.

    Args:
        axes: where.
        table: has a column for each way, and the column `shards`, "equal" or "unequal".
        ways: a label and a color by column.
    """
    marks = {"equal": ("o", -0.13), "unequal": ("D", 0.13)}
    for row, (way, (_, color)) in enumerate(ways.items()):
        for shards, (mark, shift) in marks.items():
            value = max(table[table.shards == shards][way].max(), 1e-17)
            axes.plot(value, row + shift, mark, color=color, markersize=5)
    axes.set_yticks(range(len(ways)), [label for label, _ in ways.values()], fontsize=8)
    axes.set(xscale="log", xlim=(1e-18, 30), ylim=(len(ways) - 0.4, -0.6), xlabel="distance from one big batch")
    axes.set_xticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    axes.minorticks_off()
    axes.grid(False, axis="y")
    for shards, (mark, _) in marks.items():
        axes.plot([], [], mark, color=INK, markersize=5, label=f"{shards} shards")
    axes.legend(loc="lower left", fontsize=8)


@sync.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=3.0, width_ratios=[1, 1.15])
    equal = table[table.shards == "equal"]
    for order, color in (("by class", VERMILION), ("shuffled", BLUE)):
        median_and_band(left, equal[equal.order == order], "workers", "missing", color=color, marker="o", markersize=4, label=order)
    curve = equal.groupby("workers").expected.first()
    left.plot(curve.index, curve, "--", color=INK, linewidth=1, label="(K − 1)/(n − 1)")
    left.set(
        xscale="log", xlabel="workers K that share 64 samples", ylabel="share of the variance\nbetween the workers", ylim=(0, 1.02)
    )
    left.set_xticks(list(curve.index), [str(k) for k in curve.index])
    left.minorticks_off()
    left.legend(loc="upper left", fontsize=8)

    distances(right, table, WAYS)
    most = equal.workers.max()
    at = equal[equal.workers == most].groupby("order").missing.median()
    exact = table[["forward", "backward", "by_hand"]].max().max()
    return Drawing(
        figure,
        caption="Left: what averaging the workers' variances leaves out, the share of the variance between their means. "
        f"For {most} workers of 64 shuffled samples it is {number(at['shuffled'])}, and {number(at['by class'])} for samples "
        f"sorted by class. Right: the largest distance from one big batch of 64, over all workers and orders. Sharing is exact, to "
        f"{number(exact)}. Averaged variances, own sums in the backward pass, and unequal shards without counts are not.",
        alt="Left: share of variance between workers against their number, shuffled and sorted by class, with a closed form. "
        "Right: distance from one big batch for seven ways to share, log axis: at rounding, or near one.",
    )


@sync.claim(
    "one-big-batch",
    "Batch norm whose statistics are those of all workers computes what it computes on one big batch, outputs and gradients.",
    criterion="equal shards, any number of workers: largest relative difference of outputs and input gradients at most 1e-10",
)
def _(table):
    error = table[table.shards == "equal"][["forward", "backward"]].max().max()
    return judge_identity("largest relative difference", error, 1e-10)


@sync.claim(
    "unequal-shards",
    "With unequal shards it does so too, provided that the workers share their counts.",
    criterion="unequal shards, with counts: the same bound",
    by="notes",
)
def _(table):
    error = table[table.shards == "unequal"][["forward", "backward"]].max().max()
    return judge_identity("largest relative difference, with counts", error, 1e-10)


@sync.claim(
    "without-counts",
    "Without counts the outputs of unequal shards are off by more than 1 %, however many workers there are.",
    criterion="unequal shards: the least relative difference over numbers of workers and orders above 0.01, interval over seeds",
    by="notes",
)
def _(table):
    arm = table[table.shards == "unequal"]
    least, nearest = arm.groupby("seed").uncounted.min(), arm.loc[arm.uncounted.idxmin()]
    note = f"the least is at {nearest.workers} workers, whose shards can be nearly equal; the most is {number(arm.uncounted.max())}"
    return judge_effect("least relative difference, without counts", least, claimed=(0.01, np.inf), null=0.0, note=note)


@sync.claim(
    "averaged-variances",
    "The average of the workers' variances falls short of the variance of all samples by exactly the variance of their means.",
    criterion="average plus variance of the means, each worker weighted by its count: relative difference at most 1e-10",
    by="notes",
)
def _(table):
    note = f"with the average alone an output is off by up to {number(table.averaged.max())} of the largest"
    return judge_identity("largest relative difference", table.from_total_variance.max(), 1e-10, note)


@sync.claim(
    "share-lost",
    "For n shuffled samples on K equal workers that is a share of (K - 1)/(n - 1) on average.",
    criterion=f"mean over units and {SHUFFLES} shuffles within 5 % of that share, for each number of workers and seed",
    by="notes",
)
def _(table):
    arm = table[(table.shards == "equal") & (table.order == "shuffled")]
    off = (arm.missing_at_random / arm.expected - 1).abs().max()
    return judge_identity("largest relative distance from that share", off, 0.05)


@sync.claim(
    "two-sums",
    "The backward pass needs two numbers per channel of all workers: the sums of the gradient and of its product with the "
    "normalized input.",
    criterion="gradient by hand from these sums: relative difference at most 1e-10; from each worker's own sums: above 1 %",
    by="notes",
)
def _(table):
    error = table.by_hand.max() if table.own_sums.min() > 0.01 else np.inf
    return judge_identity("largest relative difference", error, 1e-10, f"with own sums at least {number(table.own_sums.min())}")
