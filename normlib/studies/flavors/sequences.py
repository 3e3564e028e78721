"""Images read as sequences: what travels along them, forward and backward, and one recipe for all arms that learn from them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlib.data import Dataset
from normlib.lab import Config, Diverged
from normlib.networks import RecurrentClassifier
from normlib.studies.common.arms import first_at
from normlib.training import Update, evaluate, train

BATCH = 64  # images per update; batch norm takes its statistics over the same images
WATCHED = 256  # images that what travels along a sequence is measured on


@dataclass(frozen=True)
class Along:
    """What was seen along a sequence, one number for each step.

    Attributes:
        sizes: root mean square of the hidden state after the step, over units and samples.
        gradients: norm of the gradient of the loss in that state, all samples together.
    """

    sizes: list[float]
    gradients: list[float]


def along(cell: nn.Module, head: nn.Module, x: Tensor, y: Tensor, hx: Tensor | None = None) -> Along:
    """Run a cell along sequences, and the gradient of the cross-entropy of its last output back.

    The gradient in a state is the whole of it, through every later step. The cell works as in training, and is left as it is.

    Args:
        cell: a cell of `normlib.layers` or of torch.
        head: maps the last hidden state to outputs.
        x: sequences, shape (N, T, F).
        y: classes, shape (N,).
        hx: the state to start from; None for zeros.
    """
    cell = copy.deepcopy(cell).train()  # running statistics would move
    state, hidden = hx, []
    for step, input in enumerate(x.transpose(0, 1)):
        state = cell(input, state, step) if getattr(cell, "takes_step", False) else cell(input, state)
        hidden.append(state[0] if isinstance(state, tuple) else state)
    gradients = torch.autograd.grad(cross_entropy(head(hidden[-1]), y), hidden)
    sizes = [float(h.detach().square().mean().sqrt()) for h in hidden]
    return Along(sizes, [float(g.norm()) for g in gradients])


def learn(net: RecurrentClassifier, c: Config, images: Dataset, tests: Dataset, seed: int) -> dict[str, object]:
    """Train a recurrent classifier on the rows of images, by Adam at a constant rate, and measure it.

    Args:
        net: is trained in place.
        c: the configuration; `rate` and `steps`.
        images: to train on; its test images are the held-out ones.
        tests: with the true test images.
        seed: of the order of the images.

    Returns:
        Columns as long as a sequence, for a row each: `row`, `size_…` and `gradient_…` at the start and at the end; beside them, as
        there are as many looks at the held-out images as rows, `step` and `loss`. Then `lowest`, the lowest of these losses,
        and the errors `held_out_error` and `test_error` in percent, at the end.

    Raises:
        Diverged: if the loss was not finite.
    """
    x, held_out, new = (part.squeeze(1) for part in (images.x_train, images.x_test, tests.x_test))
    seen = x[:WATCHED], images.y_train[:WATCHED]
    start = along(net.cell, net.head, *seen)
    run = train(
        net, x, images.y_train, steps=c.steps, batch_size=BATCH, rate=c.rate, update=Update(optimizer="adam"), seed=seed,
        probe=lambda step, model: {"loss": evaluate(model, held_out, images.y_test, statistics="eval").loss},
        probe_steps=np.linspace(0, c.steps, x.shape[1]).round().astype(int).tolist(),
    )  # fmt: skip
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}")
    end = along(net.cell, net.head, *seen)
    errors = {
        f"{name}_error": 100 * (1 - evaluate(net, part, y, statistics="eval").accuracy)
        for name, part, y in (("held_out", held_out, images.y_test), ("test", new, tests.y_test))
    }
    return {
        "row": list(range(x.shape[1])),
        "size_start": start.sizes, "size_end": end.sizes,
        "gradient_start": start.gradients, "gradient_end": end.gradients,
        **run.probes,
        "lowest": min(run.probes["loss"]),
        **errors,
    }  # fmt: skip


def share_of_steps(runs: pd.DataFrame, arm: str, plain: str, column: str) -> dict[int, float]:
    """Return for each seed the step at which an arm reaches the lowest loss of the plain one, over the plain one's step.

    Args:
        runs: the columns `seed`, `step` and `loss`, and the one that tells the arms apart.
        arm: one level of that column.
        plain: another.
        column: its name.
    """
    shares = {}
    for seed, own in runs.groupby("seed"):
        usual, other = (own[own[column] == name].sort_values("step") for name in (plain, arm))
        target = usual.loss.min()
        then = first_at(usual.step, -usual.loss, -target)
        shares[seed] = first_at(other.step, -other.loss, -target) / then if then else np.nan
    return shares
