"""What does standardizing every weight cost? A training step of a ResNet-18, with and without."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from normlib.lab import Drawing, Judgement, Study, Verdict, judge_effect, number
from normlib.networks import ResNet
from normlib.probes import peak_bytes, step_seconds
from normlib.studies.common.looks import BLUE, INK, VERMILION, subplots

ARMS = {"plain": "none", "standardized_weight": "standardized", "scaled_weight": "scaled"}
BOUND = 1.05

standardization_cost = Study(
    "notes.standardization_cost",
    item="Speed",
    title="A convolution costs much more than standardizing its weight, so a training step hardly notices",
    kind="timing",
    vary={"batch": [64]},
    quick={"stages": [1, 1], "width": 16, "side": 16, "batch": [16], "rounds": 3, "seconds": 0.02},
    laptop={"stages": [2, 2, 2, 2], "width": 64, "side": 32, "rounds": 5, "seconds": 0.1},
    full={"stages": [2, 2, 2, 2], "width": 64, "side": 32, "batch": [64, 1024], "rounds": 9, "seconds": 0.2},
)


@standardization_cost.trial
def _(c, seed):
    x = torch.randn(c.batch, 3, c.side, c.side, device=c.device)
    y = torch.randint(10, (c.batch,), device=c.device)
    steps = {arm: _training_step(c, arm, seed, x, y) for arm in ARMS}
    seconds = step_seconds(steps, c.device, c.rounds, c.seconds)
    memory = {arm: peak_bytes(step, c.device) for arm, step in steps.items()}
    columns = {"plain_ms": 1000 * float(np.median(seconds["plain"])), "plain_mb": memory["plain"] / 2**20}
    for arm in list(ARMS)[1:]:
        columns[f"{arm}_time"] = float(np.median(np.divide(seconds[arm], seconds["plain"])))
        columns[f"{arm}_memory"] = memory[arm] / memory["plain"]
    return columns


def _training_step(c, arm, seed, x, y):
    """Return one step of gradient descent with momentum on a ResNet with batch norm, its weights treated as `arm` says."""
    norm = "batch" if arm == "plain" else f"{arm} + batch"
    net = ResNet(c.stages, c.width, version=1, norm=norm, seed=seed).to(c.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def step():
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@standardization_cost.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=1.9, sharey=True)
    batches = sorted(table.batch.unique())
    shares = {}
    for ax, quantity, title in ((left, "time", "time of a step"), (right, "memory", "peak memory")):
        for arm, color, marker in (("standardized_weight", BLUE, "o"), ("scaled_weight", VERMILION, "D")):
            ratio = table.groupby("batch")[f"{arm}_{quantity}"].median()
            shares[arm, quantity] = ratio[batches[0]]
            ax.plot(ratio[batches], range(len(batches)), marker, color=color, label=ARMS[arm])
            ax.plot(table[f"{arm}_{quantity}"], [batches.index(batch) for batch in table.batch], "|", color=color, markersize=9)
        ax.axvline(1, color=INK, linewidth=0.8)
        ax.set_title(title, fontsize=9.5)
        ax.set_xlabel("ratio to plain weights", fontsize=8.5)
        ax.margins(x=0.3)
    left.axvline(BOUND, color=INK, linewidth=0.8, linestyle=":")
    left.set_yticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    right.legend(fontsize=8)
    return Drawing(
        figure,
        caption="One training step of a residual network with batch normalization. Standardizing every weight multiplies its time "
        f"by {number(shares['standardized_weight', 'time'])}, scaled standardization by "
        f"{number(shares['scaled_weight', 'time'])} (dotted: {BOUND}); the peak memory by "
        f"{number(shares['standardized_weight', 'memory'])} and {number(shares['scaled_weight', 'memory'])}. Strokes are single "
        f"repetitions. The step with plain weights takes {number(table.plain_ms.median())} ms.",
        alt="Two dot plots: time and peak memory of a training step with standardized and with scaled standardized weights, as "
        "ratios to the step with plain weights.",
    )


@standardization_cost.claim(
    "share",
    "Standardizing every weight of a ResNet-18 costs at most 5 % of a training step at 32 pixels and batch 64.",
    criterion="the larger of the two ratios of step times, standardized and scaled, is at most 1.05",
)
def _(table):
    rows = table[(table.batch == 64) & (table.side == 32) & (table.width == 64)]
    effect = "time of a step, ratio to plain weights"
    if rows.empty:
        return Judgement(effect, float("nan"), None, None, Verdict.UNRESOLVED, "not measured at this preset")
    arms = [f"{arm}_time" for arm in list(ARMS)[1:]]
    worst = rows[arms].median().idxmax()
    return judge_effect(effect, rows[worst], claimed=(0, BOUND), null=BOUND, note=f"the larger: {ARMS[worst[:-5]]}")
