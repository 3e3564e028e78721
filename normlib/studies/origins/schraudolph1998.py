"""Schraudolph (1998): centering the factors of the gradient - activities, errors, slopes.

The gradient of a weight is a sum over examples of error times activity, and the error of a hidden unit is its slope times what
comes back from above. Each of these factors can be centered: its mean over the examples is subtracted. The gradients are written
by hand here, as what enters them is the subject. The paper's own tables could not be checked; no number of theirs is quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.common.looks import BLUE, GRAY, GREEN, INK, ORANGE, PAPER, note, subplots
from normlib.studies.common.tuning import tuned

ARMS = {
    "none": ("nothing centered", GRAY),
    "activity": ("activity", BLUE),
    "activity+error": ("activity + error", GREEN),
    "activity+error+slope": ("activity + error + slope", ORANGE),
}
Array = np.ndarray[Any, Any]


def centered(values: Array) -> Array:
    """Subtract the mean over the examples (axis 0)."""
    return values - values.mean(axis=0)


@dataclass
class Network:
    """Layers of logistic units with a softmax on top, in float64, trained on all examples at once.

    Args:
        sizes: number of inputs, of units in each hidden layer, and of classes.
        shortcuts: whether each layer also sees the inputs and all layers below, not only the last one.
        centering: which factors are centered, joined by "+".
        seed: of the initial weights, N(0, 1 / fan-in).
    """

    sizes: list[int]
    shortcuts: bool
    centering: str
    seed: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        fans = np.cumsum(self.sizes) if self.shortcuts else np.array(self.sizes)
        self.weights = [rng.standard_normal((m, n)) / m**0.5 for m, n in zip(fans, self.sizes[1:], strict=False)]
        self.biases = [np.zeros(n) for n in self.sizes[1:]]

    def forward(self, x: Array) -> tuple[list[Array], Array]:
        """Return what each layer sees (examples × fan-in), and the logarithms of the classes' probabilities."""
        seen = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            activity = expit(seen[-1] @ weight + bias)
            seen.append(np.hstack([seen[-1], activity]) if self.shortcuts else activity)
        return seen, log_softmax(seen[-1] @ self.weights[-1] + self.biases[-1], axis=1)

    def errors(self, seen: list[Array], output_error: Array) -> list[tuple[Array, Array]]:
        """Return for each layer the error for its weights, with centered factors, and the plain error for its bias.

        The error that travels on to the layers below is the one with centered factors. The bias keeps the plain error: a centered
        one sums to zero, and the mean error could never be put right.
        """
        found = [(self._center_error(output_error), output_error)]
        back = found[0][0] @ self.weights[-1].T  # arrives at what the layer sees, shortcuts included
        for layer in reversed(range(len(self.weights) - 1)):
            activity, arriving = seen[layer + 1][:, -self.sizes[layer + 1] :], back[:, -self.sizes[layer + 1] :]
            slope = activity * (1 - activity)
            kept = centered(slope) if "slope" in self.centering else slope
            found.insert(0, (self._center_error(kept * arriving), slope * arriving))
            through = found[0][0] @ self.weights[layer].T
            back = back[:, : through.shape[1]] + through if self.shortcuts else through
        return found

    def _center_error(self, error: Array) -> Array:
        return centered(error) if "error" in self.centering else error

    def updates(self, x: Array, target: Array) -> tuple[float, list[tuple[Array, Array]]]:
        """Return the loss in nats, and for each layer the descent directions of its weights and of its bias.

        With centered activities the weights act on x − ⟨x⟩ and the bias on a constant of 1. The function is still that of plain
        activities, so the bias takes over what the change of the weights does to the mean: − Δw ⟨x⟩.
        """
        seen, log_probability = self.forward(x)
        loss = -float((log_probability * target).sum(axis=1).mean())
        directions = []
        for sight, (error, plain) in zip(seen, self.errors(seen, np.exp(log_probability) - target), strict=True):
            mean = sight.mean(axis=0) if "activity" in self.centering else np.zeros(sight.shape[1])
            weight = -(sight - mean).T @ error / len(x)
            directions.append((weight, -plain.mean(axis=0) - mean @ weight))
        return loss, directions

    def descend(self, x: Array, target: Array, rate: float, steps: int, until: float) -> Array:
        """Take up to so many steps and return the loss before each; stop once it is at or below `until`, or not finite."""
        losses = []
        for _ in range(steps):
            loss, directions = self.updates(x, target)
            losses.append(loss)
            if not until < loss < np.inf:
                break
            for i, (weight, bias) in enumerate(directions):
                self.weights[i] += rate * weight
                self.biases[i] += rate * bias
        return np.array(losses)


