"""Santurkar et al. (2018), Theorem 4.1 in numbers: what it takes out of the gradient in each layer, and what the factor does."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.layers import BatchNorm
from normlib.probes import preserved
from normlib.probes.watching import gradients_at, watched
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import BLUE, INK, SKY, norm_color, note, subplots
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, RECIPE, fit, vgg
from normlib.training import Step

PROBED = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)  # shares of the run

gain = Study(
    "santurkar2018.gain",
    item="Theorem 4.1, its size",
    title="What the theorem subtracts is small; the factor in front of it is not",
    kind="train",
    vary={"norm": ["none", "batch"]},
    quick={**QUICK, "steps": 15, "rate": 0.1},
    laptop={**LAPTOP, "steps": 300, "rate": 0.1},
    full={**FULL, "rate": 0.1},
)


def by_channel(values: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as (C, N·H·W), in float64."""
    return values.detach().double().transpose(0, 1).flatten(1)


def sizes(y: Tensor, arriving: Tensor, weight: Tensor | None, eps: float) -> dict[str, float]:
    """Return the terms of Theorem 4.1 for one layer, medians over channels.

    Args:
        y: what the norm takes, or would take, shape (C, m).
        arriving: gradient at the output of the norm, ĝ, of the same shape.
        weight: γ, or None for 1.
        eps: of the norm.

    Returns:
        The shares of ‖ĝ‖² along 1 and along ŷ, and γ²/σ². Channels that receive no gradient or never vary are left out.
    """
    gamma = torch.ones(len(y), dtype=y.dtype, device=y.device) if weight is None else weight.detach().double()
    alive = (arriving.square().sum(1) > 0) & (y.var(1, correction=0) > 0)
    if not alive.any():
        return {"mean_share": np.nan, "slope_share": np.nan, "factor": np.nan}
    y, arriving, gamma = y[alive], arriving[alive], gamma[alive]
    variance, whole, m = y.var(1, correction=0), arriving.square().sum(1), y.shape[1]
    y_hat = (y - y.mean(1, keepdim=True)) / variance.sqrt()[:, None]
    return {
        "mean_share": float((arriving.sum(1).square() / m / whole).median()),
        "slope_share": float(((arriving * y_hat).sum(1).square() / m / whole).median()),
        "factor": float((gamma.square() / (variance + eps)).median()),
    }


def terms(step: Step, net: nn.Module) -> list[dict[str, float]]:
    """Measure every convolution on the batch of the step, in train mode; the network is left as it is."""
    with preserved(net), watched(net, (nn.Conv2d, BatchNorm)) as seen:
        loss = F.cross_entropy(net(step.x), step.y)
        found = list(seen.values())
        gradients = dict(zip(map(id, (t for _, t in found)), gradients_at(loss, [t for _, t in found]), strict=True))
    sums = [t for module, t in found if isinstance(module, nn.Conv2d)]
    norms = [(module, t) for module, t in found if isinstance(module, BatchNorm)] or [(None, t) for t in sums]  # type: ignore[misc]
    rows = []
    for layer, (y, (norm, z)) in enumerate(zip(sums, norms, strict=True)):
        above, below = (by_channel(gradients[id(t)]) for t in (z, y))  # type: ignore[arg-type]
        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        passed = float(below.square().sum() / above.square().sum()) if above.any() else np.nan
        rows.append({"layer": layer, "loss": float(loss.detach()), "passed": passed, **sizes(by_channel(y), above, weight, eps)})
    return rows


@gain.trial
def _(c: Config, seed: int):
    images, _ = images_for(c, seed)
    net, rows = vgg(c, images, c.norm, seed), []  # type: ignore[var-annotated]

    def probe(step: Step, model: nn.Module) -> dict[str, float]:
        rows.extend({"step": int(step), **row} for row in terms(step, model))
        return {}

    when = sorted({round(share * c.steps) for share in PROBED})
    run = fit(net, images, steps=c.steps, rate=c.rate, seed=seed, probe=probe, probe_steps=when)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns)
    return columns


def both_shares(table):
    """Return what the theorem subtracts as a share of ‖ĝ‖², for each row."""
    return table.mean_share + table.slope_share


