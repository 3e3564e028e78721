"""What batch normalization costs: small statistic batches, batches of one class, and what the positions of an image are worth."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlib.data import Dataset
from normlib.lab import Config, Drawing, Study, judge_effect, number
from normlib.networks import PlainConvNet
from normlib.probes import record_activations
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.grouped import OfGroups, in_groups
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import GRAY, INK, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.training import accuracy, train

BATCH = 64  # images per update, in every arm
GROUP = 16  # images of one class in a row, in the arms that have them so
SIZES = [64, 16, 8, 4, 2, 1]  # statistic batches
ONE = " + one class"
ARMS = [*[f"batch:ghost={size}" for size in SIZES], "group:size=8", f"batch:ghost={GROUP}{ONE}", f"group:size=8{ONE}"]
NAMES = {**{f"batch:ghost={size}": f"batch {size}" for size in SIZES}, "group:size=8": "group"}
NAMES |= {f"batch:ghost={GROUP}{ONE}": f"batch {GROUP}, one class", f"group:size=8{ONE}": "group, one class"}
MODES = {"running": "running\naverages", "own": "own,\nmixed", "own_one_class": "own,\none class"}  # the statistics in a test

drawbacks = Study(
    "notes.drawbacks",
    item="small batches, batches of one class",
    title="Batch norm withstands small batches, but not batches of one image or of one class",
    kind="train",
    vary={"arm": ARMS, "rate": [0.2, 0.6]},
    quick={
        "data": "digits", "pool": 1, "test": 320, "width": 8, "epochs": 2, "rate": [0.3],
        "arm": [arm for arm in ARMS if arm not in ("batch:ghost=4", "batch:ghost=2")],
    },
    laptop={"data": "fashion-mnist", "train": 4_000, "test": 1_920, "pool": 2, "width": 16, "epochs": 8},
    full={"data": "cifar10", "pool": 1, "test": 9_600, "width": 64, "epochs": 20},
)  # fmt: skip


def fit(network: nn.Module, images: Dataset, c: Config, size: int, one_class: bool, seed: int) -> bool:
    """Train in place by plain gradient descent, with new groups every epoch; return whether the loss stayed finite."""
    for epoch in range(c.epochs):
        groups = in_groups(images.y_train, size, one_class, 1000 * seed + epoch)
        run = train(
            OfGroups(network), images.x_train[groups], images.y_train[groups],
            steps=len(groups) // (BATCH // size), batch_size=BATCH // size, rate=c.rate * (1 - epoch / c.epochs), seed=epoch,
            loss=lambda output, target: cross_entropy(output, target.flatten()),
        )  # fmt: skip
        if run.diverged_at is not None:
            return False
    return True


def worth(maps: Tensor) -> float:
    """Return how many independent values would give a map's mean the variance that it has: the median over channels.

    Args:
        maps: shape (N, C, *), of N images.
    """
    values = maps.flatten(2).double()
    total, between = values.var(dim=(0, 2), correction=0), values.mean(2).var(0, correction=0)
    return float((total[between > 0] / between[between > 0]).median())


@drawbacks.trial
def _(c, seed):
    tuning, testing = images_for(c, seed)
    spec, _, one_class = c.arm.partition(" + ")
    size = int(spec.partition("ghost=")[2] or GROUP)
    channels, side, _ = tuning.shape
    net = PlainConvNet(5, c.width, channels, tuning.classes, spec, "he", seed, side).to(c.device)
    finite = fit(net, tuning, c, size, bool(one_class), seed)
    x, y = testing.x_test, testing.y_test
    sorted_by_class = in_groups(y, size, True, seed).flatten()
    layers = record_activations(net, tuning.x_test[:500], [f"blocks.{index}.layer" for index in range(4)], training=False)
    maps = [load(c).x_train[:2000], *layers.values()]
    return {
        "validation": accuracy(net, tuning.x_test, tuning.y_test, statistics="eval", batch_size=500) if finite else np.nan,
        "running": 1 - accuracy(net, x, y, statistics="eval", batch_size=500),
        "own": 1 - accuracy(net, x, y, statistics="train", batch_size=BATCH),
        "own_one_class": 1 - accuracy(net, x[sorted_by_class], y[sorted_by_class], statistics="train", batch_size=BATCH),
        "layer": list(range(len(maps))),
        "positions": [values.shape[2:].numel() for values in maps],
        "worth": [worth(values) for values in maps],
    }


def _best(table):
    return tuned(table, ["arm"], "validation")


@drawbacks.draw
def _(table):
    table, rates = _best(table)
    figure, (sizes, classes, positions) = subplots(1, 3, height=3.5, gridspec_kw={"width_ratios": [1.15, 1.15, 1]})
    runs = table.drop_duplicates(["arm", "seed"])
    runs = runs.assign(size=runs.arm.str.extract(r"ghost=(\d+)")[0].astype(float), **{m: 100 * runs[m] for m in MODES})
    small = runs[~runs.arm.str.contains(ONE, regex=False) & runs["size"].notna()]
    for mode, style in (("running", "-"), ("own", "--")):
        median_and_band(sizes, small, "size", mode, color=norm_color("batch"), linestyle=style, marker="o")
    sizes.axhline(runs[runs.arm == "group:size=8"].running.median(), color=norm_color("group"))
    note(sizes, "solid: running averages\ndashed: own statistics\ngreen: group norm", 0.28, 0.7, fontsize=7.5)
    ticks = sorted(small["size"].unique())
    sizes.set(xscale="log", xlabel="images per statistic", ylabel="test error (%)", ylim=(0, None))
    sizes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    sizes.minorticks_off()
    looks = {ARMS[1]: ("o", "none"), f"{ARMS[1]}{ONE}": ("o", "full"), "group:size=8": ("s", "none"), ARMS[-1]: ("s", "full")}
    for place, (arm, (marker, fill)) in zip((-0.2, -0.07, 0.07, 0.2), looks.items(), strict=True):
        for at, mode in enumerate(MODES):
            color, values = norm_color(arm), runs[runs.arm == arm][mode]
            label = NAMES[arm] if at == 0 else None  # in the legend once
            face = color if fill == "full" else "none"
            place_of = np.full(len(values), at + place)
            classes.plot(place_of, values, marker, color=color, markerfacecolor=face, label=label, linestyle="none", alpha=0.9)
    classes.set(ylim=(0, None), xlabel="statistics in the test")
    classes.set_xticks(range(len(MODES)), list(MODES.values()), fontsize=8)
    figure.legend(*classes.get_legend_handles_labels(), loc="outside lower center", ncols=4, handletextpad=0.1)
    layers = table[table.arm == ARMS[0]].groupby("layer")[["positions", "worth"]].median()
    positions.plot(layers.index, layers.positions, "s", color=GRAY, label="positions")
    positions.plot(layers.index, layers.worth, "o", color=INK, label="worth")
    positions.set(yscale="log", xlabel="layer (0: the image)", xticks=layers.index, ylim=(0.8, None))
    positions.legend(fontsize=8, handletextpad=0.1)
    for ax, title in ((sizes, "statistic batch"), (classes, "batches of one class"), (positions, "values per map")):
        ax.set_title(title, fontsize=9.5)
    error = runs.groupby("arm")[list(MODES)].median()
    one, mixed, single = error.loc[f"{ARMS[1]}{ONE}"], error.loc[ARMS[1]], error.loc["batch:ghost=1"]
    return Drawing(
        figure,
        caption=f"Left: {BATCH} images per update, the statistics over fewer; test error with running averages (solid) and with "
        "the test batch's own statistics (dashed); group norm in green. With one image per statistic the error is "
        f"{single.running:.1f} % and {single.own:.1f} %. Middle: trained on statistics of {GROUP} images of one class, batch norm "
        f"has {one.running:.1f} % (on mixed ones {mixed.running:.1f} %); with the statistics of test batches of one class "
        f"{one.own_one_class:.1f} %, of mixed ones {one.own:.1f} %. "
        f"Right: the {layers.positions[0]:.0f} positions of an image make its mean as certain as {number(layers.worth[0])} "
        f"independent values would. {_chosen(rates)}",
        alt="Left: test error against images per statistic, running averages and own statistics. Middle: errors of batch and group "
        "norm after mixed and one-class batches, under three statistics. Right: positions and their worth by layer, log scale.",
    )


def _chosen(rates):
    """Say which rates were chosen: the one of most arms, and what departs from it."""
    usual = max(set(rates.values()), key=list(rates.values()).count)
    others = {arm: rate for arm, rate in rates.items() if rate != usual}
    rest = f", except {rates_in_words(others, NAMES)}" if others else ""
    return f"Learning rate, by validation with running averages: {number(usual)}{rest}."


def _errors(table, mode="running"):
    """Return one row per seed, one column per arm: the error at each arm's best rate, as a share."""
    return side_by_side(_best(table)[0], "arm", mode)


