"""Santurkar et al. (2018), figure 3, on images: does batch norm reduce internal covariate shift, as definition 2.1 measures it?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch.nn.functional as F

from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import norm_color, note, subplots
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, RECIPE, fit, vgg
from normlib.studies.smoothness.shifts import (
    NORMS,
    by_rate,
    draw_layers,
    gains,
    phase,
    probed_steps,
    rate_in_words,
    ratios,
    shift_probe,
    typical,
    weight_layers,
    with_depth_and_loss,
)

LEVELS = (1.8, 1.4, 1.0, 0.7, 0.4)  # of the training loss, to compare networks that are equally far
ALIKE = 0.1  # cosines that differ by less are alike

figure3 = Study(
    "santurkar2018.fig3",
    item="Fig. 3a",
    title="Does the gradient of a layer turn less under the steps of the layers below it, with batch norm?",
    kind="train",
    vary={"norm": list(NORMS), "rate": [0.1, 0.01]},
    quick={**QUICK, "steps": 30, "slow_steps": 40, "points": 5, "every": 2},
    laptop={**LAPTOP, "depth": 5, "train": 2560, "steps": 300, "slow_steps": 1200, "points": 11, "every": 1},
    full={**FULL, "slow_steps": 15_000, "points": 18, "every": 3},
)


@figure3.trial
def _(c: Config, seed: int):
    images, _ = images_for(c, seed)
    network = vgg(c, images, c.norm, seed)
    names, steps = weight_layers(network), c.steps if c.rate >= 0.1 else c.slow_steps
    places = list(range(1, len(names), c.every))  # nothing is below the lowest, which has no shift
    history = fit(
        network, images, steps=steps, rate=c.rate, seed=seed,
        probe=shift_probe(F.cross_entropy, [names[place] for place in places]), probe_steps=probed_steps(steps, c.points),
    )  # fmt: skip
    columns = with_depth_and_loss(history, [place + 1 for place in places])
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}", **columns)
    return columns


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def at_equal_loss(table: pd.DataFrame, rate: float) -> pd.DataFrame:
    """Return the median over layers of cosine and relative shift, at the first probe whose training loss is at or below a level.

    Returns:
        A row a seed and level; columns are measure and norm; levels that one of the two networks never reaches are left out.
    """
    rows = []
    for (seed, norm), run in table[(table.rate == rate) & (table.step > 0)].groupby(["seed", "norm"]):
        layers = run.groupby("step")[["loss", "cosine", "relative_shift"]].median().sort_index()
        for level in LEVELS:
            reached = layers[layers.loss <= level]
            if len(reached):
                rows.append({"seed": seed, "norm": norm, "level": level, **reached.iloc[0].to_dict()})
    found = pd.DataFrame(rows, columns=["seed", "norm", "level", "loss", "cosine", "relative_shift"])
    wide = found.set_index(["seed", "level", "norm"])[["cosine", "relative_shift"]].unstack("norm")
    return wide.reindex(columns=pd.MultiIndex.from_product([["cosine", "relative_shift"], list(NORMS)])).dropna()


@figure3.draw
def _(table):
    rates = sorted(table.rate.unique(), reverse=True)
    figure, axes = subplots(3, len(rates), height=2.1, sharey="row")
    for column, rate in zip(axes.T, rates, strict=True):
        runs = table[table.rate == rate]
        draw_layers(column[0], runs, "shift")
        draw_layers(column[1], runs, "cosine")
        column[0].set(yscale="log", title=f"rate {rate_in_words(rate)}")
        column[1].set(xlabel="step of training")
        for norm in NORMS:
            arm = runs[(runs.norm == norm) & (runs.step > 0)]
            path = arm.groupby(["seed", "step"])[["loss", "relative_shift"]].median().groupby("step").median()
            column[2].plot(path.loss, path.relative_shift, "o-", color=norm_color(norm), markersize=3, linewidth=1)
        column[2].set(xlabel="training loss", xlim=(2.45, 0.25), yscale="log")
    axes[0, 0].set_ylabel("shift ‖G − G′‖")
    axes[1, 0].set_ylabel("cosine of G, G′")
    axes[2, 0].set_ylabel("shift / ‖G‖")
    note(axes[1, 0], "circles: first step\ndashed: highest layer", 0.03, 0.05, fontsize=8.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    parts = {"first step": "first", "first fifth": "early", "last fifth": "late"}
    words = {
        name: "; ".join(f"{said} {by_rate(read(phase(table, part)))}" for said, part in parts.items())
        for name, read in {
            "raw": lambda runs: ratios(runs, "shift"),
            "relative": lambda runs: ratios(runs, "relative_shift"),
            "angle": gains,
        }.items()
    }
    ends = typical(table[table.step == table.groupby("rate").step.transform("max")], "loss")
    return Drawing(
        figure,
        caption=f"Definition 2.1 in every layer above the lowest (thin lines; bold: the median layer), {RECIPE}, each rate given "
        f"and not tuned, statistics over the {BATCH} images of the update. Shift ‖G − G′‖ with BN over that without, medians over "
        f"layers and probes: {words['raw']}. Relative to ‖G‖: {words['relative']}. Cosine with BN less that without: "
        f"{words['angle']}. Training loss at the end: with BN {by_rate(ends['batch'])}; without {by_rate(ends['none'])}. "
        "**Bottom** The relative shift of the median layer against the training loss, without the first step.",
        alt="Two columns for two learning rates, networks with and without batch normalization. Top: the shift of each layer's "
        "gradient over training. Middle: the cosine. Bottom: the relative shift against the training loss.",
    )


def _no_smaller(table: pd.DataFrame):
    found = ratios(table, "shift")
    effect = "‖G − G′‖ with BN / without, lower of two rates"
    return judge_effect(effect, found.min(axis=1, skipna=False), claimed=(0.5, np.inf), null=1, note=by_rate(found))


def _no_better(table: pd.DataFrame):
    found = gains(table)
    effect = "cosine with BN minus without, higher of two rates"
    return judge_effect(effect, found.max(axis=1, skipna=False), claimed=(-2, ALIKE), null=np.nan, note=by_rate(found))


@figure3.claim(
    "raw-early",
    "Early in training the shift ‖G − G′‖ is similar with and without BN, or larger with it.",
    criterion="first fifth of the steps without the very first: median over layers and probes with BN at least half of that "
    "without, at both rates",
)
def _(table):
    return _no_smaller(phase(table, "early"))


@figure3.claim(
    "raw-late",
    "Late in training, too, the shift ‖G − G′‖ is similar with and without BN, or larger with it.",
    criterion="last fifth of the steps: as for raw-early, at both rates; the caption of the paper excepts networks that have "
    "converged, this reading does not",
)
def _(table):
    return _no_smaller(phase(table, "late"))


@figure3.claim(
    "angle-early",
    "Early in training the cosine of G and G′ is similar with and without BN, or lower with it.",
    criterion="first fifth of the steps without the very first: median with BN exceeds that without by at most "
    f"{ALIKE}, at both rates",
)
def _(table):
    return _no_better(phase(table, "early"))


@figure3.claim(
    "angle-late",
    "Late in training, too, the cosine of G and G′ is similar with and without BN, or lower with it.",
    criterion=f"last fifth of the steps: with BN at most {ALIKE} higher, at both rates; networks that have converged are not "
    "excepted",
)
def _(table):
    return _no_better(phase(table, "late"))


@figure3.claim(
    "equal-loss",
    "Compared at equal training loss, too, the cosine of G and G′ is similar with and without BN, or lower with it.",
    criterion=f"at rate 0.1, cosine (median layer) with BN at most {ALIKE} higher, at the first probe at which the training loss "
    f"is at or below {', '.join(map(str, LEVELS))}; median over the levels that both networks reach",
    by="notes",
)
def _(table):
    found = at_equal_loss(table, 0.1)["cosine"]
    by_seed = (found["batch"] - found["none"]).groupby("seed").median().reindex(sorted(table.seed.unique()))
    each = ", ".join(f"{number(value)}" for value in by_seed)
    return judge_effect("cosine with BN minus without", by_seed, claimed=(-2, ALIKE), null=np.nan, note=f"seed by seed {each}")


@figure3.claim(
    "even-worse",
    "BN doesn't even reduce internal covariate shift: ‖G − G′‖ is similar with it, or even worse.",
    criterion="all probes but the first step: median over layers and probes with BN at least half of that without, at both rates",
    by="seed001",
)
def _(table):
    return _no_smaller(phase(table, "all"))
