"""Few images per statistic, everything else fixed: how much error that costs, and whether training or the test is to blame."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
from matplotlib.patches import Rectangle
from torch import nn

from normlib.data import Dataset
from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.layers import BatchNorm
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import INK, PAPER, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.flavors.convnets import RECIPE, convnet, errors, fit
from normlib.surgery import reestimate_statistics
from normlib.training import accuracy

BATCH = 32  # images per update, in every arm
SIZES = [32, 16, 8, 4, 2, 1]  # images per statistic
BN = {f"batch:ghost={size}": size for size in SIZES}
OTHERS = {"group:size=8": "group", "none": "none"}
NAMES = {**{arm: f"batch {size}" for arm, size in BN.items()}, **OTHERS}
TESTS = ["running", "average", "pooled", "32", "16", "8", "4", "2", "1"]  # the statistics in a test
TEST_NAMES = ["run-\nning", "mean", "mean\nof 32", *TESTS[3:]]

damage = Study(
    "wu2018.damage",
    item="Fig 5, taken apart",
    title="With the update held fixed, what small statistic batches cost, and where",
    kind="train",
    vary={"arm": [*BN, *OTHERS], "rate": [0.02, 0.06, 0.2]},
    quick={
        "data": "digits", "pool": 1, "train": 1_152, "test": 352, "depth": 4, "width": 8, "epochs": 4, "rate": [0.1],
        "arm": [arm for arm in BN if BN[arm] not in (16, 8)] + list(OTHERS),
    },
    laptop={"data": "fashion-mnist", "train": 3_840, "test": 1_920, "pool": 2, "depth": 6, "width": 32, "epochs": 4},
    full={"data": "cifar10", "train": 48_000, "test": 9_600, "pool": 1, "depth": 10, "width": 64, "epochs": 20},
)  # fmt: skip


def over(network: nn.Module, images: int) -> nn.Module:
    """Return a copy of a network whose batch norms take their statistics over so many images in train mode."""
    other = copy.deepcopy(network)
    for module in other.modules():
        if isinstance(module, BatchNorm):
            module.ghost = images
    return other


def errors_by_statistics(network: nn.Module, size: int, tune: Dataset, images: Dataset) -> dict[str, float]:
    """Test one trained network under every choice of statistics; errors in percent, by the keys `TESTS`.

    Args:
        network: trained with `size` images per statistic.
        size: as said.
        tune: whose training images give the averaged statistics; their number is a multiple of 32.
        images: whose test images are classified; so is theirs.
    """
    x, y, batches = images.x_test, images.y_test, tune.x_train.split(BATCH)
    scores = {"running": accuracy(network, x, y, statistics="eval", batch_size=BATCH)}
    for name, images_each in (("average", size), ("pooled", BATCH)):
        averaged = reestimate_statistics(over(network, images_each), batches)
        scores[name] = accuracy(averaged, x, y, statistics="eval", batch_size=BATCH)
    for own in TESTS[3:]:
        scores[own] = accuracy(over(network, int(own)), x, y, statistics="train", batch_size=BATCH)
    return {name: 100 * (1 - score) for name, score in scores.items()}


@damage.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = convnet(c, tune, c.arm, seed)
    run = fit(net, tune, epochs=c.epochs, rate=c.rate, seed=seed, batch=BATCH)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}")
    found = errors(net, tune, images)
    found["train_error_own"] = 100 * (1 - accuracy(net, tune.x_train, tune.y_train, statistics="train", batch_size=BATCH))
    by_test = errors_by_statistics(net, BN[c.arm], tune, images) if c.arm in BN else {"running": found["test_error"]}
    return {**found, "statistics": TESTS, "error": [by_test.get(name, np.nan) for name in TESTS]}


def _best(table):
    return tuned(table, ["arm"], "held_out_error", low=True)


def _scores(table, column="test_error"):
    """Return one row per seed, one column per arm, at each arm's rate; that of batch norm is called by its images."""
    return side_by_side(_best(table)[0], "arm", column).rename(columns=BN)


def _by_test(table):
    """Return the test error under each statistic: one row per seed, columns (images in training, statistics in the test)."""
    kept = _best(table)[0]
    return side_by_side(kept[kept.arm.isin(list(BN))], ["arm", "statistics"], "error").rename(columns=BN, level=0)