def _excess(table, size):
    """Return, for each seed, how many points of error a statistic over `size` images has more than one over 64."""
    error = _errors(table)
    return 100 * (error[f"batch:ghost={size}"] - error["batch:ghost=64"])


@drawbacks.claim(
    "five-to-ten",
    "Even with batches of 5 to 10 images the mean and variance hold no meaningful information about the whole training set.",
    criterion="at 8 images per statistic the test error with running averages is at least 2 points above that at 64",
    by="seed004",
)
def _(table):
    note = "a convolutional network, of which the draft expects less harm"
    return judge_effect("points of error, 8 images minus 64", _excess(table, 8), claimed=(2, np.inf), null=0, note=note)


@drawbacks.claim(
    "convolutions",
    "In convolutional networks small batches, down to one image, are not as much of an issue: a map has positions enough.",
    criterion="at 1 image per statistic the test error with running averages is at most 2 points above that at 64",
    by="seed004",
)
def _(table):
    note = "the draft compares with dense networks, which are not run here"
    return judge_effect("points of error, 1 image minus 64", _excess(table, 1), claimed=(-np.inf, 2), null=np.nan, note=note)


@drawbacks.claim(
    "one-image",
    "Batch norm cannot be applied to batches of one.",
    criterion="in this convolutional network, where it can be computed: at 1 image per statistic the test error with running "
    "averages is at least 10 points above that at 64",
    by="seed001",
)
def _(table):
    note = "the same number as for the claim on convolutions; it trains, and fails in evaluation"
    return judge_effect("points of error, 1 image minus 64", _excess(table, 1), claimed=(10, np.inf), null=0, note=note)


