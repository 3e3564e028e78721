"""LeCun, Bottou, Orr & Müller (1998), Efficient BackProp: a learning rate predicted from the curvature at the start."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.func import functional_call

from normlib.data.dataset import Dataset
from normlib.lab import Drawing, Study, judge_effect, number
from normlib.networks import MLP, ScaledTanh
from normlib.probes import model_loss, top_eigenvalue
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, GRAY, INK, SKY, median_and_band, note, subplots
from normlib.training import data_order, log_steps, squared_error, train_together

# ---------------------------------------------------------------------------------------------------------------------------
# Figs 24-25: the running estimate of λmax, and the final error against the rate in units of 1/λmax
# ---------------------------------------------------------------------------------------------------------------------------

RATIOS = np.geomspace(0.01, 100, 33)  # of the learning rate to 1/λmax; all are trained as one batch of networks
GAMMA = 0.03  # how fast the running estimate forgets
PATTERNS = 400
TRAINING = {"online": 1, "batch": None}

predicted_rate = Study(
    "lecun1998.predicted_rate",
    item="Figs 24, 25",
    title="Is the best learning rate the one that the curvature before training predicts?",
    kind="train",
    vary={"updates": ["online", "batch"]},
    quick={"data": "digits", "train": 300, "online": 300, "batch": 100},
    laptop={"data": "fashion-mnist", "train": 300, "online": 4_500, "batch": 500},
    full={"data": "mnist", "train": 300, "online": 15_000, "batch": 3_000},
)


@predicted_rate.trial
def _(c, seed):
    x, target = _examples(load(c, seed))
    net = nn.Sequential(MLP([x.shape[1], 30, 10], activation="scaled_tanh", init="lecun", seed=seed), ScaledTanh()).to(x)
    loss, weights = model_loss(net, squared_error, x, target, training=True)
    top = top_eigenvalue(loss, weights)
    patterns = log_steps(PATTERNS, 40) if c.updates == "online" else []
    estimate = [norm / top for norm in running_estimate(net, x, target, seed, patterns)]
    steps = c.online if c.updates == "online" else c.batch
    looks = [steps // 25, steps // 5, steps]
    errors, trained = train_at_ratios(net, x, target, 1 / top, looks, TRAINING[c.updates], seed)
    return {
        "part": ["estimate"] * len(patterns) + ["error"] * errors.numel(),
        "x": [float(p + 1) for p in patterns] + RATIOS.tolist() * len(looks),
        "y": estimate + errors.flatten().tolist(),
        "after": [0] * len(patterns) + np.repeat(looks, len(RATIOS)).tolist(),
        "error_at_start": float((net(x) - target).detach().square().mean()),
        "top": top,
        "top_at_end": top_eigenvalue(loss, dict(zip(weights, trained, strict=True))),
    }


def _examples(images: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels, each centered and all divided by one number to unit mean square, and targets of ±1."""
    x = images.flat().x_train
    x = x - x.mean(dim=0)
    return x / x.square().mean().sqrt(), 2.0 * nn.functional.one_hot(images.y_train, 10).to(x) - 1


def running_estimate(net: nn.Module, x: torch.Tensor, target: torch.Tensor, seed: int, looks: list[int]) -> list[float]:
    """Estimate λmax from one pattern at a time (eq. 63): Ψ ← (1 − γ) Ψ + γ (∇Eₚ(W + α Ψ/‖Ψ‖) − ∇Eₚ(W)) / α.

    Returns:
        ‖Ψ‖ after each pattern in `looks`, counted from 0; the patterns come in the order of training.
    """
    weights, alpha, found = dict(net.named_parameters()), 1e-2, []
    generator, order = torch.Generator().manual_seed(seed), data_order(len(x), 1, seed, x.device)
    psi = [torch.randn(w.shape, generator=generator).to(w) for w in weights.values()]
    for step in range(max(looks, default=-1) + 1):
        pattern, norm = next(order), torch.cat([p.flatten() for p in psi]).norm()
        here = _slope(net, weights, x[pattern], target[pattern])
        moved = {name: w + alpha * p / norm for (name, w), p in zip(weights.items(), psi, strict=True)}
        there = _slope(net, moved, x[pattern], target[pattern])
        psi = [(1 - GAMMA) * p + GAMMA * (b - a) / alpha for p, a, b in zip(psi, here, there, strict=True)]
        if step in looks:
            found.append(float(torch.cat([p.flatten() for p in psi]).norm()))
    return found


