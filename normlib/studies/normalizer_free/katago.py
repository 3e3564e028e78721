"""KataGo, a Go engine that replaced its batch norms by constants and kept one: what one batch norm before the head buys."""

from __future__ import annotations

import numpy as np
from torch import nn

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.layers import make_norm
from normlib.networks import ResNet
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import GRAY, median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.normalizer_free.tricks import FULL, LAPTOP, QUICK, RECIPE, TRICKS, Trick, fit
from normlib.training import accuracy

ONE = " + one "
BASES = {
    "batch": TRICKS["batch"],
    "constants": Trick("constants", residual="nf:alpha=1"),  # He's weights; a number in the place of each norm
    "nf": TRICKS["nf"],
}
ARMS = ["batch", "constants", f"constants{ONE}batch", "nf", f"nf{ONE}batch", f"nf{ONE}layer"]
NAMES = {"batch": "batch norm", "constants": "constants", "nf": "NF"}
NAMES |= {arm: f"{NAMES[arm.partition(ONE)[0]]} + one {arm.partition(ONE)[2]} norm" for arm in ARMS if ONE in arm}
COLORS = {"batch": norm_color("batch"), "constants": GRAY, "nf": norm_color("scaled_weight")}
STYLES = {"": "-", "batch": "--", "layer": ":"}
CLASSES = 10  # of every data set in use
RATES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]

one_bn = Study(
    "katago.one_bn",
    item="one batch norm before the heads",
    title="How much of batch norm one batch norm before the head brings back",
    kind="train",
    vary={"arm": ARMS, "rate": RATES},
    quick={**QUICK, "steps": 6, "batch": 64, "rate": [0.1]},
    laptop={**LAPTOP, "steps": 80, "batch": 64},
    full={**FULL, "steps": 8_000, "batch": 128},
)


def network(c: Config, images: Dataset, arm: str, seed: int) -> ResNet:
    """Build the residual network of an arm; "base + one norm" has that norm in front of the last activation, before the head."""
    base, _, norm = arm.partition(ONE)
    trick = BASES[base]
    net = ResNet(
        c.stages, c.width, in_channels=images.shape[0], classes=images.classes, norm=trick.norm, init=trick.init, seed=seed,
        residual=trick.residual, bias=trick.bias,
    )  # fmt: skip
    if norm:
        net.final = nn.Sequential(make_norm(norm, net.head.in_features), net.final)  # type: ignore[arg-type]
    return net.to(c.device)


@one_bn.trial
def _(c, seed):
    tuning, testing = images_for(c, seed)
    net = network(c, tuning, c.arm, seed)
    run = fit(net, tuning, steps=c.steps, rate=c.rate, seed=seed, batch=c.batch)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", held_out=np.nan)
    held_out, tested = (
        100 * accuracy(net, images.x_test, images.y_test, statistics="eval", batch_size=500) for images in (tuning, testing)
    )
    tail = max(1, c.steps // 4)
    return {**run.curve(24), "last_loss": float(run.loss[-tail:].mean()), "held_out": held_out, "tested": tested}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table):
    """Keep of each arm the runs at its best rate, by held-out accuracy; return those rates, too."""
    return tuned(table, ["arm"], "held_out")


def behind(table, column):
    """Return how far each arm is behind batch norm, in loss or in points: one row per seed, one column per arm."""
    values = side_by_side(best(table)[0], "arm", column)
    gaps = values.sub(values["batch"], axis=0)
    return gaps if column == "last_loss" else -gaps


def closed(table, base, norm, column):
    """Return the share of the gap between a base and batch norm that one norm closes; no number for a seed without a gap."""
    gaps = behind(table, column)
    return ((gaps[base] - gaps[f"{base}{ONE}{norm}"]) / gaps[base]).where(gaps[base] > 0)


def largest_rate(table, arm):
    """Return, for each seed, the largest rate tried at which the last quarter has under half the loss of guessing; 0 if none."""
    runs = side_by_side(table, ["arm", "rate"], "last_loss")[arm]
    return runs.apply(lambda row: max((rate for rate, loss in row.items() if loss < np.log(CLASSES) / 2), default=0.0), axis=1)