@drawbacks.claim(
    "train-and-test-differ",
    "At one image per statistic the harm lies between training and test: with each image's own statistics, most of it is gone.",
    criterion="own statistics take away at least half of the excess error over 64 images",
    by="notes",
)
def _(table):
    running, own = _errors(table), _errors(table, "own")
    share = 100 * (running - own)["batch:ghost=1"] / _excess(table, 1)
    note = f"error with own statistics {number(100 * own['batch:ghost=1'].median())} %"
    return judge_effect("share of the excess taken away", share, claimed=(0.5, np.inf), null=0, note=note)


@drawbacks.claim(
    "positions",
    "The positions of an image are no independent values: they are worth less than a tenth of their number.",
    criterion="variance of a pixel over variance of an image's mean, divided by the positions, below 0.1 for the images",
    by="notes",
)
def _(table):
    images = table[(table.arm == ARMS[0]) & (table.layer == 0)].groupby("seed")[["positions", "worth"]].first()
    note = f"{images.positions.iloc[0]} positions, worth {number(images.worth.median())}"
    return judge_effect("worth per position", images.worth / images.positions, claimed=(0, 0.1), null=1, note=note)


@drawbacks.claim(
    "dependent",
    "Batches whose images depend on each other harm batch norm, as it takes each example's statistics from the others.",
    criterion="16 images of one class per statistic raise batch norm's test error (running averages) by at least 10 points more "
    "than the same batches raise group norm's",
    by="ioffe2017",
)
def _(table):
    error = _errors(table)
    batch, group = error[f"{ARMS[1]}{ONE}"] - error[ARMS[1]], error[ARMS[-1]] - error["group:size=8"]
    note = f"batch norm {number(100 * batch.median())}, group norm {number(100 * group.median())}"
    return judge_effect("points of error", 100 * (batch - group), claimed=(10, np.inf), null=0, note=note)


@drawbacks.claim(
    "the-batch-tells",
    "A network trained on statistics of one class reads the class off the batch: tested on batches of one class it errs at "
    "most half as often as the one trained on mixed batches.",
    criterion="at most half of the error of the network trained on mixed batches, at its better one of running averages and own "
    "mixed statistics",
    by="notes",
)
def _(table):
    mixed = np.minimum(_errors(table)[ARMS[1]], _errors(table, "own")[ARMS[1]])
    arm = f"{ARMS[1]}{ONE}"
    every = side_by_side(table, ["arm", "rate"], "own_one_class")[arm]
    listed = ", ".join(f"{number((every[rate] / mixed).median())} at rate {rate:g}" for rate in every)
    note = f"{listed}; the rate is chosen with running averages, by which this arm fails at either"
    ratio = _errors(table, "own_one_class")[arm] / mixed
    return judge_effect("ratio of errors", ratio, claimed=(0, 0.5), null=1, note=note)
