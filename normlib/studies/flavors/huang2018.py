"""Huang et al. (2018), Decorrelated Batch Normalization: whitening in a layer by ZCA and by PCA, and axes that swap."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config, Drawing, Study, judge_effect, number
from normlib.networks import MLP
from normlib.probes import record_activations
from normlib.studies.common.arms import first_at, images_for, side_by_side
from normlib.studies.common.looks import median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.studies.flavors.kept_axes import KeptAxes
from normlib.training import accuracy, train

SIZE = 16  # channels that are whitened together
ZCA, PCA = f"decorrelated:size={SIZE}", f"decorrelated:method=pca,size={SIZE}"
KEPT = f"{PCA} + axes kept"
NAMES = {"none": "no norm", "batch": "batch norm", ZCA: "ZCA", PCA: "PCA", KEPT: "PCA, axes kept"}
STYLES = {"none": "-", "batch": "-", ZCA: "-", PCA: "--", KEPT: ":"}
STATISTICS = [32, 64, 256, 1_024, 4_096]  # images per statistic, where axes are compared
PAIRS = 6  # of batches to compare
BLOCKS = 40  # points of a curve, each the mean over so many steps
CHANCE = np.log(10)

whitening = Study(
    "huang2018.whitening",
    item="§3.2, §4",
    title="Whitening in the layer: ZCA trains, PCA swaps its axes from batch to batch",
    kind="train",
    vary={"norm": list(NAMES), "rate": [0.1, 0.3, 1.0, 3.0, 10.0]},
    quick={"data": "digits", "pool": 1, "width": 32, "depth": 2, "steps": 40, "batch": 64, "rate": [1.0]},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 12_000, "width": 64, "depth": 3, "steps": 400, "batch": 256},
    full={"data": "mnist", "pool": 1, "width": 96, "depth": 3, "steps": 8_000, "batch": 256},
)


def build(c: Config, images: Dataset, seed: int) -> MLP:
    """Build the network of an arm: `c.depth` hidden layers of `c.width` ReLU units; the weights are the same for every norm."""
    sizes = [images.x_train[0].numel(), *[c.width] * c.depth, images.classes]
    net = MLP(sizes, "relu", c.norm.partition(" + ")[0], "he", seed=seed)
    if c.norm == KEPT:
        for block in net.blocks:
            block.norm = KeptAxes(c.width, SIZE)
    return net.to(c.device)


@torch.no_grad()
def outputs_under(norm: nn.Module, batch: Tensor, x: Tensor) -> Tensor:
    """Normalize `x` by the statistics of another batch, at a gain of 1 and no shift; the norm stays as it is."""
    if isinstance(norm, nn.Identity):
        return x
    norm = copy.deepcopy(norm).train()
    nn.init.ones_(norm.weight)  # type: ignore[arg-type]
    nn.init.zeros_(norm.bias)  # type: ignore[arg-type]
    norm.momentum = 1.0  # type: ignore[assignment]  # the running statistics become those of the batch
    norm(batch)
    output: Tensor = norm.eval()(x)
    return output


def agreement(norm: nn.Module, x: Tensor, count: int, seed: int) -> float:
    """Return the mean cosine of an image's outputs under the statistics of one batch and of another.

    Args:
        norm: it stays as it is.
        x: what reaches it, of shape (N, C); the first images are compared, the others make the batches, which are disjoint.
        count: images per statistic.
        seed: of the choice of the batches.
    """
    images, rest = x[:200], x[200:]
    norm = copy.deepcopy(norm).train()
    norm(rest[: len(images)])  # axes that are kept need some to begin with
    generator = torch.Generator().manual_seed(seed)
    cosines = []
    for _ in range(PAIRS):
        order = torch.randperm(len(rest), generator=generator).to(x.device)
        one, other = (outputs_under(norm, rest[part], images) for part in (order[:count], order[-count:]))
        cosines.append(float(nn.functional.cosine_similarity(one, other, dim=1).mean()))
    return float(np.mean(cosines))


@whitening.trial
def _(c, seed):
    tuning, testing = images_for(c, seed)
    net = build(c, tuning, seed)
    sums = record_activations(net, tuning.x_train, ["blocks.0.layer"], training=False)["blocks.0.layer"]
    counts = [count for count in STATISTICS if 2 * count <= len(sums) - 200]
    axes = {f"agree_{count}": agreement(net.blocks[0].norm, sums, count, seed) for count in counts}  # type: ignore[arg-type]
    run = train(net, tuning.x_train, tuning.y_train, steps=c.steps, batch_size=c.batch, rate=c.rate, seed=seed)
    finite = run.diverged_at is None
    blocks = run.loss.reshape(BLOCKS, -1).mean(1).tolist() if finite else [np.nan] * BLOCKS

    def correct(images, statistics):
        whole = len(images.x_test) // c.batch * c.batch  # images in whole batches, for statistics of as many as in training
        x, y = images.x_test[:whole], images.y_test[:whole]
        return 100 * accuracy(net, x, y, statistics=statistics, batch_size=c.batch) if finite else np.nan

    return {
        "step": [(block + 1) * c.steps // BLOCKS for block in range(BLOCKS)],
        "loss": blocks,
        "final": blocks[-1],
        "held_out": correct(tuning, "train"),
        "running": correct(testing, "eval"),
        "own": correct(testing, "train"),
        **axes,
    }


def _best(table):
    return tuned(table, ["norm"], "held_out")


def _final(table):
    """Return the training loss at the end, at each arm's best rate: a row a seed, a column an arm."""
    return side_by_side(_best(table)[0], "norm", "final")


