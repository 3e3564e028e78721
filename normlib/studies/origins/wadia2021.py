"""Wadia, Duckworth, Schoenholz, Dyer & Sohl-Dickstein (2021): whitening and second-order methods make data unusable."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import MLP
from normlib.probes import whitening as whiten
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, GRAY, GREEN, INK, PINK, VERMILION, median_and_band, subplots
from normlib.training import train_together
from normlib.training.stacked import ChangeGradients, Named

RATES = [0.01, 0.05, 0.25]  # of which each arm takes the one with the best validation accuracy
TRAINED = 0.6  # the share of the images that is trained on
MOMENTUM, BATCH, DAMPING = 0.9, 64, 0.01  # damping in units of the mean variance
ARMS = {
    "raw": ("raw", GRAY),
    "standardized": ("standardized", BLUE),
    "damped": ("whitened on training inputs, damped", GREEN),
    "whitened_train": ("whitened on training inputs", PINK),
    "second_order": ("raw, second-order steps", INK),
    "whitened_all": ("whitened on all inputs", VERMILION),
}

whitening = Study(
    "wadia2021.whitening",
    item="accuracy against n/d, in the style of its main figures",
    title="Whitening all inputs when there are no more of them than dimensions leaves nothing to generalize from",
    kind="train",
    vary={"inputs": list(ARMS), "model": ["linear", "mlp"]},
    quick={"data": "digits", "pool": 1, "ratios": [0.5, 0.8, 1.67, 8], "hidden": 32, "steps": 60, "tested": 30},
    laptop={
        "data": "fashion-mnist", "train": 12_000, "pool": 2, "ratios": [0.5, 1, 1.33, 1.67, 2.5, 5, 20], "hidden": 128,
        "steps": 300, "tested": 80,
    },
    full={
        "data": "cifar10", "train": 20_000, "pool": 2, "ratios": [0.5, 1, 1.67, 2.5, 5, 20], "hidden": 512, "steps": 300,
        "tested": 400,
    },
)  # fmt: skip


@whitening.trial
def _(c, seed):
    images = load(c).pooled(c.pool).flat()
    x = images.x_train[:, images.x_train.var(dim=0) > 0]
    runs = [accuracies(c, x, images.y_train, ratio, seed) for ratio in c.ratios]
    return {"n_over_d": [float(ratio) for ratio in c.ratios], **{name: [run[name] for run in runs] for name in runs[0]}}


def accuracies(c: Config, pool: Tensor, labels: Tensor, ratio: float, seed: int) -> dict[str, float]:
    """Train on 60 % of n = ratio * d images; choose the rate on 20 %, test on 20 %; average over enough draws of n images."""
    n = round(ratio * pool.shape[1])
    held = n // 5
    seen, draws = n - 2 * held, -(-c.tested // held)
    sizes = [pool.shape[1], *([c.hidden] if c.model == "mlp" else []), int(labels.max()) + 1]
    x, y, networks, preconditioners = [], [], [], []
    for draw in range(1000 * seed, 1000 * seed + draws):
        chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(draw))[:n].to(pool.device)
        treated, preconditioner = treat(pool[chosen].double(), seen, c.inputs)
        x.append(treated.float())
        y.append(labels[chosen])
        networks.append(MLP(sizes, activation="relu", init="lecun", seed=draw).to(pool.device))
        preconditioners += [] if preconditioner is None else [preconditioner.float()]
    target, preconditioner = torch.stack(y), torch.stack(preconditioners) if preconditioners else None
    outputs = train_copies(networks, torch.stack(x), target, seen, c.steps, preconditioner, seed)
    right = (outputs.argmax(-1) == target).float()
    train, valid, test = (part.mean(dim=(1, 2)) for part in right.split([seen, held, held], dim=2))
    best = int(valid.argmax())
    return {"train_accuracy": float(train[best]), "accuracy": float(test[best]), "rate": RATES[best]}


def treat(x: Tensor, seen: int, arm: str) -> tuple[Tensor, Tensor | None]:
    """Apply an arm's treatment and bring the training inputs to mean square 1.

    Args:
        x: inputs, shape (n, d), the training inputs first.
        seen: how many those are.
        arm: a key of `ARMS`.

    Returns:
        The inputs, and for second-order steps the matrix (d, d) that multiplies the gradient of the first layer: the inverse
        of the covariance of the training inputs, scaled so that a rate means what it means for whitened inputs. (For a
        linear model with squared error these are Newton's steps.)
    """
    variance, mean = torch.var_mean(x[:seen], dim=0, correction=0)
    if arm == "whitened_all":
        x = whiten(x, center=True)(x)
    elif arm in ("whitened_train", "damped"):
        x = whiten(x[:seen], center=True, damping=DAMPING * float(variance.mean()) if arm == "damped" else 0.0)(x)
    elif arm == "standardized":
        x = (x - mean) / torch.where(variance > 0, variance, 1.0).sqrt()
    x = x / x[:seen].square().mean().sqrt()
    if arm != "second_order":
        return x, None
    x = x - x[:seen].mean(dim=0)
    transform = whiten(x[:seen], center=False)
    return x, transform.matrix.T @ transform.matrix / transform(x[:seen]).square().mean()


def train_copies(
    networks: Sequence[MLP],
    x: Tensor,
    y: Tensor,
    seen: int,
    steps: int,
    preconditioner: Tensor | None,
    seed: int,
) -> Tensor:
    """Train a copy of each network at each of `RATES` on its own draw of images, all together, by SGD with momentum.

    Args:
        networks: one per draw.
        x: inputs, shape (draws, n, d).
        y: labels, shape (draws, n).
        seen: how many of the n are trained on.
        steps: number of updates.
        preconditioner: shape (draws, d, d), multiplies the gradient of the first weight, if given.
        seed: seed of the order of the data.

    Returns:
        Outputs for all images, shape (rates, draws, n, classes).
    """
    copies = [copy.deepcopy(network) for _ in RATES for network in networks]
    train_together(
        copies,
        list(x[:, :seen].repeat(len(RATES), 1, 1)),
        list(y[:, :seen].repeat(len(RATES), 1)),
        steps=steps,
        batch_size=min(BATCH, seen),
        rates=[rate for rate in RATES for _ in networks],
        momentum=MOMENTUM,
        seeds=[seed] * len(copies),
        change_gradients=None if preconditioner is None else by_second_order(preconditioner.repeat(len(RATES), 1, 1)),
    )
    outputs = [network(images) for network, images in zip(copies, x.repeat(len(RATES), 1, 1), strict=True)]
    return torch.stack(outputs).detach().unflatten(0, (len(RATES), -1))


def by_second_order(preconditioner: Tensor) -> ChangeGradients:
    """Return what multiplies the gradient of the first weight of each copy by its preconditioner, shape (copies, d, d)."""

    def change(gradients: Named) -> Named:
        first, slope = next(iter(gradients.items()))
        return {**gradients, first: slope @ preconditioner}

    return change


@whitening.draw
def _(table):
    figure, axes = subplots(1, 2, height=3.6, sharey=True)
    for ax, model in zip(axes, ("linear", "mlp"), strict=True):
        for arm, (label, color) in ARMS.items():
            dashed = {"linestyle": "--", "linewidth": 1.2} if arm == "second_order" else {}
            runs = table[(table.inputs == arm) & (table.model == model)]
            median_and_band(ax, runs, "n_over_d", "accuracy", color=color, label=label, **dashed)
        ax.axhline(0.1, color=INK, linewidth=0.8, linestyle=":")
        for at, name, side in ((1, "n = d ", "right"), (1 / TRAINED, " training n = d", "left")):
            ax.axvline(at, color=INK, linewidth=0.8, linestyle=":")
            ax.text(at, 1.03, name, fontsize=8, ha=side, va="center")
        ticks = [0.5, 1, 2, 5, 10, 20]
        ax.set(xscale="log", xlabel="images n / dimensions d", title={"linear": "linear model", "mlp": "one hidden layer"}[model])
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    axes[0].set(ylabel="test accuracy", ylim=(0, 1.08))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=1.5)
    below = table[(table.n_over_d <= 1)].groupby("inputs")[["accuracy", "train_accuracy"]].median()
    chosen = table.groupby("inputs").rate.median()
    dip = table[table.inputs == "whitened_train"].groupby("n_over_d").accuracy.median()
    return Drawing(
        figure,
        caption=f"Of n images 60 % are trained on, 20 % choose the rate of each arm (median {chosen['raw']:g} raw, "
        f"{chosen['whitened_train']:g} and {chosen['whitened_all']:g} whitened), 20 % test. Whitened together, n ≤ d images leave "
        f"{below.accuracy['whitened_all']:.0%} test accuracy (chance, dotted: 10 %) at {below.train_accuracy['whitened_all']:.0%} "
        f"training accuracy; raw, they give {below.accuracy['raw']:.0%}. Whitened on the training images alone, accuracy is "
        f"lowest, {dip.min():.0%}, at n/d = {dip.idxmin():g}. All inputs are scaled to one mean square; second-order steps "
        "precondition the first layer.",
        alt="Test accuracy against number of images per dimension for six treatments of the inputs, for a linear model and a "
        "network with one hidden layer. Vertical lines mark n = d for all and for training images, a dotted line chance.",
    )


def _by_arm(table: pd.DataFrame, column: str = "accuracy") -> pd.DataFrame:
    """Return one row per seed and n/d, one column per arm; the mean of both models."""
    return table.pivot_table(index=["seed", "n_over_d"], columns="inputs", values=column).reset_index("n_over_d")


def _per_seed(values: pd.Series) -> pd.Series:
    return values.groupby("seed").mean()


@whitening.claim(
    "chance",
    "If the inputs are whitened on training and test inputs together and there are no more of them than dimensions, "
    "generalization is impossible.",
    criterion="mean test accuracy over n ≤ d and both models between 0.05 and 0.15 (chance is 0.1), interval over seeds",
)
def _(table):
    runs = _by_arm(table).query("n_over_d <= 1")
    note = f"raw inputs: {number(runs.raw.mean())}"
    return judge_effect(
        "test accuracy, whitened on all", _per_seed(runs.whitened_all), claimed=(0.05, 0.15), null=np.nan, note=note
    )


@whitening.claim(
    "memorized",
    "There the training images are learned by heart all the same.",
    criterion="training accuracy at least 0.999 in every run with n ≤ d that is whitened on all inputs",
    by="notes",
)
def _(table):
    train = _by_arm(table, "train_accuracy").query("n_over_d <= 1").whitened_all
    return judge_identity("largest share of training images missed", 1 - train.min(), 1e-3)


@whitening.claim(
    "beyond",
    "The harm goes on, weakened, when there are more images than dimensions.",
    criterion="raw minus whitened on all, in test accuracy: above 0.02 between n/d = 1.5 and 3, and by at least 0.02 smaller at "
    "the largest n/d (the smaller of the two margins)",
)
def _(table):
    wide = _by_arm(table)
    gap = (wide.raw - wide.whitened_all).to_frame("gap").assign(n_over_d=wide.n_over_d)
    middle = _per_seed(gap.query("1.5 <= n_over_d <= 3").gap)
    last = _per_seed(gap[gap.n_over_d == gap.n_over_d.max()].gap)
    note = f"gap {number(middle.median())}, at the largest n/d {number(last.median())}"
    return judge_effect("margin", np.minimum(middle, middle - last), claimed=(0.02, np.inf), null=0, note=note)


@whitening.claim(
    "train-only",
    "Whitening with the training inputs' statistics alone harms as well, even when there are fewer images than dimensions.",
    criterion="raw minus whitened on training inputs, in test accuracy over n ≤ d, above 0.02",
)
def _(table):
    runs = _by_arm(table).query("n_over_d <= 1")
    return judge_effect("loss of test accuracy", _per_seed(runs.raw - runs.whitened_train), claimed=(0.02, np.inf), null=0)


@whitening.claim(
    "dip",
    "Whitening on training inputs harms most where there are about as many of them as dimensions, not where there are fewest.",
    criterion="for every seed the lowest test accuracy stands at a number of training images between 0.7 d and 1.5 d",
    by="notes",
)
def _(table):
    wide = _by_arm(table).reset_index()
    lowest = wide.loc[wide.groupby("seed").whitened_train.idxmin()]
    return judge_effect("training images / dimensions", TRAINED * lowest.n_over_d, claimed=(0.7, 1.5), null=np.nan)


@whitening.claim(
    "second-order",
    "Second-order training of a linear model does what whitening does.",
    criterion="linear model: test accuracy differs from that with whitened training inputs by at most 0.05 on average over n/d",
)
def _(table):
    wide = _by_arm(table[table.model == "linear"])
    gap = _per_seed((wide.second_order - wide.whitened_train).abs())
    note = f"raw inputs differ by {number((wide.raw - wide.whitened_train).abs().mean())}"
    return judge_effect("mean difference in test accuracy", gap, claimed=(0, 0.05), null=np.nan, note=note)


@whitening.claim(
    "damping",
    "Damping gives back much of what whitening loses.",
    criterion="where the number of training images is nearest to d, damping by 1 % of the mean variance gives back at least half "
    "of the accuracy lost",
)
def _(table):
    wide = _by_arm(table)
    nearest = wide.n_over_d.unique()[np.abs(np.log(TRAINED * wide.n_over_d.unique())).argmin()]
    runs = wide[wide.n_over_d == nearest]
    share = (runs.damped - runs.whitened_train) / (runs.raw - runs.whitened_train)
    return judge_effect(f"share given back at n/d = {nearest:g}", share, claimed=(0.5, np.inf), null=0)
