"""Brock, De, Smith & Simonyan (2021): what a step of training costs with batch norm and without normalizers, and inference."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlib.lab import Config, Drawing, Judgement, Study, Verdict, judge_effect, number
from normlib.networks import ResNet
from normlib.probes import peak_bytes, step_seconds
from normlib.studies.common.looks import INK, median_and_band, norm_color, subplots
from normlib.studies.normalizer_free.tricks import TRICKS, Trick
from normlib.surgery import fold_batch_norm
from normlib.training import Update, make_loss
from normlib.training.update import Updater

AGC = "agc:clipping=0.01,exempt=head"


@dataclass(frozen=True)
class Arm:
    """One way to build the network and to update it, and its line."""

    name: str
    trick: Trick
    color: str
    dash: str = "-"
    clip: str = "none"


ARMS = {
    "batch": Arm("batch norm", TRICKS["batch"], norm_color("batch")),
    "group": Arm("group norm", Trick("group norm", "group:size=8", bias=False), norm_color("group"), "--"),
    "books": Arm("NF, plain weights", TRICKS["nf_he"], norm_color("none")),
    "nf": Arm("NF", TRICKS["nf"], norm_color("scaled_weight")),
    "nf_agc": Arm("NF with AGC", TRICKS["nf"], norm_color("scaled_weight"), "--", AGC),
}
INFERENCE = {
    "batch": ARMS["batch"],
    "batch_folded": Arm("batch norm, folded", TRICKS["batch"], norm_color("batch"), ":"),
    "nf": ARMS["nf"],
    "nf_fixed": Arm("NF, weights computed once", TRICKS["nf"], norm_color("scaled_weight"), ":"),
}

cost = Study(
    "brock2021b.cost",
    item="§2, Tables 2 and 3",
    title="Is a step without normalizers a cheaper one? Time and memory, on the device at hand",
    kind="timing",
    vary={"batch": [2, 8, 32], "precision": ["float32"], "execution": ["eager"]},
    quick={"stages": [1, 1], "width": 8, "side": 12, "batch": [2, 8], "channels_last": False, "rounds": 2, "seconds": 0.005},
    laptop={"stages": [2, 2, 2], "width": 32, "side": 24, "channels_last": False, "rounds": 7, "seconds": 0.03},
    full={"stages": [3, 4, 6, 3], "width": 64, "side": 56, "batch": [32, 256], "precision": ["float32", "bfloat16"],
          "execution": ["eager", "compile"], "channels_last": True, "rounds": 9, "seconds": 0.2},
)  # fmt: skip


def network(c: Config, trick: Trick, seed: int) -> ResNet:
    """Build the residual network of version 2 with basic blocks, `c.stages` and `c.width`, that a trick names."""
    net = ResNet(c.stages, c.width, norm=trick.norm, residual=trick.residual, init=trick.init, bias=trick.bias, seed=seed)
    layout = torch.channels_last if c.channels_last else torch.contiguous_format
    return net.to(c.device, memory_format=layout)  # type: ignore[call-overload]


def training_step(c: Config, arm: Arm, seed: int, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Return one update as a call: loss, gradient, clipping if the arm has it, Nesterov momentum with weight decay on weights."""
    update = Update("sgd:nesterov=True", "weights", arm.clip, c.precision, execution=c.execution)
    net = network(c, arm.trick, seed)
    updater = Updater(update, net, make_loss("cross_entropy"), x.device, rate=1e-3, momentum=0.9, weight_decay=5e-4)
    return lambda: updater(x, y, 1e-3)


def prediction(c: Config, key: str, seed: int, x: Tensor) -> Callable[[], Tensor]:
    """Return one forward pass of an arm of `INFERENCE` as a call; its name says whether anything is computed beforehand."""
    net: nn.Module = network(c, INFERENCE[key].trick, seed).eval()
    if key == "batch_folded":
        net = fold_batch_norm(net)
    for module in list(net.modules()) if key == "nf_fixed" else []:
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")

    def step() -> Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=c.precision == "bfloat16"):
            return net(x)

    return step


