"""Zhang & Sennrich (2019), Root Mean Square Layer Normalization: how much of a training step does leaving out the mean save?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.layers import reference
from normlib.networks import MLP, RecurrentClassifier, ViT
from normlib.probes import step_seconds
from normlib.studies.common.looks import INK, PAPER, norm_color, subplots
from normlib.surgery import swap

NETWORKS = {"dense": "dense", "gru": "GRU", "vit": "transformer"}
WRITTEN = {"formula": "term by term", "fused": "fused"}
NAMES = {"layer": "LN", "rms": "RMS"}

speed = Study(
    "zhang2019rms.speed",
    item="running time (7 to 64 % less)",
    title="What leaving out the mean saves depends on how the layer is written",
    kind="timing",
    vary={"network": list(NETWORKS)},
    quick={"width": 16, "side": 8, "batch": 8, "rounds": 3, "seconds": 0.005},
    laptop={"width": 128, "side": 28, "batch": 64, "rounds": 15, "seconds": 0.1},
    full={"width": 512, "side": 28, "batch": 256, "rounds": 9, "seconds": 0.3},
)


def make_network(kind: str, norm: str, width: int, side: int) -> nn.Module:
    """Build a classifier of images (N, 1, side, side): four dense layers, a GRU over the rows, or four Transformer blocks."""
    if kind == "dense":
        return MLP([side**2, *[width] * 4, 10], "relu", norm)
    if kind == "vit":
        return ViT(side, side // 4, width, depth=4, heads=4, in_channels=1, norm=norm)
    gru = RecurrentClassifier(side, width, 10, "gru", "none" if norm == "none" else "layer")
    return nn.Sequential(nn.Flatten(1, 2), swap(gru, {"layer": "rms"}) if norm == "rms" else gru)


def training_step(net: nn.Module, x: Tensor, y: Tensor, written: str) -> Callable[[], None]:
    """Return one step of gradient descent as a call, its norms those of torch or by the plain formula, term by term."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001)

    def step() -> None:
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def by_formula() -> None:
        with reference():
            step()

    return by_formula if written == "formula" else step


@speed.trial
def _(c, seed):
    x = torch.randn(c.batch, 1, c.side, c.side, device=c.device)
    y = torch.randint(10, (c.batch,), device=c.device)
    networks = {norm: make_network(c.network, norm, c.width, c.side).to(c.device) for norm in ("none", *NAMES)}
    arms = [("none", "fused"), *((norm, written) for written in WRITTEN for norm in NAMES)]
    steps = {f"{norm}_{written}": training_step(networks[norm], x, y, written) for norm, written in arms}
    seconds = step_seconds(steps, c.device, c.rounds, c.seconds)
    columns = {f"{arm}_ms": 1000 * float(np.median(times)) for arm, times in seconds.items()}
    for arm, times in seconds.items():
        columns[f"{arm}_time"] = float(np.median(np.divide(times, seconds["none_fused"])))
    for written in WRITTEN:
        ratio = np.divide(seconds[f"rms_{written}"], seconds[f"layer_{written}"])
        columns[f"saved_{written}"] = 100 * (1 - float(np.median(ratio)))
    columns["fused_layer_to_rms_formula"] = float(np.median(np.divide(seconds["layer_fused"], seconds["rms_formula"])))
    return columns


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------

LABELS = {"formula": "term by term", "fused": "torch's own"}  # on a CPU torch fuses layer norm alone


def in_words(table, column):
    """Write the medians of a column, network by network."""
    medians = table.groupby("network")[column].median()
    return ", ".join(f"{number(medians[network])} {name}" for network, name in NETWORKS.items())


@speed.draw
def _(table):
    figure, axes = subplots(height=2.6)
    for row, network in enumerate(NETWORKS):
        cell = table[table.network == network]
        for written, face, shift in (("formula", None, -0.17), ("fused", PAPER, 0.17)):
            ends = [cell[f"{norm}_{written}_time"].median() for norm in NAMES]
            axes.plot(ends, [row + shift] * 2, color=INK, linewidth=0.8, zorder=1)
            for norm, end in zip(NAMES, ends, strict=True):
                color = norm_color(norm)
                axes.plot(end, row + shift, "o", color=color, markerfacecolor=face or color, label=NAMES[norm] if not row else None)
            saved = cell[f"saved_{written}"].median()
            said = f"{LABELS[written]}: {number(abs(saved))} % {'less' if saved > 0 else 'more'} with RMS"
            axes.annotate(said, (max(ends), row + shift), (9, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle="--")
    times = [table[f"{norm}_{written}_time"].max() for norm in NAMES for written in WRITTEN]
    axes.set(
        xlim=(0.9, 1 + 1.9 * (max(times) - 1)), ylim=(len(NETWORKS) - 0.5, -0.5), xlabel="time of a training step, ratio to none"
    )
    axes.set_yticks(range(len(NETWORKS)), list(NETWORKS.values()))
    axes.grid(False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside lower center", ncols=2, fontsize=8.5)
    return Drawing(
        figure,
        caption="Eager training steps (forward, backward, update) of three networks, as multiples of the step without norms "
        "(dashed). Filled: norms written term by term, each term an operation of its own. Open: those of torch. In "
        f"percent of the step with layer norm RMS norm saves, term by term, {in_words(table, 'saved_formula')}; with the norms of "
        f"torch {in_words(table, 'saved_fused')} (below zero: it takes longer). Without norms the "
        f"steps take {in_words(table, 'none_fused_ms')} (milliseconds).",
        alt="Dot plot: time of a training step with layer norm and with RMS norm as a ratio to the step without norms, for a dense "
        "network, a GRU and a transformer, with norms written term by term and with those of torch.",
    )


# ---------------------------------------------------------------------------------------------------------------------------
# Claims
# ---------------------------------------------------------------------------------------------------------------------------


@speed.claim(
    "range",
    "RMS norm takes 7 to 64 % off the running time of layer norm, depending on the model.",
    criterion="norms written term by term, eager, per repetition: the share of a training step that RMS norm saves lies between 7 "
    "and 64 % in all three networks: the smallest counts, and the largest stays within",
)
def _(table):
    shares = table.pivot(index="seed", columns="network", values="saved_formula")
    smallest = shares.min(axis=1).where(shares.max(axis=1) <= 64, np.nan)
    said = f"percent saved: {in_words(table, 'saved_formula')}"
    return judge_effect("smallest of three shares saved, in percent", smallest, claimed=(7, 64), null=0, note=said)


@speed.claim(
    "torchs-own",
    "With the layers of torch RMS norm saves less than 5 % of a training step.",
    criterion="torch's own layers, eager, per repetition: the largest of the three shares is below 5 %",
    by="notes",
)
def _(table):
    largest = table.groupby("seed").saved_fused.max()
    said = f"percent saved: {in_words(table, 'saved_fused')}; on a CPU torch fuses layer norm, and RMS norm is several operations"
    return judge_effect("largest of three shares saved, in percent", largest, claimed=(-np.inf, 5), null=np.nan, note=said)


@speed.claim(
    "fusing-first",
    "Fusing layer norm saves more than leaving out its mean: fused layer norm is faster than RMS norm written term by term.",
    criterion="per repetition, time of a step with fused layer norm over that with RMS norm term by term: below 1 in all three "
    "networks: the largest counts",
    by="notes",
)
def _(table):
    largest = table.groupby("seed").fused_layer_to_rms_formula.max()
    said = in_words(table, "fused_layer_to_rms_formula")
    return judge_effect("time, LN fused / RMS term by term, largest of three", largest, claimed=(0, 1), null=1, note=said)
