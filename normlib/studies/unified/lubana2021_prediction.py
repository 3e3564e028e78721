"""From three properties of an untrained network to the training that is observed: correlations, and a prediction held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from normlib.lab import Drawing, Judgement, Study, bootstrap_interval, judge_effect, number
from normlib.studies.common.arms import images_for, population_accuracy
from normlib.studies.common.looks import GRID, norm_color, subplots
from normlib.studies.common.tuning import at_ends, tuned
from normlib.studies.unified.labels import Point, write_names
from normlib.studies.unified.properties import from_the_others, observed, one_batch, properties, rank_correlation
from normlib.studies.unified.ten import FULL, LAPTOP, QUICK, TEN, cnn, normalizer, resnet

PROPERTIES = {"variance": "growth of variance", "cosine": "cosine of images", "gradient": "growth of gradients"}
OUTCOMES = {"own": "accuracy,\nown rate", "common": "accuracy,\none rate", "largest": "largest rate\nthat trains"}
HELD_OUT = "all three,\nheld out"
TRAINS = 0.3  # accuracy on held-out images, of ten classes, from which a run counts as one that trains
NAMES = {
    "batch": "batch", "layer": "layer", "instance": "instance", "group": "group, 8 groups", "frn": "FRN", "variance": "variance",
    "evonorm_b0": "EvoNorm-B0", "evonorm_s0": "EvoNorm-S0", "weight": "weight", "scaled_weight": "scaled weight",
    "group:size=2": "group, size 2", "group:size=8": "group, size 8",
}  # fmt: skip

prediction = Study(
    "lubana2021.prediction",
    item="closing table of the chapter",
    title="What three properties of an untrained network say about its training",
    kind="train",
    vary={"network": ["plain", "residual"], "norm": list(NAMES), "rate": [0.01, 0.04, 0.16, 0.64]},
    quick={
        **QUICK, "blocks": 1, "steps": 4, "batch": 32, "measured": 32, "common": 0.04, "rate": [0.04],
        "norm": ["batch", "layer", "instance", "evonorm_s0", "weight"],
    },
    laptop={**LAPTOP, "train": 2_048, "width": 8, "blocks": 2, "steps": 36, "batch": 32, "measured": 64, "common": 0.04},
    full={**FULL, "steps": 10_000, "batch": 256, "measured": 256, "common": 0.1, "rate": [0.01, 0.03, 0.1, 0.3, 1.0]},
)  # fmt: skip


@prediction.trial
def _(c, seed):
    images, _ = images_for(c, seed)
    net = (cnn if c.network == "plain" else resnet)(c, images, c.norm, seed)
    start = properties(net, *one_batch(images, c.measured, seed))
    run = observed(net, images, steps=c.steps, rate=c.rate, seed=seed, batch=c.batch)
    batches = images.x_train[: 8 * c.batch].split(c.batch)
    held_out = population_accuracy(net, batches, images.x_test, images.y_test) if run["finite"] else float("nan")
    return {**start, **run, "held_out": held_out}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def arms(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each seed, network and normalizer: the properties, and the outcomes of `OUTCOMES`."""
    keys = ["seed", "network", "norm"]
    rows = table.groupby(keys, sort=False)[list(PROPERTIES)].first()
    own, _ = tuned(table, ["network", "norm"], "held_out")
    rows["own"] = own.groupby(keys).speed.first()
    rows["common"] = table[np.isclose(table.rate, table.common)].groupby(keys).speed.first()
    trained = table[table.held_out.astype(float) >= TRAINS]
    rows["largest"] = trained.groupby(keys).rate.max().reindex(rows.index).fillna(0.0)
    return rows.reset_index()


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rank correlations: a row a seed; columns of network, property (or `HELD_OUT`), outcome."""
    found: dict[int, dict[tuple[str, str, str], float]] = {}
    for (seed, network), runs in arms(table).groupby(["seed", "network"], sort=False):
        cells = found.setdefault(int(seed), {})
        for outcome in OUTCOMES:
            for each in PROPERTIES:
                cells[network, each, outcome] = rank_correlation(runs[each], runs[outcome])
            cells[network, HELD_OUT, outcome] = rank_correlation(places(runs, outcome), runs[outcome])
    return pd.DataFrame.from_dict(found, orient="index")


def places(runs: pd.DataFrame, outcome: str) -> pd.Series:
    """Return where each normalizer is predicted to stand, by the others; from 0, the lowest outcome, to 1."""
    rows = runs.reset_index(drop=True)
    return from_the_others(rows[list(PROPERTIES)], rows[outcome]).set_axis(runs.index)


def _heat(axes: Axes, cells: pd.DataFrame) -> None:
    rows = [*PROPERTIES, HELD_OUT]
    colors = LinearSegmentedColormap.from_list("rank", ["#e9a15f", "#f4f1ec", "#7fb2dd"])
    middle = [[cells[row, outcome].median() for outcome in OUTCOMES] for row in rows]
    axes.pcolormesh(np.array(middle, dtype=float), cmap=colors, vmin=-1, vmax=1, edgecolors=GRID, linewidth=1)
    for y, row in enumerate(rows):
        for x, outcome in enumerate(OUTCOMES):
            values = cells[row, outcome]
            said = _signed(values.median()) if np.isfinite(values).all() else "–"
            axes.text(x + 0.5, y + 0.38, said, ha="center", va="center", fontsize=10, color="#22262a")
            if len(values) > 1 and np.isfinite(values).all():
                low, high = bootstrap_interval(values)
                span = f"{_short(low)} to {_short(high)}"
                axes.text(x + 0.5, y + 0.72, span, ha="center", va="center", fontsize=8, color="#22262a")
    axes.set(ylim=(len(rows), 0), xticks=np.arange(len(OUTCOMES)) + 0.5, yticks=np.arange(len(rows)) + 0.5)
    axes.set_xticklabels(list(OUTCOMES.values()), fontsize=8)
    axes.set_yticklabels([PROPERTIES.get(row, row) for row in rows], fontsize=8.5)
    axes.tick_params(length=0)
    axes.grid(False)


def _short(value: float) -> str:
    return f"{value:.2f}".replace("-", "−").replace("0.", ".", 1)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _scatter(axes: Axes, runs: pd.DataFrame) -> list[Point]:
    seen = runs.groupby("seed").own.transform(lambda own: (own.rank() - 1) / (len(own) - 1))
    predicted = pd.concat([places(one, "own") for _, one in runs.groupby("seed")])
    points = runs.assign(observed=seen, predicted=predicted).groupby("norm", sort=False)[["observed", "predicted"]].median()
    axes.axline((0, 0), slope=1, color=GRID, zorder=0)
    points = points.clip(-0.1, 1.1)  # a fit may overshoot
    named = [Point(at.predicted, at.observed, NAMES[key], norm_color(normalizer(key).spec)) for key, at in points.iterrows()]
    for point in named:
        axes.plot(point.x, point.y, "o", color=point.color)
    axes.set(xlim=(-0.25, 1.35), ylim=(-0.08, 1.12), xlabel="place predicted by the others")
    return named


@prediction.draw
def _(table):
    figure, axes = subplots(2, 2, height=3.0, sharey="row")
    found, rows = correlations(table), arms(table)
    named: dict[Axes, list[Point]] = {}
    for heat, scatter, network in zip(*axes, ["plain", "residual"], strict=True):
        _heat(heat, found[network])
        heat.set_title(network)
        named[scatter] = _scatter(scatter, rows[rows.network == network])
    axes[1, 0].set_ylabel("place by accuracy, own rate")
    for scatter, points in named.items():
        write_names(scatter, points, 8)
    c = table.iloc[0]
    _, rates = tuned(table, ["network", "norm"], "held_out")
    ends, never = len(at_ends(table, ["network", "norm"], rates)), rows.groupby(["network", "norm"], sort=False).largest.median()
    dead = [f"{NAMES[norm]} ({network})" for (network, norm), rate in never.items() if rate == 0]
    return Drawing(
        figure,
        caption=f"**Top** Rank correlation, over {rows.norm.nunique()} normalizers, of a property before training with what "
        "training then does: median over seeds and interval. Residual networks of version 1. "
        "The last row predicts each normalizer by a fit to the others. "
        f"The accuracy is the mean over the {c.steps:.0f} steps; the one rate is {number(c.common)}; the own rate, of "
        f"{', '.join(number(rate) for rate in sorted(table.rate.unique()))}, is chosen on held-out images, and is at an end of "
        f"these for {ends} of {len(rates)} arms. A run trains if it reaches {number(TRAINS)} on held-out images; at none of these "
        f"rates, in most seeds: "
        f"{', '.join(dead) or 'none'}. **Bottom** Predicted and observed places for the own rate, 1 the best, medians over seeds. "
        f"{c.batch:.0f} images per update and per statistic; properties of {c.measured:.0f} images.",
        alt="Two tables of rank correlations, plain and residual: growth of variance, cosine, growth of gradients and a held-out "
        "prediction against accuracy and largest rate. Below, observed against predicted places of each normalizer.",
    )


def _cells(table: pd.DataFrame, key: str, outcome: str) -> pd.DataFrame:
    """Return one property's correlation with one outcome, a column a network."""
    found = correlations(table)
    return pd.DataFrame({network: found[network, key, outcome] for network in ("plain", "residual")})


