"""Ioffe & Szegedy (2015), Batch Normalization, section 3.3: what the scale of the weights does, and what eps does to that."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import BatchNorm
from normlib.probes import batch_jacobian
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import GRAY, INK, median_and_band, norm_color, note, subplots
from normlib.studies.common.statements import gap, normal

SCALES = [10.0**k for k in np.arange(-5, 2.1, 0.5)]  # a; a = 1 gives the pre-activations a variance near 1
TINY = 1e-30  # eps → 0: added to any variance here, it does not change a bit of it
USUAL = 1e-5
STEPS, RATE, SHARPNESS = 50, 0.1, 3.0  # of the descent that watches the length of the weights
TOLERANCE = 1e-10

scale_invariance = Study(
    "ioffe2015.scale_invariance",
    item="§3.3",
    title="Batch normalization does not see the scale of the weights, and their gradient shrinks as that scale grows",
    kind="exact",
    vary={"eps": [TINY, USUAL]},
    quick={"data": "digits", "pool": 2, "train": 64, "units": 10},
    laptop={"data": "fashion-mnist", "pool": 4, "train": 128, "units": 10},
    full=None,
)


def normalized(weight: Tensor, u: Tensor, eps: float) -> Tensor:
    """Return BN(W u): u of shape (N, features), W of shape (units, features)."""
    return BatchNorm(len(weight), eps, affine=False, track_running_stats=False)(u @ weight.T)


def gradient(weight: Tensor, u: Tensor, upstream: Tensor, eps: float | None) -> Tensor:
    """Send one fixed gradient of the output back to the weight; without norm if `eps` is None."""
    weight = weight.clone().requires_grad_()
    output = u @ weight.T if eps is None else normalized(weight, u, eps)
    return torch.autograd.grad(output, weight, upstream)[0]


def descend(weight: Tensor, u: Tensor, labels: Tensor, eps: float) -> float:
    """Train W by plain gradient descent on the cross-entropy of BN(W u); return by what share that lengthened W."""
    start = float(weight.norm())
    for _ in range(STEPS):
        weight = weight.detach().requires_grad_()
        loss = F.cross_entropy(SHARPNESS * normalized(weight, u, eps), labels)
        weight = weight - RATE * torch.autograd.grad(loss, weight)[0]
    return float(weight.detach().norm()) / start - 1


@scale_invariance.trial
def _(c, seed):
    images = load(c, seed).pooled(c.pool).standardized().flat()
    u, labels = images.x_train.double().cpu(), images.y_train.cpu()
    w = normal(seed, c.units, u.shape[1]) / u.shape[1] ** 0.5
    upstream = normal(seed + 1, len(u), c.units) / len(u)
    variance = (u @ w.T).var(dim=0, correction=0)
    few = u[:16]
    output, slope = normalized(w, u, TINY), gradient(w, u, upstream, TINY)
    jacobian = batch_jacobian(lambda x: normalized(w, x, TINY), few)

    rows = []
    for a in SCALES:
        now, found = normalized(a * w, u, c.eps), gradient(a * w, u, upstream, c.eps)
        share = c.eps / (a**2 * variance + c.eps)  # of eps in what the layer divides by
        along, passed = (found * a * w).sum(1), (upstream * now).sum(0)
        rows.append({
            "scale": a,
            "variance": float(a**2 * variance.median()),
            "output_variance": float(now.var(dim=0, correction=0).median()),
            "gradient_length": float(found.norm()),
            "plain_length": float(gradient(a * w, u, upstream, None).norm()),
            "cosine": float((along.abs() / found.norm(dim=1) / (a * w).norm(dim=1)).max()),
            "growth": descend(a * w, u, labels, c.eps),
            "from_output": gap(now, output),
            "from_jacobian": gap(batch_jacobian(lambda x, a=a: normalized(a * w, x, c.eps), few), jacobian),  # type: ignore[misc]
            "from_gradient": gap(a * found, slope),
            "from_variance": gap(now.var(dim=0, correction=0), a**2 * variance / (a**2 * variance + c.eps)),
            "from_radial": float((along - passed * share).abs().max() / passed.abs().max()),
        })  # fmt: skip
    return {name: [row[name] for row in rows] for name in rows[0]}


ARMS = {TINY: ("eps → 0", "-"), USUAL: ("eps = 10⁻⁵", "--")}


@scale_invariance.draw
def _(table):
    figure, axes = subplots(2, 2, height=2.35, sharex=True)
    blue = norm_color("batch")
    table = table.assign(variance=table.groupby("scale").variance.transform("median")).sort_values("scale")  # one point a scale
    panels = {
        "output_variance": "variance of the output",
        "gradient_length": "length of the gradient of W",
        "cosine": "cosine of gradient and weight",
        "growth": f"growth of ‖W‖ in {STEPS} steps, relative",
    }
    for ax, (column, title) in zip(axes.flat, panels.items(), strict=True):
        for eps, (label, style) in ARMS.items():
            median_and_band(ax, table[table.eps == eps], "variance", column, color=blue, linestyle=style, label=label)
        ax.axvline(USUAL, color=INK, linewidth=0.8, linestyle=":")
        ax.set(xscale="log", yscale="log")
        ax.set_title(title, fontsize=9.5)
    usual = table[table.eps == USUAL].groupby("scale").median(numeric_only=True)
    axes[0, 0].plot(usual.variance, usual.variance / (usual.variance + USUAL), "o", color=INK, markersize=3, label="closed form")
    axes[0, 0].legend(loc="lower right", fontsize=8)
    median_and_band(axes[0, 1], table[table.eps == TINY], "variance", "plain_length", color=GRAY, label="no normalization")
    axes[0, 1].legend(loc="upper right", fontsize=8)
    note(axes[1, 0], "rounding", 0.05, 0.1, fontsize=8)
    for ax in axes[1]:
        ax.set_xlabel("variance of the pre-activation")
    near = usual.iloc[(np.log(usual.variance / USUAL)).abs().argmin()]
    longest = table[(table.eps == TINY) & (table.scale == table.scale.min())].growth.median()
    return Drawing(
        figure,
        caption="One layer, its weights scaled from one hundred-thousandth to a hundredfold. As eps goes to 0 the output keeps its "
        "variance, the gradient of the weights is inversely proportional to their length, and orthogonal to them up to "
        "rounding. With eps = 10⁻⁵ all three fail where the pre-activation's variance comes near eps (dotted): at a variance of "
        f"{number(near.variance)} the output has the variance {number(near.output_variance)}. Below, right: {STEPS} steps of plain "
        f"gradient descent make the shortest weights {number(1 + longest)} times as long; long weights hardly grow.",
        alt="Four log-log panels against the variance of the pre-activation, for eps near zero and eps 1e-5: output variance with "
        "its closed form, length of the gradient, cosine of gradient and weight, growth of the weights in descent.",
    )


def _at(table, eps):
    return table[table.eps == eps]


@scale_invariance.claim(
    "output",
    "Scaling the weights of a layer changes neither the output of its batch normalization nor the Jacobian in the layer's input.",
    criterion="eps → 0: largest relative difference of either at most 1e-10, for weights scaled by 1e-5 to 100",
)
def _(table):
    exact, usual = _at(table, TINY), _at(table, USUAL)
    error = exact[["from_output", "from_jacobian"]].max().max()
    note = f"with eps = 10⁻⁵ the output is off by {number(usual.from_output.max())} for the smallest weights"
    return judge_identity("largest relative change", error, TOLERANCE, note)


@scale_invariance.claim(
    "gradient",
    "The gradient in scaled weights aW is 1/a times the gradient in W.",
    criterion="eps → 0: largest relative difference at most 1e-10, for weights scaled by 1e-5 to 100",
)
def _(table):
    note = f"with eps = 10⁻⁵ it is off by {number(_at(table, USUAL).from_gradient.max())} for the smallest weights"
    return judge_identity("largest relative difference", _at(table, TINY).from_gradient.max(), TOLERANCE, note)


@scale_invariance.claim(
    "growth",
    "Larger weights lead to smaller gradients, so batch normalization stabilizes the growth of the parameters.",
    criterion=f"eps → 0: the share by which {STEPS} steps of gradient descent lengthen W falls with every step up in scale, and "
    "ten times longer weights grow by at most a tenth of what W grows by (each in units of its length)",
)
def _(table):
    growth = _at(table, TINY).pivot_table(index="seed", columns="scale", values="growth")
    falls = (growth.diff(axis=1).iloc[:, 1:] < 0).all(axis=1)
    one, ten = (growth.columns[np.abs(np.log(growth.columns / a)).argmin()] for a in (1, 10))
    ratio = (growth[ten] / growth[one]).where(falls, np.inf)
    note = f"W grows by {number(100 * growth[one].median())} %; the least that any weights grow by is {number(growth.min().min())}"
    return judge_effect("growth at a = 10 / growth at a = 1", ratio, claimed=(0, 0.1), null=1, note=note, exact=True)


@scale_invariance.claim(
    "update",
    "Batch normalization scales the update of the weights down.",
    criterion="eps → 0: for one gradient of the output, the gradient of W is shorter with the norm than without, at every scale",
    by="seed004",
)
def _(table):
    arm = _at(table, TINY)
    ratio = arm.gradient_length / arm.plain_length
    least = arm[ratio < 1].variance.min()
    usual = number(ratio[arm.scale == 1].median())
    note = f"{usual} at the initial scale; it is shorter where the pre-activation's variance is {number(least)} or more"
    return judge_identity("largest ratio of the lengths, with and without", ratio.max(), 1.0, note)


@scale_invariance.claim(
    "orthogonal",
    "The gradient of each unit's weights is orthogonal to them.",
    criterion="eps → 0: cosine at most 1e-10 in absolute value, for every unit and scale",
    by="notes",
)
def _(table):
    note = f"with eps = 10⁻⁵ it reaches {number(_at(table, USUAL).cosine.max())}"
    return judge_identity("largest cosine of gradient and weight", _at(table, TINY).cosine.max(), TOLERANCE, note)


@scale_invariance.claim(
    "eps",
    "With eps the output of a unit has the variance a²s²/(a²s² + eps), and the gradient along the weight is the fraction "
    "eps/(a²s² + eps) of that along the output; both identities end where the pre-activation's variance a²s² comes near eps.",
    criterion="eps = 1e-5: both closed forms to a relative difference of 1e-10, for every unit and scale",
    by="notes",
)
def _(table):
    error = _at(table, USUAL)[["from_variance", "from_radial"]].max().max()
    return judge_identity("largest relative difference from the closed forms", error, TOLERANCE)
