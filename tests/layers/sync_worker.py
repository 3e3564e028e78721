"""One of three processes whose synchronized batch norms share statistics: `python sync_worker.py RANK FOLDER`.

`test_layers_sync.py` starts them, and compares what they leave in the folder with batch norm in one process.
"""

from __future__ import annotations

import copy
import datetime
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from normlib.layers import BatchNorm, SyncBatchNorm, reference

WORKERS, C = 3, 4
SHARES = {"unequal": (5, 2, 1), "empty": (4, 0, 3), "singles": (1, 1, 1)}
POSITIONS = {"vectors": (), "maps": (3, 2)}
ARMS = [(share, positions, formula) for share in SHARES for positions in POSITIONS for formula in (False, True)]


def doubles(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def made(layer: type[BatchNorm], **kwargs: Any) -> BatchNorm:
    module = layer(C, dtype=torch.float64, **kwargs)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data += 0.1 * doubles(C, seed=90 + seed)
    return module


def run(module: BatchNorm, share: str, positions: str, rank: int | None = None) -> dict[str, Any]:
    """Two training steps and one evaluation on the whole batch, or on the part of one worker."""

    def mine(seed: int) -> Tensor:
        parts = doubles(sum(SHARES[share]), C, *POSITIONS[positions], seed=seed).split(SHARES[share])
        return torch.cat(parts) if rank is None else parts[rank]

    seen: dict[str, Any] = {"output": [], "input": [], "second": [], "parameters": [], "buffers": []}
    for step, training in enumerate((True, True, False)):
        x = mine(step).requires_grad_()
        y = module.train(training)(x)
        inputs = [x, *module.parameters()]
        first = torch.autograd.grad(y, inputs, mine(10 + step), create_graph=True)
        second = torch.autograd.grad(first[0], x, mine(20 + step)) if training else ()
        seen["output"].append(y.detach())
        seen["input"].append(first[0].detach())
        seen["second"] += second
        seen["parameters"].append([g.detach() for g in first[1:]])
        seen["buffers"].append(copy.deepcopy(list(module.buffers())))
    return seen


def network(norm: type[BatchNorm]) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, C), norm(C), nn.Tanh(), nn.Linear(C, 2)).double()
    for seed, parameter in enumerate(net.parameters()):
        parameter.data = doubles(*parameter.shape, seed=seed)
    return net


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORKERS, timeout=datetime.timedelta(seconds=120)
    )
    found: dict[Any, Any] = {}
    for share, positions, formula in ARMS:
        with reference(formula):
            found[share, positions, formula] = run(made(SyncBatchNorm), share, positions, rank)
    for name, task in {
        "momentum": lambda: run(made(SyncBatchNorm, momentum=None), "unequal", "maps", rank),
        "precisions": lambda: in_other_precisions(rank),
        "numbers": lambda: numbers_exchanged(rank),
        "group": lambda: in_a_group_of_two(rank),
        "trained": lambda: trained_in_parallel(rank),
        "compiled": lambda: compiled(rank),
        "refused": lambda: refused_by_torch(),
        "transforms": lambda: transformed(rank),
    }.items():
        found[name] = task()
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_other_precisions(rank: int) -> dict[str, Tensor]:
    x = doubles(6, C, 3, 2, seed=0).chunk(WORKERS)[rank]
    return {
        "bfloat16": SyncBatchNorm(C)(x.bfloat16()).detach(),
        "float16 by formula": by_formula(SyncBatchNorm(C), x.half()).detach(),
        "far from zero": SyncBatchNorm(C)((x + 1e4).float()).detach(),
        "channels last": SyncBatchNorm(C).double()(x.to(memory_format=torch.channels_last)).detach(),
        "without affine": SyncBatchNorm(C, affine=False)(x),
        "without bias": SyncBatchNorm(C, bias=False, dtype=torch.float64)(x).detach(),
        "without running statistics": SyncBatchNorm(C, affine=False, track_running_stats=False)(x),
    }


def by_formula(module: nn.Module, x: Tensor) -> Tensor:
    with reference():
        return module(x)


def numbers_exchanged(rank: int) -> tuple[list[int], list[int]]:
    """How many numbers each collective of one forward and one backward pass carries."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", lambda x, **kwargs: sizes.append(x.numel()) or all_reduce(x, **kwargs))
        y = SyncBatchNorm(C)(torch.randn(2 + rank, C, 5, requires_grad=True))
        forward = list(sizes)
        y.square().sum().backward()
    return forward, sizes[len(forward) :]


def in_a_group_of_two(rank: int) -> tuple[Tensor, Tensor]:
    group = dist.new_group([0, 2])
    module = SyncBatchNorm(C, process_group=group, dtype=torch.float64)
    y = module(doubles(6, C, seed=0).chunk(WORKERS)[rank])
    return y.detach(), module.running_var


def trained_in_parallel(rank: int) -> list[Tensor]:
    """The gradients of a network under DistributedDataParallel, which averages them over the workers."""
    net = nn.parallel.DistributedDataParallel(network(SyncBatchNorm))
    net(doubles(6, 3, seed=0).chunk(WORKERS)[rank]).square().mean().backward()
    return [p.grad for p in net.parameters()]


def compiled(rank: int) -> list[Tensor]:
    module = made(SyncBatchNorm)
    x = doubles(8, C, 3, seed=0).split(SHARES["unequal"])[rank].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler about itself
        y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
        return [y.detach(), *torch.autograd.grad(y, x, y.detach() ** 2), module.running_var]


def refused_by_torch() -> str:
    with pytest.raises(ValueError) as raised:
        nn.SyncBatchNorm(C)(torch.randn(2, C))
    return str(raised.value)


def transformed(rank: int) -> tuple[Tensor, Tensor]:
    """Two batches at once, and a gradient by `torch.func`."""
    module = SyncBatchNorm(C, affine=False, track_running_stats=False)
    x = doubles(2, 6, C, seed=0).chunk(WORKERS, 1)[rank]
    return torch.vmap(module)(x), torch.func.grad(lambda x: module(x).pow(3).sum())(x[0])


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
