"""Ba, Kiros & Hinton (2016), Layer Normalization: a plain recurrent network with and without it."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import NullLocator

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.networks import RecurrentClassifier
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.studies.flavors.sequences import BATCH, learn, share_of_steps

NORMS = {"none": "none", "layer": "layer norm"}
SCALES = [0.5, 1.0, 2.0]  # of the orthogonal recurrent weights at the start
LINES = {0.5: ":", 1.0: "-", 2.0: "--"}
ARMS = ["norm", "scale"]

recurrent = Study(
    "ba2016.recurrent",
    item="§3.1 and §6, in small",
    title="A tanh network that reads images row by row, with and without layer norm",
    kind="train",
    vary={"norm": list(NORMS), "scale": SCALES, "rate": [0.002, 0.006, 0.018, 0.05]},
    quick={"data": "digits", "test": 200, "validation": 200, "hidden": 16, "steps": 40, "rate": [0.006, 0.018]},
    laptop={"data": "fashion-mnist", "train": 12_000, "test": 2_000, "validation": 600, "hidden": 32, "steps": 400},
    full={"data": "mnist", "hidden": 128, "steps": 4_000},
)


@recurrent.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    net = RecurrentClassifier(
        images.shape[-1], c.hidden, images.classes, "rnn", c.norm, recurrent_init=f"orthogonal:gain={c.scale}", seed=seed
    )
    return learn(net.to(c.device), c, images, tests, seed)


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table):
    """Keep each arm's runs at the rate with the lowest held-out loss, and return them with the rates."""
    return tuned(table, ARMS, "lowest", low=True)


def drift(runs, column: str):
    """Return for each run how far a size moves along the rows: the logarithm of the largest over the smallest.

    A row a seed, a column a norm and a scale.
    """
    sizes = runs.groupby(["seed", *ARMS])[column]
    return np.log(sizes.max() / sizes.min()).unstack(ARMS)


def decades(runs, column: str = "gradient_start"):
    """Return for each run the decades by which the gradient at the first row exceeds that at the last; shaped as `drift`."""
    gradients = runs.sort_values("row").groupby(["seed", *ARMS])[column]
    return np.log10(gradients.first() / gradients.last()).unstack(ARMS)


@recurrent.draw
def _(table):
    runs, rates = best(table)
    figure, ((losses, errors), (states, gradients)) = subplots(2, 2, height=2.5)
    for norm, label in NORMS.items():
        color, own = norm_color(norm), runs[runs.norm == norm]
        median_and_band(losses, own[own.scale == 1.0], "step", "loss", color=color, label=label)
        median_and_band(errors, own.drop_duplicates(["scale", "seed"]), "scale", "test_error", color=color, marker="o")
        for scale, line in LINES.items():
            one = own[own.scale == scale]
            median_and_band(gradients, one, "row", "gradient_start", color=color, linestyle=line, linewidth=1.4)
        one = own[own.scale == 1.0]
        median_and_band(states, one, "row", "size_start", color=color, linestyle="-", linewidth=1.2)
        median_and_band(states, one, "row", "size_end", color=color, linestyle="--", linewidth=1.2)
    losses.set(xlabel="step", ylabel="held-out loss", yscale="log", title="learning, scale 1")
    losses.yaxis.set_minor_locator(NullLocator())
    ticks = [t for t in (0.25, 0.5, 1.0, 2.0) if losses.get_ylim()[0] < t < losses.get_ylim()[1]]
    losses.set_yticks(ticks, [number(t) for t in ticks])
    losses.legend()
    errors.set(xlabel="scale of recurrent weights at the start", ylabel="test error (%)", xscale="log", title="error")
    errors.set_xticks(SCALES, [number(s) for s in SCALES])
    errors.xaxis.set_minor_locator(NullLocator())
    states.set(xlabel="row", ylabel="size of the state", ylim=(0, 1.05), title="forward, scale 1")
    note(states, "solid: start\ndashed: after training", 0.97, 0.03, ha="right", fontsize=8.5)
    gradients.set(xlabel="row", ylabel="gradient in the state", yscale="log", title="backward, at the start")
    gradients.legend(
        [gradients.plot([], [], line, color=norm_color("none"))[0] for line in LINES.values()],
        [f"scale {number(scale)}" for scale in LINES], fontsize=8.5,
    )  # fmt: skip
    lost = decades(runs).median()
    words = {norm: ", ".join(number(10 ** lost[norm, scale]) for scale in SCALES) for norm in NORMS}
    error = side_by_side(runs[runs.scale == 1.0], "norm", "test_error").median()
    names = {(norm, scale): f"{label} at {number(scale)}" for norm, label in NORMS.items() for scale in SCALES}
    chosen = f"{number(max(rates.values()))} in every arm" if len({*rates.values()}) == 1 else rates_in_words(rates, names)
    return Drawing(
        figure,
        caption=f"A tanh network reads images row by row, {BATCH} images per update, Adam at a constant rate. **Top** Held-out "
        f"loss and test error; at scale 1 it is {error['none']:.1f} % without layer norm and {error['layer']:.1f} % with it. "
        "**Bottom** Root mean square of the hidden state, row by row, and the norm of the gradient in it. At the start the "
        f"gradient at the first row is, for the scales {', '.join(number(s) for s in SCALES)}, {words['none']} times that at the "
        f"last without layer norm, and {words['layer']} times with it. Learning rate, by held-out loss: {chosen}.",
        alt="Four panels for a recurrent network without and with layer norm: held-out loss over steps, test error over the scale "
        "of recurrent weights, size of the hidden state and norm of its gradient over the rows of an image.",
    )


