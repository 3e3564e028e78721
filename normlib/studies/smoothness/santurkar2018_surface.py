"""Santurkar et al. (2018), section 3.2: the loss on a plane through the step, along random directions, and along a fine line."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LogNorm
from torch.nn.functional import cross_entropy

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.probes import loss_on_plane, random_direction
from normlib.probes.parameters import flat, loss_and_gradient, moved, trainable
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import INK, VERMILION, median_and_band, norm_color, note, subplots
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, fit, vgg
from normlib.studies.smoothness.surface_readings import during, found, kink, shrink

INITS = {"glorot_normalized": "Glorot", "he": "He"}
STEPS = (0.5, 1.0, 2.0, 4.0)  # times the learning rate, as in the paper
CUTS = (4, 16, 64)  # intervals of the line from the present weights to 4 steps down the gradient
DIRECTIONS = 4  # random ones at each look
FAR = 0.5  # of the length of each filter

surface = Study(
    "santurkar2018.surface",
    item="section 3.2; the last remark on random directions",
    title="Is the loss smoother in random directions, too, and has it kinks?",
    kind="train",
    vary={"init": list(INITS), "norm": ["none", "batch"]},
    quick={**QUICK, "rate": 0.1, "steps": 20, "look": [0, 20], "map": [0, 20], "grid": 3},
    laptop={**LAPTOP, "rate": 0.1, "steps": 300, "look": [0, 10, 30, 60, 100, 150, 200, 300], "map": [0, 150], "grid": 9},
    full={**FULL, "rate": 0.1, "look": [0, 100, 300, 1_000, 2_000, 4_000, 8_000, 15_000], "map": [0, 1_000], "grid": 17},
)


def spread(losses) -> float:
    """Return the largest loss less the smallest."""
    return float(np.max(losses) - np.min(losses))


def jumps(values, intervals: int) -> float:
    """Return the largest change between neighbors when values on an even grid are thinned to so many intervals."""
    return float(np.abs(np.diff(values[:: (len(values) - 1) // intervals])).max())


def line(model, x, y, gradient, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss, and its slope per distance, at even places from here to 4 steps down the gradient."""
    start, g = trainable(model), flat(gradient)
    losses, slopes = [], []
    for place in np.linspace(0, STEPS[-1], CUTS[-1] + 1):
        loss, there = loss_and_gradient(model, cross_entropy, x, y, moved(start, (-place * rate, gradient)), training=True)
        losses.append(loss)
        slopes.append(-float(flat(there) @ g / g.norm()))
    return np.array(losses), np.array(slopes)


def look(c, step, model) -> dict[str, list]:
    """Measure around the present weights on the batch of this step, with the statistics of that batch.

    Returns:
        Columns `what`, `a`, `b`, `value`: single numbers ("loss", "gradient", "random", "far"), the plane ("plane"), and the
        largest changes between neighbors of a line cut into `a` intervals ("loss_jump", "slope_jump") and the range of its slope;
        the plane at the steps of `c.map`, the line at the last of them.
    """
    loss, gradient = loss_and_gradient(model, cross_entropy, step.x, step.y, training=True)
    down = {name: -c.rate * part for name, part in gradient.items()}
    length = float(flat(down).norm())

    def on(a, b, grid):
        return loss_on_plane(model, cross_entropy, step.x, step.y, a, b, grid, training=True)

    def scaled(direction):
        factor = length / float(flat(direction).norm())
        return {name: factor * part for name, part in direction.items()}

    plain = [random_direction(model, seed) for seed in range(DIRECTIONS)]
    shaped = [random_direction(model, seed, filterwise=True) for seed in range(DIRECTIONS)]
    rows = [
        ("loss", 0, 0, loss),
        ("gradient", 0, 0, spread(on(down, down, (STEPS, [0]))["loss"])),
        ("random", 0, 0, float(np.median([spread(on(scaled(d), d, (STEPS, [0]))["loss"]) for d in plain]))),
        ("far", 0, 0, float(np.median([np.mean(on(d, d, ((-FAR, FAR), [0]))["loss"]) - loss for d in shaped]))),
    ]
    if int(step) in c.map:
        axis = np.linspace(-STEPS[-1], STEPS[-1], c.grid).tolist()
        points = on(down, scaled(shaped[0]), (axis, axis))
        rows += [("plane", *point) for point in zip(*points.values(), strict=True)]
    if int(step) == c.map[-1]:
        losses, slopes = line(model, step.x, step.y, gradient, c.rate)
        rows += [("loss_jump", cut, 0, jumps(losses, cut)) for cut in CUTS]
        rows += [("slope_jump", cut, 0, jumps(slopes, cut)) for cut in CUTS]
        rows += [("slope_range", 0, 0, spread(slopes))]
    return dict(zip(("what", "a", "b", "value"), map(list, zip(*rows, strict=True)), strict=True))


