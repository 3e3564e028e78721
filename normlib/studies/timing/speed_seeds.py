"""Does it pay to train the seeds of a small network together? Updates per second, one by one and as one batched network."""

from __future__ import annotations

import time

import numpy as np
import torch

from normlib.lab import Drawing, Judgement, Study, Verdict, judge_effect, number
from normlib.networks import MLP
from normlib.studies.common.looks import BLUE, GRAY, norm_color, subplots
from normlib.training import Update, train, train_together

SIZES = [784, 100, 100, 100, 10]  # the network of Ioffe & Szegedy (2015), Fig. 1
WAYS = ("one by one", "together")

seeds_together = Study(
    "notes.seeds_together",
    item="Speed",
    title="Trained as one batched network, the seeds of a small network wait for fewer launches",
    kind="timing",
    vary={"norm": ["none", "batch", "layer"], "copies": [2, 4, 8, 16]},
    quick={"copies": [2, 8], "norm": ["none"], "batch": 60, "steps": 10, "rounds": 2, "execution": "eager"},
    laptop={"copies": [2, 8], "norm": ["none", "batch"], "batch": 60, "steps": 40, "rounds": 3, "execution": "eager"},
    full={"copies": [2, 4, 8, 16, 64], "batch": 60, "steps": 300, "rounds": 7, "execution": "graph"},
)


@seeds_together.trial
def _(c, seed):
    x = torch.randn(6000, SIZES[0], device=c.device)
    y = torch.randint(SIZES[-1], (6000,), device=c.device)
    seeds = range(c.copies)
    networks = [MLP(SIZES, "logistic", norm=c.norm, seed=s).to(c.device) for s in seeds]
    args = {"steps": c.steps, "batch_size": c.batch}

    def one_by_one(execution):
        for s in seeds:
            train(networks[s], x, y, rate=0.01, seed=s, update=Update(execution=execution), **args)

    def together():
        train_together(networks, x, y, rates=[0.01] * c.copies, seeds=seeds, execution=c.execution, **args)

    ways = {"one by one": lambda: one_by_one("eager"), "together": together}
    if c.execution == "graph":
        ways["one by one, graphs"] = lambda: one_by_one("graph")
    seconds = _in_turn(ways, c.rounds)
    updates = {way: c.copies * c.steps / np.median(times) for way, times in seconds.items()}
    return {"way": list(updates), "updates": [float(v) for v in updates.values()], "cuda": c.device.startswith("cuda")}


def _in_turn(ways, rounds):
    """Return the seconds of each way, in turns, after one round that is not timed; each ends by reading from the device."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for timed in range(rounds + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if timed:
                seconds[way].append(time.perf_counter() - start)
    return seconds


@seeds_together.draw
def _(table):
    norms = list(dict.fromkeys(table.norm))
    figure, axes = subplots(1, len(norms), height=2.6, sharey=True, squeeze=False)
    for ax, norm in zip(axes[0], norms, strict=True):
        rows = table[table.norm == norm]
        for way, color, marker in (("one by one", GRAY, "o"), ("together", norm_color(norm) if norm != "none" else BLUE, "D")):
            speed = rows[rows.way == way].groupby("copies").updates.median()
            ax.plot(speed.index, speed, marker=marker, color=color, markersize=4, label=way)
        ax.set(xscale="log", xlabel="networks", title="no norm" if norm == "none" else f"{norm} norm", ylim=(0, None))
        ax.set_xticks(sorted(rows.copies.unique()), [str(n) for n in sorted(rows.copies.unique())], minor=False)
        ax.minorticks_off()
        ax.legend(fontsize=8, loc="lower right")
    axes[0, 0].set_ylabel("updates per second")
    where = "one GPU" if table.cuda.any() else "a CPU"
    ratio = _ratios(table, 8)
    return Drawing(
        figure,
        caption=f"Updates per second of several sigmoid networks {'-'.join(map(str, SIZES))} on {where}, at batch "
        f"{table.batch.iloc[0]}, trained one after another and as one batched network. Together, eight networks without "
        f"normalization make {number(ratio.median())} times the updates.",
        alt="Updates per second against number of networks, one by one and together, for each norm.",
    )


def _ratios(table, copies):
    """Return updates together over one by one, a value per repetition, without normalization."""
    rows = table[(table.norm == "none") & (table.copies == copies)].pivot_table(index="seed", columns="way", values="updates")
    return rows["together"] / rows["one by one"]


@seeds_together.claim(
    "gpu",
    "On a GPU, eight networks trained together make at least five times the updates per second of one by one.",
    criterion="the ratio is at least 5 at batch 60 without normalization, together with captured graphs, one by one without",
)
def _(table):
    effect = "updates per second, together over one by one"
    if not table.cuda.any():
        return Judgement(effect, float("nan"), None, None, Verdict.LARGER_SCALE, "needs a CUDA GPU")
    return judge_effect(effect, _ratios(table, 8), claimed=(5, np.inf), null=1)


@seeds_together.claim(
    "cpu",
    "On two cores of a CPU, training eight networks together gains less than giving each core its own would.",
    criterion="the ratio is below 2, the gain that two processes can have",
)
def _(table):
    effect = "updates per second, together over one by one"
    if table.cuda.any():
        return Judgement(effect, float("nan"), None, None, Verdict.UNRESOLVED, "measured on a GPU")
    return judge_effect(effect, _ratios(table, 8), claimed=(0, 2), null=2)
