"""The statistics that recurrent batch norm keeps for each time step."""

from __future__ import annotations

import copy

import pytest
import torch
from definitions.recurrent import F, H, N, T, doubles, made, start
from torch import Tensor, nn

from normlib.layers import BatchNormLSTMCell, StepBatchNorm, reference, unroll

PATHS = pytest.mark.parametrize("formula", [False, True], ids=["fast", "formula"])


@PATHS
def test_each_step_keeps_its_own_statistics(formula: bool) -> None:
    module, x = made(BatchNormLSTMCell, momentum=1.0, max_length=T), doubles(T, N, F)
    with reference(formula):
        outputs, _ = unroll(module, x, start(module))
    states = torch.cat([start(module)[0][None], outputs[:-1]])
    for norm, summed in ((module.norm_ih, x @ module.weight_ih.T), (module.norm_hh, states @ module.weight_hh.T)):
        torch.testing.assert_close(norm.running_mean, summed.mean(1))
        torch.testing.assert_close(norm.running_var, summed.var(1, correction=1))
    assert module.norm_c.num_batches_tracked.tolist() == [1] * T
    assert (module.norm_c.running_mean.diff(dim=0).abs() > 1e-3).any()
    assert not any(buffer.requires_grad for buffer in module.buffers())


@PATHS
def test_later_steps_share_the_last(formula: bool) -> None:
    norm, x = StepBatchNorm(F, dtype=torch.float64, max_length=2), doubles(5, N, F)
    with reference(formula):
        for step, each in enumerate(x):
            norm(each, step)
    running = torch.zeros(F, dtype=torch.float64)
    for each in x[1:]:
        running = 0.9 * running + 0.1 * each.mean(0)
    torch.testing.assert_close(norm.running_mean, torch.stack([0.1 * x[0].mean(0), running]))
    assert norm.num_batches_tracked.tolist() == [1, 4]


@PATHS
def test_evaluation_uses_the_statistics_of_the_step(formula: bool) -> None:
    norm, x = StepBatchNorm(F, dtype=torch.float64, max_length=2), doubles(N, F)
    norm.running_mean.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    norm.running_var.copy_(torch.tensor([[4.0, 4.0], [9.0, 9.0]]))
    before = copy.deepcopy(norm.state_dict())
    with reference(formula):
        for step, mean, std in ((0, [1, 2], 2), (1, [3, 4], 3), (7, [3, 4], 3)):
            wanted = 0.1 * (x - torch.tensor(mean)) / std
            torch.testing.assert_close(norm.eval()(x, step), wanted, rtol=0, atol=1e-5)
            torch.testing.assert_close(norm(x[:1], step), wanted[:1], rtol=0, atol=1e-5)  # a batch of one will do
    torch.testing.assert_close(dict(norm.state_dict()), dict(before), rtol=0, atol=0)


@PATHS
def test_without_momentum_the_statistics_are_the_mean_of_all_batches(formula: bool) -> None:
    norm, x = StepBatchNorm(F, momentum=None, dtype=torch.float64, max_length=2), doubles(5, N, F)
    with reference(formula):
        for batch in x[:3]:
            norm(batch, 0)
        for batch in x[3:]:
            norm(batch, 1)
    torch.testing.assert_close(norm.running_mean, torch.stack([x[:3].mean((0, 1)), x[3:].mean((0, 1))]))
    unbiased = x.var(1, correction=1)
    torch.testing.assert_close(norm.running_var, torch.stack([unbiased[:3].mean(0), unbiased[3:].mean(0)]))
    norm.reset_running_stats()
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all() and (norm.num_batches_tracked == 0).all()


def test_torch_reestimates_the_statistics_of_a_cell() -> None:
    class Runner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = made(BatchNormLSTMCell, max_length=T)

        def forward(self, x: Tensor) -> Tensor:
            return unroll(self.cell, x)[0]

    runner, batches = Runner(), doubles(5, T, N, F)
    torch.optim.swa_utils.update_bn(batches, runner)
    wanted = (batches @ runner.cell.weight_ih.T).mean((0, 2))
    torch.testing.assert_close(runner.cell.norm_ih.running_mean, wanted)


@PATHS
def test_statistics_may_move_before_the_backward_pass(formula: bool) -> None:
    norm, x = StepBatchNorm(F, dtype=torch.float64, max_length=2), doubles(N, F).requires_grad_()
    with reference(formula):
        y = norm.eval()(x, 0)
        (wanted,) = torch.autograd.grad(norm(x, 0).sum(), x)
        norm.train()(x, 0)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], wanted)


def test_gains_of_batch_norm_start_at_a_tenth() -> None:
    for kwargs, gain in (({}, 0.1), ({"gain": 0.3}, 0.3)):
        cell = BatchNormLSTMCell(F, H, max_length=2, **kwargs)
        for parameter in cell.parameters():
            parameter.data.fill_(5)
        cell.reset_parameters()
        assert all((norm.weight == gain).all() for norm in cell.children())
        assert (cell.norm_c.bias == 0).all()
        assert f"max_length=2, gain={gain}" in repr(cell)
