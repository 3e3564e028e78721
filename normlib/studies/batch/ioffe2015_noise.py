"""Ioffe & Szegedy (2015), Batch Normalization, §3.4: the noise that an example receives from the others of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from torch import nn

from normlib.lab import Diverged, Drawing, Study, Verdict, judge_effect, number
from normlib.networks import MLP
from normlib.studies.batch.companions import fit, roughness, share_of_inputs, variance_of_batch_means
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import BLUE, GRAY, INK, SKY, median_and_band, note, subplots
from normlib.studies.common.tuning import tuned
from normlib.surgery import reestimate_statistics
from normlib.training import evaluate

SGD_BATCH = 256  # images per update in every arm
DROPPED = 0.3  # share of hidden units that dropout silences
FIRST_RATE = 0.03  # lower ones were added after a first look, as many arms were best at this one
UNITS = 16  # of the first layer, in which the means of batches are compared
Difference = Callable[[pd.DataFrame], pd.Series]
Range = tuple[float, float]
WAYS = {"plain": ("no dropout", "-"), "dropout": (f"dropout {DROPPED}", "--"), "fixed": ("fixed companions", "")}
ARMS = {f"{batch} {way}": (batch, way) for batch in (0, 256, 32, 8, 4) for way in ("plain", "dropout")} | {
    f"{batch} fixed": (batch, "fixed") for batch in (32, 4)
}  # statistics over so many images (0: no normalization), and what else

noise = Study(
    "ioffe2015.noise",
    item="§3.4, §4.2.1",
    title="The noise of batch statistics narrows the gap to new images when the batches are small enough",
    kind="train",
    vary={"arm": [arm for arm in ARMS if arm not in ("8 dropout", "4 dropout")], "rate": [0.01, 0.03, 0.1, 0.3]},
    quick={
        "data": "digits", "pool": 1, "validation": 413, "width": 64, "steps": 60, "rate": [0.1],
        "arm": ["0 plain", "0 dropout", "256 plain", "32 plain", "32 dropout", "32 fixed", "4 plain", "4 fixed"],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 3_072, "validation": 2_048, "test": 4_096, "width": 128, "steps": 400,
    },
    full={
        "data": "cifar10", "pool": 2, "train": 12_288, "validation": 8_192, "width": 512, "steps": 4_000,
    },
    seeds={"quick": 1, "laptop": 5, "full": 5},
)  # fmt: skip


@noise.trial
def _(c, seed):
    batch, way = ARMS[c.arm]
    tune, images = images_for(c, seed)
    norm = f"batch:ghost={batch}" if batch else "none"
    net = MLP([tune.x_train[0].numel(), c.width, c.width, tune.classes], "relu", norm=norm, init="he", seed=seed).to(c.device)
    start = net.blocks.get_parameter("0.layer.weight").detach().clone()
    columns = {
        "batch": batch,
        "way": way,
        "mean_variance": variance_of_batch_means(tune.x_train.flatten(1) @ start[:UNITS].T, batch, seed) if batch else np.nan,
        "share_at_start": share_of_inputs(start),
    }
    if way == "dropout":
        for block in net.blocks:
            block.add_module("dropout", nn.Dropout(DROPPED))
    if fit(net, tune, c.steps, SGD_BATCH, c.rate, seed, batch if way == "fixed" else 1):
        raise Diverged("the loss is not finite", **columns)
    if batch:
        reestimate_statistics(net, tune.x_train.split(SGD_BATCH))
    seen, held_out, test = (
        evaluate(net, x, y, statistics="eval")
        for x, y in ((tune.x_train, tune.y_train), (tune.x_test, tune.y_test), (images.x_test, images.y_test))
    )
    weight = net.blocks.get_parameter("0.layer.weight").detach()
    return {
        **columns,
        "train_loss": seen.loss,
        "test_loss": test.loss,
        "gap": test.loss - seen.loss,
        "test_accuracy": test.accuracy,
        "held_out": held_out.accuracy,
        "share": share_of_inputs(weight),
        "roughness": roughness(weight, tune.shape),
        "share_learned": share_of_inputs(weight - start),
        "roughness_learned": roughness(weight - start, tune.shape),
    }


def _tuned(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    return tuned(table, ["arm"], "held_out")


def _at_equal_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the gap of each arm and seed: the geometric mean over the rates, no number if a run has none."""
    logs = np.log(table.gap).groupby([table.arm, table.batch, table.way, table.seed])
    return np.exp(logs.agg(lambda log: log.mean(skipna=False))).reset_index()