def _slope(net: nn.Module, weights: Mapping[str, torch.Tensor], x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(squared_error(functional_call(net, dict(weights), (x,)), target), list(weights.values()))


def train_at_ratios(
    net: nn.Module, x: torch.Tensor, target: torch.Tensor, unit: float, looks: list[int], batch_size: int | None, seed: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Train one copy of the network per ratio, at that ratio times `unit`, all together.

    Returns:
        Mean squared error over examples and outputs, shape (looks, ratios), and the weights of the copy at ratio 1.
    """
    copies = [copy.deepcopy(net) for _ in RATIOS]
    histories = train_together(
        copies,
        x,
        target,
        steps=looks[-1],
        batch_size=batch_size,
        rates=(RATIOS * unit).tolist(),
        loss=squared_error,
        seeds=[seed] * len(copies),
        probe=lambda _, trained: {"error": (trained(x) - target).detach().square().mean()},
        probe_steps=looks,
    )
    errors = torch.tensor([history.probes["error"] for history in histories], dtype=x.dtype).T
    return errors, [w.detach() for w in copies[int(np.abs(RATIOS - 1).argmin())].parameters()]


@predicted_rate.draw
def _(table):
    figure, axes = subplots(1, 3, height=3.0)
    for ax, updates in zip(axes, ("online", "batch"), strict=False):
        runs = table[(table.updates == updates) & (table.part == "error")]
        looks = sorted(runs.after.unique())
        for after, color in zip(looks, (GRAY, SKY, BLUE), strict=True):
            median_and_band(ax, runs[runs.after == after], "x", "y", color=color, label=f"{after:,}")
        ax.axvline(1, color=INK, linestyle="--", linewidth=0.8)
        name = {"online": "one example a step", "batch": "all examples a step"}[updates]
        ax.set(xscale="log", yscale="log", xlabel="rate / predicted rate", title=name, xticks=[0.01, 0.1, 1, 10, 100])
        ax.legend(title="steps", loc="lower left", handlelength=1, labelspacing=0.3, alignment="left")
    axes[0].set_ylabel("mean squared error")
    axes[1].set_ylabel("")
    low, high = (f(ax.get_ylim()[i] for ax in axes[:2]) for i, f in ((0, min), (1, max)))
    for ax in axes[:2]:
        ax.set_ylim(low / 3, high)
    estimates = table[table.part == "estimate"]
    median_and_band(axes[2], estimates, "x", "y", color=BLUE)
    axes[2].axhline(1, color=INK, linestyle="--", linewidth=0.8)
    axes[2].set(xscale="log", yscale="log", xlabel="examples seen", ylabel="", title="estimate / λmax", ylim=(0.1, 10))
    best, tops = _best(table), table.groupby("updates")[["top", "top_at_end"]].median()
    note(axes[2], f"λmax = {number(tops.top['online'])}", 0.95, 0.9, ha="right")
    return Drawing(
        figure,
        caption="Training error of a network with 30 hidden units on 300 images, targets ±1, against the learning rate in units of "
        "$1/\\lambda_\\max$ of the Hessian before training. With one example a step the lowest final error stands at "
        f"ratio {number(best['online'].median())}, with all examples a step at ratio {number(best['batch'].median())}. "
        f"By the end, at ratio 1, $\\lambda_\\max$ has gone from {number(tops.top['online'])} to "
        f"{number(tops.top_at_end['online'])} and {number(tops.top_at_end['batch'])}. Right: the paper's running estimate, one "
        f"example at a time (γ = {GAMMA}).",
        alt="Training error against learning rate divided by predicted rate, log axes, at three times, for one example and for all "
        "examples a step; and the running estimate of the top eigenvalue against examples seen.",
    )


def _final(table: pd.DataFrame, updates: str) -> pd.DataFrame:
    """Return the final errors, one row per seed, one column per ratio."""
    runs = table[(table.part == "error") & (table.updates == updates)]
    return runs[runs.after == runs.after.max()].pivot_table(index="seed", columns="x", values="y")


def _best(table: pd.DataFrame) -> dict[str, pd.Series]:
    return {updates: _final(table, updates).idxmin(axis=1) for updates in TRAINING}


@predicted_rate.claim(
    "best-online",
    "Training on one example at a time is best at about the predicted rate.",
    criterion="the ratio with the lowest final error lies between 1/2 and 2 (interval over seeds)",
)
def _(table):
    return judge_effect("best ratio of rate and predicted rate", _best(table)["online"], claimed=(0.5, 2), null=np.nan)


@predicted_rate.claim(
    "best-batch",
    "Training on all examples at a time is best at about the predicted rate.",
    criterion="the ratio with the lowest final error lies between 1/2 and 2 (interval over seeds)",
)
def _(table):
    run = table[table.updates == "batch"][["top", "top_at_end"]].median()
    note = f"λmax is {number(run.top)} at the random start and {number(run.top_at_end)} after training at ratio 1"
    return judge_effect("best ratio of rate and predicted rate", _best(table)["batch"], claimed=(0.5, 2), null=np.nan, note=note)


@predicted_rate.claim(
    "safe",
    "The predicted rate is safe: training with it does not diverge.",
    criterion="at ratio 1 the final error is below half of the error at the start, for both ways to update (the worse of the "
    "two, interval over seeds)",
)
def _(table):
    start = table.groupby("seed").error_at_start.first()
    shares = [_final(table, updates).pipe(lambda t: t[t.columns[abs(t.columns - 1) < 1e-3][0]]) / start for updates in TRAINING]
    return judge_effect("error at ratio 1 / at the start", np.maximum(*shares), claimed=(0, 0.5), null=1)


@predicted_rate.claim(
    "running-estimate",
    "The running estimate has the right order of magnitude after fewer than a hundred examples.",
    criterion="from the hundredth example on, estimate / λmax stays between 1/3 and 3 (its worst factor, interval over seeds)",
)
def _(table):
    late = table[(table.part == "estimate") & (table.x >= 100)]
    worst = np.exp(np.log(late.y).abs().groupby(late.seed).max())
    return judge_effect("worst factor between estimate and λmax after 100 examples", worst, claimed=(1, 3), null=np.nan)
