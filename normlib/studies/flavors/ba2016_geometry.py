"""Ba, Kiros & Hinton (2016), Layer Normalization, section 5.2: how curvature, gradient and growth follow the length of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from normlib.lab import Drawing, Judgement, Study, judge_effect, judge_identity, number
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import INK, norm_color, subplots
from normlib.studies.common.statements import gap, normal
from normlib.studies.flavors.fisher import fisher, logits, printed_fisher

NORMS = {"batch": "batch norm", "weight": "weight norm", "layer": "layer norm"}
STYLES = {"batch": "o-", "weight": "s--", "layer": "D-"}
SCALES = [2.0**k for k in range(-3, 4)]
UNITS, RATE, STEPS = 10, 0.3, 60

geometry = Study(
    "ba2016.geometry",
    item="§5.2, Eqs 12-14",
    title="Longer weights turn more slowly: per vector under batch and weight norm, per matrix only under layer norm",
    kind="exact",
    vary={"norm": list(NORMS)},
    quick={"data": "digits", "pool": 2, "train": 64, "cases": 12},
    laptop={"data": "fashion-mnist", "pool": 4, "train": 256, "cases": 64},
    full=None,
)


def scaled_first(weight: Tensor, a: float) -> Tensor:
    """Make the first unit's vector `a` times as long."""
    return torch.cat([a * weight[:1], weight[1:]])


@geometry.trial
def _(c, seed):
    images = load(c, seed).pooled(c.pool).standardized().flat()
    x, labels = images.x_train.double().cpu(), images.y_train.cpu()
    x = x[:, x.std(0) > 0.1]
    few, weight = x[: c.cases], normal(seed, UNITS, x.shape[1]) / x.shape[1] ** 0.5

    def slope(w):
        return grad(lambda w: F.cross_entropy(logits(c.norm, w, x), labels))(w)

    found: dict[str, Any] = {"scale": SCALES}
    for what, change in (("vector", scaled_first), ("matrix", lambda w, a: a * w)):
        blocks = [fisher(c.norm, change(weight, a), few) for a in SCALES]
        found[f"{what}_own"] = [float(block[0, 0].norm()) for block in blocks]
        found[f"{what}_mixed"] = [float(block[0, 1].norm()) for block in blocks]
        own = blocks[SCALES.index(1.0)][0, 0]
        found[f"{what}_off"] = max(gap(a**2 * block[0, 0], own) for a, block in zip(SCALES, blocks, strict=True))
        found[f"{what}_turn"] = [turn(change(weight, a), slope(change(weight, a)), what) for a in SCALES]
    gradient = slope(weight)
    along = (gradient * weight).sum(1)
    return {
        **found,
        "from_printed": gap(printed_fisher(c.norm, weight, few), fisher(c.norm, weight, few)),
        "cosine_vector": float((along.abs() / gradient.norm(dim=1) / weight.norm(dim=1)).max()),
        "cosine_matrix": float(along.sum().abs() / gradient.norm() / weight.norm()),
        "sum_of_rows": float(gradient.sum(0).norm() / gradient.norm(dim=1).sum()),
        **descend(slope, weight),
    }


def turn(weight: Tensor, gradient: Tensor, what: str) -> float:
    """Return by what angle a small step of gradient descent turns the first vector, or the matrix as one long vector."""
    w, g = (weight[0], gradient[0]) if what == "vector" else (weight.flatten(), gradient.flatten())
    across = g - (g @ w) / (w @ w) * w
    return float(1e-3 * across.norm() / w.norm())


def descend(slope, weight: Tensor) -> dict[str, float]:
    """Run plain gradient descent; return how the lengths of the matrix and of its rows move, relative to their start."""
    lengths, gathered = [weight.norm(dim=1)], 0.0
    for _ in range(STEPS):
        gradient = slope(weight)
        gathered += float((RATE * gradient).square().sum())
        weight = weight - RATE * gradient
        lengths.append(weight.norm(dim=1))
    rows = torch.stack(lengths)
    whole = rows.square().sum(1).sqrt()
    gain = float(whole[-1] ** 2 - whole[0] ** 2)
    return {
        "growth_matrix": float(whole[-1] / whole[0]),
        "least_step_matrix": float((whole[1:] / whole[:-1]).min()) - 1,
        "growth_rows_least": float((rows[-1] / rows[0]).min()),
        "growth_rows_most": float((rows[-1] / rows[0]).max()),
        "least_step_rows": float((rows[1:] / rows[:-1]).min()) - 1,
        "from_pythagoras": abs(gain - gathered) / gathered,
        "rate_left": float((whole[0] / whole[-1]) ** 2),
    }