@damage.draw
def _(table):
    kept, rates = _best(table)
    figure, (left, right) = subplots(1, 2, height=3.4, gridspec_kw={"width_ratios": [1, 1.55]})
    runs = kept[kept.statistics == TESTS[0]]
    bn = runs[runs.arm.isin(list(BN))].assign(images=lambda t: t.arm.map(BN))
    median_and_band(left, bn, "images", "test_error", color=norm_color("batch"), marker="o")
    median_and_band(left, bn, "images", "train_error_own", color=norm_color("batch"), marker="o", linestyle="--", mfc=PAPER)
    for (arm, name), (column, style) in product(OTHERS.items(), (("test_error", "-"), ("train_error_own", "--"))):
        left.plot((1, BATCH), [runs[runs.arm == arm][column].median()] * 2, style, color=norm_color(name), linewidth=1.4)
    left.set(xscale="log", yscale="log", xlabel="images per statistic", ylabel="error (%)")
    left.set_xticks(sorted(bn.images.unique()), [f"{size}" for size in sorted(bn.images.unique())])
    low, high = left.get_ylim()
    left.set_yticks(*zip(*[(tick, f"{tick}") for tick in (1, 2, 5, 10, 15, 20, 30, 40, 60, 80) if low < tick < high], strict=True))
    left.minorticks_off()
    for name, x in (("batch", 0.0), ("group", 0.4), ("none", 0.8)):
        note(left, name, x, 1.02, color=norm_color(name))
    note(left, "solid: test\ndashed: training", 0.97, 0.97, ha="right", va="top", fontsize=8.5)
    scores, cells = _scores(table).median(), _by_test(table).median()
    _fill(right, cells)
    ends = [NAMES[arm] for arm in at_ends(table, ["arm"], rates)]
    return Drawing(
        figure,
        caption=f"Every update takes {BATCH} images, and batch norm's statistics {BATCH} to 1 of them ({RECIPE}). **Left** Test "
        "error with running averages, and training error with statistics as in training. With 2 images per statistic batch norm "
        f"has {number(scores[2])} % test error, with {BATCH} {number(scores[BATCH])} %; group norm has "
        f"{number(scores['group:size=8'])} %, no norm {number(scores['none'])} %. **Right** Test error (%) of each network, by the "
        f"statistics used in the test: running averages; statistics of as many images as in training, or of {BATCH}, averaged anew "
        "over the training set (*mean*); those of the test images themselves, so many at a time. The frame marks what a network "
        f"was trained with. Trained with one image, it has {number(cells[1, 'running'])} % with running averages and "
        f"{number(cells[1, '1'])} % with each image's own. Medians over seeds. Learning rates, by held-out error with running "
        f"averages: {rates_in_words({arm: rates[arm] for arm in NAMES if arm in rates}, NAMES)}{ends_in_words(ends)}.",
        alt="Left: test and training error against images per statistic, 1 to 32, with lines for group norm and no norm. Right: a "
        "table of test errors, rows by images per statistic in training, columns by statistics in the test.",
    )


