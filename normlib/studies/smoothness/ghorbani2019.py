"""Ghorbani et al. (2019): the Hessian's spectrum in training, with and without batch norm; and the contrary trace of PyHessian."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy

from normlib.data import Dataset
from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.probes import SpectralDensity, hessian_operator, lanczos, model_loss, spectral_density
from normlib.probes.parameters import flat
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import SKY, median_and_band, norm_color, note, subplots
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, fit, vgg
from normlib.surgery import reestimate_statistics

TOP = 10  # leading eigenvalues, as many as classes
POPULATION = "batch, population"  # the same weights, with constants for statistics
LOOKS = {"none": norm_color("none"), "batch": norm_color("batch"), POPULATION: SKY}
SHARED: dict[str, Any] = {"init": "he", "rate": 0.1, "images": 2 * BATCH}

spectrum = Study(
    "ghorbani2019.spectrum",
    item="Hessian spectra with and without BN; the trace of Yao et al.",
    title="Does batch norm take the outliers out of the Hessian?",
    kind="train",
    vary={"depth": [4, 8], "norm": ["none", "batch"]},
    quick={**QUICK, **SHARED, "depth": [4, 6], "width": 4, "images": BATCH, "steps": 10,
           "look": [0, 10], "lanczos": 12, "traces": 1},
    laptop={**LAPTOP, **SHARED, "depth": [4, 8], "width": 8, "steps": 300, "look": [0, 100, 300], "lanczos": 40, "traces": 4},
    full={
        **{name: setting for name, setting in FULL.items() if name != "vgg"}, **SHARED, "depth": [4, 20], "width": 64,
        "images": 16 * BATCH, "look": [0, 500, 2_000, 15_000], "lanczos": 90, "traces": 20,
    },
)  # fmt: skip


def measure(loss, params: dict[str, Tensor], steps: int, traces: int) -> dict[str, Any]:
    """Measure the Hessian of a loss by its products with vectors.

    Lanczos iteration from a random vector gives the nodes of the density, whose largest ones are the leading eigenvalues. From
    the gradient it gives the gradient's own: a node's weight there is the share of the squared length that its eigenvector has.

    Args:
        loss: function of the parameters.
        params: where, by name.
        steps: products for the first iteration; half of them for the second.
        traces: random vectors for the trace.

    Returns:
        `node` and `weight`, from the largest node down, with their `rank` from 1; `share` of the gradient in the `TOP` leading
        eigenvectors; `trace`.
    """
    product, gradient = hessian_operator(loss, params), torch.cat([part.reshape(-1) for part in grad(loss)(params).values()])
    density = spectral_density(product, params, probes=1, steps=steps)
    kept = density.weights[0] > 0
    nodes, weights = density.nodes[0][kept][::-1], density.weights[0][kept][::-1]
    diagonal, beside = lanczos(product, gradient / gradient.norm(), steps // 2)
    found, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    leading = found >= nodes[min(TOP, len(nodes)) - 1] * (1 - 1e-3)
    return {
        "rank": list(range(1, len(nodes) + 1)),
        "node": nodes.tolist(),
        "weight": weights.tolist(),
        "share": float((vectors[0][leading] ** 2).sum()),
        "trace": len(gradient) * spectral_density(product, params, probes=traces, steps=1, seed=1).moment(1)[0],
    }


def look(c, images: Dataset, step, model) -> dict[str, Any]:
    """Measure on fixed training images, in batches of `BATCH` for the statistics; a batch norm with population statistics, too."""
    x, y = images.x_train[: c.images], images.y_train[: c.images]
    settings = {"batch" if c.norm == "batch" else "none": (model, True)}
    if c.norm == "batch" and step > 0:
        settings[POPULATION] = (reestimate_statistics(copy.deepcopy(model), images.x_train.split(BATCH)[:-1]), False)
    columns: dict[str, list] = {}
    for statistics, (network, training) in settings.items():
        loss, params = model_loss(network, cross_entropy, x, y, training=training)
        found = measure(loss, params, c.lanczos, c.traces)
        found |= {"statistics": statistics, "loss": float(loss(params)), "length": float(flat(params).norm())}
        for name, value in found.items():
            columns.setdefault(name, []).extend(value if isinstance(value, list) else [value] * len(found["rank"]))
    return columns


@spectrum.trial
def _(c, seed):
    images, _ = images_for(c, seed)
    net = vgg(c, images, f"batch:ghost={BATCH}" if c.norm == "batch" else c.norm, seed)
    probe = partial(look, c, images)
    run = fit(net, images, steps=c.steps, rate=c.rate, seed=seed, probe=probe, probe_steps=c.look)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **run.probes)
    return run.probes


def looks_of(table):
    """Return one row a look: the columns of the record that it has once, and `ratio`, the first over the tenth eigenvalue."""
    keys = ["depth", "statistics", "seed", "step"]
    rows = table[table["rank"] == 1].set_index(keys)
    tenth = table[table["rank"] == TOP].set_index(keys).node.reindex(rows.index)
    return rows.assign(ratio=np.where(tenth > 0, rows.node / tenth, np.inf)).reset_index()


def compared(table, column: str, above: str, below: str, deep: bool = True, last: bool = False):
    """Return, for each seed, a column of one network over that of another: median over the looks after the start, or the last.

    Args:
        table: the records.
        column: of `looks_of`.
        above: statistics of the numerator, a key of `LOOKS`.
        below: of the denominator.
        deep: the deeper of the two networks, or the shallow one.
        last: only the last look.
    """
    rows = looks_of(table)
    rows = rows[(rows.depth == (rows.depth.max() if deep else rows.depth.min())) & (rows.step > 0)]
    rows = rows[rows.step == rows.step.max()] if last else rows
    values = rows.pivot_table(index=["seed", "step"], columns="statistics", values=column).reindex(columns=list(LOOKS))
    return (values[above] / values[below]).groupby("seed").median()


@spectrum.draw
def _(table):
    rows = looks_of(table)
    shallow, deep = sorted(table.depth.unique())
    middle = sorted(step for step in table.step.unique() if step > 0)[0]
    figure, (densities, courses) = subplots(2, 3, height=2.5)
    for ax, (statistics, color) in zip(densities, LOOKS.items(), strict=True):
        runs = table[(table.depth == deep) & (table.step == middle) & (table.statistics == statistics)]
        one = runs[runs.seed == runs.seed.min()]
        if len(one):
            density = SpectralDensity(one.node.to_numpy()[None], one.weight.to_numpy()[None])
            wide = float(np.ptp(one.node))
            grid = np.linspace(one.node.min() - 0.05 * wide, one.node.max() + 0.05 * wide, 300)
            ax.fill_between(grid, 1e-9, density.density(grid) * wide, color=color, alpha=0.6, linewidth=0)
            top = one[one["rank"] <= TOP]
            ax.plot(top.node, np.full(len(top), 3e-6), "|", color=color, ms=9)
        ax.set(yscale="log", ylim=(1e-6, 1e2), xlabel="eigenvalue")
        ax.set_title({"none": "no norm", "batch": "batch norm", POPULATION: "population statistics"}[statistics], fontsize=9.5)
    densities[0].set_ylabel("density × range")
    names = {"ratio": "first / tenth eigenvalue", "share": "gradient in the leading ten", "trace": "trace"}
    for ax, (column, name) in zip(courses, names.items(), strict=True):
        for statistics, color in LOOKS.items():
            for depth, style in ((deep, "-"), (shallow, ":")):
                arm = rows[(rows.depth == depth) & (rows.statistics == statistics)]
                median_and_band(ax, arm, "step", column, color=color, linestyle=style, marker="o")
        ax.set(xlabel="step of training", yscale="log" if column == "ratio" else "linear")
        ax.set_title(name, fontsize=9.5)
    courses[1].set_ylim(0, 1)
    courses[2].set_yscale("symlog", linthresh=100)
    courses[0].set_ylabel(f"solid: depth {deep}\ndotted: depth {shallow}")
    note(densities[0], f"ticks: the\nleading {TOP}", 0.6, 0.8, fontsize=8.5)
    ratio, share, constant = (
        number(compared(table, column, a, b).median())
        for column, a, b in (("ratio", "none", "batch"), ("share", "none", "batch"), ("ratio", POPULATION, "batch"))
    )
    traces = [number(compared(table, "trace", "batch", "none", deep=is_deep).median()) for is_deep in (False, True)]
    return Drawing(
        figure,
        caption=f"**Top** Density of the Hessian's eigenvalues at step {middle}, depth {deep}, one seed; each panel has its "
        "own range. **Bottom** Gray no norm, blue batch norm, light blue the same weights with population statistics "
        f"as constants. Medians over looks after the start: at depth {deep} the first over the tenth eigenvalue is "
        f"{ratio} times as large without the norm as with it, the share of the gradient in the leading ten {share} "
        f"times; population statistics have {constant} times the ratio of batch statistics. The trace with the norm "
        f"is {traces[0]} times that without at depth {shallow}, {traces[1]} times at depth {deep}. He's "
        f"initialization, rate {number(table.rate.iloc[0])} for all. {table.images.iloc[0]} training images; SGD "
        f"batch and statistic batch {BATCH}.",
        alt="Top: eigenvalue densities of the Hessian without norm, with batch norm, and with population statistics. Bottom: first "
        "over tenth eigenvalue, share of the gradient in the leading ten, and trace, by step, two depths.",
    )


AFTER = "median over the looks after the start"


@spectrum.claim(
    "outliers",
    "Without batch norm the largest eigenvalues of the Hessian stand out from the rest; with it they hardly do.",
    criterion=f"first over tenth eigenvalue, without the norm over with it (batch statistics), deep network, {AFTER}, at least 2",
)
def _(table):
    ratio = compared(table, "ratio", "none", "batch")
    return judge_effect("first / tenth eigenvalue, none / batch", ratio, claimed=(2, np.inf), null=1)


@spectrum.claim(
    "gradient",
    "Without batch norm the gradient gathers in the eigenvectors of the outliers; with it, it hardly does.",
    criterion=f"share of the gradient's squared length in the {TOP} leading eigenvectors, without the norm over with it (batch "
    f"statistics), deep network, {AFTER}, at least 2",
)
def _(table):
    shares = looks_of(table).query("step > 0 and depth == depth.max()").groupby("statistics").share.median()
    said = ", ".join(f"{number(shares.get(norm, np.nan))} {norm}" for norm in ("none", "batch"))
    return judge_effect(
        "share of the gradient, none / batch", compared(table, "share", "none", "batch"), claimed=(2, np.inf), null=1, note=said
    )


@spectrum.claim(
    "population",
    "With the same weights and population statistics for constants, the outliers of batch norm come back.",
    criterion=f"first over tenth eigenvalue, population over batch statistics, deep network, {AFTER}, at least 2",
    by="notes",
)
def _(table):
    ratio = compared(table, "ratio", POPULATION, "batch")
    return judge_effect("first / tenth eigenvalue, population / batch statistics", ratio, claimed=(2, np.inf), null=1)


@spectrum.claim(
    "sharp",
    "With batch norm the loss ends in less sharp minima.",
    criterion="largest eigenvalue at the last look, without the norm over with it (batch statistics), deep network, above 1",
    by="seed001",
)
def _(table):
    said = f"over that with population statistics {number(compared(table, 'node', 'none', POPULATION, last=True).median())}"
    values = compared(table, "node", "none", "batch", last=True)
    return judge_effect("largest eigenvalue, none / batch", values, claimed=(1, np.inf), null=1, note=said)


@spectrum.claim(
    "shallow",
    "Batch norm need not make the landscape smoother: in a shallow network the trace of the Hessian is larger with it.",
    criterion=f"trace of the Hessian, with the norm (batch statistics) over without, shallow network, {AFTER}, above 1",
    by="notes",
)
def _(table):
    ratio = compared(table, "trace", "batch", "none", deep=False)
    return judge_effect("trace, batch / none, shallow", ratio, claimed=(1, np.inf), null=1)


@spectrum.claim(
    "depth",
    "What batch norm does to the trace depends on depth: a shallow network speaks less for it than a deep one.",
    criterion=f"the ratio of traces, with over without the norm, {AFTER}, is larger in the shallow network than in the deep one: "
    "their quotient is above 1",
    by="yao2020",
)
def _(table):
    ratio = compared(table, "trace", "batch", "none", deep=False) / compared(table, "trace", "batch", "none")
    return judge_effect("trace, batch / none, shallow over deep", ratio, claimed=(1, np.inf), null=1)
