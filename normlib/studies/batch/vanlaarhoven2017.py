"""van Laarhoven (2017), L2 regularization versus batch and weight normalization: decay sets the rate that acts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor, nn

from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.batch.scale_invariant import (
    Settled,
    geometric_mean,
    gradients_of,
    length,
    scale_invariant_mlp,
    squares,
    stretched,
    typical_rate,
)  # fmt: skip
from normlib.studies.common.arms import population_accuracy
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import GRAY, GREEN, INK, ORANGE, PINK, median_and_band, norm_color, subplots
from normlib.studies.common.statements import gap
from normlib.training import Update, log_steps, train

BATCH = 64  # images of a step; the statistics are theirs
STRETCH = 10**0.5  # of the twin's initial weights: its decay is a tenth, its rate tenfold
SETTINGS: dict[str, Any] = {"batch_size": BATCH, "update": Update(decay="weights"), "loss_limit": 1e6}
NORMS = {"batch": "batch normalization", "none": "no normalization"}

effective_rate = Study(
    "vanlaarhoven2017.effective_rate",
    item="§2–3",
    title="Behind batch normalization weight decay sets the rate that acts",
    kind="train",
    vary={"norm": list(NORMS), "rate": [0.05, 0.15, 0.5], "product": [0.0, 1e-3, 3e-3, 1e-2]},
    quick={
        "data": "digits", "train": 300, "test": 100, "pool": 2, "hidden": [16], "steps": 24, "twin": 3, "path": 6,
        "rate": [0.05, 0.5], "product": [0.0, 3e-3, 1e-2],
    },
    laptop={
        "data": "fashion-mnist", "train": 10_000, "test": 5_000, "pool": 4, "hidden": [64, 64], "steps": 3_000, "twin": 100,
        "path": 500,
    },
    full={
        "data": "cifar10", "train": 40_000, "test": 10_000, "pool": 2, "hidden": [512] * 3, "steps": 20_000, "twin": 200,
        "path": 2_000,
    },
)  # fmt: skip


def twin_gap(model: nn.Module, x: Tensor, y: Tensor, c: Config, seed: int) -> float:
    """Train with rate η and decay λ, and with ηa² and λ/a² from weights a times as long; return how far the outputs part."""
    outputs = []
    for a in (1.0, STRETCH):
        twin, rate = stretched(model, a), c.rate * a**2
        train(twin, x, y, steps=c.twin, rate=rate, weight_decay=c.product / rate, seed=seed, **SETTINGS)
        with torch.no_grad():
            outputs.append(twin(x[:BATCH]))
    return gap(*outputs)


@effective_rate.trial
def _(c, seed):
    images = load(c, seed).pooled(c.pool).standardized().flat()
    x, y, x_test = images.x_train.double(), images.y_train, images.x_test.double()
    model = scale_invariant_mlp([x.shape[1], *c.hidden, images.classes], c.norm, seed).to(c.device)
    twin, start = twin_gap(model, x, y, c, seed), length(model)
    late = np.linspace(0.75 * c.steps, c.steps, min(100, c.steps // 4)).astype(int).tolist()
    settled = Settled()
    probes: dict[str, Any] = {
        "course": lambda _, net: {"effective_rate": typical_rate(net, c.rate), "length": length(net)},
        "path": lambda step, net: {"square": float(squares(gradients_of(step)).sum()), "length": length(net)},
        "late": settled,
        "accuracy": lambda _, net: {"value": population_accuracy(net, x.split(len(x) // 5), x_test, images.y_test)},
    }
    when = {
        "course": log_steps(c.steps + 1, 30),
        "path": range(c.path + 1) if c.product == 0 else [],
        "late": late,
        "accuracy": late[:: max(1, len(late) // 5)],
    }
    decay = c.product / c.rate
    history = train(
        model, x, y, steps=c.steps, rate=c.rate, weight_decay=decay, seed=seed, probe=probes, probe_steps=when, **SETTINGS
    )
    measured, whole = history.probes, history.diverged_at is None
    return {
        **{name: measured["course"][name] for name in ("step", "effective_rate", "length")},
        "final_rate": geometric_mean(measured["late"]["rate"]) if whole else np.nan,
        "balanced_rate": settled.balanced_rate(c.product) if whole and c.product else np.nan,
        "growth_gap": growth_gap(start, c.rate, **measured["path"]) if whole and c.product == 0 else np.nan,
        "twin_gap": twin,
        "accuracy": float(np.mean(measured["accuracy"]["value"])) if whole else np.nan,
    }


def growth_gap(start: float, rate: float, step: list[int], square: list[float], length: list[float]) -> float:
    """Compare what all weights have gained in squared length with the sum of η²‖g‖² over the steps, relative to it."""
    path = rate**2 * sum(square[:-1])
    return abs(length[-1] ** 2 - start**2 - path) / path


STYLES = ["-", "--", ":"]
COLORS = [INK, GREEN, ORANGE, PINK]  # of the products; blue and gray are for networks with and without the norm


@effective_rate.draw
def _(table):
    figure, axes = subplots(2, 2, height=2.7)
    products, rates = sorted(table["product"].unique()), sorted(table.rate.unique())
    batch = table[table.norm == "batch"]
    for product, color in zip(products, COLORS, strict=False):
        for rate, style in zip(rates, STYLES, strict=False):
            arm = batch[(batch["product"] == product) & (batch.rate == rate)]
            label = f"ηλ = {number(product)}" if style == "-" else None
            for ax, column in zip(axes[0], ("length", "effective_rate"), strict=True):
                median_and_band(ax, arm, "step", column, color=color, linestyle=style, label=label, linewidth=1.3)
    for style, rate in zip(STYLES, rates, strict=False):
        axes[0, 1].plot([], [], style, color=GRAY, linewidth=1.3, label=f"η = {number(rate)}")
    axes[0, 0].set(ylabel="length of all weights", yscale="log")
    axes[0, 1].set(ylabel="rate that acts, η/‖w‖²", yscale="log")
    named = [line for line in axes[0, 1].lines if not line.get_label().startswith("_")]
    figure.legend(handles=named, loc="outside upper center", ncols=4, fontsize=8.5)
    for ax in axes[0]:
        ax.set(xlabel="step")

    decayed = table[table["product"] > 0].drop_duplicates(["norm", "rate", "product", "seed"])
    settled = decayed[decayed.norm == "batch"]
    middle = settled.groupby("product").final_rate.median()
    for rate, mark in zip(rates, "osD", strict=False):
        at = settled[settled.rate == rate].groupby("product")[["final_rate", "balanced_rate"]].median()
        axes[1, 0].plot(at.index, at.balanced_rate, "+", color=INK, markersize=11, label="√(2ηλ)/‖g‖" if mark == "o" else None)
        axes[1, 0].plot(at.index, at.final_rate, mark, color=norm_color("batch"), markersize=4, label=f"η = {number(rate)}")
        for norm in NORMS:
            at = decayed[(decayed.norm == norm) & (decayed.rate == rate)].groupby("product").accuracy.median()
            label = NORMS[norm] if mark == "o" else None
            axes[1, 1].plot(at.index, at, f"{mark}-", color=norm_color(norm), markersize=4, linewidth=1, label=label)
    half = middle.iloc[0] * (middle.index / middle.index[0]) ** 0.5
    axes[1, 0].plot(middle.index, half, "--", color=GRAY, linewidth=1, label="slope 1/2")
    axes[1, 0].set(xscale="log", yscale="log", xlabel="rate × decay, ηλ", ylabel="rate that acts, at the end")
    axes[1, 1].set(xscale="log", xlabel="rate × decay, ηλ", ylabel="test accuracy")
    for ax in axes[1]:
        ax.legend(loc="best", fontsize=7.5)
    for ax in (*axes[0], axes[1, 0]):
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: number(value))
        ax.yaxis.set_minor_locator(NullLocator())
    rate, score, plain = (spread(table, *of).median() for of in (RATES_SPREAD, ("accuracy", "batch"), ("accuracy", "none")))
    return Drawing(
        figure,
        caption="Batch-normalized networks without gain or shift, trained by SGD. Without decay (ηλ = 0) the weights only "
        f"lengthen. With it, runs of one product ηλ end at rates η/‖w‖² within a factor of {number(rate)} of each "
        "other, though λ differs by "
        f"one of {number(max(rates) / min(rates))}. Below: that rate, the slope 1/2, and what the measured gradient demands (+). "
        f"At one product, test accuracy differs by at most {number(100 * score)} points between the rates (symbols), without "
        f"normalization by {number(100 * plain)}.",
        alt="Four panels: length of the weights and effective rate over steps for three rates and products of rate and decay; the "
        "final effective rate against the product on log axes; test accuracy against the product with and without batch norm.",
    )


def spread(table: pd.DataFrame, column: str, norm: str, ratio: bool = False) -> pd.Series:
    """Return for each seed how far the rates part at one product, the largest over products: as a difference or a ratio."""
    arm = table[(table.norm == norm) & (table["product"] > 0)].drop_duplicates(["rate", "product", "seed"])
    wide = arm.pivot_table(index=["seed", "product"], columns="rate", values=column, dropna=False)
    low, high = wide.min(axis=1, skipna=False), wide.max(axis=1, skipna=False)
    return (high / low if ratio else high - low).groupby("seed").max()


RATES_SPREAD = ("final_rate", "batch", True)


def _runs(table):
    return table[table.norm == "batch"].drop_duplicates(["rate", "product", "seed"])


@effective_rate.claim(
    "same-function",
    "Below batch normalization, decay λ on weights a times as long, at a² times the rate, does what decay λa² does on the weights.",
    criterion="networks trained with η, λ, w and with ηa², λ/a², aw, a² = 10, give the same outputs at the end of the twin run, to "
    " a relative difference of 1e-6, for every rate and product",
)
def _(table):
    plain = table[(table.norm == "none") & (table["product"] > 0)].twin_gap.median()
    note = f"without normalization the two differ by {number(plain)}"
    return judge_identity("largest relative difference of the outputs", _runs(table).twin_gap.max(), 1e-6, note)


@effective_rate.claim(
    "no-penalty",
    "In a normalized network decay does not regularize: it acts on the rate alone.",
    criterion="runs that share ηλ while λ differs tenfold differ in test accuracy by at most 0.01, where they differ most",
)
def _(table):
    note = f"without normalization they differ by {number(spread(table, 'accuracy', 'none').median())}"
    return judge_effect(
        "largest difference in accuracy", spread(table, "accuracy", "batch"), claimed=(0, 0.01), null=np.nan, note=note
    )


@effective_rate.claim(
    "length",
    "Without decay the weights only lengthen: each step of SGD adds exactly η²‖g‖² to their squared length.",
    criterion="squared length gained, against the sum of η²‖g‖² over the steps: relative difference at most 1e-6, for every rate",
    by="arora2019",
)
def _(table):
    runs = table[table["product"] == 0]
    note = f"without normalization it is off by {number(runs[runs.norm == 'none'].growth_gap.median())}"
    return judge_identity("largest relative difference", runs[runs.norm == "batch"].growth_gap.max(), 1e-6, note)


@effective_rate.claim(
    "one-rate",
    "With decay, runs of one product ηλ end at one effective rate.",
    criterion="effective rates of runs that share ηλ differ by at most a factor of 1.1, at the product where they differ most",
    by="notes",
)
def _(table):
    settled = spread(table[table["product"] > table["product"][table["product"] > 0].min()], *RATES_SPREAD)
    note = f"without the smallest product, which takes longest to settle: {number(settled.median())}"
    return judge_effect("largest ratio of effective rates", spread(table, *RATES_SPREAD), claimed=(1, 1.1), null=np.nan, note=note)


@effective_rate.claim(
    "slope",
    "The effective rate grows as the square root of ηλ.",
    criterion="log-log slope over all runs with decay between 0.45 and 0.55 (0 would be no effect)",
    by="notes",
)
def _(table):
    runs = _runs(table[table["product"] > 0])
    slopes = [np.polyfit(np.log(run["product"]), np.log(run.final_rate), 1)[0] for _, run in runs.groupby("seed")]
    note = "the square root holds for a gradient that does not depend on the rate"
    return judge_effect("slope", slopes, claimed=(0.45, 0.55), null=0, note=note)


@effective_rate.claim(
    "balance",
    "The effective rate is √(2ηλ)/‖g‖, with the gradient g measured at unit length.",
    criterion="measured over predicted between 0.9 and 1.1 for every rate and product (the one furthest from 1 of each seed)",
    by="notes",
)
def _(table):
    runs = _runs(table[table["product"] > 0])
    ratio = np.log(runs.final_rate / runs.balanced_rate)
    furthest = [float(np.exp(ratio[index])) for index in ratio.abs().groupby(runs.seed).idxmax()]
    return judge_effect("measured / predicted, furthest from 1", furthest, claimed=(0.9, 1.1), null=np.nan)
