"""Ba, Kiros & Hinton (2016), Layer Normalization, table 1: which changes of weights and data a normalized layer does not notice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normlib.lab import Drawing, Study, judge_identity, number
from normlib.layers import make_norm
from normlib.probes import invariances, is_invariant, linear_and_norm
from normlib.studies.common.looks import GRID, INK, PAPER, norm_color, subplots
from normlib.studies.common.statements import normal
from normlib.weights import weight_norm, weight_standardization

CASES, FEATURES, UNITS, POSITIONS = 16, 6, 8, 5
FAINT = 1e-3  # the scale of inputs whose pre-activations have a variance below the usual eps
TINY, USUAL = 1e-12, 1e-5

VECTORS = {
    "batch": "batch norm",
    "weight": "weight norm",
    "layer": "layer norm",
    "rms": "RMS norm",
    "group:groups=2": "group norm",
    "standardized_weight": "weight standardization",
    "dyt": "dynamic tanh",
}
MAPS = {
    "batch": "batch norm",
    "layer": "layer norm",
    "tokens": "layer norm, per position",
    "group:groups=2": "group norm",
    "instance": "instance norm",
    "frn": "filter response norm",
}
ARMS = [*(f"{spec} on vectors" for spec in VECTORS), *(f"{spec} on maps" for spec in MAPS)]

COLUMNS = {
    "weight matrix rescaling": "weight\nmatrix\nre-scaled",
    "weight matrix recentering": "weight\nmatrix\nre-centered",
    "weight vector rescaling": "weight\nvector\nre-scaled",
    "dataset rescaling": "data\nset\nre-scaled",
    "dataset recentering": "data\nset\nre-centered",
    "single case rescaling": "single\ncase\nre-scaled",
}
PRINTED = {  # the paper's table, row by row, in the order of the columns
    "batch": (True, False, True, True, True, False),
    "weight": (True, False, True, False, False, False),
    "layer": (True, True, False, True, False, True),
}
PRINTED_RMS = (True, False, False, True, False, True)  # by the authors of RMS norm

table1 = Study(
    "ba2016.table1",
    item="Table 1",
    title="Which changes of weights and data a normalized layer does not notice",
    kind="exact",
    vary={"arm": ARMS},
    quick={},
    laptop={},
    full=None,
)


def make_layer(spec: str, eps: float) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """Return `weight -> (x -> normalized layer)` for a norm of activations or of weights; gains are 1, shifts 0."""
    if spec in ("weight", "standardized_weight"):
        return lambda weight: lambda x: torch.einsum("of,nf...->no...", _normalized(spec, weight), x)
    if spec == "tokens":
        norm = make_norm(f"layer:eps={eps}", UNITS, channel_axis=-1, dtype=torch.float64)
        return lambda weight: lambda x: norm(torch.einsum("of,nfp->npo", weight, x)).movedim(-1, 1)
    return linear_and_norm(spec, eps)


def _normalized(spec: str, weight: Tensor) -> Tensor:
    return weight_norm(weight, torch.ones_like(weight[:, :1])) if spec == "weight" else weight_standardization(weight, eps=0.0)


@table1.trial
def _(c, seed):
    spec, _, shape = c.arm.rpartition(" on ")
    weight = normal(seed, UNITS, FEATURES) / FEATURES**0.5
    x = normal(seed + 1, CASES, FEATURES) if shape == "vectors" else normal(seed + 1, CASES, FEATURES, POSITIONS)
    found = invariances(make_layer(spec, TINY), weight, x)
    faint = invariances(make_layer(spec, USUAL), weight, FAINT * x)
    return {"change": list(found), "deviation": list(found.values()), "faint": list(faint.values())}


@table1.draw
def _(table):
    figure, axes = subplots(height=5.0)
    table = table.groupby(["arm", "change"], sort=False)[["deviation", "faint"]].max()
    rows = {arm: row + (0.6 if " on maps" in arm else 0) for row, arm in enumerate(ARMS)}
    for arm, y in rows.items():
        spec, _, shape = arm.rpartition(" on ")
        color = norm_color("layer" if spec == "tokens" else spec)
        for x, change in enumerate(COLUMNS):
            found = table.loc[(arm, change)]
            holds = bool(is_invariant(found.deviation))
            axes.plot(x, y, "s", markersize=17, color=color if holds else GRID, markeredgewidth=0)
            if holds and not is_invariant(found.faint):
                axes.text(x, y, "eps", ha="center", va="center", fontsize=7.5, color=PAPER)
            if shape == "vectors" and spec in PRINTED:
                mark = "+" if PRINTED[spec][x] else "–"
                axes.text(x + 0.3, y, mark, ha="left", va="center", fontsize=11, color=INK)
    names = [(VECTORS if " on vectors" in arm else MAPS)[arm.rpartition(" on ")[0]] for arm in ARMS]
    axes.set_yticks(list(rows.values()), names)
    axes.set_xticks(range(len(COLUMNS)), COLUMNS.values(), fontsize=8)
    axes.xaxis.tick_top()
    axes.set(xlim=(-0.5, len(COLUMNS) - 0.4), ylim=(max(rows.values()) + 0.6, -0.6))
    axes.tick_params(length=0)
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    for text, y in (("vectors", 3), ("maps", len(VECTORS) + 3.1)):
        axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), fontsize=9.5, rotation=270, va="center", color=INK)
    agree = sum(is_invariant(table.loc[(f"{spec} on vectors", change)].deviation) == row[x]
                for spec, row in PRINTED.items() for x, change in enumerate(COLUMNS))  # fmt: skip
    held = table[table.deviation.map(is_invariant)]
    broken = int((~held.faint.map(is_invariant)).sum())
    return Drawing(
        figure,
        caption="What a normalized layer does not notice, each row at a gain of 1 and no shift. Colored: its outputs stay, up to "
        f"rounding. Beside the first three rows stand the entries of the paper, + for invariant; {agree} of 18 agree. "
        f"The word eps: lost with eps = 10⁻⁵ and inputs of scale {number(FAINT)}, as {broken} of {len(held)} invariances are.",
        alt="A grid of thirteen normalized layers, seven on vectors and six on maps, by six changes of weights or data. A square "
        "is colored where the output does not change; marks beside three rows give the paper's table.",
    )


def _row(table, arm):
    """Return the largest deviation of each change over seeds, in the order of the columns."""
    return table[table.arm == arm].groupby("change")[["deviation", "faint"]].max().loc[list(COLUMNS)]


def _off(deviations, printed):
    """Count the entries that disagree; a deviation that is neither rounding nor above 1 % disagrees with both."""
    return sum(not (is_invariant(d) if said else d > 0.01) for d, said in zip(deviations, printed, strict=True))


@table1.claim(
    "table",
    "Batch norm is invariant to re-scaling of the weight matrix, a weight vector and the data, and to re-centering of the data; "
    "weight norm to re-scaling of the matrix and of a vector; layer norm to re-scaling and re-centering of the matrix, and to "
    "re-scaling of the data and of a single case.",
    criterion="18 entries, on vectors, eps → 0: a change of the outputs below 1e-6 where the table says invariant, above 1 % of "
    "the largest output where it says not, for every seed",
)
def _(table):
    off = sum(_off(_row(table, f"{spec} on vectors").deviation, printed) for spec, printed in PRINTED.items())
    return judge_identity("entries that are off", float(off), 0.0, "of 18")


@table1.claim(
    "all-to-data-rescaling",
    "All three, batch norm, weight norm and layer norm, are invariant to re-scaling of the data.",
    criterion="the outputs change by less than 1e-6 of the largest when the data are tripled, for each of the three",
)
def _(table):
    found = {spec: _row(table, f"{spec} on vectors").deviation["dataset rescaling"] for spec in PRINTED}
    note = f"weight norm: {number(found['weight'])}, its output grows with the input, as the table says"
    return judge_identity("largest change of an output, relative", max(found.values()), 1e-6, note)


@table1.claim(
    "rms",
    "RMS norm keeps the invariances of layer norm to re-scaling, and gives up the one to re-centering of the weight matrix.",
    criterion="six entries on vectors, judged as those of the table",
    by="zhang2019rms",
)
def _(table):
    off = _off(_row(table, "rms on vectors").deviation, PRINTED_RMS)
    return judge_identity("entries that are off", float(off), 0.0, "of 6")


@table1.claim(
    "maps",
    "On maps, layer norm over channels and positions notices a re-centering of the weight matrix; per position it does not.",
    criterion="1x1 convolution, eps → 0: the first changes by more than 1 % of the largest output, the second by less than 1e-6",
    by="notes",
)
def _(table):
    whole, tokens = (_row(table, f"{spec} on maps").deviation["weight matrix recentering"] for spec in ("layer", "tokens"))
    note = f"over channels and positions: {number(whole)}, per position: {number(tokens)}. What is added differs between positions"
    return judge_identity("entries that are off", float(not whole > 0.01) + float(not is_invariant(tokens)), 0.0, note)


@table1.claim(
    "eps",
    "With eps = 1e-5 and faint inputs, batch and layer norm lose every invariance to re-scaling and keep those to re-centering.",
    criterion=f"inputs of scale {FAINT}: each re-scaling that the table says they ignore moves an output by more than 10 % of the "
    "largest, each such re-centering by less than 1e-6",
    by="notes",
)
def _(table):
    off, least = 0, 1.0
    for spec in ("batch", "layer"):
        for (change, found), said in zip(_row(table, f"{spec} on vectors").faint.items(), PRINTED[spec], strict=True):
            if said and "rescaling" in change:
                off, least = off + (not found > 0.1), min(least, found)
            elif said:
                off += not is_invariant(found)
    return judge_identity("entries that are off", float(off), 0.0, f"the least change by a re-scaling is {number(100 * least)} %")