@noise.draw
def _(table):
    equal, means, (table, rates) = _at_equal_rates(table), table[(table.way == "plain") & (table.batch > 0)], _tuned(table)
    figure, ((gaps, right), (variances, weights)) = subplots(2, 2, height=2.7)
    normed, without = table[table.batch > 0], table[table.batch == 0]
    sizes = sorted(normed.batch.unique())
    gaps.set(ylabel="test loss − training loss,\nat equal rates")
    right.set(ylabel="test accuracy,\neach arm at its best rate")
    for axes, column, runs in ((gaps, "gap", equal), (right, "test_accuracy", table)):
        for way, (name, style) in WAYS.items():
            arm, color, label = runs[(runs.way == way) & (runs.batch > 0)], SKY if way == "dropout" else BLUE, f"batch norm, {name}"
            if way == "fixed":
                axes.plot(arm.groupby("batch")[column].median(), "s", color=color, mfc="none", label=label)
            else:
                median_and_band(axes, arm, "batch", column, color=color, label=label, marker="o", linestyle=style)
            level = runs[(runs.way == way) & (runs.batch == 0)][column].median()
            if np.isfinite(level):
                axes.axhline(level, color=GRAY, linestyle=style, label=f"no norm, {name}")
    gaps.set(ylim=(0, None))
    median_and_band(variances, means, "batch", "mean_variance", color=BLUE, linestyle="none", marker="o")
    grid = np.array([min(sizes), max(sizes)])
    variances.plot(grid, 1 / grid, color=INK, linewidth=1)
    note(variances, "line: 1/m", 0.6, 0.8)
    variances.set(yscale="log", ylabel="variance of the mean /\nvariance of the values")
    for column, marker, label in (("roughness_learned", "D", "roughness"), ("share_learned", "o", "share of the inputs")):
        median_and_band(weights, normed[normed.way == "plain"], "batch", column, color=BLUE, marker=marker)
        level = without[without.way == "plain"][column].median()
        weights.axhline(level, color=GRAY)
        top = max(normed[normed.way == "plain"][column].max(), level)
        note(weights, label, 0.98, top + 0.03, transform=weights.get_yaxis_transform(), ha="right", fontsize=8.5)
    weights.set(ylabel="change of the first weights", ylim=(0, 1))
    for axes in figure.axes:
        axes.set(xscale="log", xlabel="statistic batch m")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    figure.legend(*gaps.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    gap, accuracy = equal.groupby("arm").gap.median(), table.groupby("arm").test_accuracy.median()
    words = ", ".join(f"{number(rates[arm])} ({arm.replace('0 ', 'none ', arm[0] == '0')})" for arm in ARMS if arm in rates)
    return Drawing(
        figure,
        caption=f"{SGD_BATCH} images per update, statistics over m of them. The gap between test and training loss, as a geometric "
        f"mean over learning rates, is {number(gap['256 plain'])} with m = 256, {number(gap['32 plain'])} with m = 32, "
        f"{number(gap['4 plain'])} with m = 4, and {number(gap['0 plain'])} without normalization; the test accuracy "
        f"{number(accuracy['256 plain'])}, {number(accuracy['32 plain'])}, {number(accuracy['4 plain'])} and "
        f"{number(accuracy['0 plain'])}. Gray: no norm. Statistics re-estimated without dropout. Learning rates of the right "
        f"column, chosen on held-out images: {words}.",
        alt="Four plots against the statistic batch: gap between test and training loss, test accuracy, variance of the batch "
        "mean over a line 1/m, and two measures of the first weights; with and without dropout, with fixed companions.",
    )


def _gap_ratio(table: pd.DataFrame, small: str, large: str) -> pd.Series:
    """Return gap over gap at equal rates, one number a seed."""
    wide = side_by_side(_at_equal_rates(table), "arm", "gap")
    return wide[small] / wide[large]


def _judge_gap(table: pd.DataFrame, small: str):
    large = "256 plain"
    best = side_by_side(_tuned(table)[0], "arm", "gap")
    note = f"each arm at its best rate: {number((best[small] / best[large]).median())}"
    return judge_effect("ratio of the gaps", _gap_ratio(table, small, large), claimed=(0, 0.9), null=1, note=note)


def _accuracies(table: pd.DataFrame) -> pd.DataFrame:
    return side_by_side(_tuned(table)[0], "arm", "test_accuracy")


def _judge_accuracy(table: pd.DataFrame, effect: str, difference: Difference, claimed: Range, null: float, note: str = ""):
    """Judge a difference in test accuracy, each arm at its best rate; not resolved if the rates declared at first say otherwise."""
    judged, at_first = (
        judge_effect(effect, difference(_accuracies(runs)), claimed=claimed, null=null, note=note)
        for runs in (table, table[table.rate >= FIRST_RATE])
    )
    if judged.verdict is at_first.verdict:
        return judged
    rest = f"; {note}" if note else ""
    said = f"{judged.verdict.value}, but {at_first.verdict.value} without the rate that was added later: {at_first}{rest}"
    return replace(judged, verdict=Verdict.UNRESOLVED, note=said)


@noise.claim(
    "companions",
    "An example is seen together with others of its batch and gets no fixed value; this noise helps generalization.",
    criterion="test loss less training loss, statistics over 32 images (the paper's batch) / over all 256 of the update, below "
    "0.9; geometric mean over equal learning rates",
)
def _(table):
    return _judge_gap(table, "32 plain")


@noise.claim(
    "few-companions",
    "With four images to a statistic the noise regularizes.",
    criterion="the same ratio for 4 images, below 0.9",
    by="notes",
)
def _(table):
    return _judge_gap(table, "4 plain")


SAME = "; not resolved if the rates declared at first, from 0.03 on, give another verdict"


@noise.claim(
    "dropout-removed",
    "In a batch-normalized network dropout can be removed.",
    criterion=f"statistics over 32 images: test accuracy without dropout less that with it, above −0.005{SAME}",
)
def _(table):
    effect = "gain in test accuracy without dropout"
    return _judge_accuracy(table, effect, lambda wide: wide["32 plain"] - wide["32 dropout"], (-0.005, np.inf), np.nan)


@noise.claim(
    "dropout-replaced",
    "Batch normalization does some of the work that dropout does: beside it, dropout adds less.",
    criterion=f"what dropout adds to test accuracy without normalization, less what it adds with it (32 images), above 0{SAME}",
)
def _(table):
    def less(wide):
        return (wide["0 dropout"] - wide["0 plain"]) - (wide["32 dropout"] - wide["32 plain"])

    return _judge_accuracy(table, "difference in test accuracy", less, (0, np.inf), 0)


@noise.claim(
    "shuffled",
    "It helps when an example meets other companions each time: shuffling is worth about a point of accuracy.",
    criterion=f"test accuracy, companions drawn anew in each epoch less always the same 32, above 0.005{SAME}",
)
def _(table):
    gains = {m: lambda wide, m=m: wide[f"{m} plain"] - wide[f"{m} fixed"] for m in (32, 4)}
    note = f"groups of 4: {number(gains[4](_accuracies(table)).median())}"
    return _judge_accuracy(table, "gain in test accuracy", gains[32], (0.005, np.inf), 0, note)


@noise.claim(
    "smoothed",
    "Overfitting is reduced because parameters are smoothed out: all features contribute rather than a handful.",
    criterion="share of the inputs over which first-layer units spread their squared weights, after training, batch norm (32 "
    "images) over no norm, above 1.05",
    by="seed004",
)
def _(table):
    best = _tuned(table)[0]
    share, rough = side_by_side(best, "arm", "share"), side_by_side(best, "arm", "roughness")
    change, noisy = side_by_side(best, "arm", "roughness_learned"), ("4 plain", "256 plain")
    ratios = [(wide[a] / wide[b]).median() for a, b in (("32 plain", "0 plain"), noisy) for wide in (rough, change)]
    note = "roughness, as a ratio: of the weights {}, of their change {}; 4 images over 256: {} and {}".format(*map(number, ratios))
    ratio = share["32 plain"] / share["0 plain"]
    return judge_effect("ratio of the shares", ratio, claimed=(1.05, np.inf), null=1, note=note)


@noise.claim(
    "precision",
    "More precision means more variance: with larger batches mean and variance do not generalize.",
    criterion="variance of the batch mean over 256 images / over 4, above 1",
    by="seed004",
)
def _(table):
    wide = side_by_side(table, "arm", "mean_variance")
    note = f"4/256 = {number(4 / 256)}; the variance of a mean falls as 1/m; the draft may mean single samples, another claim"
    return judge_effect("ratio of variances", wide["256 plain"] / wide["4 plain"], claimed=(1, np.inf), null=1, note=note)