def _judge(effect: str, samples: Any, claimed: tuple[float, float], each: pd.DataFrame | None = None) -> Judgement:
    said = "" if each is None else ", ".join(f"{_signed(each[name].median())} {name}" for name in each)
    return judge_effect(effect, samples, claimed=claimed, null=0, note=said)


@prediction.claim(
    "cosine",
    "The more alike an untrained network makes its images, the slower the training that follows.",
    criterion="in both networks the rank correlation of the cosine with the mean accuracy over training, at each normalizer's own "
    "rate, is −0.3 or less: the larger counts",
)
def _(table) -> Judgement:
    each = _cells(table, "cosine", "own")
    return _judge("rank correlation, larger of two networks", each.max(axis=1, skipna=False), (-1, -0.3), each)


@prediction.claim(
    "gradient",
    "In a network without shortcuts, gradients that grow toward the input go with a smaller largest rate.",
    criterion="in the plain network the rank correlation of the growth of gradients with the largest rate that trains is −0.3 or "
    "less",
)
def _(table) -> Judgement:
    return _judge("rank correlation in the plain network", _cells(table, "gradient", "largest")["plain"], (-1, -0.3))


@prediction.claim(
    "variance",
    "In a network with shortcuts, variance that grows from block to block goes with a smaller largest rate.",
    criterion="in the residual network the rank correlation of the growth of variance with the largest rate that trains is −0.3 "
    "or less",
)
def _(table) -> Judgement:
    return _judge("rank correlation in the residual network", _cells(table, "variance", "largest")["residual"], (-1, -0.3))