@surface.trial
def _(c, seed):
    images, _ = images_for(c, seed)
    net = vgg(c, images, c.norm, seed)
    run = fit(
        net, images, steps=c.steps, rate=c.rate, seed=seed, probe=lambda step, model: look(c, step, model), probe_steps=c.look
    )
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **run.probes)
    return run.probes


@surface.draw
def _(table):
    figure, _ = subplots(height=6.6)
    figure.clear()
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.35, 1])  # type: ignore[misc]
    maps = upper.subplots(2, 4, sharex=True, sharey=True)
    glorot, he, cuts = lower.subplots(1, 3)
    planes = table[(table.what == "plane") & (table.seed == table.seed.min()) & np.isfinite(table.value.astype(float))]
    steps = sorted(planes.step.unique())
    least, most = float(planes.value.min()), float(planes.value.quantile(0.99))
    scale, levels = LogNorm(least, most), np.geomspace(least, most, 17)
    arms = [(init, norm) for init in INITS for norm in ("none", "batch")]
    shown = None
    for place, (step, (init, norm)) in enumerate((step, arm) for step in steps for arm in arms):
        ax = maps.flat[place]
        plane = planes[(planes.step == step) & (planes.init == init) & (planes.norm == norm)]
        if len(plane) == len(plane.a.unique()) * len(plane.b.unique()) > 0:
            grid = plane.pivot_table(index="b", columns="a", values="value")
            shown = ax.contourf(grid.columns, grid.index, grid, levels=levels, norm=scale, cmap="cividis", extend="both")
        ax.plot(0, 0, "o", color=VERMILION, ms=4)
        ax.set(xticks=[-4, 0, 4], yticks=[-4, 0, 4])
        ax.grid(visible=False)
        if place < 4:
            ax.set_title(f"{'batch' if norm == 'batch' else 'no norm'}, {INITS[init]}", fontsize=9, color=norm_color(norm))
        if place % 4 == 0:
            ax.set_ylabel(f"step {step}\nrandom direction", fontsize=9)
        if place > 3:
            ax.set_xlabel("update", fontsize=9)
    if shown is not None:
        bar = upper.colorbar(shown, ax=maps, label="loss", aspect=30, pad=0.02)
        ticks = [tick for tick in (0.001, 0.01, 0.1, 0.3, 1, 2, 3, 5, 10, 30, 100) if least <= tick <= most]
        bar.set_ticks(ticks, labels=[number(tick) for tick in ticks])
        bar.ax.minorticks_off()
    for ax, (init, name) in zip((glorot, he), INITS.items(), strict=True):
        for norm in ("none", "batch"):
            for what, style in (("gradient", "-"), ("random", "--")):
                arm = table[(table.what == what) & (table.init == init) & (table.norm == norm)]
                median_and_band(ax, arm, "step", "value", color=norm_color(norm), linestyle=style, marker="o", ms=3)
        ax.set(yscale="log", xlabel="step of training")
        ax.set_title(f"{name}: range of the loss", fontsize=9)
    glorot.set_ylabel("max − min over 4 lengths")
    for norm in ("none", "batch"):
        for what, style in (("loss_jump", "-"), ("slope_jump", "--")):
            rows = shrink(table, what)[norm].median()
            cuts.plot(rows.index, rows, marker="o", ms=3, linestyle=style, color=norm_color(norm))
    cuts.axhline(1, color=INK, linewidth=0.8)
    cuts.plot(CUTS, CUTS[0] / np.array(CUTS), ":", color=INK, linewidth=1)
    note(cuts, "a jump stays", 0.97, 0.9, ha="right", fontsize=8.5)
    cuts.set(xscale="log", yscale="log", xlabel="intervals of the line", ylim=(0.03, 1.6))
    cuts.set_title("largest change on a line", fontsize=9)
    cuts.set_xticks(CUTS, [str(cut) for cut in CUTS])
    cuts.minorticks_off()
    gradient, random, far = (number(during(table, what).median()) for what in ("gradient", "random", "far"))
    smaller = shrink(table, "loss_jump").median()
    left = {norm: number(smaller[norm, CUTS[-1]]) for norm in ("none", "batch")}
    return Drawing(
        figure,
        caption="**Maps** Loss of one batch on the plane of the update (rightwards: down the gradient) and of a random "
        f"direction shaped like the filters; both axes in lengths of the update, rate {number(table.rate.iloc[0])} in "
        "every arm, one seed. **Below** Range of the loss over 0.5 to 4 updates, down the gradient (solid) and over "
        "the same lengths in random directions (dashed); gray is no norm. Without the norm over with it, Glorot, "
        f"median over the looks after the start: {gradient} along the gradient, {random} in random directions; the "
        f"rise of the loss where every filter is moved by half its length, {far}. **Right** The line of 4 updates at "
        f"step {steps[-1]} cut finer (Glorot): largest change between neighbors, of the loss (solid) and of its slope "
        f"(dashed), over that with {CUTS[0]} intervals; dotted: like the interval. At {CUTS[-1]} the loss is at "
        f"{left['none']} without and {left['batch']} with the norm. Statistic batch and SGD batch: {BATCH}.",
        alt="Eight maps of the loss on a plane, with and without batch norm, Glorot and He, at the start and in training. Below: "
        "range of the loss along gradient and random directions by step; largest changes along a line that is cut finer.",
    )


