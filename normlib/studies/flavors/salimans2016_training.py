"""Salimans & Kingma (2016), Weight Normalization: what a start from data does for training."""

from __future__ import annotations

import numpy as np

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.studies.common.arms import first_at, images_for, side_by_side
from normlib.studies.common.looks import INK, median_and_band, norm_color, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.studies.flavors.convnets import BATCH, fit
from normlib.studies.flavors.salimans2016 import MEAN_ONLY, PLAIN, SMALL, STARTED, network_of
from normlib.training import accuracy

CHANCE = 10  # percent, of a run that diverged
START = 500  # images that a start looks at before training
CENTER = {"none": 0.03, "weight": 0.03, PLAIN: 0.5, STARTED: 0.01, MEAN_ONLY: 0.01, "batch": 0.1}  # rates at 6 layers
FALLS = {PLAIN: 0, STARTED: 2, MEAN_ONLY: 3}  # with which power of the depth; 1 for the other arms
TIMES = [0.111, 0.333, 1, 3]  # what each arm tries: so many times its rate
NAMES = {
    "none": "none, He's weights", "weight": "weight norm, He's weights", PLAIN: "weight norm, $g = ||v||$",
    STARTED: "weight norm, start from data", MEAN_ONLY: "the same + mean-only batch", "batch": "batch norm, He's weights",
}  # fmt: skip

SHORT = {
    "none": "none", "weight": "He's lengths", PLAIN: "$g = ||v||$", STARTED: "start",
    MEAN_ONLY: "start + mean-only", "batch": "batch",
}  # fmt: skip

training = Study(
    "salimans2016.training",
    item="§3, §4, §5.1",
    title="He's lengths serve weight normalization at least as well as a start from data",
    kind="train",
    vary={"arm": list(CENTER), "depth": [6, 12, 20], "times": TIMES},
    quick={
        "data": "digits", "train": 500, "test": 200, "validation": 100, "pool": 1, "width": 24, "epochs": 8, "target": 50,
        "times": [0.333], "depth": [6],
    },
    laptop={
        "data": "fashion-mnist", "train": 5_000, "test": 2_000, "validation": 700, "pool": 2, "width": 64, "epochs": 4,
        "target": 60,
    },
    full={
        "data": "fashion-mnist", "train": 60_000, "test": 10_000, "validation": 10_000, "pool": 1, "width": 256, "epochs": 10,
        "target": 80,
    },
)  # fmt: skip