def seconds_of(c: Config, steps: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the seconds of each step, the fastest of `c.rounds` turns, by the clock of the GPU or that of this process alone."""
    if c.device.startswith("cuda"):
        return {name: min(found) for name, found in step_seconds(steps, c.device, c.rounds, c.seconds).items()}
    found = dict.fromkeys(steps, np.inf)
    for warm in [False] + [True] * c.rounds:
        for name, step in steps.items():
            start, count = time.process_time(), 0
            while not count or time.process_time() - start < c.seconds:
                step()
                count += 1
            found[name] = min(found[name], (time.process_time() - start) / count if warm else np.inf)
    return found


@cost.trial
def _(c, seed):
    torch.set_num_threads(1)  # threads that wait for one another would measure what else the machine does
    x = torch.randn(c.batch, 3, c.side, c.side, device=c.device)
    x = x.contiguous(memory_format=torch.channels_last) if c.channels_last else x
    y = torch.randint(10, (c.batch,), device=c.device)
    modes = {
        "training": {key: training_step(c, arm, seed, x, y) for key, arm in ARMS.items()},
        "inference": {key: prediction(c, key, seed, x) for key in INFERENCE},
    }
    rows = []
    for mode, steps in modes.items():
        for key, seconds in seconds_of(c, steps).items():
            rows.append({"mode": mode, "arm": key, "ms": 1000 * seconds, "mb": peak_bytes(steps[key], c.device) / 2**20})
    return {**pd.DataFrame(rows).to_dict("list"), "cuda": c.device.startswith("cuda")}


def ratios(table, above: str, below: str, mode: str = "training", column: str = "ms"):
    """Return a column of one arm over that of another: a row a repetition, a column a batch."""
    rows = table[(table["mode"] == mode) & (table.precision == "float32") & (table.execution == "eager")]
    wide = {arm: rows[rows.arm == arm].pivot_table(index="seed", columns="batch", values=column) for arm in (above, below)}
    return wide[above] / wide[below]


def _at(table, which: str, *arms: str, **where: str):
    """Return the ratios of two arms at the largest or the smallest batch."""
    found = ratios(table, *arms, **where)
    return found[found.columns.max() if which == "largest" else found.columns.min()]


@cost.draw
def _(table):
    figure, axes = subplots(1, 3, height=3.0)
    panels = (("training", "ms", "training: time"), ("training", "mb", "training: memory"), ("inference", "ms", "inference: time"))
    batches = sorted(table.batch.unique())
    for ax, (mode, column, title) in zip(axes, panels, strict=True):
        for key, arm in (ARMS if mode == "training" else INFERENCE).items():
            found = ratios(table, key, "nf", mode=mode, column=column).stack().rename("ratio").reset_index()
            line: dict[str, Any] = {"label": arm.name, "linestyle": arm.dash, "marker": "o", "markersize": 3.5}
            median_and_band(ax, found, "batch", "ratio", color=arm.color, **line)
        ax.set(xscale="log", xlabel="images in a step")
        ax.set_title(title, fontsize=9.5)
        ax.set_xticks(batches, [str(batch) for batch in batches])
        ax.minorticks_off()
        ax.axhline(1, color=INK, linewidth=0.6)
    axes[0].set_ylabel("ratio to NF without clipping")
    lines = {label: line for ax in (axes[0], axes[2]) for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False, handlelength=3)
    last = {key: _at(table, "largest", key, "nf").median() for key in ARMS}
    ends = [number(_at(table, end, "batch", "nf_agc").median()) for end in ("smallest", "largest")]
    folded = number(_at(table, "largest", "batch_folded", "nf_fixed", mode="inference").median())
    memory = number(_at(table, "largest", "batch", "nf", column="mb").median())
    where = "one GPU" if table.cuda.any() else "one core of a CPU"
    return Drawing(
        figure,
        caption=f"A residual network of {sum(table.stages.iloc[0])} basic blocks and width {table.width.iloc[0]} on images of "
        f"{table.side.iloc[0]} px, on {where}, float32, eager, the fastest of {table.rounds.iloc[0]} rounds. The SGD batch is "
        "drawn along the axis; batch norm takes it as its statistic batch, the others have none. "
        f"With {batches[-1]} images the step takes, against NF without clipping, {number(last['batch'])} times the time with batch "
        f"norm, {number(last['group'])} with group norm, {number(last['books'])} with NF's weights left plain, "
        f"{number(last['nf_agc'])} with AGC; batch norm holds {memory} times the memory at its peak. Batch norm over NF "
        f"with AGC takes {ends[0]} times the time at {batches[0]} images, {ends[1]} times at {batches[-1]}. In inference, folded "
        f"batch norm over NF with its weights computed once: {folded}. AGC only adds work: below 1 its line is noise.",
        alt="Three panels against the number of images: time and peak memory of a training step and time of inference, each as a "
        "ratio to the normalizer-free network, for batch norm, group norm and normalizer-free arms.",
    )


@cost.claim(
    "accelerator",
    "On an accelerator a training step with batch norm takes at least a fifth longer than one of the normalizer-free network.",
    criterion="on a CUDA GPU, at the largest batch, eager, the time of the step with batch norm is at least 1.2 times that of NF "
    "without clipping",
)
def _(table):
    effect = "time of a step, batch norm / NF"
    if not table.cuda.any():
        return Judgement(effect, float("nan"), None, None, Verdict.LARGER_SCALE, "needs a CUDA GPU")
    return judge_effect(effect, _at(table, "largest", "batch", "nf"), claimed=(1.2, np.inf), null=1)


@cost.claim(
    "at-hand",
    "On the device at hand, too, the step with batch norm takes longer at the largest batch, clipping included.",
    criterion="at the largest batch the time of the step with batch norm is at least 1.05 times that of NF with AGC",
    by="notes",
)
def _(table):
    ratio = _at(table, "largest", "batch", "nf_agc")
    return judge_effect("time of a step, batch norm / NF with AGC", ratio, claimed=(1.05, np.inf), null=1)


@cost.claim(
    "memory",
    "Batch norm costs memory: at the largest batch its step holds more at the peak than the normalizer-free one.",
    criterion="at the largest batch the peak memory of the step with batch norm, over that of NF without clipping, is above 1",
)
def _(table):
    ratio = _at(table, "largest", "batch", "nf", column="mb")
    return judge_effect("peak memory of a step, batch norm / NF", ratio, claimed=(1, np.inf), null=1)


@cost.claim(
    "standardization",
    "At the largest batch, standardizing the weights adds at most a tenth to the step.",
    criterion="at the largest batch the time of the NF step is at most 1.1 times that of the same network with plain weights",
    by="notes",
)
def _(table):
    ratio = _at(table, "largest", "nf", "books")
    smallest = f"{number(_at(table, 'smallest', 'nf', 'books').median())} at the smallest batch"
    return judge_effect("time of a step, NF / NF with plain weights", ratio, claimed=(0, 1.1), null=1.1, note=smallest)


@cost.claim(
    "batch-decides",
    "What is cheaper depends on the batch: batch norm works on activations, the normalizer-free step on weights.",
    criterion="the time with batch norm over that of NF with AGC is at the largest batch at least 1.2 times that at the smallest",
    by="notes",
)
def _(table):
    large, small = (_at(table, end, "batch", "nf_agc") for end in ("largest", "smallest"))
    said = f"batch norm / NF with AGC: {number(small.median())} at the smallest, {number(large.median())} at the largest"
    return judge_effect("ratio of times, largest batch / smallest", large / small, claimed=(1.2, np.inf), null=1, note=said)


@cost.claim(
    "inference",
    "At inference the difference is gone: what folds is folded, and weights are computed once.",
    criterion="at the largest batch the forward pass with batch norm, folded where it follows a convolution, takes at most 1.05 "
    "times that of NF with its weights computed once",
    by="notes",
)
def _(table):
    ratio = _at(table, "largest", "batch_folded", "nf_fixed", mode="inference")
    raw = f"not folded / NF as trained: {number(_at(table, 'largest', 'batch', 'nf', mode='inference').median())}"
    return judge_effect("time of inference, batch norm folded / NF", ratio, claimed=(0, 1.05), null=1.05, note=raw)
