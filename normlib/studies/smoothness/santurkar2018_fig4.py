"""Santurkar et al. (2018), figure 4: the loss and its gradient a few steps down the gradient, with and without batch norm."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import NullLocator

from normlib.lab import Config, Drawing, Study, judge_effect, number
from normlib.probes import gradient_landscape, landscape_ranges
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import INK, ORANGE, median_and_band, norm_color, note, subplots
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, fit, vgg
from normlib.training import History
from normlib.training.probing import Probe

LENGTHS = (0.5, 1.0, 2.0, 4.0)  # times the learning rate, as the paper has them
UNITS = {"rate": 1.0, "distance": 1.0, "weight_norm": 0.1}  # rate · LENGTHS times this: s, ‖s g‖, ‖s g‖ / ‖θ‖
ARMS = {  # label, norm, initialization, color, line
    "none": ("none", "none", "glorot_normalized", norm_color("none"), "-"),
    "none, He": ("none, He", "none", "he", ORANGE, "--"),
    "batch": ("batch norm", "batch", "glorot_normalized", norm_color("batch"), "-"),
}
LEVELS = (0.25, 0.5, 1.0, 2.0)  # of the training loss; runs are compared between two neighbors

fig4 = Study(
    "santurkar2018.fig4",
    item="Figs 4, 11a",
    title="How far the loss and its gradient change a few steps down the gradient",
    kind="train",
    vary={"arm": list(ARMS)},
    quick={**QUICK, "rate": 0.1, "steps": 20, "probes": 4},
    laptop={**LAPTOP, "rate": 0.1, "steps": 400, "probes": 24},
    full={**FULL, "rate": 0.1, "probes": 60},
)


def probe_steps(steps: int, probes: int) -> list[int]:
    """Return the steps to measure at, the last one among them, denser at the start, where the loss falls fastest."""
    return sorted({round(steps * (place / probes) ** 1.5) for place in range(probes + 1)})


def landscape(rate: float) -> Probe:
    """Return a probe of the step's own batch: the extremes of `landscape_ranges` over `LENGTHS`, in each of the `UNITS`."""

    def measure(step, model):
        columns = {}  # type: ignore[var-annotated]
        for unit, scale in UNITS.items():
            lengths = [scale * rate * length for length in LENGTHS]
            found = gradient_landscape(model, step.loss, step.x, step.y, lengths, training=True, unit=unit)  # type: ignore[arg-type]
            ranges = landscape_ranges(found)
            columns |= {f"{name}_{unit}": ranges[name] for name in ("loss_min", "loss_max", "change_max", "smoothness")}
        return {**columns, "loss": found["start_loss"][0], "gradient": found["gradient_norm"][0]}

    return measure


def run(c: Config, seed: int, norm: str, init: str) -> History:
    """Train one arm and measure the landscape on its way."""
    images = images_for(c, seed)[0]
    steps = probe_steps(c.steps, c.probes)
    net = vgg(Config({**c, "init": init}, c.device), images, norm, seed)
    return fit(net, images, steps=c.steps, rate=c.rate, seed=seed, probe=landscape(c.rate), probe_steps=steps)


@fig4.trial
def _(c, seed):
    _, norm, init, *_ = ARMS[c.arm]
    history = run(c, seed, norm, init)
    return {**history.probes, "diverged": history.diverged_at is not None}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def measured(table):
    """Add the width of the loss band in each unit, and the place in training: 0 at the start, 1 at the end."""
    widths = {f"width_{unit}": table[f"loss_max_{unit}"] - table[f"loss_min_{unit}"] for unit in UNITS}
    return table.assign(**widths, place=table.step / table.steps)


def medians(table, column: str, first: float, last: float):
    """Return the median over a stretch of training: a row a seed, a column an arm."""
    part = table[(table.place >= first) & (table.place <= last)]
    return part.groupby(["seed", "arm"])[column].median().unstack("arm")


def ratios(table, column: str, first: float, last: float, arm: str = "none"):
    """Return, for each seed, the median over a stretch of training without batch norm over that with it."""
    found = medians(measured(table), column, first, last)
    return found[arm] / found["batch"]