def identity_error(sight: Array, error: Array) -> float:
    """Compare the three ways to center a product: either factor, or both; relative to the largest sum of absolute products."""
    both = centered(sight).T @ centered(error)
    ways = (centered(sight).T @ error, sight.T @ centered(error))
    return max(float(np.abs(way - both).max() / (np.abs(sight).T @ np.abs(error)).max()) for way in ways)


def parity(bits: int) -> tuple[Array, Array]:
    """Return all patterns of 0 and 1, shape (2^bits, bits), and whether their sum is even or odd, shape (2^bits, 2)."""
    patterns = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    return patterns.astype(float), np.eye(2)[patterns.sum(axis=1) % 2]


centering = Study(
    "schraudolph1998.centering",
    item="claims of the abstract",
    title="The more factors of the gradient are centered, the fewer steps it takes; slopes only with shortcuts",
    kind="train",
    vary={"centering": list(ARMS), "shortcuts": [False, True], "rate": [1.0, 4.0, 8.0, 16.0, 32.0]},
    quick={"bits": 3, "width": 10, "steps": 600, "rate": [2.0, 8.0]},
    laptop={"bits": 4, "width": 10, "steps": 5_000},
    full=None,
    seeds={"quick": 1, "laptop": 5},
)
UNTIL = float(np.log(2) / 2)  # half the loss of a constant answer


@centering.trial
def _(c, seed):
    x, target = parity(c.bits)
    net = Network([c.bits, c.width, c.width, 2], c.shortcuts, c.centering, seed)
    seen, log_probability = net.forward(x)
    errors = [plain for _, plain in net.errors(seen, np.exp(log_probability) - target)]
    losses = net.descend(x, target, c.rate, c.steps, UNTIL)
    return {
        "steps_needed": len(losses) - 1 if losses[-1] <= UNTIL else np.inf,
        "identity_error": max(identity_error(sight, error) for sight, error in zip(seen, errors, strict=True)),
        "bias_gradient": max(float(np.abs(centered(error).mean(axis=0)).max() / np.abs(error).max()) for error in errors),
    }