def _fill(axes, cells):
    """Draw the table of errors: the stronger the color, the larger the error, on a log scale."""
    sizes = [size for size in SIZES if (size, TESTS[0]) in cells]
    low, high = np.log(max(cells.min(), 0.1)), np.log(cells.max())
    places = [column + (0.25 if column > 2 else 0) for column in range(len(TESTS))]  # averages apart from the test's own
    for row, size in enumerate(sizes):
        for at, name in zip(places, TESTS, strict=True):
            value = cells.get((size, name), np.nan)
            if not np.isfinite(value):
                continue
            share = (np.log(max(value, 0.1)) - low) / max(high - low, 1e-9)
            look = {"facecolor": norm_color("batch"), "alpha": 0.05 + 0.6 * share, "linewidth": 0}
            axes.add_patch(Rectangle((at - 0.48, row - 0.48), 0.96, 0.96, **look))
            axes.text(at, row, f"{value:.0f}" if value >= 99.5 else f"{value:.1f}", ha="center", va="center", fontsize=8)
            if name == str(size):
                axes.add_patch(Rectangle((at - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.4))
    axes.set(xlim=(-0.5, places[-1] + 0.5), ylim=(len(sizes) - 0.5, -0.5), ylabel="images per statistic in training")
    axes.set_yticks(range(len(sizes)), [f"{size}" for size in sizes])
    axes.set_xticks(places, TEST_NAMES, fontsize=8)
    axes.set_xlabel("statistics in the test")
    note(axes, "averages", -0.48, -0.6, transform=axes.transData)
    note(axes, "of so many test images", 2.77, -0.6, transform=axes.transData)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _excess(table, size, statistics="running"):
    """Return, per seed, the points of test error above the network of 32 images, which is tested with running averages."""
    return _by_test(table)[size, statistics] - _by_test(table)[32, "running"]


@damage.claim(
    "statistics-alone",
    "Batch norm's error rises when the images per statistic become few, because its statistics become inaccurate.",
    criterion="with 32 images per update in both arms, the test error with running averages is higher at 2 images per statistic "
    "than at 32",
    by="wu2018",
)
def _(table):
    excess = _scores(table)[[size for size in SIZES if size in _scores(table)]].sub(_scores(table)[32], axis=0)
    said = ", ".join(f"{size}: {number(excess[size].median())}" for size in excess if size < 32)
    return judge_effect("points of error, 2 images minus 32", excess[2], claimed=(0, np.inf), null=0, note=said)


@damage.claim(
    "group-beats-two",
    "At 2 images per statistic group norm has the lower error.",
    criterion="with 32 images per update in both arms, batch norm's test error at 2 images per statistic is above group norm's",
    by="wu2018",
)
def _(table):
    gap = _scores(table)[2] - _scores(table)["group:size=8"]
    return judge_effect("points of error, batch norm at 2 minus group norm", gap, claimed=(0, np.inf), null=0)


@damage.claim(
    "training-error",
    "Each halving of the images per statistic, down to two, raises batch norm's training error.",
    criterion="training error with statistics as in training, at 32, 16, 8, 4 and 2 images: the smallest of the four rises is "
    "above 0",
    by="notes",
)
def _(table):
    seen = _scores(table, "train_error_own").drop(columns=1).filter(items=SIZES)
    said = ", ".join(f"{size}: {number(seen[size].median())}" for size in seen)
    rises = seen.diff(axis=1).iloc[:, 1:].min(axis=1, skipna=False)
    return judge_effect("smallest rise, in points", rises, claimed=(0, np.inf), null=0, note=said)


@damage.claim(
    "one-image-modes",
    "At one image per statistic the damage is the change of statistics between training and test.",
    criterion="with each image's own statistics, as in training, at least three quarters of the excess over the network of 32 "
    "images are gone",
    by="notes",
)
def _(table):
    running, own = _excess(table, 1), _excess(table, 1, "1")
    note = f"excess {number(running.median())} points with running averages, {number(own.median())} with each image's own"
    return judge_effect("share of the excess taken away", (running - own) / running, claimed=(0.75, np.inf), null=0, note=note)


@damage.claim(
    "no-better-average",
    "At one image per statistic no average of statistics repairs it: the running ones are not merely late.",
    criterion="statistics averaged anew over the training set, of one image or of 32 at a time, whichever is better, take away "
    "less than a quarter of the excess",
    by="notes",
)
def _(table):
    running = _excess(table, 1)
    best = np.minimum(_excess(table, 1, "average"), _excess(table, 1, "pooled"))
    return judge_effect("share of the excess taken away", (running - best) / running, claimed=(-np.inf, 0.25), null=np.nan)


@damage.claim(
    "two-images-training",
    "At two images per statistic the damage is done in training: no choice of statistics in the test undoes it.",
    criterion="under the best of the nine statistics, chosen on the test images, the network of 2 images has a higher error than "
    "that of 32 with running averages",
    by="notes",
)
def _(table):
    best = _by_test(table)[2].min(axis=1, skipna=False) - _by_test(table)[32, "running"]
    note = f"with running averages {number(_excess(table, 2).median())}"
    return judge_effect("points of error above 32 images", best, claimed=(0, np.inf), null=0, note=note)
