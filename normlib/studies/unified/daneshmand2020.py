"""Daneshmand, Kohler, Bach, Hofmann & Lucchi (2020): a rank that does not collapse, where that is proved and where not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullLocator
from torch import Tensor

from normlib.lab import Config, Drawing, Study, judge_effect, number
from normlib.networks import MLP
from normlib.probes import feature_geometry
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.looks import INK, OLIVE, VERMILION, median_and_band, norm_color, note, subplots

ARMS = {  # of the chain, and of the networks with ReLU
    "chain": {"batch": "batch norm", "none": "none", "batch from one direction": "from one direction"},
    "relu": {"batch": "batch norm", "none": "none", "positive": "positive weights"},
}
COLORS = {"batch": norm_color("batch"), "none": norm_color("none"), "batch from one direction": OLIVE, "positive": VERMILION}
BEHIND = ", behind ReLU"
NOISE = 1e-6  # what the start from one direction has besides it
AVERAGED = 100  # layers of the second half that the average of the chain is taken over

rank = Study(
    "daneshmand2020.rank",
    item="Figs 2, 3 and 'broken' BN",
    title="Batch norm keeps rank in a linear chain, and loses it with positive weights",
    kind="init",
    vary={"network": list(ARMS), "width": [8, 16, 32, 64, 128]},
    quick={"width": [8, 16, 32], "layers": 1_200, "step": 0.1, "depth": 16},
    laptop={"layers": 20_000, "step": 0.03, "depth": 32},
    full={"width": [8, 16, 32, 64, 128, 256], "layers": 100_000, "step": 0.02, "depth": 64},
)


def unit_rows(h: Tensor) -> Tensor:
    """Divide each unit by its root mean square over the samples, the last axis: batch norm without subtraction of the mean."""
    return h / h.square().mean(-1, keepdim=True).sqrt()


def rank_of(h: Tensor) -> Tensor:
    """Return r = tr(M)² / ‖M‖², M = HHᵀ, of matrices H (*, units, samples): the paper's lower bound on the soft rank."""
    m = h @ h.mT
    return m.diagonal(dim1=-2, dim2=-1).sum(-1).square() / m.square().sum((-2, -1))


def starts(width: int, seed: int, device: str) -> tuple[Tensor, torch.Generator]:
    """Return the chains' first matrices, (3, width, width): Gaussian, the same again, one direction and a little noise."""
    source = torch.Generator(device).manual_seed(seed)
    gaussian, noise = torch.randn(2, width, width, generator=source, dtype=torch.float64, device=device)
    one = gaussian[:1].expand(width, width) + NOISE * noise
    return torch.stack([gaussian, gaussian, one]), source


