"""One of several processes that train one network: `python -m normlib.studies.flavors.sync_process FOLDER RANK`.

The folder holds `task.pt`, what `run` takes by name; the process leaves in `RANK.pt` what it found with each of `NORMS`.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.layers import make_norm

CHANNELS = 6
NORMS = ("sync", "batch")  # processes that share statistics, and processes that do not
PATIENCE = datetime.timedelta(seconds=120)  # that a process waits for the others


def network(norm: str, classes: int, seed: int) -> nn.Sequential:
    """Build two convolutions with a norm each, and a head; in float64, the same weights for every norm."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, CHANNELS, 3), nn.Conv2d(CHANNELS, CHANNELS, 3)]
    blocks = [part for layer in layers for part in (layer, make_norm(norm, CHANNELS), nn.ReLU())]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, classes)).double()


def run(norm: str, classes: int, seed: int, x: Tensor, y: Tensor, shards: list[int], rank: int | None = None) -> dict[str, Tensor]:
    """Take one step of training without the update: on the whole batch, or on the shard of one process.

    Args:
        norm: a norm spec.
        classes: number of classes.
        seed: of the weights.
        x: images of the whole batch, shape (N, 1, H, W).
        y: their classes.
        shards: images of each process.
        rank: which process this is; its gradients are added to those of the others. None for one process with all images.

    Returns:
        The outputs; the gradients of all parameters of the mean loss over the whole batch, end to end; and the running
        statistics.
    """
    net = network(norm, classes, seed)
    part, labels = (x, y) if rank is None else (x.split(shards)[rank], y.split(shards)[rank])
    outputs = net(part)
    loss = F.cross_entropy(outputs, labels, reduction="sum") / len(x)
    gradients = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(net.parameters()))])
    if rank is not None:
        dist.all_reduce(gradients)
    running = torch.cat([buffer.flatten() for name, buffer in net.named_buffers() if name.endswith(("mean", "var"))])
    return {"outputs": outputs.detach(), "gradients": gradients, "running": running}


def main(folder: str, rank: int) -> None:
    """Join the other processes, run the task of the folder, and leave what was found there."""
    torch.set_num_threads(1)
    task = torch.load(Path(folder) / "task.pt")
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=len(task["shards"]), timeout=PATIENCE)
    torch.save({norm: run(norm, **task, rank=rank) for norm in NORMS}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
