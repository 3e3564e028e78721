"""LeCun, Bottou, Orr & Müller (1998), Efficient BackProp: the activation function and the initial weights that go with it."""

from __future__ import annotations

import numpy as np
import torch

from normlib.data import Dataset
from normlib.lab import Diverged, Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import ACTIVATIONS, MLP, make_activation
from normlib.probes import record_activations
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, GRAY, GREEN, INK, VERMILION, median_and_band, note, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.training import evaluate, log_steps, train

ARMS = {
    "logistic": ("logistic", VERMILION),
    "tanh": ("tanh", GREEN),
    "scaled_tanh": ("1.7159 tanh(2x/3)", BLUE),
    "relu": ("ReLU", GRAY),
}
LAYERS = 10  # of the network whose variances are followed at initialization
SMOOTHING = 50  # steps over which the training loss is averaged

activations = Study(
    "lecun1998.activations",
    item="Fig. 4, eq. 16",
    title="Symmetric units learn in fewer steps, and weights of variance 1/fan-in keep the variance only roughly",
    kind="train",
    vary={"activation": list(ARMS), "rate": [0.01, 0.02, 0.04, 0.1, 0.2]},
    quick={"data": "digits", "pool": 1, "width": 50, "depth": 3, "steps": 300, "batch": 32, "wide": 256, "rate": [0.04, 0.1]},
    laptop={"data": "fashion-mnist", "pool": 2, "width": 100, "depth": 3, "steps": 2_000, "batch": 32, "wide": 500},
    full={"data": "mnist", "pool": 1, "width": 300, "depth": 3, "steps": 5_000, "batch": 32, "wide": 2000},
)


def expected_variances(name: str, layers: int) -> list[float]:
    """Follow N(0, 1) inputs through wide layers with weights of variance 1 / fan-in, and return the variance after each.

    The sum in front of a unit is then normal, with the second moment q of the layer below as its variance: q becomes E f(√q z)²,
    and the variance of the activations is q less the square of their mean.
    """
    f = make_activation(name).double()
    points, weights = np.polynomial.hermite_e.hermegauss(201)
    z, weight = torch.as_tensor(points), torch.as_tensor(weights / weights.sum())
    q, variances = torch.tensor(1.0, dtype=torch.float64), []
    for _ in range(layers):
        values = f(q.sqrt() * z)
        q = (weight * values.square()).sum()
        variances.append(float(q - (weight * values).sum() ** 2))
    return variances


def measured_variances(name: str, width: int, seed: int, device: str) -> list[float]:
    """Send as many N(0, 1) inputs as there are units through a network at initialization; return the variance in each layer."""
    net = MLP([width] * (LAYERS + 1) + [1], activation=name, init="lecun", seed=seed).to(device)
    inputs = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    outputs = record_activations(net, inputs.to(device), ACTIVATIONS[name])
    return [float(output.double().var(correction=0)) for output in outputs.values()]


