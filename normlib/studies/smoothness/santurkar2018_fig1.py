"""Santurkar et al. (2018), figure 1: a network with and without batch norm at two rates, and how its distributions evolve."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, nn

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.probes import reduce_activations
from normlib.probes.propagation import percentiles_of
from normlib.studies.common.arms import first_at, images_for, side_by_side
from normlib.studies.common.looks import INK, WIDTH, median_and_band, norm_color
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, fit, vgg
from normlib.training import accuracy
from normlib.training.history import append_rows

RATES = [0.1, 0.5]  # those of the paper, for every arm
INITS = {"glorot_normalized": "Glorot", "he": "He"}
LINES = {"glorot_normalized": "-", "he": "--"}
LAYERS = {"early": 3 / 13, "late": 11 / 13}  # the paper draws layers 3 and 11 of a VGG, whose smallest fit has 13 convolutions
PERCENTILES = [2.5 + 5 * i for i in range(20)]
DRAWN = {"p2": 0, "p27": 5, "p47": 9, "p72": 14, "p97": 19}
SAMPLE = 512  # training images for the accuracy on the way; the distributions are those of the first batch of them
LEARNED, CHANCE = 0.75, 0.2  # training accuracy: that a network has learned; that it has not left the 10 % of guessing

figure1 = Study(
    "santurkar2018.fig1",
    item="Fig 1",
    title="With batch norm and without it at the rates of the paper: training, test, distributions",
    kind="train",
    vary={"norm": ["none", "batch"], "init": list(INITS), "rate": RATES},
    quick={**QUICK, "steps": 20},
    laptop={**LAPTOP, "steps": 300},
    full=FULL,
)


def watched_layers(count: int) -> dict[str, int]:
    """Return the positions of the two layers that are drawn, among `count` convolutions.

    Example:
        >>> watched_layers(13), watched_layers(6)
        ({'early': 2, 'late': 10}, {'early': 1, 'late': 5})
    """
    return {name: int(np.ceil(share * count - 1e-9)) - 1 for name, share in LAYERS.items()}


def when(steps: int) -> list[int]:
    """Return when to look: 15 times, denser at the start."""
    return sorted({round(steps * share) for share in np.linspace(0, 1, 15) ** 1.5})


def movement(percentiles: np.ndarray) -> float:
    """Return how far a distribution moves from one look to the next, on average, in units of its own usual width.

    Args:
        percentiles: shape (looks, percentiles). The mean distance of the percentiles of two looks is how far mass has to be
            carried; the width is the standard deviation of the percentiles of a look, averaged over the looks.
    """
    return float(np.abs(np.diff(percentiles, axis=0)).mean() / percentiles.std(axis=1).mean())


@figure1.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    net, x, y = vgg(c, images, c.norm, seed), images.x_train[:SAMPLE], images.y_train[:SAMPLE]
    layers = {name: f"blocks.{at}.norm" for name, at in watched_layers(len(net.get_submodule("blocks"))).items()}  # type: ignore[arg-type]
    ridges: dict[str, list[list[float]]] = {name: [] for name in layers}

    def pooled(values: Tensor) -> list[float]:
        return percentiles_of(values.double().flatten(), PERCENTILES)

    def look(step: int, model: nn.Module) -> dict[str, float]:
        found = reduce_activations(model, x[:BATCH], pooled, list(layers.values()), training=True)
        for name, layer in layers.items():
            ridges[name].append(found[layer, "output"])
        return {
            "learned": accuracy(model, x, y, statistics="train", batch_size=BATCH),
            **{f"{name}_{drawn}": ridges[name][-1][at] for name in layers for drawn, at in DRAWN.items()},
        }

    run = fit(net, images, steps=c.steps, rate=c.rate, seed=seed, probe=look, probe_steps=when(c.steps))
    columns, guess, finite = dict(run.probes), 1 / images.classes, run.diverged_at is None
    for step in when(c.steps)[len(columns["step"]) :]:  # after it diverged a network guesses
        append_rows(columns, step, {**dict.fromkeys(columns, np.nan), "learned": guess, "step": step})
    return {
        **columns,
        **{f"{name}_moved": movement(np.array(ridges[name])) if finite else np.nan for name in layers},
        "diverged_at": run.diverged_at if not finite else np.inf,
        "tested": accuracy(net, tests.x_test, tests.y_test, statistics="eval") if finite else guess,
    }


ARMS = ["norm", "init", "rate"]  # what follows is read from the table


def per_run(table, value):
    """Return one row a seed, one column an arm: "first" step that has learned, "mean" over the steps, or "last", of `learned`."""
    numbers = {
        "first": lambda run: first_at(run.step, run.learned, LEARNED),
        "mean": lambda run: np.trapezoid(run.learned, run.step) / run.step.iloc[-1],
        "last": lambda run: run.learned.iloc[-1],
    }
    return table.sort_values("step").groupby(["seed", *ARMS])[["step", "learned"]].apply(numbers[value]).unstack(ARMS)


@figure1.draw
def _(table):
    figure = Figure(figsize=(WIDTH, 5.4))
    axes = figure.subplot_mosaic("AAAABBBBCCCC;DDDEEEFFFGGG")
    for panel, rate in zip("AB", RATES, strict=True):
        for norm, init in itertools.product(("none", "batch"), INITS):
            arm = table[(table.norm == norm) & (table.init == init) & (table.rate == rate)]
            label = f"{'BN' if norm == 'batch' else 'no norm'}, {INITS[init]}" if panel == "A" else None
            median_and_band(axes[panel], arm, "step", "learned", color=norm_color(norm), linestyle=LINES[init], label=label)
        axes[panel].set_xlabel("step")
        axes[panel].set_title(f"training accuracy, rate {rate:g}", fontsize=9.5)
    ends = table.drop_duplicates(["seed", *ARMS])
    for place, (rate, init) in enumerate(itertools.product(RATES, INITS)):
        for norm, shift in (("none", -0.12), ("batch", 0.12)):
            runs = ends[(ends.norm == norm) & (ends.init == init) & (ends.rate == rate)]
            axes["C"].plot([place + shift] * len(runs), runs.tested, "o", color=norm_color(norm), mfc="none")
    axes["C"].set_xticks(range(4), [f"{rate:g}\n{name}" for rate in RATES for name in INITS.values()], fontsize=8.5)
    axes["C"].set_title("test accuracy at the end", fontsize=9.5)
    for panel in "ABC":
        axes[panel].axhline(1 / 10, color=INK, linewidth=0.6)
        axes[panel].set_ylim(0, 1.02)
    for panel, (layer, norm) in zip("DEFG", itertools.product(("early", "late"), ("none", "batch")), strict=True):
        run = table[(table.norm == norm) & (table.init == "glorot_normalized") & (table.rate == 0.1)]
        run = run[run.seed == run.seed.min()].sort_values("step")
        for low, high, alpha in (("p2", "p97", 0.2), ("p27", "p72", 0.4)):
            axes[panel].fill_between(
                run.step, run[f"{layer}_{low}"], run[f"{layer}_{high}"], color=norm_color(norm), alpha=alpha, linewidth=0
            )
        axes[panel].plot(run.step, run[f"{layer}_p47"], color=norm_color(norm))
        axes[panel].set(xlabel="step")
        axes[panel].set_title(f"{layer} layer, {'BN' if norm == 'batch' else 'no norm'}", fontsize=9)
    axes["D"].set_ylabel("what enters ReLU")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8.5)
    last, moved, lost = per_run(table, "last").median(), moves(table).median(), int(np.isfinite(ends.diverged_at).sum())
    return Drawing(
        figure,
        caption="SGD batch and statistic batch 128, the rates of the paper for every arm, none tuned. **Top** Training accuracy "
        "(batch statistics) and test accuracy (running averages), weights drawn as Glorot's or He's. At the end of rate 0.5 the "
        f"median training accuracy is {_shown(last, 'none')} without norm, {_shown(last, 'batch')} with BN. The horizontal line is "
        f"guessing; runs with an infinite loss stand there ({lost}). **Bottom** Rate 0.1, Glorot, one seed: the middle 95 % and "
        f"50 % of what enters ReLU, a layer's values together. Without norm they move {number(moved.early)} times as far from look "
        f"to look as with BN in the early layer, {number(moved.late)} times in the late one, each in units of its own width.",
        alt="Top: training accuracy over steps at rates 0.1 and 0.5, with and without batch normalization, two initializations; "
        "test accuracy as dots. Bottom: percentile bands over steps of an early and a late layer, without and with it.",
    )


def _shown(last, norm):
    return " and ".join(f"{100 * last[norm, init, 0.5]:.0f} % ({name})" for init, name in INITS.items())


def moves(table, init="glorot_normalized", rate=0.1):
    """Return for each seed and layer how far the distribution moves without norm, over how far it moves with BN."""
    runs = table[(table.init == init) & (table.rate == rate)]
    sides = {layer: side_by_side(runs, "norm", f"{layer}_moved") for layer in LAYERS}
    return pd.DataFrame({layer: side["none"] / side["batch"] for layer, side in sides.items()})


@figure1.claim(
    "faster",
    "At rate 0.1 the network with BN trains faster than the one without.",
    criterion="Glorot's initialization: the first look at which the training accuracy is 75 % comes with BN after at most half as "
    "many steps",
)
def _(table):
    first = per_run(table, "first")
    with_bn, without = (first[norm, "glorot_normalized", 0.1] for norm in ("batch", "none"))
    note = f"medians: {number(with_bn.median())} steps with, {number(without.median())} without (∞: not in this run)"
    return judge_effect("steps to 75 %, BN / none", with_bn / without, claimed=(0, 0.5), null=1, note=note)


@figure1.claim(
    "large-rate",
    "At rate 0.5 the network without BN does not train, and the one with BN does.",
    criterion="Glorot's initialization: training accuracy without BN at most 20 % at the end, where 10 % is guessing; and with BN "
    "at least 75 % in every seed (else not reproduced)",
)
def _(table):
    return _fails(table, "glorot_normalized")


@figure1.claim(
    "large-rate-he",
    "That the plain network does not train at rate 0.5 is no matter of Glorot's initialization: with He's it does not either.",
    criterion="He's initialization, else as for the claim before: at most 20 % without BN, at least 75 % with it",
    by="notes",
)
def _(table):
    return _fails(table, "he")


def _fails(table, init):
    last = per_run(table, "last")
    without, with_bn = (last[norm, init, 0.5] for norm in ("none", "batch"))
    claimed = (0, CHANCE) if with_bn.min() >= LEARNED else (np.inf, np.inf)
    note = f"with BN {100 * with_bn.min():.0f} % at least; without, each seed: {', '.join(f'{100 * one:.0f} %' for one in without)}"
    return judge_effect("training accuracy without BN", without, claimed=claimed, null=np.nan, note=note)


@figure1.claim(
    "generalizes",
    "At rate 0.1 the network with BN generalizes better.",
    criterion="Glorot's initialization, after the same number of steps: test accuracy at least 1 point higher with BN",
)
def _(table):
    test = 100 * side_by_side(table, ARMS, "tested")
    gaps = {name: test["batch", init, 0.1] - test["none", init, 0.1] for init, name in INITS.items()}
    note = f"with He's initialization {number(gaps['He'].median())}"
    return judge_effect("points of test accuracy, BN less none", gaps["Glorot"], claimed=(1, np.inf), null=0, note=note)


@figure1.claim(
    "as-stable",
    "The distributions of activations change over training about as much without BN as with it.",
    criterion="Glorot's initialization, rate 0.1, what enters ReLU: a layer's pooled distribution moves from look to look, in "
    "units of its own width, 0.5 to 2 times as far without BN as with it; of the two layers the ratio further from 1 counts",
)
def _(table):
    ratios = np.log(moves(table))
    far = np.exp(ratios.apply(lambda row: row[row.abs().idxmax()] if row.notna().all() else np.nan, axis=1))
    he = moves(table, "he").median()
    note = f"with He's initialization {number(he.early)} in the early layer, {number(he.late)} in the late one"
    return judge_effect("movement without BN / with it", far, claimed=(0.5, 2), null=np.nan, note=note)


@figure1.claim(
    "initialization",
    "At rate 0.1 at least half of the lead of BN is a matter of the initialization: with He's, half of it or less is left.",
    criterion="lead: training accuracy, averaged over the steps, with BN less without; the lead with He's initialization at most "
    "half of that with Glorot's",
    by="notes",
)
def _(table):
    mean = per_run(table, "mean")
    leads = {name: 100 * (mean["batch", init, 0.1] - mean["none", init, 0.1]) for init, name in INITS.items()}
    note = f"leads in points: {number(leads['Glorot'].median())} with Glorot's, {number(leads['He'].median())} with He's"
    return judge_effect("lead with He's / with Glorot's", leads["He"] / leads["Glorot"], claimed=(-np.inf, 0.5), null=1, note=note)
