"""He, Zhang, Ren & Sun (2015), Delving deep into rectifiers: initial weights that let thirty plain ReLU layers learn."""

from __future__ import annotations

import numpy as np

from normlib.lab import Diverged, Drawing, Judgement, Study, Verdict, judge_effect, judge_identity, number
from normlib.networks import PlainConvNet
from normlib.probes import record_activations
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, INK, VERMILION, median_and_band, note, subplots
from normlib.studies.common.tuning import tuned
from normlib.training import evaluate, train

INITS = {"he": ("He: 2/fan-in", BLUE), "xavier_fan_in": ("“Xavier”: 1/fan-in", VERMILION)}
NORMS = {"none": "-", "batch": "--"}
CHANCE = float(np.log(10))  # the loss of a constant answer, in nats
LEFT = 0.1  # a network has left chance once its loss is this far below it
SMOOTHING = 20  # steps over which the training loss is averaged

depth = Study(
    "he2015.depth",
    item="Figs 2, 3",
    title="Each ReLU layer halves the signal unless its weights make up for it; batch normalization makes it all one",
    kind="train",
    vary={"depth": [14, 22, 30], "init": list(INITS), "norm": list(NORMS), "rate": [0.005, 0.02]},
    quick={"data": "digits", "pool": 1, "width": 8, "batch": 16, "steps": 30, "norm_steps": 22, "rate": [0.01]},
    laptop={"data": "fashion-mnist", "pool": 2, "width": 16, "batch": 32, "steps": 250, "norm_steps": 90},
    full={"data": "cifar10", "pool": 1, "width": 64, "batch": 128, "steps": 500, "norm_steps": 150, "rate": [0.01]},
)


@depth.trial
def _(c, seed):
    images = load(c).pooled(c.pool).standardized().split_validation(500, seed)
    x, y = images.x_train, images.y_train
    channels, size, _ = images.shape
    net = PlainConvNet(c.depth, c.width, channels, images.classes, c.norm, c.init, seed, size).to(c.device)
    output = record_activations(net, x[:256], ["head"], training=True)["head"]
    steps = c.steps if c.norm == "none" else c.norm_steps
    run = train(net, x, y, steps=steps, batch_size=c.batch, rate=c.rate, momentum=0.9, seed=seed, loss_limit=100)
    smooth = np.convolve(run.loss, np.ones(SMOOTHING) / SMOOTHING, mode="valid") if len(run.loss) >= SMOOTHING else np.array([])
    left = np.flatnonzero(smooth < CHANCE - LEFT)
    columns = {
        **run.curve(30),
        "output_std": float(output.std(correction=0)),
        "left_at": int(left[0]) + SMOOTHING if len(left) else np.inf,
        "lowest_loss": float(smooth.min()) if len(smooth) else np.nan,
    }
    if run.diverged_at is not None:
        raise Diverged(f"the loss exceeds 100 at step {run.diverged_at}", **columns)
    validation = evaluate(net, images.x_test, images.y_test, statistics="train", batch_size=250)
    return {**columns, "validation": validation.loss, "final_loss": float(smooth[-1])}


def _tuned(table):
    return tuned(table, ["depth", "init", "norm"], "validation", low=True)


@depth.draw
def _(table):
    signals = table[table.norm == "none"]
    table, rates = _tuned(table)
    depths = sorted(table.depth.unique())
    figure, axes = subplots(1, 1 + len(depths), height=3.0)
    for init, (label, color) in INITS.items():
        arm = signals[signals.init == init]
        median_and_band(axes[0], arm, "depth", "output_std", color=color, linestyle="none", marker="o")
        low = arm[arm.depth == min(depths)].output_std.median()
        axes[0].annotate(label, (min(depths), low), xytext=(8, 3), textcoords="offset points", color=color, fontsize=8.5)
    he = signals[signals.init == "he"].groupby("depth").output_std.median()
    axes[0].plot(he.index, he * 2.0 ** (-he.index.to_numpy() / 2), color=INK, linewidth=1)
    note(axes[0], "line: He × $2^{-L/2}$", 0.04, 0.03, fontsize=8.5)
    axes[0].set(yscale="log", xlabel="layers L", xticks=depths)
    axes[0].margins(y=0.12)
    axes[0].set_title("output at the start,\nstandard deviation", fontsize=9.5)
    for ax, layers in zip(axes[1:], depths, strict=True):
        for (init, (_, color)), (norm, style) in ((i, n) for i in INITS.items() for n in NORMS.items()):
            arm = table[(table.depth == layers) & (table.init == init) & (table.norm == norm)]
            name = {"none": "no norm", "batch": "batch norm"}[norm] if init == "he" else None
            median_and_band(ax, arm.assign(step=arm.step + 1), "step", "loss", color=color, linestyle=style, label=name)
        ax.axhline(CHANCE, color=INK, linewidth=0.8, linestyle=":")
        ax.set(xscale="log", xlabel="step + 1", ylim=(0.4, 2.9))
        ax.set_title(f"{layers} layers\nloss (nats)", fontsize=9.5)
    axes[-1].legend(fontsize=7.5, loc="lower left", handlelength=1.8)
    deepest = max(depths)
    final = table.groupby(["depth", "init", "norm"]).lowest_loss.median()[deepest]
    return Drawing(
        figure,
        caption="Plain convolution-ReLU networks. Left: with weights of variance 1/fan-in the output before training is "
        f"$2^{{-L/2}}$ of what it is with 2/fan-in; the measured ratio differs by at most {number(100 * _signal_errors(table))} %. "
        "Right: training by stochastic gradient descent with momentum; dotted is chance, "
        f"$\\ln 10$. Lowest loss with {deepest} layers: {number(final['he', 'none'])} (He) and "
        f"{number(final['xavier_fan_in', 'none'])} (“Xavier”); with batch normalization {number(final['he', 'batch'])} and "
        f"{number(final['xavier_fan_in', 'batch'])}. {_rates_in_words(rates)}",
        alt="Left: standard deviation of the output at initialization against depth, log scale. Right: training loss against steps "
        "for three depths, two initializations, with and without batch normalization.",
    )