@centering.draw
def _(table):
    figure, axes = subplots(1, 2, height=3.1, sharey=True)
    budget = table.steps.iloc[0]
    for ax, shortcuts in zip(axes, (False, True), strict=True):
        for arm, (label, color) in ARMS.items():
            rows = table[(table.centering == arm) & (table.shortcuts == shortcuts)]
            steps = rows.groupby("rate").steps_needed.median().replace(np.inf, 2 * budget)
            ax.plot(steps.index, steps, "o-", color=color, label=label)
            lost = steps[steps > budget]
            ax.plot(lost.index, lost, "o", color=color, markerfacecolor=PAPER)
        ax.axhline(budget, color=INK, linestyle="--", linewidth=0.8)
        rates = sorted(table.rate.unique())
        ax.set(xscale="log", yscale="log", xlabel="learning rate", title=("with" if shortcuts else "without") + " shortcuts")
        ax.set_xticks(rates, [number(rate) for rate in rates])
        ax.minorticks_off()
    axes[0].set_ylabel("steps needed, median")
    note(axes[0], f"open: not within {budget:,} steps", 0.02, 0.02, fontsize=8.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    best, chosen = tuned(table, ["centering", "shortcuts"], "steps_needed", low=True)
    words = [", ".join(_words(best, chosen, arm, shortcuts) for arm in ARMS) for shortcuts in (False, True)]
    return Drawing(
        figure,
        caption=f"Gradient descent on all patterns of {table.bits.iloc[0]}-bit parity with logistic units, until the loss is half "
        f"of a constant answer's. Fewest steps without shortcuts: {words[0]}. With shortcuts: {words[1]}. In the weights of one "
        "layer, centering errors on top of activities changes nothing; it changes the error that travels to the layers below.",
        alt="Two panels, without and with shortcut connections: median number of training steps against the learning rate, log "
        "axes, for four degrees of centering; open dots mark runs that did not arrive.",
    )


def _words(table, rates, arm, shortcuts):
    rows = table[(table.centering == arm) & (table.shortcuts == shortcuts)]
    steps = rows.groupby("seed").steps_needed.first().median()
    needed = f"{steps:,.0f} at rate {number(rates[arm, shortcuts])}" if np.isfinite(steps) else "not reached"
    return f"{needed} ({ARMS[arm][0]})"


def _ratio(table, slower, faster, *, shortcuts):
    """Return for each seed the ratio of steps at the tuned rates; an arm that does not arrive counts with the run's length."""
    table = tuned(table, ["centering", "shortcuts"], "steps_needed", low=True)[0]
    table = table[table.shortcuts == shortcuts]
    steps = table.groupby(["seed", "centering"]).steps_needed.first().clip(upper=table.steps.iloc[0]).unstack()
    return steps[slower] / steps[faster]


@centering.claim(
    "identity",
    "The mean product of two factors is centered by centering either of them: Σ(δ−⟨δ⟩)xᵀ = Σδ(x−⟨x⟩)ᵀ = Σ(δ−⟨δ⟩)(x−⟨x⟩)ᵀ.",
    criterion="relative difference at most 1e-12 in every layer, in float64",
    by="notes",
)
def _(table):
    return judge_identity("largest relative difference of the three", table.identity_error.max(), 1e-12)


@centering.claim(
    "bias",
    "The weight of the bias has to keep the uncentered error: with a centered one its gradient is zero.",
    criterion="the mean of the centered errors is at most 1e-12 of the largest error, in every layer",
)
def _(table):
    return judge_identity(
        "gradient of a bias from centered errors, relative to the largest error", table.bias_gradient.max(), 1e-12
    )


@centering.claim(
    "activity",
    "Centering the inputs and the activities of hidden units speeds up learning.",
    criterion="logistic network without shortcuts, best rate of each arm: at least 1.5 times fewer steps",
)
def _(table):
    ratio = _ratio(table, "none", "activity", shortcuts=False)
    text = f"an arm that does not arrive counts with the length of the run, {table.steps.iloc[0]:,} steps"
    return judge_effect("steps, nothing centered / activity", ratio, claimed=(1.5, np.inf), null=1, note=text)


@centering.claim(
    "error",
    "Centering the errors too speeds it up further.",
    criterion="without shortcuts, best rate of each arm: at least 1.1 times fewer steps than with centered activities alone",
)
def _(table):
    ratio = _ratio(table, "activity", "activity+error", shortcuts=False)
    return judge_effect("steps, activity / activity + error", ratio, claimed=(1.1, np.inf), null=1)


@centering.claim(
    "slope",
    "Where shortcuts bypass the hidden units, centering their slopes speeds it up once more.",
    criterion="with shortcuts, best rate of each arm: at least 1.1 times fewer steps than with centered activities and errors",
)
def _(table):
    ratio = _ratio(table, "activity+error", "activity+error+slope", shortcuts=True)
    return judge_effect("steps, activity + error / + slope", ratio, claimed=(1.1, np.inf), null=1)


@centering.claim(
    "slope-alone",
    "Without shortcuts nothing takes over the linear part that centered slopes leave out, so they do not help.",
    criterion="without shortcuts, best rate of each arm: not fewer steps than with centered activities and errors",
    by="notes",
)
def _(table):
    ratio = _ratio(table, "activity+error", "activity+error+slope", shortcuts=False)
    return judge_effect("steps, activity + error / + slope", ratio, claimed=(0.0, 1.0), null=1)
