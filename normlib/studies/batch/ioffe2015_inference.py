"""Ioffe & Szegedy (2015), Batch Normalization, algorithm 2: the statistics that evaluation uses, and how they are come by."""

from __future__ import annotations

import copy

import numpy as np

from normlib.lab import Diverged, Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import MLP
from normlib.studies.batch.population import LAYERS, second_layer_spread, share_changed, spread_by_layer, start_left
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import BLUE, GRAY, GREEN, INK, ORANGE, VERMILION, median_and_band, note, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.surgery import reestimate_statistics
from normlib.training import accuracy, log_steps, train

SGD_BATCH = 64  # images per update, whatever the statistics are taken over
REESTIMATED = 16  # batches from which the statistics are re-estimated
WAYS = {
    "running": ("exponential average", ORANGE),
    "cumulative": ("mean over the whole run", GRAY),
    "reestimated": ("re-estimated (Alg. 2)", BLUE),
    "batch": ("statistics of the test batch", VERMILION),
}

LOOKS = {"running": {"linestyle": "--", "zorder": 4}}  # it lies over what it coincides with

inference = Study(
    "ioffe2015.inference",
    item="Alg. 2",
    title="Population statistics with m/(m − 1) are right for the first normalized layer, and not for those above it",
    kind="train",
    vary={"batch": [2, 4, 8, 32, 64], "rate": [0.03, 0.1, 0.3]},
    quick={
        "data": "digits", "pool": 1, "validation": 256, "test": 320, "width": 50, "depth": 3, "steps": 40, "wide": 100,
        "samples": 2048, "batch": [2, 32, 64], "rate": [0.1],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 7_168, "validation": 1_024, "test": 4_096, "width": 100, "depth": 3,
        "steps": 600, "wide": 256, "samples": 4_096,
    },
    full={
        "data": "mnist", "pool": 1, "validation": 5_120, "test": 9_984, "width": 100, "depth": 3, "steps": 20_000, "wide": 1024,
        "samples": 32_768,
    },
)  # fmt: skip


@inference.trial
def _(c, seed):
    spreads = spread_by_layer(c.batch, c.wide, c.samples, seed, c.device)
    tune, images = images_for(c, seed)
    seen = tune.x_train[: SGD_BATCH * REESTIMATED].split(SGD_BATCH)

    def trained(momentum, probe=None, probe_steps=()):
        sizes = [tune.x_train[0].numel(), *[c.width] * c.depth, tune.classes]
        norm = f"batch:ghost={c.batch},momentum={momentum}"
        net = MLP(sizes, "relu", norm=norm, init="he", seed=seed).to(c.device)
        run = train(
            net, tune.x_train, tune.y_train,
            steps=c.steps, batch_size=SGD_BATCH, rate=c.rate, seed=seed, probe=probe, probe_steps=probe_steps,
        )  # fmt: skip
        return net, run

    def scores(net, x, y):
        fresh = reestimate_statistics(copy.deepcopy(net), seen)
        return {
            "running": accuracy(net, x, y, statistics="eval"),
            "reestimated": accuracy(fresh, x, y, statistics="eval"),
            "batch": accuracy(net, x, y, statistics="train"),
            "start_left": start_left(net, fresh),
        }

    net, run = trained(0.1, lambda _, model: scores(model, tune.x_test, tune.y_test), log_steps(c.steps + 1, 14))
    seen_at = {name: values for name, values in run.probes.items() if name != "step"}
    parts = {**spreads, **seen_at}
    layers, steps = list(range(1, LAYERS + 1)), run.probes.get("step", [])
    columns = {
        "part": [part for part in parts for _ in parts[part]],
        "x": [x for part in parts for x in (layers if part in spreads else steps)],
        "y": [value for part in parts for value in parts[part]],
    }
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns)
    held_out = scores(net, tune.x_test, tune.y_test)["reestimated"]
    test = scores(net, images.x_test, images.y_test)
    test["cumulative"] = accuracy(trained(None)[0], images.x_test, images.y_test, statistics="eval")
    changed = share_changed(net, images.x_test, seed)
    return {**columns, "held_out": held_out, "changed": changed, **{f"test_{way}": test[way] for way in WAYS}}


def _tuned(table):
    return tuned(table, ["batch"], "held_out")


def _spreads(table, part, layers=(1,)):
    """Return the spreads of some layers: one row a seed and layer, one column a statistic batch."""
    rows = table[(table.part == part) & table.x.isin(layers) & (table.rate == table.rate.min())]
    return rows.pivot_table(index=["seed", "x"], columns="batch", values="y")


