"""Wu & He (2018), Group Normalization, figure 2: which entries of a batch of maps share a statistic, found by moving them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from normlib.lab import Drawing, Study, judge_identity
from normlib.layers import group_norm, make_norm
from normlib.studies.common.looks import GRAY, GRID, INK, norm_color, subplots
from normlib.studies.common.statements import gap, normal

N, C, H, W = 3, 6, 2, 2  # samples, channels, positions
GROUPS = 3
ENTRY = (1, 2, 0)  # the entry whose set is drawn: sample, channel, position
TOKENS = "layer, per position"  # the layer norm of Transformers and ConvNeXt
DRAWN = {
    "batch": "batch",
    "layer": "layer",
    f"group:groups={GROUPS}": "group",
    "instance": "instance",
    TOKENS: "layer, per position",
    "rms": "RMS",
    "frn": "filter response",
    "decorrelated:size=2": "decorrelated batch",
    "switch": "switchable",
    "evonorm_b0": "EvoNorm-B0",
    f"evonorm_s0:groups={GROUPS}": "EvoNorm-S0",
    "dyt": "dynamic tanh",
}
REST = ["sync", "renorm", "noisy", "lp", "variance", "proxy", "derf"]

axes = Study(
    "wu2018.axes",
    item="Fig 2, Eqs 1-7",
    title="Which entries share a statistic: the axes of every layer, found by moving one entry at a time",
    kind="exact",
    vary={"norm": [*DRAWN, *REST]},
    quick={"draws": 1, "norm": [*DRAWN, "renorm", "lp", "proxy"]},
    laptop={"draws": 3},
    full=None,
)


def build(spec: str) -> Callable[[Tensor], Tensor]:
    """Return the norm of a spec for maps (N, C, H, W), in float64; the per-position layer norm sees each position as a token."""
    if spec == TOKENS:
        tokens = make_norm("layer", C, channel_axis=-1).double()
        return ChannelsFirst(tokens)
    return make_norm(spec, C).double()


class ChannelsFirst(nn.Module):
    """A norm for input (N, *, C), used on input (N, C, *)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, C, *)."""
        return self.norm(input.movedim(1, -1)).movedim(-1, 1)


@torch.no_grad()
def found_sets(norm: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> Tensor:
    """Move one entry after the other; row i, column k tells whether output i ever answered to entry k."""

    def output(x):
        torch.manual_seed(0)  # a layer that draws noise draws the same
        return norm(x).flatten()

    count = inputs[0].numel()
    answers = torch.zeros(count, count, dtype=torch.bool)
    for x in inputs:
        before = output(x)
        for k in range(count):
            moved = x.flatten().clone()
            moved[k] += 0.7
            answers[:, k] |= (output(moved.view_as(x)) - before).abs() > 1e-9 * before.abs().max()
    return answers


def said_sets(spec: str) -> Tensor | None:
    """Return the sets S_i as the paper writes them; None for a layer that it does not define."""
    n, c = (index.flatten() for index in torch.meshgrid(torch.arange(N), torch.arange(C), torch.arange(H * W), indexing="ij")[:2])
    sample, channel, group = (index[:, None] == index[None] for index in (n, c, c // (C // GROUPS)))
    said = {"batch": channel, "layer": sample, "instance": sample & channel, f"group:groups={GROUPS}": sample & group}
    return said.get(spec)


@axes.trial
def _(c, seed):
    signed = [normal(seed + 10 * d, N, C, H, W) for d in range(c.draws)]
    inputs = [*signed, *(1 + x.abs() for x in signed)]  # some layers put out zero for what is negative
    norm: Any = build(c.norm)
    shared = found_sets(norm.train(), inputs)
    later = found_sets(norm.eval(), inputs)
    sample = torch.arange(N).repeat_interleave(C * H * W)
    elsewhere = sample[:, None] != sample[None]
    said, sizes, x = said_sets(c.norm), shared.sum(1), inputs[0]
    n, channel, p = ENTRY
    return {
        "shares": shared[(n * C + channel) * H * W + p].int().tolist(),
        "mismatches": int((shared != said).sum()) if said is not None else -1,
        "sets": len(shared.unique(dim=0)),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "partition": bool((shared == shared.T).all() and (((shared.double() @ shared.double()) > 0) == shared).all()),
        "couples": bool((shared & elsewhere).any()),
        "couples_later": bool((later & elsewhere).any()),
        "later_differs": int((later != shared).sum()),
        "largest_later": int(later.sum(1).max()),
        "one_group": gap(group_norm(x, 1), F.layer_norm(x, [C, H, W])),
        "all_groups": gap(group_norm(x, C), F.instance_norm(x)),
    }


@axes.draw
def _(table):
    figure, panels = subplots(3, 4, height=1.42)
    table = table[table.seed == table.seed.min()]
    for ax, (spec, title) in zip(panels.flat, DRAWN.items(), strict=True):
        arm = table[table.norm == spec]
        run = arm.iloc[0]
        squares, colors = [], []
        color = GRAY if norm_color(spec) == INK else norm_color(spec)
        color = norm_color("layer") if spec == TOKENS else color
        chosen = (ENTRY[0] * C + ENTRY[1]) * H * W + ENTRY[2]
        for k, shares in enumerate(arm.shares):
            n, c, h, w = k // (C * H * W), k // (H * W) % C, k // W % H, k % W
            squares.append(Rectangle((c * 2.7 + w, n * 2.7 + h), 0.86, 0.86))
            colors.append(INK if k == chosen else color if shares else GRID)
        ax.add_collection(PatchCollection(squares, facecolors=colors, edgecolors="none"))
        ax.set(xlim=(-0.4, 2.7 * C), ylim=(2.7 * N, -0.4), aspect="equal", xticks=[], yticks=[])
        ax.grid(False)
        for side in ax.spines.values():
            side.set_visible(False)
        ax.set_title(title, fontsize=9.5)
        ax.set_xlabel(_words(run), fontsize=8, labelpad=1)
    panels[0, 0].set_ylabel("samples", fontsize=8)
    panels[0, 0].set_title("channels →", fontsize=8, loc="right")
    drawn, rest = table[table.norm.isin(DRAWN)], table[table.norm.isin(REST)]
    couples = [DRAWN[spec] for spec in DRAWN if bool(drawn[drawn.norm == spec].couples.iloc[0])]
    within = rest.groupby("norm").couples.first().sum()
    return Drawing(
        figure,
        caption=f"Which entries share a statistic. A batch of {N} samples (rows) of {C} channels (columns) with {H * W} positions "
        "each (small squares). One output is marked (no color). Colored are the inputs that moved it, "
        f"when one input was moved at a time, in training. Only "
        f"{', '.join(couples)} reach other samples, and none of them does in evaluation. Of the "
        f"{rest.norm.nunique()} layers not drawn, {within} do in training.",
        alt="Twelve panels, one a layer: a grid of three samples by six channels of four positions. One entry is marked, those "
        "that share its statistic are colored: a column of channels, a row, part of a row, one cell, or nothing else.",
    )


def _words(run):
    """Say how many sets a layer has, and how large they are."""
    if run.largest == 1:
        return "no statistics"
    if not run.partition:
        return "overlapping sets"
    return f"{run.sets} sets of {run.largest}"


def _of(table, *specs):
    return table[table.norm.isin(specs)].drop_duplicates(["norm", "seed"])


PAPERS = ("batch", "layer", "instance", f"group:groups={GROUPS}")


@axes.claim(
    "sets",
    "The entries whose mean and variance an entry shares are: batch norm, those of its channel; layer norm, those of its sample; "
    "instance norm, those of its channel and sample; group norm, those of its sample in its group of neighboring channels.",
    criterion="an output answers to an input if and only if the formula puts them in one set: no pair is off, for the four layers",
)
def _(table):
    arms = _of(table, *PAPERS)
    return judge_identity("pairs of entries that are off", float(arms.mismatches.max()), 0.0, f"of {(N * C * H * W) ** 2} pairs")


@axes.claim(
    "ends",
    "Group normalization with one group is layer normalization, and with one channel a group it is instance normalization.",
    criterion="against torch's layer norm over (C, H, W) and instance norm: largest relative difference at most 1e-12",
)
def _(table):
    return judge_identity("largest relative difference", table[["one_group", "all_groups"]].max().max(), 1e-12)


@axes.claim(
    "counts",
    "On N samples of C channels batch norm computes C pairs of statistics, layer norm N, group norm N·G, instance norm N·C, and "
    "each comes from an equal share of all entries.",
    criterion="the sets found do not overlap, they are that many, and each holds all entries divided by that number",
    by="notes",
)
def _(table):
    expected = dict(zip(PAPERS, (C, N, N * C, N * GROUPS), strict=True))
    off = 0
    for spec, count in expected.items():
        arm = _of(table, spec)
        off += int((~arm.partition.astype(bool)).sum() + (arm.sets != count).sum())
        off += int(((arm.smallest != N * C * H * W // count) | (arm.largest != N * C * H * W // count)).sum())
    said = ", ".join(f"{spec.partition(':')[0]} {count}" for spec, count in expected.items())
    return judge_identity("layers and properties that are off", float(off), 0.0, said)


@axes.claim(
    "two-modes",
    "A layer that ties samples together does so in training only; every other layer shares the same entries in both modes.",
    criterion="every norm of the registry: no output answers to another sample in evaluation; and where none does in training, the "
    "sets of the two modes are equal",
    by="notes",
)
def _(table):
    arms = table.drop_duplicates(["norm", "seed"])
    off = arms.couples_later.astype(bool) | (~arms.couples.astype(bool) & (arms.later_differs > 0))
    tied = sorted({spec.partition(":")[0] for spec in arms[arms.couples.astype(bool)].norm})
    return judge_identity("layers that are off", float(off.sum()), 0.0, f"tied in training: {', '.join(tied)}")


@axes.claim(
    "two-layer-norms",
    "On maps the name layer norm stands for two layers: over channels and positions of a sample, or over the channels of each "
    "position.",
    criterion="the first has N sets of C·H·W entries, the second N·H·W sets of C entries",
    by="notes",
)
def _(table):
    whole, tokens = _of(table, "layer"), _of(table, TOKENS)
    off = (
        (whole.sets != N).sum()
        + (whole.largest != C * H * W).sum()
        + (tokens.sets != N * H * W).sum()
        + (tokens.largest != C).sum()
    )
    note = f"sets found: {whole.sets.iloc[0]} of {whole.largest.iloc[0]}, and {tokens.sets.iloc[0]} of {tokens.largest.iloc[0]}"
    return judge_identity("counts and sizes that are off", float(off), 0.0, note)
