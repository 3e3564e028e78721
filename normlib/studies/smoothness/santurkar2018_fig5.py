"""Lp norms in the place of the deviation: normalization that does not fix the variance, and how it trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.probes import record_activations
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import BLUE, GRAY, GREEN, OLIVE, ORANGE, median_and_band, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, PAPER_RATE, QUICK, RECIPE, at_paper_rate, fit, vgg
from normlib.training import accuracy

LP = ["lp:p=1", "lp:p=2", "lp:p=inf"]
NAMES = {"none": "no norm", "batch": "BN", "lp:p=1": "L1", "lp:p=2": "L2", "lp:p=inf": "L∞"}
LOOKS = {"none": (GRAY, "-"), "batch": (BLUE, "-"), "lp:p=1": (ORANGE, "--"), "lp:p=2": (OLIVE, ":"), "lp:p=inf": (GREEN, "-.")}
POINTS = 9  # at which accuracy and distribution are taken
SAMPLE = 256  # training images that they are taken on
LEVELS = np.linspace(0.01, 0.99, 99)  # quantiles that stand for a distribution

figure5 = Study(
    "santurkar2018.fig5",
    item="Figs 5a, 6",
    title="L1 and L2 train as batch norm does, L∞ more slowly, and distributions move most without a norm",
    kind="train",
    vary={"norm": list(NAMES), "rate": [0.03, 0.1, 0.3]},
    quick={**QUICK, "steps": 20, "rate": [PAPER_RATE]},
    laptop={**LAPTOP, "steps": 150},
    full=FULL,
)


def deep_layer(count: int) -> int:
    """Return which of so many convolutions stands as high as the eleventh of thirteen, the layer of figure 6; from 0."""
    return round(11 / 13 * count) - 1


def quantiles(values: Tensor) -> np.ndarray:
    """Return the quantiles of all values of a layer together, images, channels and positions."""
    return np.quantile(values.flatten().cpu().double().numpy(), LEVELS)


def moved(start: np.ndarray, now: np.ndarray) -> float:
    """Return the mean distance of the quantiles of two distributions: their Wasserstein distance, but for the tails."""
    return float(np.abs(now - start).mean())


@figure5.trial
def _(c, seed):
    tuning, testing = images_for(c, seed)
    net = vgg(c, tuning, c.norm, seed)
    layer = f"blocks.{deep_layer(len(net.get_submodule('blocks')))}.norm"  # type: ignore[arg-type]
    x, y = tuning.x_train[:SAMPLE], tuning.y_train[:SAMPLE]
    found: list[np.ndarray] = []

    def probe(step, model):
        found.append(quantiles(record_activations(model, x[:BATCH], [layer], training=True)[layer]))
        return {"learned": accuracy(model, x, y, statistics="train", batch_size=BATCH)}

    steps = sorted({int(step) for step in np.linspace(0, c.steps, POINTS + 1)})
    run = fit(net, tuning, steps=c.steps, rate=c.rate, seed=seed, probe=probe, probe_steps=steps)
    missing = [np.nan] * (len(steps) - len(found))
    learned, finite = [*run.probes["learned"], *missing], run.diverged_at is None
    with torch.no_grad():
        scores = [accuracy(net, s.x_test, s.y_test, statistics="eval") if finite else np.nan for s in (tuning, testing)]
    return {
        "step": steps,
        "learned": learned,
        "held_out": scores[0],
        "accuracy": scores[1],
        "moved": [*(moved(found[0], now) for now in found), *missing],
        "spread": float(found[0].std()),
        **{f"p{level}": [*(float(now[level - 1]) for now in found), *missing] for level in (5, 25, 50, 75, 95)},
    }


def _curves(table):
    """Return the training accuracy at the paper's rate in points: a row a seed and step, a column a norm."""
    return 100 * at_paper_rate(table).set_index(["seed", "step", "norm"]).learned.unstack("norm")


def _farthest(table, relative=False):
    """Return how far the layer's distribution comes from its start at the paper's rate: a row a seed, a column a norm."""
    runs = at_paper_rate(table)
    runs = runs.assign(moved=runs.moved / runs.spread if relative else runs.moved)
    return runs.groupby(["seed", "norm"]).moved.max().unstack("norm")


