"""Brock, De & Smith (2021): the gain that gives an activation's output variance 1, exact and as it was released."""

from __future__ import annotations

import math

import torch

from normlib.activations import make_activation
from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.common.looks import BLUE, INK, ORANGE, norm_color, note, subplots
from normlib.weights import RELEASED_GAINS, activation_gain, activation_moments, scaled_weight_standardization

SCALES = [1.0, 1.17, 1.4, 1.73, 2.0]  # β: after 0, 9, 24, 50 and 75 blocks of a stage at α = 0.2
VECTORS, LENGTH = 1024, 256  # of normal numbers, in the recipe of the appendix
HOMOGENEOUS = ["relu", "leaky_relu"]

gains = Study(
    "brock2021a.gains",
    item="section 4.3, appendix; released code",
    title="The gain of an activation: an integral, a list of constants near it, and where it has to stand",
    kind="exact",
    vary={"activation": list(RELEASED_GAINS)},
    quick={"draws": 10, "width": 128, "depth": 10},
    laptop={"draws": 30, "width": 512, "depth": 20},
    full=None,
)


def recipe(activation: str, draws: int, generator: torch.Generator) -> list[float]:
    """Estimate the gain by sampling, several times: biased variances of 1024 vectors of 256 normal numbers, their mean."""
    function, found = make_activation(activation), []
    for _ in range(draws):
        found.append(float(function(torch.randn(VECTORS, LENGTH, generator=generator)).var(1, correction=0).mean()) ** -0.5)
    return found


def after_layers(activation: str, gamma: float, width: int, depth: int, generator: torch.Generator) -> float:
    """Return the mean over units of the variance over samples, after dense layers of an activation and scaled weights each."""
    function = make_activation(activation)
    signal = torch.randn(width, width, generator=generator)
    for _ in range(depth):
        weight = scaled_weight_standardization(torch.randn(width, width, generator=generator), gamma=gamma)
        signal = function(signal) @ weight.T
    return float(signal.var(0, correction=0).mean())


def in_equation_and_code(activation: str, scale: float) -> tuple[float, float]:
    r"""Return, for an input of standard deviation $\beta$, the variance of $\gamma f(x/\beta)$ and of $\gamma f(x)/\beta$."""
    function, gamma = make_activation(activation), activation_gain(activation)
    return (
        gamma**2 * activation_moments(lambda z: function(scale * z / scale))[1],
        gamma**2 * activation_moments(lambda z: function(scale * z) / scale)[1],
    )


@gains.trial
def _(c, seed):
    gamma, generator = activation_gain(c.activation), torch.Generator().manual_seed(seed)
    sampled = torch.tensor(recipe(c.activation, c.draws, generator), dtype=torch.float64)
    orders = [in_equation_and_code(c.activation, scale) for scale in SCALES]
    return {
        "gamma": gamma,
        "released": RELEASED_GAINS[c.activation],
        "recipe": float(sampled.mean()),
        "recipe_spread": float(sampled.std()),
        "with_gain": after_layers(c.activation, gamma, c.width, c.depth, generator),
        "without_gain": after_layers(c.activation, 1.0, c.width, c.depth, generator),
        "scale": SCALES,
        "equation": [one for one, _ in orders],
        "code": [two for _, two in orders],
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def _rows(table):
    """Return one row an activation and seed."""
    return table.drop_duplicates(["activation", "seed"])


def _distances(table):
    """Return, for each activation and seed, how many spreads of the recipe the released constant is from what it gives."""
    rows = _rows(table)
    return (rows.released - rows.recipe).abs() / rows.recipe_spread


@gains.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=3.6)
    rows = _rows(table).groupby("activation", sort=False).median(numeric_only=True)
    for at, (_, row) in enumerate(rows.iterrows()):
        spread = 100 * 2 * row.recipe_spread / row.gamma
        left.errorbar(100 * (row.recipe / row.gamma - 1), at, xerr=spread, color=INK, fmt="|", elinewidth=1, markersize=7)
        left.plot(100 * (row.released / row.gamma - 1), at, "o", color=ORANGE, markersize=5, zorder=3)
    left.axvline(0, color=norm_color("scaled_weight"), linewidth=1.4)
    left.set(xlabel="above the integral, in %", ylim=(len(rows) + 0.6, -0.6))
    left.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows.index], fontsize=8.5)
    note(left, "● released", 0.02, 0.015, color=ORANGE, fontsize=8.5)
    note(left, "| recipe ± 2 spreads", 0.98, 0.015, ha="right", fontsize=8.5)
    lower = {"relu": -10, "gelu": -1}  # points, so that two labels do not meet
    for name, color in (("relu", INK), ("gelu", ORANGE), ("silu", norm_color("scaled_weight")), ("tanh", BLUE)):
        curve = table[(table.activation == name) & (table.seed == table.seed.min())]
        right.plot(curve.scale, curve.code, "o-", color=color, markersize=4)
        place = (4, lower.get(name, -3))
        right.annotate(
            name, (curve.scale.iloc[-1], curve.code.iloc[-1]), place, textcoords="offset points", color=color, fontsize=9
        )
    right.plot(curve.scale, curve.equation, color=INK, linewidth=0.8, linestyle=":")
    right.set(xlabel="standard deviation β of the input", ylabel="variance, g before 1/β", ylim=(0, 1.3), xlim=(0.97, 2.32))
    off = 100 * (rows.released / rows.gamma - 1)
    ends = table[table.scale == max(SCALES)].groupby("activation").code.first()
    names = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "tanh": "tanh"}
    said = ", ".join(f"{number(ends[key])} for {name}" for key, name in names.items())
    return Drawing(
        figure,
        caption=f"**Left** The released constants are {number(off.min())} to {number(off.max())} % above the integral; the mean of "
        f"the sampling recipe is {number(100 * (rows.recipe / rows.gamma - 1).median())} % above it (median of the activations). "
        f"**Right** Input of standard deviation β: with g(x/β) the variance is 1 (dotted), with g(x)/β it is {said} at β = "
        f"{max(SCALES):g}. **Not drawn** Behind {int(table.depth.iloc[0])} dense layers of {int(table.width.iloc[0])} units the "
        f"variance is {number(rows.with_gain.min())} to {number(rows.with_gain.max())} with the gain, farthest from 1 for "
        f"{(rows.with_gain - 1).abs().idxmax()}; with γ = 1 it is "
        f"{number(rows.without_gain['relu'])} for ReLU.",
        alt="Left: for twelve activations, released gain and sampled gains with their spread, in percent above the integral. "
        "Right: variance against the standard deviation of the input for four activations when 1/β follows g.",
    )


