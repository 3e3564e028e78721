"""How fast is each normalizer? Forward and backward against what people use today, eager and compiled."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from normlib.lab import Drawing, Judgement, Study, Verdict, judge_effect, number
from normlib.layers import NORMS, ChannelsLast, make_norm, reference
from normlib.probes import copy_bandwidth, forward_backward, peak_bytes, step_seconds
from normlib.studies.common.looks import BLUE, GRAY, INK, VERMILION, subplots

INPUTS = {"maps": "maps", "channels_last": "maps, channels last", "tokens": "tokens"}
TORCH = {
    "batch": lambda c, tokens: nn.BatchNorm1d(c) if tokens else nn.BatchNorm2d(c),
    "instance": lambda c, tokens: nn.InstanceNorm1d(c) if tokens else nn.InstanceNorm2d(c),
    "group": lambda c, tokens: nn.GroupNorm(32, c),
    "layer": lambda c, tokens: nn.LayerNorm(c) if tokens else nn.GroupNorm(1, c),
    "rms": lambda c, tokens: nn.RMSNorm(c) if tokens else None,
}
FEATURES_LAST = ("layer", "rms")  # what torch computes on tokens without moving them
# Statistics over the whole batch are known only after the input was read once, so each pass reads its tensors twice.
TRAFFIC = {True: 8, False: 5}
ACROSS_SAMPLES = ("batch", "renorm", "lp", "noisy", "variance", "decorrelated", "switch", "evonorm_b0")

layers = Study(
    "notes.speed",
    item="Speed",
    title="A normalizer that torch has costs what torch's own costs; compiled, the others are a fraction of their formula",
    kind="timing",
    vary={"norm": [name for name in NORMS if name not in ("none", "sync")], "input": list(INPUTS)},
    quick={"norm": ["batch", "group", "frn", "dyt"], "maps": [8, 64, 16, 16], "tokens": [8, 32, 64], "compiled": False,
           "rounds": 3, "seconds": 0.02},
    laptop={"maps": [64, 64, 32, 32], "tokens": [64, 256, 768], "compiled": True, "rounds": 3, "seconds": 0.05},
    full={"maps": [256, 128, 56, 56], "tokens": [256, 1024, 1024], "compiled": True, "rounds": 9, "seconds": 0.1},
)  # fmt: skip


@layers.trial
def _(c, seed):
    tokens = c.input == "tokens"
    shape = c.tokens if tokens else c.maps
    channels = shape[-1] if tokens else shape[1]
    x = torch.randn(shape, device=c.device)
    if c.input == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    ours = make_norm(c.norm, channels, channel_axis=-1 if tokens else 1, device=c.device)
    theirs = _torchs(c.norm, channels, tokens)
    formula = forward_backward(ours, x)
    steps = {"eager": forward_backward(ours, x), "formula": lambda: _by_formula(formula)}
    if theirs is not None:
        steps["torch"] = forward_backward(theirs.to(c.device), x)
    if c.compiled:
        torch._dynamo.reset()
        steps["compiled"] = forward_backward(_compiled(ours), x)
        if theirs is not None:
            steps["torch_compiled"] = forward_backward(_compiled(theirs), x)
    seconds = step_seconds(steps, c.device, c.rounds, c.seconds)
    base = {"eager": "torch" if theirs else "formula", "compiled": "torch_compiled" if theirs else "formula"}
    columns = {"torch": theirs is not None, "formula_ms": 1000 * float(np.median(seconds["formula"]))}
    for mode in ("eager", "compiled") if c.compiled else ("eager",):
        columns[f"{mode}_ms"] = 1000 * float(np.median(seconds[mode]))
        columns[f"{mode}_base_ms"] = 1000 * float(np.median(seconds[base[mode]]))
        columns[f"{mode}_time"] = float(np.median(np.divide(seconds[mode], seconds[base[mode]])))
        columns[f"{mode}_memory"] = peak_bytes(steps[mode], c.device) / peak_bytes(steps[base[mode]], c.device)
    columns["to_formula"] = float(np.median(np.divide(seconds["eager"], seconds["formula"])))
    if c.device.startswith("cuda"):
        moved = TRAFFIC[c.norm in ACROSS_SAMPLES] * x.numel() * x.element_size()
        columns["bandwidth"] = moved / np.median(seconds["compiled"]) / copy_bandwidth(c.device)
    return columns


def _torchs(norm, channels, tokens):
    """Build torch's own layer, or None where it has none."""
    made = TORCH[norm](channels, tokens) if norm in TORCH else None
    return ChannelsLast(made) if made is not None and tokens and norm not in FEATURES_LAST else made


def _by_formula(step):
    with reference():
        step()


def _compiled(module):
    return torch.compile(module, fullgraph=True, dynamic=False)


