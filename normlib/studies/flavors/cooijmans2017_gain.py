"""Cooijmans, Ballas, Laurent, Gülçehre & Courville (2017), Recurrent Batch Normalization: gains, and gradients through time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import batch_norm
from normlib.networks.initialization import make_initializer
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, COLORS, INK, median_and_band, note, subplots
from normlib.studies.flavors.sequences import along

EPS = 1e-5
GAINS = [0.1, 0.25, 0.5, 1.0]
RECURRENT = {"identity": "each unit feeds itself", "orthogonal": "units are mixed"}
NOISE = 0.1  # standard deviation of the state to start from
BORDER = 2  # pixels of background around each image, as MNIST has them
POINTS = 60

gain = Study(
    "cooijmans2017.gain",
    item="§4: initializing γ for gradient flow",
    title="How a gain of one stops the gradient in one batch-normalized recurrent network, and blows it up in another",
    kind="init",
    vary={"recurrent": list(RECURRENT), "gain": GAINS},
    quick={"data": "digits", "pool": 1, "batch": 100, "hidden": 32},
    laptop={"data": "fashion-mnist", "pool": 2, "batch": 100, "hidden": 100},
    full={"data": "mnist", "pool": 2, "batch": 100, "hidden": 100},
)


class Cell(nn.Module):
    """A tanh cell whose summed input is batch-normalized over the batch of that step: h' = tanh(γ BN(W h + U x)).

    Args:
        hidden: number of units.
        recurrent: an initialization spec for W; U is a random direction of length 1.
        gain: γ, the same for all units.
        seed: of the weights.
    """

    def __init__(self, hidden: int, recurrent: str, gain: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.W, self.gain = torch.empty(hidden, hidden, dtype=torch.float64), gain
        if recurrent == "identity":
            nn.init.eye_(self.W)
        else:
            make_initializer(recurrent)(self.W, generator)
        U = torch.randn(hidden, 1, generator=generator, dtype=torch.float64)
        self.U = U / U.norm()

    def forward(self, input: Tensor, hx: Tensor) -> Tensor:
        """Return the next state of a batch from the inputs (N, 1) and the states (N, H)."""
        summed = linear(hx, self.W.to(input.device)) + linear(input, self.U.to(input.device))
        return torch.tanh(self.gain * batch_norm(summed, eps=EPS))


@gain.trial
def _(c, seed):
    images = load(c).pooled(c.pool).standardized()
    order = torch.randperm(len(images.x_train), generator=torch.Generator().manual_seed(seed))[: c.batch].to(c.device)
    framed = pad(images.x_train[order], [BORDER] * 4, value=float(images.x_train.min()))
    x, y = framed.flatten(1).unsqueeze(-1).double(), images.y_train[order]
    cell, head = Cell(c.hidden, c.recurrent, c.gain, seed), nn.Linear(c.hidden, images.classes).double().to(c.device)
    noise = torch.randn(c.batch, c.hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    hx = (NOISE * noise).to(c.device).requires_grad_()
    noisy, still = along(cell, head, x, y, hx), along(cell, head, x, y, torch.zeros_like(hx).requires_grad_())
    varies = x.var(dim=0).amax(dim=1) > 0
    first = int(varies.nonzero()[0])  # before it the pixels of all images agree
    steps = np.linspace(0, x.shape[1] - 1, POINTS).round().astype(int)
    return {
        "step": steps.tolist(),
        "gradient": [noisy.gradients[step] for step in steps],
        "gradient_still": [still.gradients[step] for step in steps],
        "size": noisy.sizes[-1],
        "first": first,
        "factor": (still.gradients[0] / still.gradients[first - 1]) ** (1 / (first - 1)),
    }


def kept(table):
    """Return the gradient in the state after the first step over that after the last: a row a seed, a column a gain and a W."""
    gradients = table.sort_values("step").groupby(["seed", "recurrent", "gain"]).gradient
    return (gradients.first() / gradients.last()).unstack(["recurrent", "gain"])


def growth(gain: float) -> float:
    """Return the factor by which one step back multiplies the gradient where units are mixed and inputs are small.

    The summed input is then close to a Gaussian z of the standard deviation of the state, and the factor is
    γ (E[(1 - tanh² γz)²] / E[tanh² γz])^½ with z standard normal.
    """
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    state = np.tanh(gain * z)
    return float(gain * np.sqrt(weights @ (1 - state**2) ** 2 / (weights @ state**2)))


@gain.draw
def _(table):
    figure, axes = subplots(1, 3, height=3.1)
    colors = dict(zip(GAINS, [COLORS[5], BLUE, COLORS[4], INK], strict=True))
    for ax, (recurrent, title) in zip(axes, RECURRENT.items(), strict=False):
        for value in GAINS:
            own = table[(table.recurrent == recurrent) & (table.gain == value)]
            median_and_band(ax, own, "step", "gradient", color=colors[value], label=f"gain {number(value)}", linewidth=1.5)
        ax.set_title(f"{recurrent}:\n{title}", fontsize=9.5)
    for start, line in (("gradient", "-"), ("gradient_still", "--")):
        own = table[(table.recurrent == "identity") & (table.gain == GAINS[0])]
        median_and_band(axes[2], own, "step", start, color=colors[GAINS[0]], linestyle=line)
    last, ends = table.step.max(), table[(table.recurrent == "orthogonal") & (table.gain == 1)].sort_values("step").gradient
    predicted = ends.iloc[-1] * growth(1.0) ** np.array([last, 0])
    axes[1].plot([0, last], predicted, ":", color=COLORS[1], label="closed form, gain 1", linewidth=4, zorder=1)
    axes[2].axvspan(0, table["first"].median(), color=INK, alpha=0.12, linewidth=0)
    note(axes[2], "dashed: from zeros\nsolid: from noise\nshaded: constant pixels", 0.97, 0.8, ha="right", fontsize=8.5)
    axes[2].set_title("identity,\ngain 0.1", fontsize=9.5)
    axes[0].set_ylabel("gradient in the state")
    for ax in axes:
        ax.set(xlabel="pixel", yscale="log")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=1.5)
    ratio = kept(table).median()
    said = {w: f"{number(ratio[w, 0.1])} at gain 0.1 and {number(ratio[w, 1.0])} at gain 1" for w in RECURRENT}
    return Drawing(
        figure,
        caption=f"A batch-normalized tanh network reads images pixel by pixel, {last + 1} steps, before training; all images of "
        "the batch share the statistics of a step. Norm of the gradient in the hidden state. The first over the last is, with an "
        f"identity for recurrent matrix, {said['identity']}; with an orthogonal one, {said['orthogonal']}. Right: from a state of "
        "zeros, as long as all images agree, the variance is zero, eps alone divides, and each step back multiplies the gradient "
        f"by {number(table[table.gain == 0.1].factor.median())}.",
        alt="Gradient in the hidden state over the pixels of a sequence, log axis, for four gains: identity recurrence, orthogonal "
        "recurrence, and identity from a state of zeros beside one of noise.",
    )


def _ratio(table, recurrent: str):
    """Return, per seed, how much more of the gradient arrives with gain 0.1 than with gain 1."""
    found = kept(table)[recurrent]
    return found[0.1] / found[1.0]


@gain.claim(
    "large-gain-vanishes",
    "In a batch-normalized tanh network gradients vanish through time at gain 1, and flow at 0.1.",
    criterion="identity recurrence, as in the authors' code: the share of the last gradient that arrives at the first step is at "
    "least 1,000 times as large at gain 0.1 as at gain 1",
)
def _(table):
    note_ = f"at gain 1 the share is {number(kept(table)['identity'][1.0].median())}"
    return judge_effect("share at gain 0.1 / at gain 1", _ratio(table, "identity"), claimed=(1_000, np.inf), null=1, note=note_)


@gain.claim(
    "with-mixing",
    "The same holds if the recurrent matrix mixes the units.",
    criterion="orthogonal recurrence: the share of the last gradient that arrives at the first step is at least 1,000 times as "
    "large at gain 0.1 as at gain 1",
    by="notes",
)
def _(table):
    note_ = f"at gain 1 the share is {number(kept(table)['orthogonal'][1.0].median())}"
    return judge_effect("share at gain 0.1 / at gain 1", _ratio(table, "orthogonal"), claimed=(1_000, np.inf), null=1, note=note_)


@gain.claim(
    "growth",
    "Where units are mixed and inputs are small, each step back multiplies the gradient at gain 1 by the factor that the Gaussian "
    "closed form gives.",
    criterion="orthogonal recurrence, gain 1: the factor per step, from the last step to the first, is within 2 % of "
    "γ (E[(1 − tanh² γz)²] / E[tanh² γz])^½ with z standard normal",
    by="notes",
)
def _(table):
    factor = kept(table)["orthogonal"][1.0] ** (1 / table.step.max())
    said = f"measured {number(factor.median())}, closed form {number(growth(1.0))}"
    return judge_effect("factor per step / closed form", factor / growth(1.0), claimed=(0.98, 1.02), null=np.nan, note=said)


@gain.claim(
    "zero-variance",
    "From a state of zeros, as long as all sequences agree, each step back multiplies the gradient by γ/√ε.",
    criterion="the factor per step over the constant first pixels, relative difference from γ/√ε at most 1e-4 for all gains "
    "and both matrices",
    by="notes",
)
def _(table):
    expected = table.gain / EPS**0.5
    distance = (table.factor / expected - 1).abs().max(skipna=False)
    return judge_identity("largest relative difference from γ/√ε", distance, 1e-4)