@inference.draw
def _(table):
    spreads = table[table.part.isin(["corrected", "biased"]) & (table.rate == table.rate.min())]
    table, rates = _tuned(table)
    figure, ((by_batch, by_layer), (by_step, at_end)) = subplots(2, 2, height=2.75)
    sizes = sorted(table.batch.unique())
    _draw_spreads(by_batch, by_layer, spreads, sizes)

    largest = table[table.batch == max(sizes)]
    for way in ("batch", "running", "reestimated"):
        label, color = WAYS[way]
        rows = largest[largest.part == way].assign(x=largest.x + 1)
        median_and_band(by_step, rows, "x", "y", color=color, label=label, **LOOKS.get(way, {}))
    left = largest[(largest.part == "start_left") & (largest.x < 60)].assign(x=largest.x + 1)
    steps = np.geomspace(1, 60, 50)
    by_step.plot(steps, 0.9 ** (steps - 1), color=INK, linewidth=0.9)
    median_and_band(by_step, left, "x", "y", color=INK, linestyle="none", marker="s", markersize=3)
    by_step.set(xscale="log", xlabel="step + 1", ylabel="held-out accuracy", ylim=(0, 1.05))
    by_step.set_title(f"statistic batch {max(sizes)}; squares: share of\nthe start left, line: $0.9^k$", fontsize=9.5)
    for way, (label, color) in WAYS.items():
        median_and_band(at_end, table, "batch", f"test_{way}", color=color, label=label, marker="o", **LOOKS.get(way, {}))
    at_end.set_ylabel("test accuracy")
    for axes in (by_batch, at_end):
        axes.set(xscale="log", xlabel="statistic batch m")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    at_end.set_title("after training, one network,\nfour kinds of statistics", fontsize=9.5)
    figure.legend(*at_end.get_legend_handles_labels(), loc="outside lower center", ncols=2)

    smallest = min(sizes)
    spread = spreads[spreads.batch == smallest].groupby(["part", "x"]).y.median()
    final = {way: table[table.batch == smallest][f"test_{way}"].median() for way in WAYS}
    words = rates_in_words({m: rates[m] for m in sizes}, {m: f"m = {m}" for m in sizes})
    return Drawing(
        figure,
        caption="Top: random weights, normal inputs. Spread: standard deviation of what a normalized layer hands on in evaluation. "
        f"With the factor m/(m − 1) it is {number(spread['corrected', 1])} in the first layer at m = {smallest} (without it "
        f"{number(spread['biased', 1])}), and {number(spread['corrected', 2])} in the second; lines on the left: closed forms. "
        f"Bottom: training in batches of {SGD_BATCH}, statistics over m images of them. At m = {smallest} the test "
        f"accuracy is {number(final['reestimated'])} with re-estimated statistics, {number(final['running'])} with the exponential "
        f"average, {number(final['batch'])} with those of the test batch. Learning rate, chosen on held-out images: {words}.",
        alt="Four plots: spread of normalized outputs in evaluation against the statistic batch and against the layer; held-out "
        "accuracy over steps by three kinds of statistics; test accuracy against the statistic batch by four.",
    )


def _draw_spreads(by_batch, by_layer, spreads, sizes):
    grid = np.arange(min(sizes), max(sizes) + 1)
    arms = [
        ("biased", 1, VERMILION, "layer 1, without the factor", np.sqrt(grid / (grid - 1))),
        ("corrected", 1, BLUE, "layer 1", np.ones(len(grid))),
        ("corrected", 2, GREEN, "layer 2", np.array([second_layer_spread(m) for m in grid])),
    ]
    for part, layer, color, label, closed in arms:
        by_batch.plot(grid, closed, color=color, linewidth=1)
        rows = spreads[(spreads.part == part) & (spreads.x == layer)]
        by_batch.plot(rows.groupby("batch").y.median(), "o", color=color, label=label)
    by_batch.set_ylabel("spread in evaluation")
    by_batch.legend(fontsize=8.5)
    for size, shade in zip(sizes, np.linspace(0.25, 1, len(sizes)), strict=True):
        rows = spreads[(spreads.part == "corrected") & (spreads.batch == size)]
        median_and_band(by_layer, rows, "x", "y", color=BLUE, alpha=shade, marker="o")
        last = rows[rows.x == LAYERS].y.median()
        side = {sizes[-1]: "bottom", sizes[-2]: "top"}.get(size, "center")
        note(by_layer, f" m = {size}", LAYERS, last, transform=by_layer.transData, va=side, fontsize=8)
    by_layer.hlines(1, 0.8, LAYERS, color=INK, linewidth=0.8)
    by_layer.set(xlabel="layer, m/(m − 1) in each", ylabel="spread in evaluation", xlim=(0.8, LAYERS + 1.1))
    by_layer.set_xticks(range(1, LAYERS + 1))