def chain(c: Config, seed: int) -> pd.DataFrame:
    """Follow H ← BN(H + step·WH) with fresh Gaussian W, and the same without BN, which is scaled as a whole instead."""
    h, source = starts(c.width, seed, c.device)
    h[[0, 2]] = unit_rows(h[[0, 2]])
    shown = {0, *np.geomspace(1, c.layers, 36).round().astype(int).tolist()}
    averaged = {*np.linspace(c.layers // 2, c.layers, AVERAGED).round().astype(int).tolist()}
    found = {0: rank_of(h)}
    for layer in range(1, c.layers + 1):
        w = torch.randn(c.width, c.width, generator=source, dtype=h.dtype, device=h.device)
        h = h + c.step * (w @ h)
        h = torch.stack([unit_rows(h[0]), h[1] / h[1].square().mean().sqrt(), unit_rows(h[2])])
        if layer in shown or layer in averaged:
            found[layer] = rank_of(h)
    values = torch.stack(list(found.values())).cpu().numpy()
    layers = np.array(list(found))
    level = values[np.isin(layers, list(averaged))].mean(axis=0)
    rows = [
        {"arm": arm, "layer": layer, "r": value, "level": level[at]}
        for at, arm in enumerate(ARMS["chain"])
        for layer, value in zip(layers.tolist(), values[:, at].tolist(), strict=True)
        if layer in shown
    ]
    return pd.DataFrame(rows)


def relu_network(width: int, depth: int, arm: str, seed: int) -> MLP:
    """Build dense layers of He's scale with ReLU: with batch norm, without, or "positive": batch norm and all weights |w|."""
    norm = "none" if arm == "none" else "batch"
    net = MLP([width] * (depth + 2), activation="relu", norm=norm, init="he", bias=False, seed=seed).double()
    if arm == "positive":
        with torch.no_grad():
            for weight in (block.layer.weight for block in net.blocks):  # type: ignore[union-attr]
                weight.abs_()  # type: ignore[operator]
    return net


def networks(c: Config, seed: int) -> pd.DataFrame:
    """Measure r in front of each ReLU, where batch norm puts it, and behind."""
    x = starts(c.width, seed, "cpu")[0][0].T.to(c.device)
    rows = []
    for arm in ARMS["relu"]:
        net = relu_network(c.width, c.depth, arm, seed).to(c.device)
        for place, module in {"": "norm", BEHIND: "activation"}.items():
            names = [f"blocks.{index}.{module}" for index in range(c.depth)]
            values = feature_geometry(net, x, names, training=True)["participation_ratio"]
            rows += [{"arm": arm + place, "layer": at, "r": r, "level": values[-1]} for at, r in enumerate(values, 1)]
    return pd.DataFrame(rows)


@rank.trial
def _(c, seed):
    return (chain if c.network == "chain" else networks)(c, seed).to_dict("list")


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def levels(table, network: str, arm: str) -> pd.DataFrame:
    """Return r (the chain: averaged over its second half; a network: at its last layer), a row a seed, a column a width."""
    return side_by_side(table[table.arm == arm], "width", "level", network=network)


def slope(table, network: str, arm: str) -> pd.Series:
    """Return the least-squares slope of log r on log width, for each seed."""
    found = levels(table, network, arm)
    return pd.Series(np.polyfit(np.log(found.columns.to_numpy(float)), np.log(found.to_numpy().T), 1)[0], found.index)


@rank.draw
def _(table):
    figure, ((over, scaling), (deep, deep_scaling)) = subplots(2, 2, height=2.6)
    widths = sorted(table.width.unique())
    wide = table[table.width == widths[-1]]
    for arm, label in ARMS["chain"].items():
        runs = wide[(wide.network == "chain") & (wide.arm == arm) & (wide.layer > 0)]
        median_and_band(over, runs, "layer", "r", color=COLORS[arm], marker="", label=label)
    ends = table.drop_duplicates(["network", "arm", "width", "seed"])
    for axes, network, arms in (
        (scaling, "chain", {"batch": "-", "none": "-"}),
        (deep_scaling, "relu", {"batch": "-", "batch" + BEHIND: "--", "positive": "-", "none": "-"}),
    ):
        for arm, line in arms.items():
            runs = ends[(ends.network == network) & (ends.arm == arm)]
            color = COLORS[arm.removesuffix(BEHIND)]
            median_and_band(axes, runs, "width", "level", color=color, linestyle=line, marker="o")
        axes.plot(widths, np.sqrt(widths), ":", color=INK, linewidth=1.2)
        axes.set(xscale="log", yscale="log", xlabel="width", ylim=(0.8, widths[-1]))
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.xaxis.set_minor_locator(NullLocator())
        note(axes, "dotted: √width", 0.03, 0.9)
    for arm, label in ARMS["relu"].items():
        for place, line in {"": "-", BEHIND: "--"}.items():
            runs = wide[(wide.network == "relu") & (wide.arm == arm + place)]
            name = None if place else label
            median_and_band(deep, runs, "layer", "r", color=COLORS[arm], linestyle=line, marker="", label=name)
    over.set(xscale="log", xlabel="layer of the linear chain", ylabel="$r$")
    deep.set(xlabel="layer of the ReLU network", ylabel="$r$")
    scaling.set_ylabel("$r$, averaged over layers")
    deep_scaling.set_ylabel("$r$, last layer")
    note(deep, "dashed: behind ReLU", 0.97, 0.3, ha="right")
    for axes in (over, deep):
        axes.set(yscale="log", ylim=(0.8, None))
        axes.legend(loc="best", fontsize=8.5)
    for axes in (over, scaling, deep, deep_scaling):
        axes.set_yticks([1, 10, 100], ["1", "10", "100"])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0.8, 1.2 * widths[-1])
    front, behind = (levels(table, "relu", arm)[widths[-1]].median() for arm in ("batch", "batch" + BEHIND))
    return Drawing(
        figure,
        caption="How many directions a layer uses, $r = \\mathrm{tr}(M)^2 / \\|M\\|_F^2$, at random weights. As many samples as "
        "units, all in one statistic batch, no SGD. **Top** The linear chain of the theorem, batch norm without subtraction "
        f"of the mean, small steps ({number(table.step.iloc[0])} per layer): $r$ grows as width to the power "
        f"{number(slope(table, 'chain', 'batch').median())}; without the norm it is "
        f"{number(levels(table, 'chain', 'none')[widths[-1]].median())} in the end. "
        f"**Bottom** ReLU networks with ordinary batch norm, width {widths[-1]}, last layer: $r$ is {number(front)} in front of "
        f"the ReLU and {number(behind)} behind it; in front it is "
        f"{number(levels(table, 'relu', 'positive')[widths[-1]].median())} if all weights are positive.",
        alt="Four panels of the rank r. Top: a linear chain over its layers, with batch norm, without, and from a start with one "
        "direction; r against width. Bottom: the same for ReLU networks, before and behind the ReLU.",
    )


@rank.claim(
    "root-of-width",
    "In a linear chain with batch normalization and small steps, r averaged over layers grows at least as √width.",
    criterion="slope of log r on log width at least 0.5; r averaged over the second half of the layers",
)
def _(table):
    return judge_effect("slope", slope(table, "chain", "batch"), claimed=(0.5, np.inf), null=0)


@rank.claim(
    "collapse",
    "Without normalization the same chain collapses to one direction.",
    criterion="r averaged over the second half of the layers at most 1.1 at every width (the largest)",
)
def _(table):
    worst = levels(table, "chain", "none").max(axis=1, skipna=False)
    return judge_effect("largest r", worst, claimed=(0, 1.1), null=np.nan)


@rank.claim(
    "recovers",
    "From an input of nearly one direction, batch normalization recovers the rank.",
    criterion="averaged over the second half of the layers, r is 0.8 to 1.25 times that from a Gaussian start, every width",
)
def _(table):
    ratio = levels(table, "chain", "batch from one direction") / levels(table, "chain", "batch")
    furthest = ratio.apply(lambda row: row[np.log(row).abs().idxmax()], axis=1)
    return judge_effect("ratio furthest from 1", furthest, claimed=(0.8, 1.25), null=np.nan)


@rank.claim(
    "positive-weights",
    "Batch normalization does not keep the rank by itself: with all weights positive it collapses in networks with ReLU.",
    criterion="in front of the last ReLU, r with positive weights at most a third of r with weights of both signs, largest width",
)
def _(table):
    positive, both = (levels(table, "relu", arm)[table.width.max()] for arm in ("positive", "batch"))
    return judge_effect("r, positive / both signs", positive / both, claimed=(0, 1 / 3), null=1)


@rank.claim(
    "behind-relu",
    "The ReLU gives all samples a direction in common: the rank r behind it is at most half of that in front.",
    criterion="with batch norm, at the last layer, largest width",
    by="notes",
)
def _(table):
    behind, front = (levels(table, "relu", arm)[table.width.max()] for arm in ("batch" + BEHIND, "batch"))
    return judge_effect("r, behind / in front", behind / front, claimed=(0, 0.5), null=1)


@rank.claim(
    "relu-root",
    "Behind the ReLU the rank r hardly grows with the width.",
    criterion="with batch norm, at the last layer: slope of log r on log width below 0.25, half of what the root says",
    by="notes",
)
def _(table):
    return judge_effect("slope", slope(table, "relu", "batch" + BEHIND), claimed=(-np.inf, 0.25), null=0.5)