@whitening.draw
def _(table):
    kept, rates = _best(table)
    figure, (curves, axes) = subplots(1, 2, height=3.3, width_ratios=[1.25, 1])
    for norm, name in NAMES.items():
        arm, look = kept[kept.norm == norm], {"color": norm_color(norm), "linestyle": STYLES[norm]}
        median_and_band(curves, arm, "step", "loss", label=name, **look)
        if norm != "none":
            means = _agreements(arm)
            median_and_band(axes, means, "count", "cosine", marker="o", **look)
    curves.axhline(CHANCE, color=norm_color("none"), linewidth=0.8)
    note(curves, "guessing", 0.99, CHANCE, transform=curves.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    curves.set(xlabel="step", ylabel="training loss", ylim=(0, 1.15 * CHANCE))
    axes.set(xscale="log", xlabel="images per statistic", ylabel="cosine, one batch and another", ylim=(-0.05, 1.05))
    axes.set_xticks(means["count"].unique(), [f"{count:,}" for count in means["count"].unique()])
    axes.minorticks_off()
    for ax, title in ((curves, "at each arm's best rate"), (axes, "the same images, before training")):
        ax.set_title(title, fontsize=9.5)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8.5, columnspacing=1.2)
    final, test, own = (side_by_side(kept, "norm", column).median() for column in ("final", "running", "own"))
    losses = ", ".join(f"{number(final[norm])} with {name}" for norm, name in NAMES.items())
    return Drawing(
        figure,
        caption=f"Left: training loss of an MLP, {table.batch.iloc[0]} images per update and per statistic, whitening in groups of "
        f"{SIZE} units. At the end it is {losses}. Right: the cosine between what the first norm makes of an image under the "
        f"statistics of one batch and of another. At 256 images it is {number(_agree(kept, PCA).median())} with PCA and "
        f"{number(_agree(kept, ZCA).median())} with ZCA. Test accuracy with running statistics: {number(test['batch'])} % with "
        f"batch norm, {number(test[ZCA])} % with ZCA, {number(test[PCA])} % with PCA ({number(own[PCA])} % with the statistics "
        f"of test batches). Rates, by held-out images: {rates_in_words(rates, NAMES)}.",
        alt="Left: training loss against steps for no norm, batch norm, ZCA, PCA, and PCA with axes kept. Right: cosine of outputs "
        "under two batches against images per statistic, for the four layers with statistics.",
    )


