"""The draft that the book sets out from (`seed000`): what its finished section says of conditioning, before training.

Its equation for the Hessian is judged with `lecun1998`, its remark on whitening with `wadia2021`.
"""

from __future__ import annotations

import torch

from normlib.lab import Drawing, Study, judge_effect
from normlib.probes import hessian, second_moment, spectrum
from normlib.studies.common.inputs import load
from normlib.studies.common.statements import normal, ranges

SAID = {"inputs": (1.0, float("inf")), "hidden-layer": (1.0, float("inf"))}

conditioning = Study(
    "seed000.conditioning",
    item="Origins",
    title="Centering and scaling improve the condition: of the inputs, and of a hidden layer's weights",
    kind="init",
    vary={},
    quick={"data": "digits", "train": 1_000},
    laptop={"data": "fashion-mnist", "train": 2_000},
    full=None,
    seeds={"quick": 3, "laptop": 5},
)


@conditioning.trial
def _(c, seed):
    return {"images": improvement_of_images(c, seed), "layer": improvement_of_layer(seed)}


@conditioning.draw
def _(table):
    return Drawing(
        ranges(conditioning, table, SAID),
        caption="What centering and scaling do for the condition of the problem: how far the largest eigenvalue exceeds a typical "
        "one, as it is, over that after the inputs have been standardized. Upper row: the Hessian of least squares on images; "
        "lower row: that of the weights and biases of a hidden layer, at initialization. Gray: what the draft says.",
        alt="Two rows on a log axis of a ratio: condition without over with standardized inputs, for images and a hidden layer. "
        "Gray bars mark what is said.",
    )


def unevenness(matrix):
    """Return the largest eigenvalue over the mean one: how far the steepest direction holds up the others."""
    eigenvalues = spectrum((matrix + matrix.T) / 2)
    return float(eigenvalues[0] / eigenvalues.mean())


def standardized(x):
    """Center and scale each feature."""
    return (x - x.mean(0)) / x.std(0, correction=0)


def improvement_of_images(c, seed):
    """Compare the second moment of raw and of standardized images, pixels that never change left out."""
    pixels = load(c, seed).flat().x_train.double().cpu()
    pixels = pixels[:, pixels.var(0) > 0]
    return unevenness(second_moment(pixels)) / unevenness(second_moment(standardized(pixels)))


@conditioning.claim(
    "inputs",
    "Centering and scaling the data improves at least the condition of the optimization problem.",
    criterion="least squares on images: largest over mean eigenvalue of the Hessian (our measure) smaller for standardized inputs",
)
def _(table):
    return judge_effect("largest / mean eigenvalue, raw over standardized", table.images, claimed=SAID["inputs"], null=1)


def improvement_of_layer(seed):
    """Compare the Hessian of a hidden layer's weights and biases, its inputs as they come and standardized.

    The function that the network computes is the same in both cases: the weights and biases take the change back. Logistic units.
    """
    x, target, first, second, out = normal(seed, 64, 10), normal(seed + 1, 64, 1), *(normal(seed + s, 10, 10) for s in (2, 3, 4))
    seen = (x @ first / 10**0.5).sigmoid()
    mean, spread = seen.mean(0), seen.std(0, correction=0)
    weight, bias = second / 10**0.5, torch.zeros(1, 10, dtype=x.dtype)
    moved = torch.cat([spread[:, None] * weight, bias + mean @ weight])

    def loss(inputs):
        return lambda parameters: ((inputs @ parameters[:-1] + parameters[-1]).sigmoid() @ out[:, :1] - target).square().mean() / 2

    plain = hessian(loss(seen), torch.cat([weight, bias]))
    changed = hessian(loss(standardized(seen)), moved)
    return unevenness(plain @ plain) ** 0.5 / unevenness(changed @ changed) ** 0.5


@conditioning.claim(
    "hidden-layer",
    "Normalizing the inputs to a layer benefits the optimization of that layer's weights as normalizing the data does.",
    criterion="a hidden layer at initialization: largest over root mean square eigenvalue of its Hessian (our "
    "measure) smaller for standardized inputs, the function being the same",
)
def _(table):
    return judge_effect("largest / typical eigenvalue, raw over standardized", table.layer, claimed=SAID["hidden-layer"], null=1)