def _rates_in_words(rates):
    if len(set(rates.values())) == 1:
        return f"Learning rate {number(next(iter(rates.values())))} throughout."
    sizes = sorted({layers for layers, _, _ in rates})
    listed = [
        f"{' / '.join(number(rates[layers, init, norm]) for layers in sizes)} ({'He' if init == 'he' else 'Xavier'}"
        f"{', batch norm' if norm == 'batch' else ''})"
        for norm in NORMS
        for init in INITS
    ]
    return f"Learning rates, chosen on validation images for {' / '.join(map(str, sizes))} layers: {', '.join(listed)}."


def _arms(table, layers, norm, column):
    """Return one row per seed, one column per initialization."""
    rows = table[(table.depth == layers) & (table.norm == norm)]
    return rows.groupby(["seed", "init"])[column].first().unstack()


def _signal_errors(table):
    """Return the largest relative difference between the measured ratio of the outputs, Xavier / He, and 2^(−L/2)."""
    stds = {layers: _arms(table, layers, "none", "output_std") for layers in table.depth.unique()}
    return max(float((std.xavier_fan_in / std.he * 2 ** (layers / 2) - 1).abs().max()) for layers, std in stds.items())


@depth.claim(
    "signal",
    "With ReLU, weights of variance 1/fan-in instead of 2/fan-in shrink the output by √2 per layer: 2^(−L/2) after L layers.",
    criterion="for the same random numbers the outputs' standard deviations have the ratio 2^(−L/2), to 0.1 % at each depth",
)
def _(table):
    return judge_identity("largest relative difference from 2^(−L/2)", _signal_errors(table), 1e-3)


@depth.claim(
    "22-layers",
    "At 22 layers both initializations learn, and He's starts to learn earlier.",
    criterion=f"at the tuned rates both reach a loss of ln 10 − {LEFT}, and Xavier takes at least 1.5 times the steps that He does",
)
def _(table):
    steps = _arms(_tuned(table)[0], 22, "none", "left_at")
    budget = table.steps.iloc[0]
    effect = f"steps to leave ln 10, Xavier / He ({number(steps.he.median())} steps)"
    if np.isinf(steps.to_numpy()).any():
        never = f"in {budget} steps {int(np.isfinite(steps.he).sum())} of {len(steps)} He and "
        never += f"{int(np.isfinite(steps.xavier_fan_in).sum())} of {len(steps)} Xavier networks leave ln 10"
        ratio = (steps.clip(upper=budget).xavier_fan_in / steps.clip(upper=budget).he).median()
        return Judgement(effect + ", at least", float(ratio), None, None, Verdict.LARGER_SCALE, never)
    return judge_effect(effect, steps.xavier_fan_in / steps.he, claimed=(1.5, np.inf), null=1)


@depth.claim(
    "30-layers",
    "At 30 layers the Xavier initialization stalls while He's learns.",
    criterion=f"at the tuned rates He reaches a loss of ln 10 − {LEFT}, and the fall of Xavier's loss below ln 10 is at most 5 % "
    "of that of He's",
)
def _(table):
    lowest = _arms(_tuned(table)[0], 30, "none", "lowest_loss")
    fall = CHANCE - lowest
    share = fall.xavier_fan_in / fall.he
    if (fall.he < LEFT).any():
        text = f"He's own loss falls by only {number(fall.he.min())} nats in {table.steps.iloc[0]} steps"
        return Judgement("fall of the loss below ln 10, Xavier / He", float(share.median()), None, None, Verdict.LARGER_SCALE, text)
    return judge_effect("fall of the loss below ln 10, Xavier / He", share, claimed=(-np.inf, 0.05), null=1)


@depth.claim(
    "batch-norm",
    "With batch normalization the two initializations train alike.",
    criterion="at 30 layers and the tuned rates the lowest losses differ by at most 0.15 nats",
    by="notes",
)
def _(table):
    lowest = _arms(_tuned(table)[0], 30, "batch", "lowest_loss")
    difference = lowest.xavier_fan_in - lowest.he
    return judge_effect("lowest loss, Xavier less He (nats)", difference, claimed=(-0.15, 0.15), null=0)