def at_equal_loss(table, column: str, arm: str = "none"):
    """Return the same ratio between probes with nearly the same loss of the batch: the geometric mean over classes of loss."""
    table = measured(table)
    part = table[(table.loss >= LEVELS[0]) & (table.loss < LEVELS[-1]) & np.isfinite(table[column])]
    part = part.assign(level=np.digitize(part.loss, LEVELS))
    found = part.groupby(["seed", "level", "arm"])[column].median().unstack("arm").reindex(columns=list(ARMS))
    logs = np.log(found[arm] / found["batch"]).groupby("seed").mean()
    return np.exp(logs.reindex(sorted(table.seed.unique())))


@fig4.draw
def _(table):
    rate, lowest, highest = table.rate.iloc[0], LENGTHS[0], LENGTHS[-1]
    table = measured(table)
    figure, axes = subplots(2, 3, height=2.5)
    (band, change, beta), (distance, width, predictive) = axes
    for arm, (label, _, _, color, line) in ARMS.items():
        runs = table[table.arm == arm]
        edges = runs.groupby("step")[["loss_min_rate", "loss_max_rate"]].median()
        band.fill_between(edges.index, *edges.to_numpy().T, color=color, alpha=0.35, linewidth=0, label=label)
        for edge in edges:
            band.plot(edges.index, edges[edge], color=color, linestyle=line, linewidth=1)
        for ax, column in ((change, "change_max_rate"), (beta, "smoothness_rate"), (distance, "change_max_distance")):
            median_and_band(ax, runs, "step", column, color=color, linestyle=line)
        marker = "o" if arm == "batch" else "x" if line == "-" else "+"
        for ax, column in ((width, "width_rate"), (predictive, "change_max_rate")):
            ax.plot(runs.loss, runs[column], marker, color=color, markersize=3.5, mfc="none", linestyle="none")
    beta.axhline(2 / rate, color=INK, linestyle=":", linewidth=1)
    note(beta, "2 / rate", table.steps.iloc[0], 2.2 / rate, ha="right", va="bottom", fontsize=8, transform=beta.transData)
    for ax, title in (
        (band, "loss: band"), (change, "gradient: largest change"), (beta, "effective β-smoothness"),
        (distance, "gradient, equal lengths"), (width, "loss: width of band"), (predictive, "gradient: largest change"),
    ):  # fmt: skip
        ax.set_title(title, fontsize=9)
        ax.set(yscale="log", xlabel="step")
        ax.tick_params(labelsize=8)
    limits = band.get_ylim()
    band.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    band.yaxis.set_minor_locator(NullLocator())
    band.set_ylim(limits)
    for ax in (width, predictive):
        ax.set(xscale="log", xlabel="loss of the batch", xlim=(3.5, 0.8 * table.loss[table.loss > 0].min()))
        shown = [tick for tick in (3, 1, 0.3, 0.1, 0.03, 0.01) if tick > ax.get_xlim()[1]]
        ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
        ax.xaxis.set_minor_locator(NullLocator())
    figure.legend(*band.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    late, equal = ratios(table, "width_rate", 2 / 3, 1).median(), at_equal_loss(table, "width_rate").median()
    early, from_he = (ratios(table, "width_rate", 0, 1 / 3, arm).median() for arm in ("none", "none, He"))
    return Drawing(
        figure,
        caption=f"SGD batch and statistic batch {BATCH}, rate {rate:g}, Glorot's initialization unless He is named; at each probe "
        f"the step's own batch, at {lowest:g} to {highest:g} times the step. "
        f"**Top** Without batch norm the band of the loss is {number(early)} times as wide as with it in the first third of "
        f"training and {number(late)} times in the last (median ratio over seeds); from He's start {number(from_he)} times in the "
        "first third. "
        f"**Bottom** Left: the gradient's change over steps of {lowest * rate:g} to {highest * rate:g} in length, the same for all "
        f"nets. Middle and right: every probe of all seeds against the loss of its batch. There the band is {_times(equal)}.",
        alt="Six panels, without batch norm from Glorot's and He's start and with it: band of the loss, change of the gradient and "
        "effective smoothness over steps; change over equal distances; band and change against the loss.",
    )


def _times(ratio: float) -> str:
    within = f"between losses of {LEVELS[0]:g} and {LEVELS[-1]:g}"
    return f"{number(ratio)} times as wide {within}" if np.isfinite(ratio) else f"not compared: one net has no probe {within}"


@fig4.claim(
    "band-early",
    "Early in training the loss along the gradient takes a wider range of values without batch norm.",
    criterion="median width of the loss band over the probes of the first third of the steps, none over batch norm, above 1",
)
def _(table):
    from_he = ratios(table, "width_rate", 0, 1 / 3, "none, He")
    said = f"from He's start {number(from_he.median())} ({number(from_he.min())} to {number(from_he.max())})"
    return judge_effect("width, none / batch", ratios(table, "width_rate", 0, 1 / 3), claimed=(1, np.inf), null=1, note=said)


@fig4.claim(
    "band-late",
    "Late in training too the loss along the gradient takes a wider range of values without batch norm.",
    criterion="median width of the loss band over the probes of the last third of the steps, none over batch norm, above 1",
)
def _(table):
    from_he = ratios(table, "width_rate", 2 / 3, 1, "none, He")
    said = f"from He's start {number(from_he.median())} ({number(from_he.min())} to {number(from_he.max())})"
    return judge_effect("width, none / batch", ratios(table, "width_rate", 2 / 3, 1), claimed=(1, np.inf), null=1, note=said)


@fig4.claim(
    "two-orders",
    "Gradient predictiveness: the gradient changes close to two orders of magnitude more without batch norm.",
    criterion="median of the largest change of the gradient over all probes, none over batch norm, at least 30",
)
def _(table):
    largest = measured(table).groupby(["seed", "arm"]).change_max_rate.max().unstack("arm")
    note = f"of the largest change in a run: {number((largest['none'] / largest['batch']).median())}"
    sample = ratios(table, "change_max_rate", 0, 1)
    return judge_effect("largest change, none / batch", sample, claimed=(30, np.inf), null=1, note=note)


@fig4.claim(
    "first-step",
    "At the very first step the order is the other one: the gradient changes more with batch norm.",
    criterion="largest change of the gradient at step 0, batch norm over none, at least 3",
    by="notes",
)
def _(table):
    sample = 1 / ratios(table, "change_max_rate", 0, 0)
    note = f"over He's start {number(1 / ratios(table, 'change_max_rate', 0, 0, 'none, He').median())}"
    return judge_effect("largest change at step 0, batch / none", sample, claimed=(3, np.inf), null=1, note=note)


@fig4.claim(
    "smaller-gradients",
    "With batch norm the magnitude of the gradient is smaller.",
    criterion="norm of the gradient, median over training, none over batch norm, above 1",
    by="seed001",
)
def _(table):
    note = (
        f"at step 0 {number(ratios(table, 'gradient', 0, 0).median())}, late {number(ratios(table, 'gradient', 2 / 3, 1).median())}"
    )
    return judge_effect(
        "norm of the gradient, none / batch", ratios(table, "gradient", 0, 1), claimed=(1, np.inf), null=1, note=note
    )


@fig4.claim(
    "equal-loss",
    "The late difference is for the most part one of progress: at equal training loss the ratio of the bands is at most half as "
    "large.",
    criterion="ratio of the band widths, none over batch norm, between probes with a batch loss in the same class (0.25 to 0.5, to "
    "1, to 2; geometric mean of the classes both nets visit), over the same ratio in the last third of the steps: at most 0.5",
    by="notes",
)
def _(table):
    equal, late = at_equal_loss(table, "width_rate"), ratios(table, "width_rate", 2 / 3, 1)
    said = f"{number(equal.median())} at equal loss, {number(late.median())} late"
    return judge_effect("ratio at equal loss / late ratio", equal / late, claimed=(0, 0.5), null=1, note=said)


@fig4.claim(
    "equal-distance",
    "Over steps of equal length too, the gradient changes more without batch norm.",
    criterion="median over the probes of the first third of the steps of the largest change of the gradient over lengths of 1/2 to "
    "4 times the rate, the same for both nets, none over batch norm, above 1",
    by="notes",
)
def _(table):
    sample, relative = (ratios(table, f"change_max_{unit}", 0, 1 / 3) for unit in ("distance", "weight_norm"))
    note = f"lengths relative to that of all weights: {number(relative.median())}"
    return judge_effect("largest change, none / batch", sample, claimed=(1, np.inf), null=1, note=note)