AFTER = "without the norm over with it, Glorot's initialization, median over the looks after the start, above 1"


@surface.claim(
    "random",
    "In random directions the loss varies more without batch norm than with it, as it does along the gradient.",
    criterion=f"range of the loss over 1/2 to 4 lengths of the update in random directions, {AFTER}",
)
def _(table):
    gradient = {init: number(during(table, "gradient", init).median()) for init in INITS}
    said = f"along the gradient {gradient['glorot_normalized']}; with He's initialization {gradient['he']} along the gradient, "
    said += f"{number(during(table, 'random', 'he').median())} in random directions"
    return judge_effect("range in random directions, none / batch", during(table, "random"), claimed=(1, np.inf), null=1, note=said)


@surface.claim(
    "relative",
    "The same holds at equal relative distances, with random directions shaped like the filters.",
    criterion=f"rise of the loss where every filter is moved by half its length in a random direction, {AFTER}",
    by="notes",
)
def _(table):
    said = f"{number(during(table, 'far', 'he').median())} with He's initialization"
    values = during(table, "far")
    return judge_effect("rise at half a filter's length, none / batch", values, claimed=(1, np.inf), null=1, note=said)


@surface.claim(
    "random-is-flat",
    "A random direction shows little of what the update meets: over the same lengths the loss varies less than a tenth as much.",
    criterion="range in random directions over that along the gradient, median over all looks, below 0.1 in each of the four "
    "networks: the largest counts",
    by="notes",
)
def _(table):
    shares = [found(table, "random", init) / found(table, "gradient", init) for init in INITS]
    largest = np.maximum(*[share.groupby("seed").median().max(axis=1, skipna=False) for share in shares])
    return judge_effect("random / gradient, largest of four networks", largest, claimed=(0, 0.1), null=1)


@surface.claim(
    "discontinuity",
    "Without batch norm the loss has discontinuities, and batch norm makes them fewer.",
    criterion=f"on a line cut into {CUTS[-1]} instead of {CUTS[0]} intervals the largest change of the loss between neighbors, "
    "without the norm, keeps at least half its size (a jump keeps it all, an even slope a sixteenth)",
    by="seed001",
)
def _(table):
    sizes = shrink(table, "loss_jump").xs(CUTS[-1], axis=1, level="a")
    said = f"{number(sizes['batch'].median())} with the norm"
    return judge_effect("what is left of the largest change", sizes["none"], claimed=(0.5, np.inf), null=np.nan, note=said)


@surface.claim(
    "kinks",
    "Without batch norm the slope of the loss changes more abruptly.",
    criterion=f"largest change of the slope over a {CUTS[-1]}th of the line, as a share of its range on the line, without the norm "
    "over with it, Glorot's initialization, in training, above 1",
)
def _(table):
    shares, other = kink(table), kink(table, "he")
    said = f"shares {number(shares['none'].median())} and {number(shares['batch'].median())}; "
    said += f"with He's initialization the ratio is {number((other['none'] / other['batch']).median())}"
    ratio = shares["none"] / shares["batch"]
    return judge_effect("abruptness of the slope, none / batch", ratio, claimed=(1, np.inf), null=1, note=said)