@activations.trial
def _(c, seed):
    variance = measured_variances(c.activation, c.wide, seed, c.device)
    images = load(c).pooled(c.pool).standardized().flat()
    images = images.split_validation(len(images.x_train) // 6, seed)
    net = MLP([images.shape[0], *[c.width] * c.depth, images.classes], c.activation, init="lecun", seed=seed).to(c.device)
    run = train(
        net, images.x_train, images.y_train,
        steps=c.steps, batch_size=c.batch, rate=c.rate, loss="squared_error", loss_limit=1e3, seed=seed,
    )  # fmt: skip
    smooth = np.convolve(run.loss, np.ones(SMOOTHING) / SMOOTHING, mode="valid")
    steps = np.array(log_steps(c.steps - SMOOTHING + 1, 40))
    half = constant_loss(images) / 2
    reached = np.flatnonzero(smooth <= half)
    columns = {
        "part": ["variance"] * LAYERS + ["loss"] * len(steps),
        "x": [*range(1, LAYERS + 1), *(steps + SMOOTHING).tolist()],
        "y": [*variance, *(float(smooth[step]) if step < len(smooth) else np.nan for step in steps)],
        "half": half,
        "steps_to_half": int(reached[0]) + SMOOTHING if len(reached) else np.inf,
    }
    if run.diverged_at is not None:
        raise Diverged(f"the loss exceeds 1000 at step {run.diverged_at}", **columns)
    final = evaluate(net, images.x_test, images.y_test, statistics="eval", loss="squared_error")
    return {**columns, "validation": final.loss}


def constant_loss(images: Dataset) -> float:
    """Return the squared error of the best output that does not look at the image: targets are +1 at the class and −1 elsewhere."""
    share = torch.bincount(images.y_train, minlength=images.classes) / len(images.y_train)
    return float((2 * share * (1 - share)).sum())


@activations.draw
def _(table):
    table, rates = tuned(table, ["activation"], "validation", low=True)
    figure, (left, right) = subplots(1, 2, height=3.2)
    for name, (label, color) in ARMS.items():
        arm = table[table.activation == name]
        median_and_band(left, arm[arm.part == "variance"], "x", "y", color=color, linestyle="none", marker="o")
        left.plot(range(1, LAYERS + 1), expected_variances(name, LAYERS), color=color, linewidth=1)
        median_and_band(right, arm[arm.part == "loss"], "x", "y", color=color, label=label)
    half = table.half.median()
    left.axhline(1, color=INK, linewidth=0.8)
    right.axhline(half, color=INK, linewidth=0.8, linestyle="--")
    note(right, "half of a constant's loss", 0.98, half * 1.02, transform=right.get_yaxis_transform(), ha="right", fontsize=8.5)
    left.set(yscale="log", xlabel="layer, before training", ylabel="variance of activations", xticks=range(1, LAYERS + 1))
    note(left, "dots: measured\nlines: $q \\to \\mathrm{E}\\, f(\\sqrt{q}\\,z)^2$", 0.02, 0.03, fontsize=8.5)
    right.set(xscale="log", xlabel="step", ylabel="training loss (squared error)", ylim=(0, 3 * half))
    right.legend(loc="upper right", fontsize=8.5)
    steps, last = _steps(table).median(), _last_variances(table).median()
    longest = table.steps.iloc[0]
    counts = {name: f"{steps[name]:,.0f}" if steps[name] < longest else f"more than {longest:,}" for name in ARMS}
    words = ", ".join(f"{counts[name]} ({label})" for name, (label, _) in ARMS.items())
    return Drawing(
        figure,
        caption=f"Weights of variance $1/m$, with $m$ the fan-in, do not hold the variance at 1: after {LAYERS} layers it is "
        f"{number(last['scaled_tanh'])} with $1.7159\\tanh(2x/3)$, {number(last['tanh'])} with tanh, {number(last['logistic'])} "
        f"with the logistic function and {number(last['relu'])} with ReLU. Steps until the training loss is half of what a "
        f"constant output reaches: {words}. Learning rates, chosen on validation images: "
        f"{rates_in_words(rates, {name: label for name, (label, _) in ARMS.items()})}.",
        alt="Left: variance of activations by layer at initialization, log scale, measured dots on theoretical lines, for four "
        "activation functions. Right: their training loss against steps, with a dashed line at half of a constant's loss.",
    )


def _steps(table):
    """Return the steps to half of a constant's loss: one row per seed, one column per arm; the length of the run if never."""
    runs = table.groupby(["seed", "activation"]).steps_to_half.first()
    return runs.clip(upper=table.steps.iloc[0]).unstack()


def _last_variances(table):
    """Return the variance in the last layer: one row per seed, one column per arm."""
    rows = table[(table.part == "variance") & (table.x == LAYERS)]
    return rows.pivot_table(index="seed", columns="activation", values="y")


@activations.claim(
    "symmetric",
    "Networks of sigmoids that are symmetric about zero learn faster than networks of logistic units.",
    criterion="with the rate tuned per arm, logistic units need at least 1.5 times the steps of tanh and of 1.7159 tanh(2x/3) to "
    "halve the loss of a constant output; the smaller of the two ratios counts",
)
def _(table):
    steps = _steps(tuned(table, ["activation"], "validation", low=True)[0])
    ratio = np.minimum(steps.logistic / steps.tanh, steps.logistic / steps.scaled_tanh)
    return judge_effect("steps, logistic / symmetric", ratio, claimed=(1.5, np.inf), null=1)


@activations.claim(
    "recommended",
    "The sigmoid to take is 1.7159 tanh(2x/3): it learns faster than plain tanh.",
    criterion="with the rate tuned per arm, plain tanh needs at least 1.1 times the steps; no effect is a ratio of 1",
)
def _(table):
    steps = _steps(tuned(table, ["activation"], "validation", low=True)[0])
    return judge_effect("steps, tanh / 1.7159 tanh(2x/3)", steps.tanh / steps.scaled_tanh, claimed=(1.1, np.inf), null=1)


@activations.claim(
    "unit-variance",
    "With inputs of unit variance, 1.7159 tanh(2x/3) and weights of variance 1/fan-in, every layer puts out a variance near 1.",
    criterion=f"the variance in layer {LAYERS} lies within 10 % of 1",
)
def _(table):
    last = _last_variances(table).scaled_tanh
    first = table[(table.part == "variance") & (table.x == 1) & (table.activation == "scaled_tanh")].y.median()
    text = f"it is {number(first)} after one layer and falls to a fixed point above zero, as the gain at the origin is 1.144"
    return judge_effect(f"variance in layer {LAYERS}", last, claimed=(0.9, 1.1), null=0.9, note=text)


@activations.claim(
    "recursion",
    "In wide layers the second moment q of the activations follows from that of the layer below: it becomes E f(√q z)², z normal.",
    criterion="the variance that follows is within 10 % of the measured one in every layer, for both symmetric sigmoids",
    by="notes",
)
def _(table):
    rows = table[(table.part == "variance") & table.activation.isin(["tanh", "scaled_tanh"])]
    expected = {name: expected_variances(name, LAYERS) for name in ("tanh", "scaled_tanh")}
    errors = [abs(y / expected[name][int(x) - 1] - 1) for name, x, y in zip(rows.activation, rows.x, rows.y, strict=True)]
    return judge_identity("largest relative difference of measured and expected variance", max(errors), 0.1)