@gain.draw
def _(table):
    figure, (removed, factors) = subplots(1, 2, height=3.2)
    table = table.assign(share=both_shares(table))
    table = table.assign(at=table.step + 1)
    for norm, label in (("none", "no norm"), ("batch", "BN")):
        runs = table[table.norm == norm].groupby(["seed", "at"]).share
        for values, style in ((runs.max(), "--"), (runs.median(), "-")):
            shown = values.groupby("at").median()
            named = f"{label}, {'largest' if style == '--' else 'median'} of the layers"
            removed.plot(shown.index, shown, style, color=norm_color(norm), marker="o", markersize=3, label=named)
    removed.axhline(0.01, color=INK, linewidth=0.8)
    note(removed, "1 %", 0.02, 0.0101, transform=removed.get_yaxis_transform(), va="bottom", fontsize=8.5)
    removed.set(xscale="log", yscale="log", xlabel="step + 1", ylabel="share taken out of ‖ĝ‖²")
    runs = table[table.norm == "batch"]
    layers = sorted(runs.layer.unique())
    for layer in layers:
        shown = runs[runs.layer == layer].groupby("at").factor.median()
        color = SKY if layer == layers[0] else BLUE
        factors.plot(shown.index, shown, color=color, alpha=0.35 + 0.65 * layer / max(layers), marker="o", markersize=3)
    factors.axhline(1, color=INK, linewidth=0.8)
    note(factors, "light: first layer, dark: last", 0.97, 1.02, ha="right", fontsize=8.5)
    factors.set(xscale="log", yscale="log", xlabel="step + 1", ylabel="γ² / σ² (median over channels)")
    figure.legend(*removed.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    start, end = (runs[runs.step == step].groupby("layer").factor.median() for step in (runs.step.min(), runs.step.max()))
    return Drawing(
        figure,
        caption=f"{RECIPE[0].upper()}{RECIPE[1:]}, rate {number(table.rate.iloc[0])} for both networks; the statistic batch is "
        f"the SGD batch, {BATCH} images and all positions. **Left** What Theorem 4.1 subtracts in each layer (without a norm, "
        f"what it would). The largest median of a layer is {number(table.share.max())}. **Right** The factor in front, one line a "
        f"layer with BN: {number(start.min())} to {number(start.max())} before training, {number(end.min())} to "
        f"{number(end.max())} after.",
        alt="Left: share of the squared gradient that the theorem takes out against the step, with and without batch "
        "normalization. Right: gamma squared over sigma squared against the step, one line for each layer.",
    )


@gain.claim(
    "one-percent",
    "In a convolutional network the two directions that the theorem takes out carry at most 1 % of the squared gradient.",
    criterion="sum of both shares, median over channels, the largest over layers, probes and both networks, at most 0.01",
    by="notes",
)
def _(table):
    largest = both_shares(table).groupby(table.seed).max()
    typical = both_shares(table).groupby(table.seed).median().median()
    return judge_effect("largest share of ‖ĝ‖²", largest, claimed=(0, 0.01), null=np.nan, note=f"median {number(typical)}")


@gain.claim(
    "sigma-is-large",
    "σ tends to be large, so the factor γ²/σ² makes gradients smaller as well.",
    criterion="γ²/σ², median over channels and then over layers and all probes, with BN: below 1",
)
def _(table):
    runs = table[table.norm == "batch"]
    return judge_effect("γ²/σ²", runs.groupby("seed").factor.median(), claimed=(0, 1), null=1)


@gain.claim(
    "amplifies-at-the-start",
    "Before training the factor γ²/σ² makes gradients larger, in every layer.",
    criterion="γ²/σ² with BN at step 0, median over channels, the smallest of the layers: above 1",
    by="notes",
)
def _(table):
    runs = table[(table.norm == "batch") & (table.step == 0)]
    return judge_effect("smallest γ²/σ²", runs.groupby("seed").factor.min(), claimed=(1, np.inf), null=1)


@gain.claim(
    "the-factor-counts",
    "What the layer does to the length of a gradient is the factor, not the subtraction.",
    criterion="|log γ²/σ²| over −log(1 − shares), with BN, median over layers and probes, at least 10",
    by="notes",
)
def _(table):
    runs = table[table.norm == "batch"]
    ratio = np.log(runs.factor).abs() / -np.log1p(-both_shares(runs))
    return judge_effect("|log factor| / |log rest|", ratio.groupby(runs.seed).median(), claimed=(10, np.inf), null=1)
