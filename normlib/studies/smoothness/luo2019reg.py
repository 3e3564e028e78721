"""Luo et al. (2019), regularization in batch norm: what statistics of a batch add to the loss at fixed weights."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.layers import BatchNorm, batch_norm
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import BLUE, GRAY, ORANGE, median_and_band, subplots
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, RECIPE, fit, vgg

RATE = 0.1
CHUNK = 1024  # images at a time
WAYS = {"own": ("own batch", BLUE), "other": ("another batch", ORANGE)}

penalty = Study(
    "luo2019reg.penalty",
    item="the strength of the penalty, ~1/M",
    title="At fixed weights, statistics of M images add to the loss what falls about as 1/M",
    kind="train",
    vary={"steps": [50, 300]},
    quick={**QUICK, "steps": [20], "sizes": [8, 16, 32, 64], "rounds": 4, "population": 384},
    laptop={**LAPTOP, "sizes": [8, 16, 32, 64, 128, 256], "rounds": 4, "population": 2560},
    full={**FULL, "steps": [500, 15_000], "sizes": [8, 16, 32, 64, 128, 256], "rounds": 16, "population": 10_240},
)


class SplitNorm(nn.Module):
    """Batch norm of runs of images in a row, each by the statistics of the first so many images of its run.

    Args:
        norm: the batch norm whose scale and shift are used.
        run: images in a run.
        size: images whose statistics all images of the run are normalized by.
    """

    def __init__(self, norm: BatchNorm, run: int, size: int) -> None:
        super().__init__()
        self.norm, self.run, self.size = norm, run, size

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (runs · run, C, *)."""
        runs = input.unflatten(0, (-1, self.run)).transpose(0, 1).flatten(1, 2)  # (run, runs · C, *): ghosts as channels
        count = len(input) // self.run
        first = runs[: self.size].transpose(0, 1).flatten(1)
        weight, bias = self.norm.weight.repeat(count), self.norm.bias.repeat(count)
        found = batch_norm(runs, weight, bias, first.mean(1), first.var(1, correction=0), self.norm.eps)
        return found.unflatten(1, (count, -1)).transpose(0, 1).flatten(0, 1)


