"""Noise behind batch norm: if still distributions were what helps, moving them on purpose should undo the help."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config, Drawing, Study, judge_effect, number
from normlib.layers import BatchNorm
from normlib.layers.noisy import NoisyBatchNorm, batch_noise
from normlib.layers.shapes import per_channel
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import GRAY, INK, PINK, VERMILION, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, PAPER_RATE, QUICK, RECIPE, at_paper_rate, fit, vgg
from normlib.surgery import reestimate_statistics
from normlib.training import accuracy

RATES = [0.1, 0.2, 0.4]  # of the arms without norm, to give them their best; the others train at the paper's rate
SWEPT = [0.5, 1.0, 2.0, 4.0]  # n_mu, the largest mean of a channel's shifts; the paper has 0.5
NOISY = {amplitude: f"noisy:n_mu={amplitude:g}" for amplitude in SWEPT}
PLAIN = ["none", "absolute", "scaled"]  # no norm: without noise, with that of noisy BN, with that in channels' own units
NAMES = {"none": "no norm", "batch": "BN", NOISY[0.5]: "noisy BN", "absolute": "same noise alone", "scaled": "scaled noise alone"}
LOOKS = {
    "none": (GRAY, "-"), "batch": (norm_color("batch"), "-"), NOISY[0.5]: (INK, "-"), "absolute": (VERMILION, "--"),
    "scaled": (PINK, "-."),
}  # fmt: skip
POINTS = 9  # at which the training accuracy is taken
SAMPLE = 256  # training images that it is taken on


AT_PAPER_RATE = [f"{arm} + {PAPER_RATE}" for arm in ("batch", *NOISY.values())]  # a run: an arm and its rate

figure2 = Study(
    "santurkar2018.fig2",
    item="Fig. 2",
    title="Batch norm with noise behind it stays far ahead of no norm; alone, the same noise does not always stop training",
    kind="train",
    vary={"run": [*(f"{arm} + {rate}" for arm in PLAIN for rate in RATES), *AT_PAPER_RATE]},
    quick={**QUICK, "steps": 16, "run": [f"{arm} + {PAPER_RATE}" for arm in (*PLAIN, "batch", NOISY[0.5], NOISY[4.0])]},
    laptop={**LAPTOP, "steps": 150},
    full={**FULL, "run": [f"{arm} + {rate}" for arm in (*PLAIN, "batch", *NOISY.values()) for rate in (0.03, *RATES)]},
)


class ChannelNoise(nn.Module):
    """The noise of noisy batch norm by itself, on what a layer puts out; none in evaluation.

    Args:
        scaled: shifts in units of the channel's own deviation, through which no gradient goes, instead of absolute ones.
    """

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled

    def forward(self, input: Tensor) -> Tensor:
        """Scale and shift `input` (N, C, *) in training."""
        if not self.training:
            return input
        scale, shift = batch_noise(input)
        if self.scaled:
            deviation = input.detach().std([0, *range(2, input.ndim)], correction=0)
            shift = shift * per_channel(deviation, input)
        return torch.addcmul(shift, scale, input)


def network(c: Config, images: Dataset, arm: str, seed: int) -> nn.Module:
    """Build the network of an arm; noise without norm stands where the norm would."""
    net = vgg(c, images, "none" if arm in PLAIN else arm, seed)
    if arm in ("absolute", "scaled"):
        for unit in net.get_submodule("blocks").children():
            unit.norm = ChannelNoise(arm == "scaled")
    return net


def silenced(net: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy whose norms add no noise, with statistics for evaluation taken from inputs, again without noise."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, NoisyBatchNorm):
            module.n_mu, module.n_sigma, module.r_mu, module.r_sigma = 0.0, 1.0, 0.0, 0.0
    keeps = any(isinstance(module, BatchNorm) for module in net.modules())
    return reestimate_statistics(net, x.split(BATCH)) if keeps else net


@figure2.trial
def _(c, seed):
    arm, rate = c.run.split(" + ")
    tuning, testing = images_for(c, seed)
    net = network(c, tuning, arm, seed)
    x, y = tuning.x_train[:SAMPLE], tuning.y_train[:SAMPLE]

    def probe(step, model):
        return {"learned": accuracy(model, x, y, statistics="train", batch_size=BATCH)}

    steps = sorted({int(step) for step in np.linspace(0, c.steps, POINTS + 1)})
    run = fit(net, tuning, steps=c.steps, rate=float(rate), seed=seed, probe=probe, probe_steps=steps)
    seen = [*run.probes["learned"], *[np.nan] * (len(steps) - len(run.probes["learned"]))]
    scores = dict.fromkeys(("held_out", "quiet", "running"), np.nan)
    if run.diverged_at is None:
        quiet = silenced(net, tuning.x_train[: min(4, len(tuning.x_train) // BATCH) * BATCH])
        scores["held_out"] = accuracy(quiet, tuning.x_test, tuning.y_test, statistics="eval")
        scores["quiet"] = accuracy(quiet, testing.x_test, testing.y_test, statistics="eval")
        scores["running"] = accuracy(net, testing.x_test, testing.y_test, statistics="eval")
    return {"arm": arm, "rate": float(rate), "step": steps, "learned": seen, "final": seen[-1], **scores}


def _area(table):
    """Return the training accuracy averaged over the curve, in points: a row a seed, a column an arm."""
    return 100 * table.groupby(["seed", "arm"]).learned.mean().unstack("arm")


def _ends(runs):
    """Return the training accuracy of each arm at the end, the median over seeds."""
    return runs.drop_duplicates(["arm", "seed"]).groupby("arm").final.median()


@figure2.draw
def _(table):
    kept, rates = tuned(table, ["arm"], "held_out")
    plain = kept[kept.arm.isin(PLAIN)]
    shown = {arm: (plain if arm in ("absolute", "scaled") else at_paper_rate(table)) for arm in LOOKS}
    figure, (curves, sweep, tests) = subplots(1, 3, height=3.3, gridspec_kw={"width_ratios": [1.3, 1, 1.1]})
    for arm, (color, style) in LOOKS.items():
        runs = shown[arm][shown[arm].arm == arm]
        median_and_band(curves, runs, "step", "learned", color=color, linestyle=style, label=NAMES[arm])
    curves.set(xlabel="step", ylabel="training accuracy", ylim=(0, 1.02))
    runs = at_paper_rate(table).drop_duplicates(["arm", "seed"])
    swept = runs[runs.arm.isin(NOISY.values())]
    swept = swept.assign(amplitude=swept.arm.str.partition("=")[2].astype(float))
    median_and_band(sweep, swept, "amplitude", "final", color=INK, marker="o")
    for arm in ("batch", "none"):
        sweep.axhline(runs[runs.arm == arm].final.median(), color=LOOKS[arm][0], linewidth=1)
    note(sweep, "lines: BN, no norm", 0.05, 0.04, fontsize=8.5)
    sweep.set(xscale="log", xlabel="shift of a channel, at most", ylim=(0, 1.02))
    sweep.set_xticks(SWEPT, [f"{amplitude:g}" for amplitude in SWEPT])
    sweep.minorticks_off()
    for place, (arm, (color, _)) in enumerate(LOOKS.items()):
        runs = shown[arm][shown[arm].arm == arm].drop_duplicates("seed")
        for x, column, marker in ((place - 0.15, "quiet", "o"), (place + 0.15, "running", "x")):
            tests.plot(np.full(len(runs), x), runs[column], marker, color=color, markerfacecolor="none", linestyle="none")
    tests.set_xticks(range(len(LOOKS)), ["none", "BN", "noisy", "same", "scaled"], fontsize=8, rotation=45)
    note(tests, "× running averages", 0.05, 0.04, fontsize=8.5)
    tests.set(ylim=(0, 1.02))
    for axes, title in zip((curves, sweep, tests), ("training", "end of training", "test, noise off"), strict=True):
        axes.set_title(title, fontsize=9.5)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)
    end = {arm: number(value) for arm, value in (100 * _ends(at_paper_rate(table))).items()}
    best = {arm: number(value) for arm, value in (100 * _ends(plain)).items()}
    ends = [NAMES[arm] for arm in at_ends(table, ["arm"], rates) if arm in PLAIN]
    return Drawing(
        figure,
        caption=f"Statistics and updates over {BATCH} images; {RECIPE}. Left: training accuracy, noise on. It ends at "
        f"{end[NOISY[0.5]]} % with noisy BN, {end['batch']} % with BN, {end['none']} % with neither, all at the paper's rate 0.1. "
        f"The same noise without norm, at its best rate, leaves {best['absolute']} %, and in units of each channel's own deviation "
        f"{best['scaled']} %; without noise it is {best['none']} %. Middle: larger shifts behind BN; at 4 they leave "
        f"{end[NOISY[4.0]]} %. Right: test accuracy without noise, with statistics taken again without it (circles) and with "
        "running averages (crosses). Rates by validation: "
        f"{rates_in_words({arm: rates[arm] for arm in PLAIN}, NAMES)}{ends_in_words(ends)}.",
        alt="Left: training accuracy by step for no norm, batch norm, noisy batch norm and two kinds of noise without norm. "
        "Middle: final training accuracy against the size of the shifts. Right: test accuracy of the five arms without noise.",
    )


def _above_chance(table, arm):
    """Return for each seed how far above a tenth the training accuracy of an arm without norm ends, at its best rate."""
    return side_by_side(tuned(table[table.arm == arm], ["arm"], "held_out")[0], "arm", "final")[arm] - 0.1


@figure2.claim(
    "noisy-close",
    "With noise behind it batch norm trains almost as well as without.",
    criterion="rate 0.1: training accuracy of noisy BN (noise on) at the end at most 5 points below that of BN",
)
def _(table):
    final = 100 * side_by_side(at_paper_rate(table), "arm", "final")
    return judge_effect("points, BN minus noisy BN", final["batch"] - final[NOISY[0.5]], claimed=(-np.inf, 5), null=np.nan)


@figure2.claim(
    "fixed-is-better",
    "It is of advantage for the inputs of a layer that their distribution stays fixed.",
    criterion="rate 0.1: training accuracy at the end with BN above that with noisy BN, whose channels move at every step",
    by="seed003",
)
def _(table):
    final = 100 * side_by_side(at_paper_rate(table), "arm", "final")
    return judge_effect("points, BN minus noisy BN", final["batch"] - final[NOISY[0.5]], claimed=(0, np.inf), null=0)


@figure2.claim(
    "noisy-ahead",
    "Noisy batch norm trains faster than a network without norm.",
    criterion="rate 0.1: training accuracy, averaged over the curve, at least 10 points above that without norm",
)
def _(table):
    area = _area(at_paper_rate(table))
    best = _area(tuned(table[table.arm == "none"], ["arm"], "held_out")[0])
    note = f"against the network without norm at its best rate {number((area[NOISY[0.5]] - best['none']).median())}"
    return judge_effect("points, noisy BN minus none", area[NOISY[0.5]] - area["none"], claimed=(10, np.inf), null=0, note=note)


@figure2.claim(
    "noise-stops-plain",
    "The same noise keeps a network without norm from training at all.",
    criterion="the highest training accuracy (noise on) that is seen at any probe and any rate stays below 20 %, with ten classes",
)
def _(table):
    highest = table[table.arm == "absolute"].groupby("seed").learned.max()
    clean = table[table.arm == "absolute"].groupby("seed").quiet.max()
    note = f"tested without noise at most {number(100 * clean.median())} %"
    return judge_effect("highest training accuracy", highest, claimed=(0, 0.2), null=np.nan, note=note)


@figure2.claim(
    "scaled-noise-trains",
    "Noise in units of a channel's own deviation, which is what batch norm gets at the start, lets a network without norm train.",
    criterion="at the best rate of each, the training accuracy ends at least half as far above a tenth as without noise",
    by="notes",
)
def _(table):
    shares = _above_chance(table, "scaled") / _above_chance(table, "none")
    return judge_effect("share of what is gained over chance", shares, claimed=(0.5, np.inf), null=0)


@figure2.claim(
    "where-it-breaks",
    "With shifts of up to four deviations noisy batch norm breaks.",
    criterion="rate 0.1, n_mu = 4: the training accuracy ends less than half as far above a tenth as that of BN",
    by="notes",
)
def _(table):
    final = side_by_side(at_paper_rate(table), "arm", "final") - 0.1
    shares = {amplitude: (final[arm] / final["batch"]).median() for amplitude, arm in NOISY.items() if arm in final}
    said = ", ".join(f"{number(share)} at {amplitude:g}" for amplitude, share in shares.items())
    return judge_effect("share of BN's gain over chance", final[NOISY[4.0]] / final["batch"], claimed=(0, 0.5), null=1, note=said)


@figure2.claim(
    "test",
    "Tested without noise, a network trained with noisy batch norm is as good as one trained with batch norm.",
    criterion="rate 0.1, statistics taken again without noise: test accuracies differ by less than 3 points",
    by="notes",
)
def _(table):
    scores = 100 * side_by_side(at_paper_rate(table), "arm", "quiet")
    running = 100 * side_by_side(at_paper_rate(table), "arm", "running")[NOISY[0.5]]
    note = f"with the running averages of the noisy training it has {number(running.median())} %"
    return judge_effect("points, BN minus noisy BN", scores["batch"] - scores[NOISY[0.5]], claimed=(-3, 3), null=np.nan, note=note)