@geometry.draw
def _(table):
    figure, axes = subplots(2, 2, height=2.5)
    middle = table.groupby(["norm", "scale"]).median(numeric_only=True)
    single = table.drop_duplicates(["norm", "seed"])
    for ax, what in zip(axes[0], ("vector", "matrix"), strict=True):
        for norm, label in NORMS.items():
            curve = middle.loc[norm][f"{what}_own"]
            ax.loglog(
                curve.index, curve / curve[1.0], STYLES[norm], color=norm_color(norm), markersize=4, linewidth=1.2, label=label
            )
        ax.loglog(SCALES, [a**-2 for a in SCALES], ":", color=INK, linewidth=1, label="slope −2")
        ax.set_xticks([1 / 8, 1 / 2, 2, 8], ["1/8", "1/2", "2", "8"])
        ax.minorticks_off()
        ax.set(xlabel=f"length of {'one weight vector' if what == 'vector' else 'the weight matrix'}, relative")
    axes[0, 0].set_ylabel("Fisher block of that vector")
    axes[0, 0].legend(loc="lower left", fontsize=7.5)
    for at, norm in enumerate(NORMS):
        arm = single[single.norm == norm]
        for column, mark, shift in (("cosine_vector", "o", -0.1), ("cosine_matrix", "s", 0.1)):
            value = max(float(arm[column].median()), 1e-18)
            face = norm_color(norm) if mark == "o" else "none"
            axes[1, 0].plot(at + shift, value, mark, color=norm_color(norm), markersize=7, markerfacecolor=face)
        low, high = arm.growth_rows_least.median(), arm.growth_rows_most.median()
        axes[1, 1].plot([at, at], [low, high], color=norm_color(norm), linewidth=5, solid_capstyle="butt", alpha=0.5)
        axes[1, 1].plot(at, arm.growth_matrix.median(), "s", color=norm_color(norm), markerfacecolor="none", markersize=7)
    axes[1, 0].plot([], [], "o", color=INK, label="one unit, the worst")
    axes[1, 0].plot([], [], "s", color=INK, markerfacecolor="none", label="the whole matrix")
    axes[1, 0].legend(loc="upper left", fontsize=7.5)
    axes[1, 0].set(yscale="log", ylim=(1e-18, 1e4), ylabel="|cosine| of gradient\nand weight")
    axes[1, 1].axhline(1, color=INK, linewidth=0.8)
    axes[1, 1].plot([], [], color=INK, linewidth=5, alpha=0.5, label="single units, least to most")
    axes[1, 1].legend(loc="best", fontsize=7.5)
    axes[1, 1].set(ylabel=f"length after {STEPS} steps,\nrelative")
    for ax in axes[1]:
        ax.set_xticks(range(len(NORMS)), list(NORMS))
        ax.set_xlim(-0.5, len(NORMS) - 0.5)
        ax.grid(False, axis="x")
    doubled = middle.vector_own.xs(2.0, level="scale") / middle.vector_own.xs(1.0, level="scale")
    layer = single[single.norm == "layer"]
    return Drawing(
        figure,
        caption="One softmax layer on images. Above: the Fisher block of a weight vector falls as the inverse square of that "
        "vector's length under batch and weight norm (left), under layer norm only if the whole matrix is scaled (right). Of a "
        f"doubled vector's block {number(doubled['batch'])}, {number(doubled['weight'])} and {number(doubled['layer'])} are left. "
        "Below: gradients are orthogonal to each unit's weights, under layer norm to the matrix only. In descent the matrix "
        f"lengthens; under layer norm single units end at {number(layer.growth_rows_least.median())} to "
        f"{number(layer.growth_rows_most.median())} times their length.",
        alt="Four panels for batch, weight and layer norm: Fisher block against the length of a vector and of the matrix, log-log "
        "with slope -2; cosine of gradient and weights per unit and per matrix; growth of lengths in descent.",
    )


def _slopes(table, norm, column):
    """Return for each seed the log-log slope of a column against the scale."""
    arm = table[table.norm == norm].pivot_table(index="seed", columns="scale", values=column)
    return np.polyfit(np.log(arm.columns), np.log(arm.to_numpy().T), 1)[0]


def _doubling(table, norm, column):
    arm = table[table.norm == norm].pivot_table(index="seed", columns="scale", values=column)
    return (arm[2.0] / arm[1.0]).to_numpy()


@geometry.claim(
    "factor-of-a-half",
    "Doubling the length of a weight vector changes the curvature along its direction by a factor of 1/2.",
    criterion="batch and weight norm: the norm of the vector's own Fisher block, doubled over not, between 0.475 and 0.525",
)
def _(table) -> Judgement:
    ratios = np.concatenate([_doubling(table, norm, "vector_own") for norm in ("batch", "weight")])
    mixed = np.concatenate([_doubling(table, norm, "vector_mixed") for norm in ("batch", "weight")])
    note = f"1/2 is what the blocks between this vector and another change by: {number(np.median(mixed))}"
    return judge_effect("doubled / not", ratios, claimed=(0.475, 0.525), null=1.0, note=note, exact=True)