def split(net: nn.Module, run: int, size: int) -> nn.Module:
    """Return a copy of a network with every batch norm made a `SplitNorm`."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, BatchNorm):
                setattr(module, name, SplitNorm(child, run, size))
    return net


@torch.no_grad()
def losses(net: nn.Module, x: Tensor, y: Tensor, run: int, size: int) -> Tensor:
    """Return the loss of each image, runs of images being normalized by the first `size` of them."""
    net, chunk = split(net, run, size), max(CHUNK // run, 1) * run
    return torch.cat([F.cross_entropy(net(a), b, reduction="none") for a, b in zip(x.split(chunk), y.split(chunk), strict=True)])


def with_batches(net: nn.Module, x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> dict[str, float]:
    """Deal all images into batches; return the mean loss with statistics of the own batch and of the batch before it."""
    batches = torch.randperm(len(x), generator=generator)[: len(x) // size * size].view(-1, size)
    order = torch.cat([batches, batches.roll(-1, 0)], 1).flatten().to(x.device)  # each batch, then the next one
    found = losses(net, x[order], y[order], 2 * size, size).view(-1, 2, size)
    return {"own": float(found[:, 0].mean()), "other": float(found[:, 1].mean())}


def as_drawn(own: float, other: float, size: int, count: int) -> dict[str, float]:
    """Turn what batches add when all images are dealt out into what independent draws would add, to leading order.

    A mean over M of N images varies (N - M) / (N - 1) times as much as one of independent draws, and those of two batches of
    one deal have the covariance -1 / (N - 1), in units of the variance of one image.

    Args:
        own: loss added by statistics of the own batch.
        other: that by statistics of another batch.
        size: images M in a batch.
        count: images N that are dealt out.
    """
    factor = (count - 1) / (count - size)
    return {"own": factor * own, "other": factor * (other * (count - size) + own * size) / count}


@penalty.trial
def _(c: Config, seed: int):
    images, _ = images_for(c, seed)
    net = vgg(c, images, "batch", seed)
    run = fit(net, images, steps=c.steps, rate=RATE, seed=seed)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.x_train), generator=generator)[: c.population].to(c.device)
    x, y, columns = images.x_train[chosen], images.y_train[chosen], []
    base = float(losses(net, x, y, len(x), len(x)).mean())
    for size in c.sizes:
        rounds = pd.DataFrame([with_batches(net, x, y, size, generator) for _ in range(c.rounds)]).mean() - base
        columns.append({"images": size, **as_drawn(rounds.own, rounds.other, size, len(x))})
    return {**{name: [row[name] for row in columns] for name in columns[0]}, "loss": base}


def slopes(table: pd.DataFrame, smallest: int = 0) -> pd.Series:
    """Return the log-log slope of the penalty against the batch; not a number where a penalty is not positive.

    Args:
        table: the runs.
        smallest: batches below this are left out.

    Returns:
        One number for each seed and number of steps.
    """

    def slope(run: pd.DataFrame) -> float:
        if (run.own <= 0).any():
            return np.nan
        return float(np.polyfit(np.log(run.images), np.log(run.own), 1)[0])

    return table[table.images >= smallest].groupby(["seed", "steps"])[["images", "own"]].apply(slope)


def farthest(found: pd.Series) -> pd.Series:
    """Return for each seed the slope farthest from −1."""
    return found.groupby("seed").apply(lambda s: s.iloc[int(np.argmax(np.abs(s.to_numpy() + 1)))])


def own_share(table: pd.DataFrame, size: int) -> pd.Series:
    """Return the part of the loss added by the own batch that another batch does not add: one number a seed and steps."""
    rows = table[table.images == size].set_index(["seed", "steps"])
    return 1 - rows.other / rows.own


@penalty.draw
def _(table):
    levels = sorted(table.steps.unique())
    figure, axes = subplots(1, len(levels), height=3, squeeze=False)
    table = table.assign(**{f"scaled_{way}": table.images * table[way] for way in WAYS})
    for axis, steps in zip(axes[0], levels, strict=True):
        arm = table[table.steps == steps]
        for (way, (label, color)), marker in zip(WAYS.items(), "os", strict=True):
            median_and_band(axis, arm, "images", f"scaled_{way}", color=color, label=label, marker=marker)
        axis.axhline(0, color=GRAY, linewidth=0.8)
        axis.set(xscale="log", xlabel="images per statistic, M", title=f"after {steps} steps")
        axis.set_xticks(sorted(arm.images.unique()), [str(size) for size in sorted(arm.images.unique())])
        axis.minorticks_off()
    axes[0, 0].set_ylabel("M · loss added")
    axes[0, 0].legend(title="statistics of", fontsize=8.5, title_fontsize=8.5)
    found = slopes(table).groupby("steps").median()
    said = ", ".join(f"{number(found[steps])} after {steps} steps" for steps in levels)
    last = table[(table.steps == levels[-1]) & (table.images == table.images.min())]
    return Drawing(
        figure,
        caption="A network with batch norm at fixed weights: mean loss with statistics of M images, less that with those of the "
        f"whole set, times M. A penalty that falls as 1/M is a level line. Blue: the image is one of the M; log-log slope of the "
        f"loss added: {said}. Orange: the M are other images. With {int(last.images.iloc[0])} images after {levels[-1]} steps "
        f"the two add {number(last.own.median())} and {number(last.other.median())} to a loss of {number(last.loss.median())}. "
        f"P{RECIPE[1:]}, {RATE:g} (not tuned, since no arms are compared); trained with statistics "
        f"of all {BATCH} images of a batch. Images are dealt without repetition; the differences make up for that.",
        alt="M times the loss added by statistics of M images, against M on a logarithmic axis, after few and after many training "
        "steps: by statistics of the own batch and of another batch.",
    )


@penalty.claim(
    "slope",
    "The penalty that batch statistics amount to falls with the batch size M as 1/M.",
    criterion="fixed weights, statistics of the own batch: log-log slope over all M between −1.15 and −0.85, after few and after "
    "many steps (the one farthest from −1)",
)
def _(table):
    said = f"from 32 images up: {number(farthest(slopes(table, 32)).median())}"
    return judge_effect("log-log slope, farthest from −1", farthest(slopes(table)), claimed=(-1.15, -0.85), null=0, note=said)


@penalty.claim(
    "penalty",
    "At fixed weights the loss with batch statistics is larger than that with population statistics: what is added is a penalty.",
    criterion="statistics of the own batch: mean loss added at every M, the smallest as a share of the largest, above 0",
)
def _(table):
    smallest = table.groupby("seed").own.min() / table.groupby("seed").own.max()
    return judge_effect("smallest loss added / largest", smallest, claimed=(1e-9, np.inf), null=0)


@penalty.claim(
    "own-share",
    "Batch statistics are not noise that is independent of the image: its share in its own statistics is part of the penalty.",
    criterion="at 32 images, what statistics of another batch add differs from what those of the own batch add by at least a "
    "quarter of the latter, after few and after many steps (the smaller part)",
    by="notes",
)
def _(table):
    share = own_share(table, 32)
    smaller = share.abs().groupby("seed").min()
    said = ", ".join(f"{number(value)} after {steps} steps" for steps, value in share.groupby("steps").median().items())
    return judge_effect("(own − other) / own at 32, smaller size", smaller, claimed=(0.25, np.inf), null=0, note=f"signed: {said}")