@training.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    network = network_of(c, tune, tune.x_train[:START], seed)
    rate = CENTER[c.arm] * (6 / c.depth) ** FALLS.get(c.arm, 1) * c.times
    steps = c.epochs * (len(tune.x_train) // BATCH)

    def probe(step, model):
        return {"held_out": 100 * accuracy(model, tune.x_test, tune.y_test, statistics="eval")}

    looks = [*range(0, steps, max(steps // 50, 1)), steps]
    run = fit(network, tune, epochs=c.epochs, rate=rate, seed=seed, probe=probe, probe_steps=looks)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", rate=rate, reached=np.inf, at_end=np.nan)
    return {
        **run.probes,
        "rate": rate,
        "reached": first_at(run.probes["step"], run.probes["held_out"], c.target),
        "at_end": run.probes["held_out"][-1],
        "accuracy": 100 * accuracy(network, images.x_test, images.y_test, statistics="eval"),
    }


def best(table):
    """Keep each arm's runs at its rate for each depth, and return those rates."""
    return tuned(table, ["depth", "arm"], "at_end")


def reached(table, depth: int):
    """Return the steps to the target, a row a seed, a column an arm; a run that never gets there counts with all its steps."""
    kept = best(table)[0]
    runs = side_by_side(kept[kept.depth == depth], "arm", "reached")
    return runs.clip(upper=float(kept.step.max()))


def accuracies(table, depth: int):
    """Return the test accuracy in percent, a row a seed, a column an arm."""
    kept = best(table)[0]
    return side_by_side(kept[kept.depth == depth], "arm", "accuracy")


@training.draw
def _(table):
    kept, rates = best(table)
    depths = sorted(table.depth.unique())
    figure, axes = subplots(1, len(depths), height=3.1, sharey=True, squeeze=False)
    sky = norm_color("weight")
    looks = {
        "none": (norm_color("none"), "-"), "batch": (norm_color("batch"), "-"), "weight": (sky, "--"), PLAIN: (sky, ":"),
        STARTED: (sky, "-"), MEAN_ONLY: (INK, "-."),
    }  # fmt: skip
    for ax, depth in zip(axes.flat, depths, strict=True):
        for arm, (color, line) in looks.items():
            runs = kept[(kept.arm == arm) & (kept.depth == depth)]
            median_and_band(ax, runs, "step", "held_out", color=color, linestyle=line, label=NAMES[arm])
        ax.set(ylim=(0, 100), xlabel="step", title=f"{depth} hidden layers")
    axes[0, 0].set_ylabel("held-out accuracy in percent")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=3, fontsize=8.5)
    said = []
    for depth in depths:
        steps = reached(table, depth).median()
        said.append(f"{depth} layers: {number(steps[STARTED])} with the start, {number(steps[PLAIN])} with $g = ||v||$, "
                    f"{number(steps['weight'])} with He's lengths, {number(steps['none'])} without norm")  # fmt: skip
    chosen = "; ".join(
        f"{depth} layers: {rates_in_words({arm: rate for (at, arm), rate in rates.items() if at == depth}, SHORT)}"
        for depth in depths
    )
    edges = sorted({f"{SHORT[run.arm]} ({run.depth})" for run in kept.itertuples() if run.times in (min(TIMES), max(TIMES))})
    at_edge = f" The lowest or highest rate tried was the best of {', '.join(edges)}." if edges else ""
    return Drawing(
        figure,
        caption=f"Steps to {table.target.iloc[0]} % held-out accuracy (median; a run that does not get there counts with all of "
        f"its {number(kept.step.max())}): {'; '.join(said)}. Dense ReLU networks; v of deviation {SMALL} where He's weights are "
        f"not named. Starts see {START} images. Statistic batch and SGD batch are both {BATCH}; norms of activations use running "
        f"averages here. Rates, chosen on held-out images: {chosen}.{at_edge}",
        alt="Held-out accuracy against the step for networks of few and of many layers: no norm, batch norm, and weight norm with "
        "four starts.",
    )


@training.claim(
    "needs-a-start",
    "A deep network with weight normalization learns in fewer steps with the data-dependent start than without.",
    criterion="20 layers, v of deviation 0.05: steps to the target with g = ‖v‖ over those with the start at least 1.5; a run that "
    "does not get there counts with all its steps",
)
def _(table):
    ratios = {depth: (steps := reached(table, depth))[PLAIN] / steps[STARTED] for depth in sorted(table.depth.unique())}
    note = ", ".join(f"{number(ratio.median())} at {depth} layers" for depth, ratio in ratios.items())
    runs = best(table)[0].drop_duplicates(["depth", "arm", "seed"])
    never = runs[(runs.arm == PLAIN) & np.isinf(runs.reached)]
    note += f"; lower bounds where runs with g = ‖v‖ never get there, {len(never)} of {int((runs.arm == PLAIN).sum())}"
    return judge_effect("steps, g = ‖v‖ over start", ratios[table.depth.max()], claimed=(1.5, np.inf), null=1, note=note)


@training.claim(
    "he-is-a-start",
    "He's lengths, which look at no data, serve at least as well.",
    criterion="20 layers: test accuracy with He's weights less that with the start above -1 point",
    by="notes",
)
def _(table):
    found = accuracies(table, table.depth.max()).fillna(CHANCE)
    return judge_effect("points, He less start", found["weight"] - found[STARTED], claimed=(-1, np.inf), null=-1)


@training.claim(
    "faster",
    "Weight normalization speeds up learning.",
    criterion="6 layers: steps to the target without norm over those of weight norm with the start above 1",
)
def _(table):
    steps = reached(table, table.depth.min())
    return judge_effect("steps, none over weight norm", steps["none"] / steps[STARTED], claimed=(1, np.inf), null=1)


@training.claim(
    "mean-only",
    "Weight normalization with mean-only batch normalization is no less accurate than batch normalization.",
    criterion="6 layers: test accuracy with both less that with batch norm above -0.5 points",
)
def _(table):
    found = accuracies(table, table.depth.min())
    deeper = [depth for depth in sorted(table.depth.unique()) if depth > table.depth.min()]
    points = {depth: (more := accuracies(table, depth))[MEAN_ONLY] - more["batch"] for depth in deeper}
    note = "; ".join(f"at {depth} layers {number(difference.median())}" for depth, difference in points.items())
    others = table[(table.arm == "batch") & (table.depth == table.depth.min())]
    against = [(found[MEAN_ONLY] - runs.groupby("seed").accuracy.first()).median() for _, runs in others.groupby("times")]
    note += f"; over the rates of batch norm the median is {number(min(against))} to {number(max(against))}"
    ahead, said = found[MEAN_ONLY] - found["batch"], note.removeprefix("; ")
    return judge_effect("points, both less batch", ahead, claimed=(-0.5, np.inf), null=-0.5, note=said)
