"""Synchronized batch norm: K processes with unequal shares of a batch compute what one computes on the whole."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sync_worker
import torch
import torch.distributed as dist
from sync_worker import ARMS, WORKERS, C, doubles, made, network, run
from torch import Tensor, nn

import normlib
from normlib.layers import BatchNorm, ShapeError, SyncBatchNorm, batch_norm, combined_moments, make_norm, reference


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of three processes computed."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    folder = tmp_path_factory.mktemp("workers")
    root = str(Path(normlib.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", sync_worker.__file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    try:
        said = "\n".join(process.communicate(timeout=200)[0] for process in processes)
        assert not any(process.returncode for process in processes), said
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORKERS)]


def joined(found: list[Any], of: str, step: int) -> Tensor:
    return torch.cat([worker[of][step] for worker in found])


@pytest.mark.parametrize(("share", "positions", "formula"), ARMS)
def test_workers_together_are_one_batch_norm_of_the_whole_batch(
    workers: list[Any], share: str, positions: str, formula: bool
) -> None:
    found = [worker[share, positions, formula] for worker in workers]
    whole = run(made(BatchNorm), share, positions)
    close = {"rtol": 1e-8, "atol": 1e-8}
    for step in range(3):
        for of in ("output", "input", "second") if step < 2 else ("output", "input"):
            torch.testing.assert_close(joined(found, of, step), whole[of][step], **close)
        summed = [sum(parts) for parts in zip(*(worker["parameters"][step] for worker in found), strict=True)]
        torch.testing.assert_close(summed, whole["parameters"][step], **close)
        for worker in found:
            torch.testing.assert_close(worker["buffers"][step], whole["buffers"][step], **close)


def test_mean_of_all_batches(workers: list[Any]) -> None:
    whole = run(made(BatchNorm, momentum=None), "unequal", "maps")
    for worker in workers:
        torch.testing.assert_close(worker["momentum"]["buffers"], whole["buffers"])


def test_batch_norms_of_the_shares_are_something_else(workers: list[Any]) -> None:
    share = "unequal"
    together = joined([worker[share, "maps", False] for worker in workers], "output", 0)
    alone = torch.cat([run(made(BatchNorm), share, "maps", rank)["output"][0] for rank in range(WORKERS)])
    assert (together - alone).abs().mean() > 0.1


def test_precisions_layouts_and_arguments(workers: list[Any]) -> None:
    x = doubles(6, C, 3, 2, seed=0)
    wanted = batch_norm(x)
    found = {name: torch.cat([worker["precisions"][name] for worker in workers]) for name in workers[0]["precisions"]}
    assert found["bfloat16"].dtype == torch.bfloat16
    assert found["float16 by formula"].dtype == torch.float16
    for name in ("channels last", "without affine", "without bias", "without running statistics"):
        torch.testing.assert_close(found[name], wanted)
    torch.testing.assert_close(found["bfloat16"].double(), wanted, rtol=0, atol=0.03)
    torch.testing.assert_close(found["float16 by formula"].double(), wanted, rtol=0, atol=0.005)
    torch.testing.assert_close(found["far from zero"], BatchNorm(C)((x + 1e4).float()), rtol=0, atol=2e-3)


def test_backward_exchanges_two_numbers_per_channel(workers: list[Any]) -> None:
    for worker in workers:
        assert worker["numbers"] == ([1, C, C], [C, C])


def test_statistics_are_shared_within_a_group_only(workers: list[Any]) -> None:
    first, outside, last = doubles(6, C, seed=0).chunk(WORKERS)
    pair, single = BatchNorm(C, dtype=torch.float64), BatchNorm(C, dtype=torch.float64)
    outputs, variances = zip(*(worker["group"] for worker in workers), strict=True)
    torch.testing.assert_close(torch.cat([outputs[0], outputs[2]]), pair(torch.cat([first, last])))
    torch.testing.assert_close(outputs[1], single(outside))
    torch.testing.assert_close(list(variances), [pair.running_var, single.running_var, pair.running_var])


def test_parallel_training_is_training_on_the_whole_batch(workers: list[Any]) -> None:
    net = network(BatchNorm)
    net(doubles(6, 3, seed=0)).square().mean().backward()
    for worker in workers:
        torch.testing.assert_close(worker["trained"], [p.grad for p in net.parameters()])


def test_compiles(workers: list[Any]) -> None:
    module, x = made(BatchNorm), doubles(8, C, 3, seed=0).requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad(y, x, y.detach() ** 2)
    outputs, gradients, variances = zip(*(worker["compiled"] for worker in workers), strict=True)
    torch.testing.assert_close([torch.cat(outputs), torch.cat(gradients)], [y, gradient])
    torch.testing.assert_close(list(variances), [module.running_var] * WORKERS)


def test_function_transforms(workers: list[Any]) -> None:
    x = doubles(2, 6, C, seed=0)
    outputs, gradients = zip(*(worker["transforms"] for worker in workers), strict=True)
    torch.testing.assert_close(torch.cat(outputs, 1), torch.stack([batch_norm(each) for each in x]))
    torch.testing.assert_close(torch.cat(gradients), torch.func.grad(lambda x: batch_norm(x).pow(3).sum())(x[0]))


def test_torchs_own_refuses_the_processor(workers: list[Any]) -> None:
    assert all("GPU" in worker["refused"] for worker in workers)


# ---- the formula, and one process


def moments(parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.tensor([float(len(part)) for part in parts], dtype=parts[0].dtype)
    means = torch.stack([part.mean(0) if len(part) else part.sum(0) for part in parts])
    return counts, means, torch.stack([part.var(0, correction=0) if len(part) else part.sum(0) for part in parts])


@pytest.mark.parametrize("share", [(5, 2, 1), (4, 0, 3), (8,), (1, 1, 1, 1)], ids=str)
def test_combined_moments_are_those_of_the_concatenated(share: tuple[int, ...]) -> None:
    x = doubles(sum(share), C, seed=0)
    count, mean, var = combined_moments(*moments(list(x.split(share))))
    assert count == len(x)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(var, x.var(0, correction=0))


def test_the_mean_of_the_variances_is_not_the_variance() -> None:
    parts = [torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [12.0]]), torch.tensor([[100.0]])]
    counts, means, variances = moments(parts)
    _, mean, var = combined_moments(counts, means, variances)
    assert variances.flatten().tolist() == [1, 1, 0]
    assert mean.item() == pytest.approx(124 / 5)
    assert var.item() == pytest.approx((0 + 4 + 100 + 144 + 10000) / 5 - (124 / 5) ** 2)
    assert combined_moments(counts[:2], means[:2], variances[:2])[2].item() == 1 + 5**2  # within, and between


def test_combined_moments_lose_no_digits_far_from_zero() -> None:
    x = doubles(8, C, seed=0).float() + 1e5
    counts, means, variances = moments(list(x.split((5, 2, 1))))
    wanted = x.double().var(0, correction=0).float()
    n = counts[:, None] / counts.sum()
    naive = (n * (variances + means.square())).sum(0) - (n * means).sum(0).square()
    torch.testing.assert_close(combined_moments(counts, means, variances)[2], wanted, rtol=1e-3, atol=0)
    assert ((naive - wanted).abs() > wanted).any()  # what E[x²] - E[x]² makes of it


def test_combined_moments_are_twice_differentiable() -> None:
    counts, means, variances = moments(list(doubles(8, 2, seed=0).split((5, 2, 1))))
    inputs = means.requires_grad_(), variances.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda m, v: combined_moments(counts, m, v)[1:], inputs)


def test_alone_it_is_batch_norm() -> None:
    for formula in (False, True):
        with reference(formula):
            ours, theirs = (run(made(layer), "unequal", "maps") for layer in (SyncBatchNorm, BatchNorm))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with pytest.raises(ShapeError, match="more than 1 value per channel"):
        SyncBatchNorm(C)(torch.randn(1, C))
    assert isinstance(make_norm("sync", C), SyncBatchNorm)


def test_constructor_and_checkpoints_are_torchs() -> None:
    ours, theirs = (inspect.signature(layer).parameters for layer in (SyncBatchNorm, nn.SyncBatchNorm))
    assert [(p.name, p.default) for p in ours.values()][: len(theirs)] == [(p.name, p.default) for p in theirs.values()]
    module = nn.SyncBatchNorm(C, dtype=torch.float64)
    module.load_state_dict(made(SyncBatchNorm).state_dict())
    SyncBatchNorm(C).load_state_dict(module.state_dict())