@figure5.draw
def _(table):
    runs = at_paper_rate(table)
    figure, axes = subplots(2, 3, height=2.3)
    curves = axes[0, 0]
    for norm, (color, style) in LOOKS.items():
        median_and_band(curves, runs[runs.norm == norm], "step", "learned", color=color, linestyle=style, label=NAMES[norm])
    curves.set(ylabel="training accuracy", ylim=(0, 1.02), title="training")
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8.5)
    for ax, norm in zip(axes.flat[1:], LOOKS, strict=True):
        levels = runs[runs.norm == norm].groupby("step")[["p5", "p25", "p50", "p75", "p95"]].median()
        color = LOOKS[norm][0]
        for low, high, alpha in (("p5", "p95", 0.2), ("p25", "p75", 0.4)):
            ax.fill_between(levels.index, levels[low], levels[high], color=color, alpha=alpha, linewidth=0)
        ax.plot(levels.index, levels.p50, color=color)
        note(ax, NAMES[norm], 0.05, 0.86, color=color)
    shared = [ax for ax in axes.flat[1:] if ax is not axes.flat[1]]
    bounds = [f(ax.get_ylim()[i] for ax in shared) for i, f in ((0, min), (1, max))]
    for ax in shared:
        ax.set_ylim(*bounds)
    for ax in axes[1]:
        ax.set_xlabel("step")
    axes[0, 1].set_title("deep layer, its own axis", fontsize=9)
    axes[0, 2].set_title("deep layer", fontsize=9)
    axes[1, 0].set_ylabel("deep layer,\n5 to 95 %")
    kept, rates = tuned(table, ["norm"], "held_out")
    best = 100 * side_by_side(kept, "norm", "accuracy").median()
    far, own = _farthest(table).median(), _farthest(table, relative=True).median()
    said = ", ".join(f"{number(far[norm])} ({number(own[norm])}) {NAMES[norm]}" for norm in NAMES)
    ends = ends_in_words([NAMES[norm] for norm in at_ends(table, ["norm"], rates)])
    return Drawing(
        figure,
        caption=f"Statistics and updates over {BATCH} images; {RECIPE}, the rate 0.1 for all as in the paper. Top left: "
        "training accuracy. Others: what enters the nonlinearity of a deep layer, quantiles of all units together; the panel of no "
        "norm has an axis of its own. Farthest distance of the distribution from its start (in brackets in units of its deviation "
        f"there): {said}. Test accuracy at the best rate of each: "
        f"{', '.join(f'{best[norm]:.1f} % {NAMES[norm]}' for norm in NAMES)}. "
        f"Rates by validation: {rates_in_words(rates, NAMES)}{ends}.",
        alt="Top left: training accuracy by step for no norm, batch norm and L1, L2 and L-infinity norm. Five panels: median, "
        "quartiles and 5 to 95 percent range of the inputs of a deep layer's nonlinearity over training, one for each.",
    )


@figure5.claim(
    "coincide",
    "With L1, L2 and L∞ in the place of the deviation, training goes as with batch norm.",
    criterion="rate 0.1: training accuracy, absolute difference from BN averaged over the curve; the largest of three is "
    "below 5 points",
)
def _(table):
    curves = _curves(table)
    gaps = curves[[*LP, "none"]].sub(curves["batch"], axis=0).abs().groupby("seed").mean()
    said = ", ".join(f"{number(gaps[norm].median())} {NAMES[norm]}" for norm in gaps)
    return judge_effect("points, farthest from BN", gaps[LP].max(axis=1, skipna=False), claimed=(0, 5), null=np.nan, note=said)


@figure5.claim(
    "ahead",
    "Each of the three trains faster than the network without norm.",
    criterion="rate 0.1: training accuracy averaged over the curve at least 10 points above that without norm, the least of three",
)
def _(table):
    area = _curves(table).groupby("seed").mean()
    least = area[LP].sub(area["none"], axis=0).min(axis=1, skipna=False)
    return judge_effect("points, slowest minus no norm", least, claimed=(10, np.inf), null=0)


@figure5.claim(
    "shift-more",
    "The distributions of Lp-normalized networks shift more than those of the network without norm.",
    criterion="rate 0.1, a deep layer, all units together: largest distance of the quantiles from those at the start, the least of "
    "the three over that without norm, above 1",
)
def _(table):
    far = _farthest(table)
    said = ", ".join(f"{NAMES[norm]} {number((far[norm] / far['none']).median())}" for norm in (*LP, "batch"))
    least = far[LP].min(axis=1, skipna=False) / far["none"]
    return judge_effect("distance, least of three / no norm", least, claimed=(1, np.inf), null=1, note=said)


@figure5.claim(
    "shift-in-own-units",
    "In units of the layer's own deviation at the start, the network without norm shifts more.",
    criterion="the same distance divided by the deviation of the quantiles at the start: the largest of the three over that "
    "without norm, below 1",
    by="notes",
)
def _(table):
    far = _farthest(table, relative=True)
    largest = far[LP].max(axis=1, skipna=False) / far["none"]
    return judge_effect("distance, largest of three / no norm", largest, claimed=(0, 1), null=1)


@figure5.claim(
    "tuned",
    "With a rate for each, the four normalized networks reach the same test accuracy.",
    criterion="best rates by validation: highest minus lowest of the four test accuracies below 3 points",
    by="notes",
)
def _(table):
    best = 100 * side_by_side(tuned(table, ["norm"], "held_out")[0], "norm", "accuracy")[["batch", *LP]]
    return judge_effect("points", best.max(axis=1, skipna=False) - best.min(axis=1, skipna=False), claimed=(0, 3), null=np.nan)