def _agreements(runs):
    """Return the cosines of an arm: a row for each seed and number of images per statistic."""
    means = runs.drop_duplicates("seed").melt("seed", [c for c in runs if c.startswith("agree_")], "count", "cosine")
    return means.assign(count=means["count"].str.removeprefix("agree_").astype(int))


def _agree(table, norm):
    """Return the cosine at 256 images per statistic, a number a seed."""
    return side_by_side(table, "norm", "agree_256")[norm]


@whitening.claim(
    "pca",
    "PCA whitening in the layer is detrimental to learning: the training loss stays above half of what guessing costs.",
    criterion="at its best rate the training loss at the end is at least half of the log 10 that guessing costs",
)
def _(table):
    final = _final(table)
    note = f"batch norm {number((final['batch'] / CHANCE).median())}, ZCA {number((final[ZCA] / CHANCE).median())}"
    return judge_effect("final training loss / log 10", final[PCA] / CHANCE, claimed=(0.5, np.inf), null=np.nan, note=note)


@whitening.claim(
    "swaps",
    "With PCA the same image gets other coordinates from batch to batch, as axes swap; with ZCA it does not.",
    criterion="before training, 256 images per statistic: the mean cosine between an image's outputs under two batches is lower "
    "with PCA by at least 0.5",
)
def _(table):
    kept = _best(table)[0]
    note = f"ZCA {number(_agree(kept, ZCA).median())}, PCA {number(_agree(kept, PCA).median())}"
    difference = _agree(kept, ZCA) - _agree(kept, PCA)
    return judge_effect("cosine, ZCA minus PCA", difference, claimed=(0.5, np.inf), null=0, note=note)


@whitening.claim(
    "axes-kept",
    "It is the swapping that harms PCA: axes and signs kept from batch to batch close half of the gap to ZCA, or more.",
    criterion="keeping them closes at least half of the gap in final training loss between PCA and ZCA, each at its best rate",
    by="notes",
)
def _(table):
    final = _final(table)
    share = (final[PCA] - final[KEPT]) / (final[PCA] - final[ZCA])
    note = f"final training loss {number(final[KEPT].median())}, without a norm {number(final['none'].median())}"
    return judge_effect("share of the gap that is closed", share, claimed=(0.5, np.inf), null=0, note=note)


@whitening.claim(
    "faster",
    "ZCA whitening optimizes more efficiently than batch norm: it reaches batch norm's final training loss in fewer steps.",
    criterion=f"steps to batch norm's final training loss (the mean of the last of {BLOCKS} equal parts of training), ZCA over "
    "batch norm, below 1, each at its best rate",
)
def _(table):
    target, kept = _final(table)["batch"], _best(table)[0]
    runs = kept[kept.norm.isin(["batch", ZCA])].groupby(["norm", "seed"])
    steps = {arm: first_at(run.step, -run.loss, -target[arm[1]]) for arm, run in runs}
    ratio = [steps[ZCA, seed] / steps["batch", seed] for seed in target.index]
    note = "in steps, not in seconds: the eigenvectors of each group are not free"
    return judge_effect("steps, ZCA / batch norm", ratio, claimed=(0, 1), null=1, note=note)


@whitening.claim(
    "generalizes",
    "ZCA whitening generalizes better than batch norm.",
    criterion="test accuracy with running statistics, ZCA minus batch norm, above 0, each at its best rate",
)
def _(table):
    accuracies = side_by_side(_best(table)[0], "norm", "running")
    return judge_effect("points of test accuracy", accuracies[ZCA] - accuracies["batch"], claimed=(0, np.inf), null=0)