@geometry.claim(
    "inverse-square",
    "The Fisher block of a weight vector falls as the inverse square of its length under batch and weight norm; under layer norm "
    "it does so when the whole matrix is scaled, not when the vector is.",
    criterion="scales 1/8 to 8: the block times the squared scale is the block at scale 1, relative difference at most 1e-10, for "
    "a vector (batch, weight) and for the matrix (all three); above 0.1 for a vector under layer norm",
    by="notes",
)
def _(table):
    alone = table[table.norm == "layer"].vector_off.min()
    off = max(table[table.norm != "layer"].vector_off.max(), table.matrix_off.max())
    note = f"scales are powers of two, so nothing is rounded; layer norm, one vector: off by {number(alone)}"
    return judge_identity("largest relative difference", off if alone > 0.1 else np.inf, 1e-10, note)


@geometry.claim(
    "turning",
    "Longer weight vectors turn more slowly: the normalization decays the learning rate by itself.",
    criterion="the angle of one small step of gradient descent, log-log slope against the length of the vector (layer norm: of "
    "the matrix) below 0 for every seed and norm",
)
def _(table):
    longer = {"batch": "vector", "weight": "vector", "layer": "matrix"}
    least = max(_slopes(table, norm, f"{what}_turn").max() for norm, what in longer.items())
    alone = np.median(_slopes(table, "layer", "vector_turn"))
    note = f"the angle falls as the inverse square; under layer norm, one vector scaled alone, the slope is {number(alone)}"
    return judge_effect(
        "log-log slope of the angle, the least steep", [least], claimed=(-np.inf, 0.0), null=0.0, note=note, exact=True
    )


@geometry.claim(
    "closed-form",
    "The Fisher metric of a normalized layer has blocks Cov[y_i, y_j | x] / (σ_i σ_j) χ_i χ_jᵀ, where χ_i is the input less what "
    "moves the unit's own mean and deviation.",
    criterion="relative difference from the Fisher matrix by automatic differentiation at most 1e-10, for the three norms",
)
def _(table):
    found = table.groupby("norm").from_printed.max()
    note = ", ".join(f"{norm} {number(found[norm])}" for norm in NORMS)
    note += ": under layer norm a vector moves the mean and deviation of all units, and the form leaves these paths out"
    return judge_identity("largest relative difference", found.max(), 1e-10, note)


@geometry.claim(
    "orthogonal",
    "Under batch and weight norm the gradient of each unit's weights is orthogonal to them; under layer norm only the gradient of "
    "the matrix is, and the gradients of the units sum to zero.",
    criterion="cosines per unit (batch, weight) and per matrix (all) and the sum over units (layer) at most 1e-10; the largest "
    "cosine of a unit under layer norm above 0.01",
    by="notes",
)
def _(table):
    layer, others = (table[table.norm == "layer"], table[table.norm != "layer"])
    zero = max(table.cosine_matrix.max(), others.cosine_vector.max(), layer.sum_of_rows.max())
    units = number(table[table.norm == "batch"].sum_of_rows.median())
    note = f"layer norm, largest cosine of a unit: {number(layer.cosine_vector.max())}; batch norm, units summed: {units}"
    return judge_identity("largest of them", zero if layer.cosine_vector.min() > 0.01 else np.inf, 1e-10, note)


@geometry.claim(
    "growth",
    "In gradient descent every weight vector lengthens at every step under batch and weight norm; under layer norm the "
    "matrix does, its squared length by the sum of the squared steps, while single vectors may shrink.",
    criterion=f"{STEPS} steps: gain in the squared length of the matrix equal to the sum of squared steps to 1e-10, no step "
    "shortens the matrix or a vector (batch, weight), and some vector ends shorter under layer norm, for every seed",
    by="notes",
)
def _(table):
    layer, others = table[table.norm == "layer"], table[table.norm != "layer"]
    sides = min(others.least_step_rows.min(), table.least_step_matrix.min()) >= 0 and layer.growth_rows_least.max() < 1
    batch, left = (number(table[table.norm == norm].rate_left.median()) for norm in ("batch", "layer"))
    least = number(layer.growth_rows_least.median())
    note = f"rate left, as 1/length²: batch {batch}, layer {left}; shortest vector under layer norm: {least} of its length"
    return judge_identity("largest relative difference of the gain", table.from_pythagoras.max() if sides else np.inf, 1e-10, note)
