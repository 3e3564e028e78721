import time

import pytest
import torch
from torch import nn

from normlib.probes import copy_bandwidth, forward_backward, peak_bytes, step_seconds


def test_time_of_a_step_that_sleeps():
    seconds = step_seconds({"long": lambda: time.sleep(0.02), "short": lambda: time.sleep(0.005)}, rounds=3, min_seconds=0.01)
    assert [len(rounds) for rounds in seconds.values()] == [3, 3]
    assert min(seconds["long"]) >= 0.02 > min(seconds["short"]) >= 0.005


@pytest.mark.parametrize("megabytes", [1, 8])
def test_peak_counts_what_is_held_at_once(megabytes):
    numbers = megabytes * 2**18

    def one_after_the_other():
        torch.ones(numbers)
        torch.ones(numbers)

    def together():
        return torch.ones(numbers), torch.ones(numbers)

    assert peak_bytes(one_after_the_other) == pytest.approx(megabytes * 2**20, rel=0.01)
    assert peak_bytes(together) == pytest.approx(2 * megabytes * 2**20, rel=0.01)


def test_each_step_is_one_pass_in_the_memory_format_of_the_input_and_holds_nothing_afterwards():
    module, x = nn.Conv2d(3, 2, 1), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    formats, gradients = [], []
    module.weight.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    module.register_full_backward_pre_hook(lambda _, g: formats.append(g[0].is_contiguous(memory_format=torch.channels_last)))
    step = forward_backward(module, x)
    step()
    step()
    assert torch.equal(*gradients) and gradients[0].any() and formats == [True, True]
    assert x.grad is None and module.weight.grad is None


def test_bandwidth_is_that_of_a_memory():
    assert 1e8 < copy_bandwidth(size=1 << 24) < 1e13