# ---------------------------------------------------------------------------------------------------------------------------
# Claims
# ---------------------------------------------------------------------------------------------------------------------------


@recurrent.claim(
    "fewer-steps",
    "With layer norm a recurrent network trains faster.",
    criterion="at scale 1, each at its tuned rate, the step at which layer norm reaches the lowest held-out loss of the network "
    "without it, over the step at which that network does, is below 1",
)
def _(table):
    runs = best(table)[0]
    shares = {scale: list(share_of_steps(runs[runs.scale == scale], "layer", "none", "norm").values()) for scale in SCALES}
    said = ", ".join(f"{number(np.median(shares[scale]))} at scale {number(scale)}" for scale in SCALES if scale != 1.0)
    note_ = f"∞: not reached; {said}"
    return judge_effect("steps with layer norm / without", shares[1.0], claimed=(0, 1), null=1, note=note_)


@recurrent.claim(
    "generalization",
    "With layer norm a recurrent network generalizes better.",
    criterion="at scale 1, each at its tuned rate, the test error without layer norm less that with it is above 0",
)
def _(table):
    runs = best(table)[0]
    error = side_by_side(runs[runs.scale == 1.0], "norm", "test_error")
    return judge_effect("points of error, none less layer norm", error["none"] - error["layer"], claimed=(0, np.inf), null=0)


@recurrent.claim(
    "steady-states",
    "Layer norm makes the hidden-to-hidden dynamics much more stable: the state neither grows nor shrinks along the sequence.",
    criterion="at scale 1, the logarithm of the largest over the smallest root mean square of the state along the rows is at most "
    "half of that without layer norm, before and after training: the larger of the two ratios counts",
)
def _(table):
    runs = best(table)[0]
    moved = {when: drift(runs, f"size_{when}") for when in ("start", "end")}
    ratio = {when: d["layer", 1.0] / d["none", 1.0] for when, d in moved.items()}
    said = f"{number(ratio['start'].median())} at the start, {number(ratio['end'].median())} after training"
    larger = np.maximum(ratio["start"], ratio["end"])
    return judge_effect("drift of the state, layer norm / none, larger of two", larger, claimed=(0, 0.5), null=1, note=said)


@recurrent.claim(
    "gradients",
    "Layer norm helps to prevent exploding and vanishing gradients in a recurrent network.",
    criterion="at the start, the decades between the gradient at the first row and that at the last are fewer with layer norm than "
    "without at each of the three scales: the largest of the three ratios counts",
    by="seed001",
)
def _(table):
    lost = decades(best(table)[0])
    ratios = lost["layer"].abs() / lost["none"].abs()
    said = ", ".join(f"{number(ratios[scale].median())} at scale {number(scale)}" for scale in SCALES)
    largest = ratios.max(axis=1, skipna=False)
    return judge_effect("decades of gradient, layer norm / none, largest of three", largest, claimed=(0, 1), null=1, note=said)


@recurrent.claim(
    "scale-of-the-start",
    "With layer norm the error depends less on the scale of the recurrent weights at the start.",
    criterion="the largest less the smallest test error over the three scales, with layer norm over without, is below 1",
    by="notes",
)
def _(table):
    error = side_by_side(best(table)[0], ARMS, "test_error")
    spread = {norm: error[norm].max(axis=1, skipna=False) - error[norm].min(axis=1) for norm in NORMS}
    said = f"{number(spread['none'].median())} points without, {number(spread['layer'].median())} with"
    return judge_effect(
        "spread of the error, layer norm / none", spread["layer"] / spread["none"], claimed=(0, 1), null=1, note=said
    )