@inference.claim(
    "first-layer",
    "With population statistics, the variance corrected by m/(m − 1), normalized activations have variance one in evaluation.",
    criterion="first normalized layer, normal inputs: standard deviation within 2 % of 1 at every statistic batch",
)
def _(table):
    spreads = _spreads(table, "corrected")
    biased = _spreads(table, "biased").median()
    note = f"tolerance 0.02; without the factor {number(biased.iloc[0])} at m = {biased.index[0]}"
    return judge_identity("largest distance of the standard deviation from 1", float((spreads - 1).abs().max().max()), 0.02, note)


@inference.claim(
    "every-layer",
    "This holds in a network, layer by layer, at the paper's sizes of batches.",
    criterion=f"statistic batches of 32 and 64, each of {LAYERS} layers: standard deviation within 5 % of 1",
)
def _(table):
    worst = (_spreads(table, "corrected", range(1, LAYERS + 1)) - 1).abs().max()
    note = "tolerance 0.05; " + ", ".join(f"{number(worst[m])} at m = {m}" for m in worst.index if m < 32)
    return judge_identity("largest distance of the standard deviation from 1", float(worst[[32, 64]].max()), 0.05, note)


@inference.claim(
    "second-layer",
    "The factor does not reach the layer above. On normal inputs and with ReLU the second layer has the spread "
    "√((1/2 − 1/2π) / (1/2 − κ)) in evaluation, κ the mean product of two rectified items of one batch.",
    criterion="standard deviation of the second layer within 2 % of this at every statistic batch",
    by="notes",
)
def _(table):
    spreads = _spreads(table, "corrected", (2,))
    said = np.array([second_layer_spread(m) for m in spreads.columns])
    off = float((spreads / said - 1).abs().max().max())
    note = f"tolerance 0.02; {number(said[0])} at m = {spreads.columns[0]}"
    return judge_identity("largest relative distance from the closed form", off, 0.02, note)


@inference.claim(
    "needless",
    "In evaluation the statistics of the batch are not needed: population statistics do as well.",
    criterion="test accuracy with re-estimated statistics less that with the statistics of test batches: above −0.01 at every "
    "statistic batch (the smallest of the differences)",
)
def _(table):
    runs = _tuned(table)[0]
    gains = side_by_side(runs, "batch", "test_reestimated") - side_by_side(runs, "batch", "test_batch")
    note = ", ".join(f"{number(gain)} at m = {m}" for m, gain in gains.median().items())
    return judge_effect("smallest gain in test accuracy", gains.min(axis=1), claimed=(-0.01, np.inf), null=np.nan, note=note)


@inference.claim(
    "mini-batch",
    "The mean and the variance are those of the mini-batch: the draft names no other case.",
    criterion="taken at its word in evaluation, batches of 64: at most 1 in 1,000 test images changes its class with its batch",
    by="seed003",
)
def _(table):
    changed = side_by_side(_tuned(table)[0], "batch", "changed")
    note = f"{number(changed.median().iloc[0])} in batches of {changed.columns[0]}; the draft ends before evaluation"
    return judge_effect("share of test images", changed[64], claimed=(0, 1e-3), null=np.nan, note=note)


@inference.claim(
    "short-run",
    "After k steps the exponential average still holds 0.9ᵏ of its start, which costs accuracy in the first steps.",
    criterion="statistic batch 64: held-out accuracy with re-estimated statistics less that with the average, mean over the "
    "measured steps from 2 to 10, above 0.05",
    by="notes",
)
def _(table):
    runs = _tuned(table)[0]
    runs = runs[(runs.batch == 64) & runs.x.between(2, 10)].groupby(["seed", "part"]).y.mean().unstack()
    lost = runs.reestimated - runs.running
    return judge_effect("loss of held-out accuracy", lost, claimed=(0.05, np.inf), null=0)


@inference.claim(
    "whole-run",
    "A mean over all batches of the run, momentum=None, is out of date at its end.",
    criterion="test accuracy with re-estimated statistics less that with this mean, averaged over statistic batches, above 0.01",
    by="notes",
)
def _(table):
    runs = _tuned(table)[0]
    lost = side_by_side(runs, "batch", "test_reestimated") - side_by_side(runs, "batch", "test_cumulative")
    average = side_by_side(runs, "batch", "test_reestimated") - side_by_side(runs, "batch", "test_running")
    note = f"the exponential average loses {number(average.mean(axis=1).median())}"
    return judge_effect("loss of test accuracy", lost.mean(axis=1), claimed=(0.01, np.inf), null=0, note=note)