@gains.claim(
    "keeps-variance",
    "With γ = 1 / √Var g(z) in the weights, layers of scaled weight standardization keep the variance, whatever the activation.",
    criterion="behind all layers of the dense network (20 at laptop) the variance is within 20 % of 1 for each activation: the one "
    "farthest from 1 counts",
)
def _(table):
    rows = _rows(table)
    far = (rows.with_gain - 1).abs().groupby(rows.seed).max()
    return judge_effect("farthest of the activations from variance 1", far, claimed=(0, 0.2), null=0.2)


@gains.claim(
    "vanishes",
    "Without γ the signal of a ReLU network vanishes, by the factor (1 − 1/π)/2 a layer.",
    criterion="the factor per layer, from the variance behind all layers with γ = 1, lies within 3 % of 0.3408",
    by="notes",
)
def _(table):
    rows = _rows(table[table.activation == "relu"]).set_index("seed")
    said = (1 - 1 / math.pi) / 2
    factor = rows.without_gain ** (1 / rows.depth)
    return judge_effect("factor per layer", factor, claimed=(0.97 * said, 1.03 * said), null=math.nan)


@gains.claim(
    "constants",
    "The constants of the released code are near this gain, and none of them is equal to it.",
    criterion="each released constant is within 0.2 % of the integral, and farther from it than 0.001 %: the largest relative "
    "distance counts, infinite if one is nearer",
    by="notes",
)
def _(table):
    off = (_rows(table).released / _rows(table).gamma - 1).abs()
    return judge_identity("largest relative distance", float(off.max()) if off.min() > 1e-5 else math.inf, 2e-3)


@gains.claim(
    "recipe",
    "A sample by the recipe of the appendix explains the distance.",
    criterion="each released constant is within three standard deviations of what the recipe (biased variances of 1024 vectors of "
    "256 normal numbers, their mean, its inverse root) gives when it is repeated: the farthest of the activations counts",
    by="notes",
)
def _(table):
    said = f"all {_rows(table).activation.nunique()} lie above the integral" if (table.released > table.gamma).all() else ""
    return judge_identity("distance in standard deviations", float(_distances(table).max()), 3, f"tolerance 3; {said}")


@gains.claim(
    "order",
    "Dividing by β after the activation, as the code does, is the equation's division before it for ReLU and leaky ReLU only.",
    criterion="the variance with g(x)/β is 1 to a relative 1e-9 at all β for these two, and differs from 1 by at least 0.5 % at "
    "some β for every other activation: the distance of the two counts, infinite if another one agrees",
    by="notes",
)
def _(table):
    off = (table.code - 1).abs().groupby(table.activation).max()
    others = off.drop([name for name in HOMOGENEOUS if name in off.index])
    worst = float(off[HOMOGENEOUS].max()) if others.min() > 0.005 else math.inf
    said = f"tolerance {number(1e-9)}; the others differ by {number(others.min())} to {number(others.max())}"
    return judge_identity("ReLU and leaky ReLU, distance from 1", worst, 1e-9, said)