@one_bn.draw
def _(table):
    shown, rates = best(table)
    figure, (curves, points) = subplots(1, 2, height=3.6, gridspec_kw={"width_ratios": [1.25, 1]})
    gaps = behind(table, "tested")
    for row, arm in enumerate(ARMS):
        base, _, norm = arm.partition(ONE)
        look = {"color": COLORS[base], "linestyle": STYLES[norm]}
        median_and_band(curves, shown[shown.arm == arm], "step", "loss", label=NAMES[arm], linewidth=1.6, **look)
        points.plot(-gaps[arm], [row] * len(gaps), "o", color=COLORS[base], mfc="none")
        points.plot([-gaps[arm].median()] * 2, [row - 0.3, row + 0.3], **look, linewidth=2)
    curves.set(xlabel="step", ylabel="training loss", yscale="log")
    ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3) if curves.get_ylim()[0] < tick < curves.get_ylim()[1]]
    curves.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    curves.minorticks_off()
    points.axvline(0, color=COLORS["batch"], linewidth=0.8)
    points.set_yticks(range(len(ARMS)), [NAMES[arm].replace(" + ", "\n+ ") for arm in ARMS], fontsize=8)
    points.set(xlabel="points of test accuracy\nfrom batch norm", ylim=(len(ARMS) - 0.5, -0.5))
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    loss = side_by_side(shown, "arm", "last_loss").median()
    said = "; ".join(f"{NAMES[arm]} {number(loss[arm])}" for arm in ARMS)
    ends = ends_in_words([NAMES[arm] for arm in at_ends(table, ["arm"], rates)])
    return Drawing(
        figure,
        caption=f"**Left** Training loss after equally many images; mean over the last quarter of {table.steps.iloc[0]} steps: "
        f"{said}. **Right** Test accuracy with running averages, less that of batch norm; a ring a seed, a bar the median. "
        f"Constants: He's weights, and a factor in the place of each norm. SGD batch and statistic batch {table.batch.iloc[0]}; "
        f"the layer norm takes one image at a time. {RECIPE.capitalize()}. Rates by held-out accuracy: "
        f"{rates_in_words(rates, NAMES)}{ends}.",
        alt="Left: training loss against the step for batch norm, constants and NF, each with and without one norm before the "
        "head. Right: test accuracy less that of batch norm, a ring a seed, a row an arm.",
    )


@one_bn.claim(
    "most",
    "Constants in the place of the norms and one batch norm before the head have most of what batch norm does for optimization.",
    criterion="share of the gap in training loss (last quarter of the steps) between constants alone and batch norm that one batch "
    "norm closes: at least 0.5; no number for a seed without a gap",
)
def _(table):
    share = closed(table, "constants", "batch", "last_loss")
    note = f"gap in loss {number(behind(table, 'last_loss')['constants'].median())}"
    return judge_effect("share of the gap in loss, constants", share, claimed=(0.5, np.inf), null=0, note=note)


@one_bn.claim(
    "not-all",
    "They do not have all of it: the training loss stays above that of batch norm at every site.",
    criterion="training loss (last quarter) of constants and one batch norm above that of batch norm at every site",
)
def _(table):
    left = behind(table, "last_loss")[f"constants{ONE}batch"]
    return judge_effect("loss, constants + one batch norm less batch norm", left, claimed=(0, np.inf), null=0)


@one_bn.claim(
    "nf-loss",
    "For NF, too, one batch norm before the head closes at least half of the gap in training loss.",
    criterion="share of the gap in training loss (last quarter) between NF and batch norm: at least 0.5; no number for a seed "
    "without a gap",
    by="notes",
)
def _(table):
    note = f"gap in loss {number(behind(table, 'last_loss')['nf'].median())}"
    return judge_effect(
        "share of the gap in loss, NF", closed(table, "nf", "batch", "last_loss"), claimed=(0.5, np.inf), null=0, note=note
    )


@one_bn.claim(
    "nf-accuracy",
    "For NF one batch norm before the head closes at least half of the gap in test accuracy.",
    criterion="share of the gap in test accuracy between NF and batch norm: at least 0.5; no number for a seed without a gap",
    by="notes",
)
def _(table):
    note = f"gap {number(behind(table, 'tested')['nf'].median())} points"
    return judge_effect(
        "share of the gap in accuracy, NF", closed(table, "nf", "batch", "tested"), claimed=(0.5, np.inf), null=0, note=note
    )


@one_bn.claim(
    "no-batch",
    "It need not be batch norm: with one layer norm before the head, which takes no batch, the training loss of NF is at most 5 % "
    "above that with one batch norm.",
    criterion="training loss (last quarter), NF and one layer norm over NF and one batch norm: at most 1.05",
    by="notes",
)
def _(table):
    loss = side_by_side(best(table)[0], "arm", "last_loss")
    ratio = loss[f"nf{ONE}layer"] / loss[f"nf{ONE}batch"]
    return judge_effect("loss, one layer norm / one batch norm", ratio, claimed=(0, 1.05), null=np.nan)


@one_bn.claim(
    "larger-rates",
    "With one batch norm before the head NF trains at a learning rate at least three times as high as without.",
    criterion="largest rate tried at which the training loss (last quarter) is below half of that of guessing, log 10: with one "
    "batch norm over without, at least 3, one step of the grid",
    by="notes",
)
def _(table):
    alone, one = largest_rate(table, "nf"), largest_rate(table, f"nf{ONE}batch")
    note = f"{number(alone.median())} without, {number(one.median())} with; added after the runs were seen"
    ratio = (one / alone).where(alone > 0)
    return judge_effect("largest rate, with / without", ratio.round(6), claimed=(3, np.inf), null=1, note=note)
