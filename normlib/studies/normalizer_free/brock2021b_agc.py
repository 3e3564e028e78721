"""Brock et al. (2021b), figure 2: adaptive gradient clipping in a normalizer-free network, at a small and a large batch."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for, population_accuracy, side_by_side
from normlib.studies.common.looks import GRAY, INK, median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.normalizer_free.tricks import FULL, LAPTOP, QUICK, RECIPE, fit, resnet

UNIT = 32  # images that a learning rate is stated for: at B images a step is B / UNIT times as long
COMMON = 0.1  # the rate at which batches are compared at rates in proportion to them, fixed before any run
LEARNED = math.log(10) / 2  # a run is stable if its last epoch's loss is below half of what guessing has
LAMBDAS = {f"λ={value}": f"agc:clipping={value},exempt=head" for value in (0.16, 0.04, 0.01)}
ARMS = {"BN": ("batch", "none"), "unclipped": ("nf", "none")}
ARMS |= {name: ("nf", clip) for name, clip in LAMBDAS.items()} | {"norm 1": ("nf", "norm:limit=1")}
SHORT = {"unclipped": "not\nclipped"}
OLIVE = norm_color("scaled_weight")
LOOKS = dict(
    zip(
        ARMS,
        (
            (norm_color("batch"), "o", "-"),
            (OLIVE, "s", "--"),
            *((INK, marker, style) for marker, style in zip("^vD", (":", "--", "-"), strict=True)),
            (GRAY, "P", "-."),
        ),
        strict=True,
    )
)

agc = Study(
    "brock2021b.agc",
    item="Fig 2",
    title="Adaptive gradient clipping lets a normalizer-free network take larger rates",
    kind="train",
    vary={"arm": list(ARMS), "batch": [32, 256], "rate": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]},
    quick={**QUICK, "epochs": 2, "batch": [32, 128], "rate": [0.1, 1.0], "arm": ["BN", "unclipped", "λ=0.16", "λ=0.01", "norm 1"]},
    laptop={**LAPTOP, "pool": 4, "train": 2_048, "stages": [1, 1, 1], "epochs": 4},
    full={**FULL, "epochs": 20, "batch": [64, 512, 4096], "rate": [0.003, 0.01, 0.03, 0.1, 0.3]},
)


@agc.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    trick, clip = ARMS[c.arm]
    net = resnet(c, tune, trick, seed)
    per_epoch = len(tune.x_train) // c.batch
    history = fit(net, tune, steps=c.epochs * per_epoch, rate=c.rate * c.batch / UNIT, seed=seed, batch=c.batch, clip=clip)
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}", steps=c.epochs * per_epoch)
    batches = tune.x_train.split(c.batch)[:per_epoch]
    parts = {"held_out": (tune.x_test, tune.y_test), "accuracy": (images.x_test, images.y_test)}
    measured = {name: 100 * population_accuracy(net, batches, *part) for name, part in parts.items()}
    return {**measured, "last_loss": float(history.loss[-per_epoch:].mean()), "steps": c.epochs * per_epoch}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def scores(table: pd.DataFrame, batch: int) -> pd.DataFrame:
    """Return test accuracies in percent, each arm at its own rate for this batch: a row a seed, a column an arm."""
    return side_by_side(tuned(table, ["arm", "batch"], "held_out")[0], "arm", "accuracy", batch=batch)


def best_lambda(table: pd.DataFrame, batch: int) -> str:
    """Return the arm of AGC with the highest held-out accuracy at its own rate, by the median over seeds, then by the mean."""
    kept = tuned(table, ["arm", "batch"], "held_out")[0]
    kept = kept[kept.arm.isin(LAMBDAS) & (kept.batch == batch)]
    found = kept.groupby("arm").held_out.agg(["median", "mean"]).sort_values(["median", "mean"], na_position="first")
    return str(found.index[-1])


def stable_rates(table: pd.DataFrame, batch: int) -> pd.DataFrame:
    """Return the largest rate whose last epoch has a loss below `LEARNED`: a row a seed, a column an arm; NaN if there is none."""
    runs = table[table.batch == batch]
    return runs.rate.where(runs.last_loss < LEARNED).groupby([runs.seed, runs.arm]).max().unstack("arm")


def stricter(table: pd.DataFrame) -> pd.Series:
    """Return how much more a strict λ gains over a loose one at the large batch than at the small, at rates in proportion.

    In points of held-out accuracy, one number a seed. A run that diverged has the accuracy of guessing.
    """
    gains = []
    for batch in (table.batch.max(), table.batch.min()):
        found = side_by_side(table, "arm", "held_out", batch=batch, rate=COMMON).astype(float).fillna(10.0)
        gains.append(found["λ=0.01"] - found["λ=0.16"])
    return gains[0] - gains[1]


@agc.draw
def _(table):
    rates = tuned(table, ["arm", "batch"], "held_out")[1]
    small, large = table.batch.min(), table.batch.max()
    arms = [arm for arm in ARMS if arm in set(table.arm)]
    figure, ((left, right), (tested, stable)) = subplots(2, 2, height=2.5)
    for ax, batch in ((left, small), (right, large)):
        for arm in arms:
            color, marker, style = LOOKS[arm]
            runs = table[(table.arm == arm) & (table.batch == batch)]
            looks = {"color": color, "marker": marker, "linestyle": style, "mfc": "none" if style != "-" else color}
            label, band = arm if ax is left else None, {"alpha": 0.1, "linewidth": 0}
            median_and_band(ax, runs, "rate", "held_out", label=label, err_kws=band, **looks)
        ticks = sorted(table.rate.unique())
        ax.set(xscale="log", xlabel=f"learning rate per {UNIT} images", title=f"batch {batch}", ylim=(0, 90))
        ax.set_xticks(ticks, [number(rate) for rate in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    left.set_ylabel("held-out accuracy (%)")
    for ax, column in ((tested, scores), (stable, stable_rates)):
        for shift, batch, full in ((-0.12, small, False), (0.12, large, True)):
            found = column(table, batch)
            for place, arm in enumerate(arms):
                color, marker, _ = LOOKS[arm]
                values = found[arm].dropna() if arm in found else pd.Series(dtype=float)
                ax.plot([place + shift] * len(values), values, marker, color=color, mfc=color if full else "none", alpha=0.8)
        ax.set_xticks(range(len(arms)), [SHORT.get(arm, arm.replace("=", "\n").replace(" ", "\n")) for arm in arms], fontsize=8)
    tested.set(ylabel="test accuracy (%)", xlabel="hollow: small batch, filled: large")
    stable.set(yscale="log", ylabel="largest stable rate", xlabel="one mark a seed")
    stable.set_yticks(ticks, [number(rate) for rate in ticks])
    stable.yaxis.set_minor_locator(NullLocator())
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(arms), fontsize=8.5, handletextpad=0.3)
    said = "; ".join(f"at {batch} images {_medians(scores(table, batch), best_lambda(table, batch))}" for batch in (small, large))
    chosen = "; ".join(f"at {batch} images {rates_in_words({a: rates[a, batch] for a in arms})}" for batch in (small, large))
    ends = [f"{arm} at {batch}" for arm, batch in at_ends(table, ["arm", "batch"], rates)]
    return Drawing(
        figure,
        caption=f"A residual network trained for {table.epochs.iloc[0]} epochs, with {small} and with {large} images an update; BN "
        "takes its statistics over the same images. NF unclipped, with adaptive clipping at three λ, and with the norm of the "
        f"whole gradient limited to 1. Rates are per {UNIT} images, so those at {large} images are {large // UNIT} times as large. "
        "**Top** Held-out accuracy; runs whose loss was not finite are left out. **Bottom** Left, test accuracy of each at its "
        f"own rate, medians: {said}. Right, the largest rate at which the last epoch's loss is below half of what guessing has. "
        f"Rates, by held-out images: {chosen}{ends_in_words(ends)}. Recipe: {RECIPE}.",
        alt="Top: held-out accuracy against learning rate at two batch sizes, for batch norm and a normalizer-free network with "
        "and without clipping. Bottom: test accuracy and largest stable rate of each.",
    )


def _medians(found: pd.DataFrame, clipped: str) -> str:
    return ", ".join(f"{arm} {found[arm].median():.1f} %" for arm in ("BN", "unclipped", clipped, "norm 1"))


def _gain(table: pd.DataFrame, batch: int) -> tuple[pd.Series, str]:
    found, arm = scores(table, batch), best_lambda(table, batch)
    return found[arm] - found["unclipped"], arm


@agc.claim(
    "larger-rates",
    "With adaptive gradient clipping the normalizer-free network trains at larger rates than without.",
    criterion="larger batch: largest stable rate with λ = 0.01, the paper's default, at least 2 times that without clipping (the "
    "steps of the grid are 3 and 3.3); stable: the last epoch's training loss is below half of ln 10",
)
def _(table):
    found = stable_rates(table, table.batch.max())
    ends = f"{number(found['λ=0.01'].median())} and {number(found['unclipped'].median())}; tried up to {number(table.rate.max())}"
    return judge_effect(
        "largest stable rate, λ = 0.01 / unclipped", found["λ=0.01"] / found["unclipped"], claimed=(2, np.inf), null=1, note=ends
    )


@agc.claim(
    "large-batch",
    "At a large batch adaptive clipping raises the accuracy of the normalizer-free network.",
    criterion="larger batch, each at its own rate: test accuracy with the best λ, by held-out images, less that without clipping, "
    "at least one point",
)
def _(table):
    gain, arm = _gain(table, table.batch.max())
    return judge_effect("points, with less without", gain, claimed=(1, np.inf), null=0, note=f"best: {arm}")


@agc.claim(
    "small-batch",
    "At a small batch adaptive clipping makes no difference of more than one point.",
    criterion="smaller batch, each at its own rate: test accuracy with the best λ, by held-out images, less that without clipping, "
    "between -1 and 1 point",
)
def _(table):
    gain, arm = _gain(table, table.batch.min())
    said = f"best: {arm}; at the larger batch {number(_gain(table, table.batch.max())[0].median())}"
    return judge_effect("points, with less without", gain, claimed=(-1, 1), null=np.nan, note=said)


@agc.claim(
    "strict-at-large",
    "When the rate grows with the batch, a smaller λ gains more at the larger batch than at the smaller.",
    criterion=f"rate {COMMON} per {UNIT} images at both batches, in proportion as in the paper: held-out accuracy of λ = 0.01 less "
    "that of λ = 0.16, at the larger batch less the same at the smaller, at least one point",
)
def _(table):
    small, large = table.batch.min(), table.batch.max()
    said = f"with rates tuned the best are {best_lambda(table, small)} at {small} and {best_lambda(table, large)} at {large}"
    return judge_effect("points", stricter(table), claimed=(1, np.inf), null=0, note=said)


@agc.claim(
    "keeps-up",
    "At a large batch the normalizer-free network with adaptive clipping keeps up with batch norm.",
    criterion="larger batch, each at its own rate: test accuracy with the best λ at most one point below that of BN",
)
def _(table):
    found, arm = scores(table, table.batch.max()), best_lambda(table, table.batch.max())
    return judge_effect("points, NF less BN", found[arm] - found["BN"], claimed=(-1, np.inf), null=np.nan, note=f"best: {arm}")


@agc.claim(
    "unit-by-unit",
    "Clipping unit by unit keeps larger rates stable than a limit of 1 on the norm of the whole gradient.",
    criterion="larger batch: largest stable rate with λ = 0.01 at least 2 times that with the limit",
    by="notes",
)
def _(table):
    found = stable_rates(table, table.batch.max())
    ends = f"{number(found['λ=0.01'].median())} and {number(found['norm 1'].median())}; tried up to {number(table.rate.max())}"
    ratio = found["λ=0.01"] / found["norm 1"]
    return judge_effect("largest stable rate, λ = 0.01 / limit", ratio, claimed=(2, np.inf), null=1, note=ends)