@prediction.claim(
    "best",
    "Of the three properties the cosine says most about speed.",
    criterion="the size of the rank correlation with the mean accuracy at each one's own rate, averaged over both networks, is "
    "larger for the cosine than for either other property: the smaller lead is above 0",
    by="notes",
)
def _(table) -> Judgement:
    sizes = pd.DataFrame({key: _cells(table, key, "own").abs().mean(axis=1, skipna=False) for key in PROPERTIES})
    lead = sizes.cosine - sizes[["variance", "gradient"]].max(axis=1, skipna=False)
    said = ", ".join(f"{number(sizes[key].median())} {name}" for key, name in PROPERTIES.items())
    return judge_effect("lead in size of the rank correlation", lead, claimed=(0, 2), null=0, note=said)


@prediction.claim(
    "held-out",
    "The three properties together place a normalizer that the fit has not seen.",
    criterion="the rank correlation of the places predicted by the other normalizers with the mean accuracy at the own rate, "
    "averaged over both networks, is 0.3 or more",
    by="notes",
)
def _(table) -> Judgement:
    each = _cells(table, HELD_OUT, "own")
    return _judge("rank correlation held out, mean of two networks", each.mean(axis=1, skipna=False), (0.3, 1), each)


@prediction.claim(
    "evonorm-s0",
    "EvoNorm-S0 keeps images apart and its gradients do not grow: a trade-off between the two does not foresee it.",
    criterion="in the plain network it is in the lower half of the ten normalizers both by cosine and by growth of gradients: the "
    "larger of its two ranks is at most 5 (at quick, of fewer: in the lower half)",
    by="notes",
)
def _(table) -> Judgement:
    rows = arms(table)
    rows = rows[(rows.network == "plain") & rows.norm.isin(list(TEN))]
    ranks = rows.groupby("seed")[["cosine", "gradient"]].rank()[rows.norm == "evonorm_s0"].max(axis=1)
    half = rows.norm.nunique() / 2
    return judge_effect("larger of two ranks of EvoNorm-S0", ranks, claimed=(1, half), null=half + 0.5)
