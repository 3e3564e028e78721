"""Li and Arora (2020): a rate that rises exponentially is weight decay, where no weight has a length that the loss sees."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import BLUE, INK, OLIVE, ORANGE, SKY, VERMILION, note, subplots
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, vgg
from normlib.training import accuracy, data_order

# What is trained, and what of it is on the schedule. Convolutions always are, and their biases are never trained.
SETUPS = {
    "invariant": ("convolutions only", BLUE, "o"),
    "apart": ("γ, β, head trained apart", SKY, "s"),
    "eps": ("convolutions, ε = 1e-5", OLIVE, "^"),
    "affine": ("γ, β on schedule", ORANGE, "v"),
    "head": ("head on schedule", VERMILION, "D"),
    "all": ("γ, β, head on schedule", INK, "x"),
}
TINY, SHARPNESS = 1e-30, 4.0  # eps → 0; the head starts at so many times Glorot's, so that a fixed one can be sure of a class
TOLERANCE = 1e-8
PROBES = 14

exponential = Study(
    "li2020.exponential",
    item="equivalence without momentum",
    title="A rising rate is weight decay, as long as nothing sees a length",
    kind="train",
    vary={"trained": list(SETUPS)},
    quick={**QUICK, "depth": 4, "width": 4, "steps": 15, "rate": 0.1, "decay": 0.1},
    laptop={**LAPTOP, "depth": 5, "width": 8, "steps": 120, "rate": 0.1, "decay": 0.1},
    full={**FULL, "steps": 2_000, "rate": 0.1, "decay": 0.005},
)


def build(c: Config, images: Dataset, seed: int) -> nn.Module:
    """Build a convolutional network in float64 with batch norm, and mark what is trained."""
    affine = c.trained in ("apart", "affine", "all")
    eps = 1e-5 if c.trained == "eps" else TINY
    net = vgg(c, images, f"batch:affine={affine},eps={eps!r}", seed).double()
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.requires_grad_(False)  # the norm takes it out
    heads = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for head in heads:
        head.requires_grad_(c.trained in ("apart", "head", "all"))
    with torch.no_grad():
        heads[-1].weight.mul_(SHARPNESS)
    return net


def step(net: nn.Module, x: Tensor, y: Tensor, rates: dict[str, tuple[float, float]]) -> float:
    """Take one step of plain SGD and return the loss.

    Args:
        net: in train mode.
        x: inputs.
        y: classes.
        rates: rate and decay of "convolutions" and of "others".
    """
    named = [(name, weight) for name, weight in net.named_parameters() if weight.requires_grad]
    loss = F.cross_entropy(net(x), y)
    with torch.no_grad():
        for (_, weight), gradient in zip(named, torch.autograd.grad(loss, [w for _, w in named]), strict=True):
            rate, decay = rates["convolutions" if weight.ndim == 4 else "others"]
            weight.sub_(rate * (gradient + decay * weight))
    return float(loss.detach())


def convolutions(net: nn.Module) -> list[Tensor]:
    """Return the weights of the convolutions."""
    return [weight.detach() for weight in net.parameters() if weight.ndim == 4]


@torch.no_grad()
def compare(decayed: nn.Module, rising: nn.Module, x: Tensor, factor: float) -> dict[str, float]:
    """Compare outputs, directions and lengths of two networks; `factor` is what the lengths should differ by."""
    one, other = decayed(x), rising(x)
    pairs = [(w, v, w.norm(), v.norm()) for w, v in zip(convolutions(decayed), convolutions(rising), strict=True)]
    return {
        "outputs": float((one - other).norm() / one.norm()),
        "directions": max(float((w / a - v / b).norm()) for w, v, a, b in pairs),
        "lengths": max(abs(float(b / a) / factor - 1) for _, _, a, b in pairs),
        "length_decayed": float(torch.stack([a for *_, a, _ in pairs]).log().mean().exp()),
        "length_rising": float(torch.stack([b for *_, b in pairs]).log().mean().exp()),
    }


@exponential.trial
def _(c: Config, seed: int):
    images, tests = images_for(c, seed)
    x, y = images.x_train.double(), images.y_train
    decayed, rising = build(c, images, seed).train(), build(c, images, seed).train()
    keeps, shrink = (c.rate, c.decay), 1 - c.rate * c.decay
    probes = {round(c.steps * i / (PROBES - 1)) for i in range(PROBES)}
    rows, losses = [], (np.nan, np.nan)
    order = data_order(len(x), BATCH, seed, x.device)
    for t in range(c.steps + 1):
        if t in probes:
            found = compare(decayed, rising, images.x_test[:256].double(), shrink**-t)
            rows.append({"step": t, "rate_rising": c.rate * shrink ** -(2 * t + 1), **found})
        if t == c.steps:
            break
        rises = (c.rate * shrink ** -(2 * t + 1), 0.0)
        batch = next(order)
        others = keeps if c.trained == "apart" else rises
        losses = (
            step(decayed, x[batch], y[batch], {"convolutions": keeps, "others": keeps}),
            step(rising, x[batch], y[batch], {"convolutions": rises, "others": others}),
        )
        if t in probes:
            rows[-1].update(loss_decayed=losses[0], loss_rising=losses[1])
    rows[-1].update(loss_decayed=losses[0], loss_rising=losses[1])
    scores = {
        f"accuracy_{name}": accuracy(net, tests.x_test.double(), tests.y_test, statistics="train", batch_size=256)
        for name, net in (("decayed", decayed), ("rising", rising))
    }
    return {**{name: [row[name] for row in rows] for name in rows[0]}, **scores}


def gap_at_the_end(table, trained: str):
    """Return the relative difference of the outputs after the last step, by seed."""
    runs = table[table.trained == trained]
    return runs[runs.step == runs.step.max()].set_index("seed").outputs


@exponential.draw
def _(table):
    figure, (sizes, losses, gaps) = subplots(1, 3, height=3.3)
    exact = table[(table.trained == "invariant") & (table.seed == 0)]
    first, last = exact.iloc[0], exact.iloc[-1]
    sizes.plot(exact.step, exact.rate_rising / exact.rate_rising.iloc[0], color=ORANGE, label="rising rate")
    sizes.plot(exact.step, exact.length_rising / first.length_rising, color=ORANGE, linestyle="--")
    sizes.plot(exact.step, np.ones(len(exact)), color=BLUE)
    sizes.plot(exact.step, exact.length_decayed / first.length_decayed, color=BLUE, linestyle="--")
    sizes.set(yscale="log", xlabel="step", ylabel="relative to the start")
    top = float(last.rate_rising / first.rate_rising)
    ticks = [tick for tick in (0.2, 0.5, 1, 2, 5, 10) if last.length_decayed / first.length_decayed < tick <= top]
    sizes.set_yticks(ticks, [number(tick) for tick in ticks])
    sizes.minorticks_off()
    note(sizes, "solid: rate\ndashed: ‖w‖", 0.04, 0.84, fontsize=8.5)
    for trained, mark in (("apart", "o"), ("all", "x")):
        run = table[(table.trained == trained) & (table.seed == 0)]
        losses.plot(run.step, run.loss_decayed, color=BLUE, linestyle="-" if trained == "apart" else ":")
        losses.plot(run.step, run.loss_rising, mark, color=ORANGE, markersize=5, markerfacecolor="none")
    note(losses, "blue: decay\norange: rising rate\n○ trained apart\n× all on schedule", 0.97, 0.7, ha="right", fontsize=8.5)
    losses.set(xlabel="step", ylabel="loss of the batch", ylim=(0, 1.3 * losses.get_ylim()[1]))
    for trained, (label, color, marker) in SETUPS.items():
        runs = table[(table.trained == trained) & (table.step > 0)]
        middle = runs.groupby("step").outputs.median()
        look = {"color": color, "marker": marker, "markersize": 4, "markerfacecolor": "none"}
        gaps.plot(middle.index, middle.clip(lower=1e-17), **look, label=label)
    gaps.set(yscale="log", xlabel="step", ylabel="relative difference of outputs")
    figure.legend(*gaps.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)
    ends = {trained: gap_at_the_end(table, trained).median() for trained in SETUPS}
    scores = table[table.trained == "all"].drop_duplicates("seed")[["accuracy_decayed", "accuracy_rising"]].median()
    same = table[table.trained == "apart"].drop_duplicates("seed")[["accuracy_decayed", "accuracy_rising"]].median()
    return Drawing(
        figure,
        caption=f"Two runs from one start, plain SGD, {BATCH} images in each update and each statistic, float64: a constant rate "
        "with weight decay, and no decay with a rising rate. **Left** Rate and length, convolutions only: the rate grows by a "
        f"factor of {number(top)}. **Middle** Losses, one seed. **Right** How far outputs on "
        f"held-out images are apart, median over seeds. In the end: {number(ends['invariant'])} if only convolutions are trained, "
        f"{number(ends['apart'])} with the other parameters at their constant rate, {number(ends['all'])} with all on schedule. "
        f"Test accuracy, with statistics of 256 images, {number(same.accuracy_decayed)} and {number(same.accuracy_rising)} apart, "
        f"{number(scores.accuracy_decayed)} and {number(scores.accuracy_rising)} with all on schedule.",
        alt="Three plots against the step. Left: rate and weight length of a run with decay and of one with a rising rate. Middle: "
        "their losses. Right: relative difference of outputs on a log axis for six choices of what is trained.",
    )


@exponential.claim(
    "equivalence",
    "If no trained weight has a length that the loss sees, a constant rate with decay and a rising rate without it give the same "
    "functions.",
    criterion="rate η(1 − ηλ)^−(2t+1) against η with decay λ, convolutions trained only: relative difference of the outputs and of "
    f"the unit weights of every layer, at every probe, below {TOLERANCE:g}",
)
def _(table):
    runs = table[table.trained == "invariant"]
    return judge_identity("largest relative difference", runs[["outputs", "directions"]].to_numpy().max(), TOLERANCE)


@exponential.claim(
    "lengths",
    "The weights of the two runs differ by a factor that does not depend on the data.",
    criterion=f"ratio of the lengths of each layer against (1 − ηλ)^−t, relative error at every probe below {TOLERANCE:g}",
    by="notes",
)
def _(table):
    return judge_identity("largest relative error", table[table.trained == "invariant"].lengths.max(), TOLERANCE)


@exponential.claim(
    "apart",
    "Gain, shift and head can be trained as well, if they keep rate and decay in both runs.",
    criterion=f"largest relative difference of outputs and unit weights, at every probe, below {TOLERANCE:g}",
    by="notes",
)
def _(table):
    runs = table[table.trained == "apart"]
    return judge_identity("largest relative difference", runs[["outputs", "directions"]].to_numpy().max(), TOLERANCE)


@exponential.claim(
    "breaks",
    "With gain and shift on the rising rate, or with the head on it, the two runs part.",
    criterion="relative difference of the outputs after the last step, the smaller of the two cases, at least 0.1",
    by="notes",
)
def _(table):
    ends = {trained: gap_at_the_end(table, trained) for trained in ("affine", "head")}
    words = ", ".join(f"{number(values.median())} {trained}" for trained, values in ends.items())
    smaller = np.minimum(ends["affine"], ends["head"])
    return judge_effect("relative difference, smaller of two", smaller, claimed=(0.1, np.inf), null=0, note=words)


@exponential.claim(
    "eps",
    "With the usual ε of 1e-5 the two runs stay together to 1 %.",
    criterion="relative difference of the outputs after the last step, convolutions trained only, below 0.01",
    by="notes",
)
def _(table):
    return judge_effect("relative difference of the outputs", gap_at_the_end(table, "eps"), claimed=(0, 0.01), null=np.nan)
