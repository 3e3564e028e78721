"""Arora, Li & Lyu (2019), Theoretical analysis of auto rate-tuning by batch normalization: a rate that tunes itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.batch.scale_invariant import scale_invariant_mlp, stretched, typical_rate
from normlib.studies.common.arms import population_accuracy
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import INK, ORANGE, median_and_band, norm_color, subplots
from normlib.training import evaluate, train

BATCH = 64  # images of a step; the statistics are theirs
NORMS = {"batch": "batch normalization", "none": "no normalization"}
FACTOR = 2.0  # a rate counts as good if the loss after training is at most this many times that at the best rate

autorate = Study(
    "arora2019.autorate",
    item="the theorem's statement, as a sweep over rates",
    title="Behind batch normalization the learning rate hardly needs tuning",
    kind="train",
    vary={"norm": list(NORMS), "change": ["rate", "weights"], "rate": [4.0**k for k in range(-6, 7)]},
    quick={
        "data": "digits", "train": 300, "test": 100, "pool": 2, "hidden": [16, 16], "steps": 30,
        "rate": [4.0**k for k in range(-6, 7, 3)],
    },
    laptop={"data": "fashion-mnist", "train": 6_000, "test": 2_000, "pool": 4, "hidden": [48, 48], "steps": 1_000},
    full={"data": "cifar10", "train": 40_000, "test": 10_000, "pool": 2, "hidden": [512] * 3, "steps": 10_000},
)  # fmt: skip


@autorate.trial
def _(c, seed):
    images = load(c, seed).pooled(c.pool).standardized().flat()
    x, y, x_test = images.x_train.double(), images.y_train, images.x_test.double()
    model = scale_invariant_mlp([x.shape[1], *c.hidden, images.classes], c.norm, seed).to(c.device)
    rate = c.rate
    if c.change == "weights":  # the rate stays 1; weights shorter by √rate make it act as `c.rate` does
        model, rate = stretched(model, c.rate**-0.5), 1.0
    start = evaluate(model, x, y, statistics="train").loss
    history = train(
        model, x, y, steps=c.steps, batch_size=BATCH, rate=rate, seed=seed, loss_limit=1e6,
        probe=lambda _, net: {"effective": typical_rate(net, rate)}, probe_steps=[0, 1, c.steps // 10, c.steps],
    )  # fmt: skip
    whole = history.diverged_at is None
    effective = history.probes["effective"] + [np.nan] * (4 - len(history.probes["effective"]))
    loss = evaluate(model, x, y, statistics="train").loss if whole else np.inf
    return {
        "start": start,
        "loss": loss if np.isfinite(loss) else np.inf,
        "accuracy": population_accuracy(model, x.split(len(x) // 5), x_test, images.y_test) if whole else np.nan,
        **dict(zip(("at_start", "after_one", "after_tenth", "at_end"), effective, strict=True)),
    }


def good_decades(table, norm):
    """Return for each seed over how many decades of the rate around the best one the loss stays within a factor of its own."""
    runs = table[(table.norm == norm) & (table.change == "rate")].sort_values("rate")
    return pd.Series({seed: decades_around_best(run.rate.to_numpy(), run.loss.to_numpy()) for seed, run in runs.groupby("seed")})


def decades_around_best(rates, losses):
    """Measure the unbroken stretch of rates whose loss is at most `FACTOR` times the lowest; NaN if no loss is finite.

    Example:
        >>> float(decades_around_best(np.array([0.1, 1, 10, 100, 1000]), np.array([1.5, 1.0, 1.9, np.inf, 1.0])))
        2.0
    """
    if not np.isfinite(losses).any():
        return np.nan
    first = last = int(losses.argmin())
    while first > 0 and losses[first - 1] <= FACTOR * losses.min():
        first -= 1
    while last + 1 < len(losses) and losses[last + 1] <= FACTOR * losses.min():
        last += 1
    return np.log10(rates[last] / rates[first])


def span(table, column):
    """Return for each seed over how many decades a column spreads, over all rates of the batch-normalized network."""
    runs = table[(table.norm == "batch") & (table.change == "rate")]
    return np.log10(runs[column]).groupby(runs.seed).agg(lambda logs: logs.max() - logs.min())


def identity_gap(table, norm):
    """Return the largest relative difference in final loss of changing the rate and changing the weights."""
    wide = table[table.norm == norm].pivot_table(index=["seed", "rate"], columns="change", values="loss", dropna=False)
    with np.errstate(invalid="ignore"):
        return float((wide.weights / wide.rate - 1).abs().fillna(np.inf).max())


@autorate.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=3.4)
    table = table.replace(np.inf, np.nan)
    for norm, label in NORMS.items():
        by_rate, by_weights = (table[(table.norm == norm) & (table.change == change)] for change in ("rate", "weights"))
        color = norm_color(norm)
        median_and_band(left, by_rate, "rate", "loss", color=color, marker="o", markersize=4, label=label)
        other = by_weights.groupby("rate").loss.median()
        left.plot(other.index, other, "x", color=color, markersize=7, label="rate 1, weights / √rate" if norm == "batch" else None)
    left.axhline(table.start[table.norm == "batch"].median(), color=INK, linewidth=0.8, linestyle=":")
    left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="training loss at the end")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5) if left.get_ylim()[0] <= tick <= left.get_ylim()[1]]
    left.set_yticks(ticks, [number(tick) for tick in ticks])
    left.yaxis.set_minor_locator(NullLocator())
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)
    runs = table[(table.norm == "batch") & (table.change == "rate")]
    stages = {
        "at_start": ("at the start", INK),
        "after_one": ("after one step", ORANGE),
        "at_end": ("at the end", norm_color("batch")),
    }
    for column, (label, color) in stages.items():
        median_and_band(right, runs, "rate", column, color=color, marker="o", markersize=3, label=label)
    right.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="rate that acts, η/‖w‖²")
    right.legend(loc="upper left", fontsize=8)
    batch, none = (good_decades(table.fillna({"loss": np.inf}), norm).median() for norm in NORMS)
    return Drawing(
        figure,
        caption=f"The loss after training is within a factor of {number(FACTOR)} of the best over {number(batch)} decades of the "
        f"learning rate with batch normalization after every layer, and over {number(none)} without (no point: it diverged). "
        "Crosses: the rate is 1, and the initial weights are divided by √rate instead. Dotted: the loss before training. "
        f"Right: the rate that acts spreads over {number(span(table, 'at_start').median())} decades at the start and over "
        f"{number(span(table, 'at_end').median())} at the end; the first step of a large rate makes it small.",
        alt="Two log-log panels against the learning rate: training loss at the end with and without batch normalization, with "
        "crosses for rescaled weights; rate that acts at the start, after one step and at the end.",
    )


@autorate.claim(
    "hardly-tuned",
    "With batch normalization after every layer the learning rate can be set almost arbitrarily.",
    criterion="training loss within a factor of 2 of the best over at least 3 decades of the rate, without a gap",
)
def _(table):
    decades, plain = (good_decades(table, norm) for norm in NORMS)
    note = f"without normalization: {number(plain.median())} decades"
    return judge_effect("decades of good rates", decades, claimed=(3, np.inf), null=0, note=note)


@autorate.claim(
    "against-none",
    "That is more room than the same network has without normalization.",
    criterion="at least one decade more of good rates",
    by="notes",
)
def _(table):
    return judge_effect("decades more", good_decades(table, "batch") - good_decades(table, "none"), claimed=(1, np.inf), null=0)


@autorate.claim(
    "any-rate",
    "No rate makes the normalized network diverge: it descends at every one.",
    criterion="at every rate the loss on all training images ends below where it starts (the largest end / start of each seed)",
)
def _(table):
    runs = table[(table.norm == "batch") & (table.change == "rate")]
    return judge_effect(
        "largest loss at the end / at the start", (runs.loss / runs.start).groupby(runs.seed).max(), claimed=(0, 1), null=1
    )


@autorate.claim(
    "rescaled",
    "Rate η from weights W is rate η/a² from weights W/a.",
    criterion="with a² = η, so at rate 1, the final loss is the same to a relative difference of 1e-9, at every rate",
    by="notes",
)
def _(table):
    note = f"without normalization the losses differ by up to {number(identity_gap(table, 'none'))}"
    return judge_identity("largest relative difference of the loss", identity_gap(table, "batch"), 1e-9, note)


@autorate.claim(
    "self-tuning",
    "The rate that acts tunes itself: training brings together what the initial rates had set apart.",
    criterion="effective rates over all initial rates spread over at most half as many decades at the end as at the start",
)
def _(table):
    ratio = span(table, "at_end") / span(table, "at_start")
    note = f"after one step the spread is {number(span(table, 'after_one').median())} decades"
    return judge_effect("decades at the end / at the start", ratio, claimed=(0, 0.5), null=1, note=note)