@layers.draw
def _(table):
    inputs = [name for name in INPUTS if name in set(table.input)]
    norms = _ordered(table)
    figure, axes = subplots(len(inputs), 2, height=0.55 + 0.16 * len(norms), sharex="col", sharey=True, squeeze=False)
    modes = {"eager": (BLUE, "o"), "compiled": (VERMILION, "D")} if "compiled_time" in table else {"eager": (BLUE, "o")}
    for (left, right), name in zip(axes, inputs, strict=True):
        cells = table[table.input == name].groupby("norm")
        for mode, (color, marker) in modes.items():
            for ax, quantity in ((left, "time"), (right, "memory")):
                values = cells[f"{mode}_{quantity}"].median().reindex(norms)
                ax.plot(values, range(len(norms)), marker, color=color, markersize=4, label=mode)
        left.set_yticks(range(len(norms)), norms, fontsize=7.5)
        left.set_title(f"{INPUTS[name]}: time", fontsize=9.5)
        right.set_title("peak memory", fontsize=9.5)
        split = sum(bool(table[table.norm == norm].torch.any()) for norm in norms) - 0.5
        for ax in (left, right):
            ax.axvline(1, color=INK, linewidth=0.8)
            ax.axhline(split, color=GRAY, linewidth=0.8, linestyle=":")
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(lambda ratio, _: f"1/{1 / ratio:.0f}" if ratio < 1 else f"{ratio:.0f}")
    axes[0, 0].invert_yaxis()  # shared by all
    for ax in axes[-1]:
        ax.set_xlabel("ratio to torch.nn, below the dots to the formula", fontsize=8.5)
    axes[0, 0].legend(fontsize=8, loc="lower left")
    return Drawing(figure, caption=_caption(table), alt=_ALT)


_ALT = (
    "Dot plots: for each normalizer the time and the peak memory of forward and backward, as a ratio to torch.nn or to the plain "
    "formula, for maps, channels-last maps and tokens; eager and compiled."
)


def _ordered(table):
    """Return the norms, those first that are compared with torch's own."""
    own = table.groupby("norm").torch.max()
    return [norm for norm in NORMS if own.get(norm)] + [norm for norm in NORMS if norm in own and not own[norm]]


def _caption(table):
    norm, name, samples = _worst(table[table.torch.astype(bool)], "eager_time")
    text = (
        "One forward and backward pass. Above the dotted line the ratio is to the layer of torch.nn in the same mode, below it to "
        "the plain formula, eager. Eager, the least favorable of the former is "
        f"{norm} on {INPUTS[name]}: {number(np.median(samples))}."
    )
    if "compiled_time" not in table:
        return text
    norm, name, samples = _worst(table[~table.torch.astype(bool)], "compiled_time")
    return f"{text} Compiled, the least favorable of the latter is {norm} on {INPUTS[name]}: {number(np.median(samples))}."


def _worst(table, column):
    """Return the norm, the input and the samples of the cell whose median over repetitions is the largest."""
    norm, name = table.groupby(["norm", "input"])[column].median().idxmax()
    return norm, name, table[(table.norm == norm) & (table.input == name)][column].to_numpy()


def _at_most(table, column, bound, effect):
    """Judge that the largest ratio of all stays within a bound."""
    if column not in table:
        return Judgement(effect, float("nan"), None, None, Verdict.UNRESOLVED, "not measured at this preset")
    norm, name, samples = _worst(table, column)
    where = f"the largest of all: {norm} on {INPUTS[name]}"
    return judge_effect(effect, samples, claimed=(0, bound), null=bound, note=where)


@layers.claim(
    "torch-eager",
    "A normalizer that torch has is as fast as torch's own, eager.",
    criterion="the largest ratio of times, over normalizers and inputs, is at most 1.05",
)
def _(table):
    return _at_most(table[table.torch.astype(bool)], "eager_time", 1.05, "time, ratio to torch.nn")


@layers.claim(
    "torch-compiled",
    "A normalizer that torch has is as fast compiled as torch's own compiled.",
    criterion="the largest ratio of times is at most 1.05: less cannot be told apart from 1 here",
)
def _(table):
    return _at_most(table[table.torch.astype(bool)], "compiled_time", 1.05, "time compiled, ratio to torch.nn compiled")


@layers.claim(
    "formula-eager",
    "No other normalizer is slower than its plain formula, eager.",
    criterion="the largest ratio of times is at most 1.05: less cannot be told apart from 1 here",
)
def _(table):
    return _at_most(table[~table.torch.astype(bool)], "eager_time", 1.05, "time, ratio to the formula")


@layers.claim(
    "formula-compiled",
    "Every other normalizer is at least twice as fast compiled as its plain formula is eager.",
    criterion="the largest ratio of times is at most 0.5",
)
def _(table):
    return _at_most(table[~table.torch.astype(bool)], "compiled_time", 0.5, "time compiled, ratio to the formula")


@layers.claim(
    "bandwidth",
    "Compiled, beyond the cache of a GPU, each normalizer moves its data at 80 % of the bandwidth of a copy or more.",
    criterion="the smallest share is at least 0.8, where a pass that needs statistics of the whole batch reads its tensors twice",
)
def _(table):
    effect = "share of the bandwidth of a copy"
    if "bandwidth" not in table:
        return Judgement(effect, float("nan"), None, None, Verdict.LARGER_SCALE, "needs a CUDA GPU")
    medians = table.groupby(["norm", "input"]).bandwidth.median()
    norm, name = medians.idxmin()
    samples = table[(table.norm == norm) & (table.input == name)].bandwidth
    return judge_effect(effect, samples, claimed=(0.8, np.inf), null=0.8, note=f"the smallest of all: {norm} on {INPUTS[name]}")
