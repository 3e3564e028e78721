"""What the studies feed their networks: data sets with a note in the record, and the classical treatments of inputs."""

from __future__ import annotations

from torch import Tensor

from normlib import data as datasets
from normlib.data.dataset import Dataset
from normlib.errors import unknown
from normlib.lab import Config
from normlib.probes import whitening

TREATMENTS = ["raw", "centered", "standardized", "whitened"]


def load(c: Config, seed: int = 0) -> Dataset:
    """Load the data set `c.data` to `c.device` and note in the record which content it was.

    Args:
        c: the configuration; if it has the settings `train` and `test`, that many images are kept, balanced by class.
        seed: which images those are.

    Returns:
        Images of shape (N, C, H, W) in [0, 1] and labels.
    """
    found = datasets.load(c.data)
    c.note("data", {"name": found.name, "digest": found.digest, "official": found.official})
    return found.subset(c.get("train"), c.get("test"), seed).to(c.device)


def treat(x: Tensor, treatment: str) -> Tensor:
    """Apply one of the classical treatments to inputs, with statistics of these very inputs.

    Args:
        x: inputs, shape (N, d).
        treatment: "raw", "centered" (zero mean), "standardized" (also unit variance; inputs that never vary are left out)
            or "whitened" (also uncorrelated; directions without variance are left out).

    Returns:
        Treated inputs, shape (N, d') with d' <= d.

    Raises:
        UnknownNameError: the treatment is none of these.
    """
    if treatment == "raw":
        return x
    if treatment == "whitened":
        return whitening(x, center=True, kind="pca")(x)
    x = x - x.mean(dim=0)
    if treatment == "centered":
        return x
    if treatment == "standardized":
        deviation = x.square().mean(dim=0).sqrt()
        return x[:, deviation > 0] / deviation[deviation > 0]
    raise unknown("treatment of inputs", treatment, TREATMENTS)
