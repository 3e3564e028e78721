import copy

import pytest
import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.networks import MLP
from normlib.training import accuracy, evaluate, mode, squared_error

G = torch.Generator().manual_seed(0)
X = torch.randn(30, 4, generator=G)
Y = torch.randint(3, (30,), generator=G)


def state(model):
    return copy.deepcopy((model.state_dict(), [m.training for m in model.modules()]))


def same(a, b):
    return a[1] == b[1] and all(torch.equal(a[0][name], b[0][name]) for name in a[0])


def test_mode_restores_each_module_even_after_an_error():
    net = nn.Sequential(nn.Dropout(), nn.Dropout())
    net[1].eval()
    with pytest.raises(ZeroDivisionError), mode(net, training=False):
        assert [m.training for m in net.modules()] == [False] * 3
        raise ZeroDivisionError
    assert [m.training for m in net.modules()] == [True, True, False]


@pytest.mark.parametrize("statistics", ["train", "eval"])
def test_evaluate_is_the_plain_computation_and_leaves_no_trace(statistics):
    net = MLP([4, 8, 3], norm="batch")
    net(X + 3)  # running statistics of other data
    before = state(net)
    found = evaluate(net, X, Y, statistics=statistics)
    assert same(state(net), before)
    output = net.train(statistics == "train")(X).detach()
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(output, Y)), rel=1e-6)
    assert found.accuracy == pytest.approx(float((output.argmax(1) == Y).float().mean()))


def test_batches_change_the_result_only_with_batch_statistics():
    net = MLP([4, 8, 3], norm="batch", seed=1)
    whole, parts = (evaluate(net, X, Y, statistics="eval", batch_size=size) for size in (None, 7))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.accuracy == pytest.approx(whole.accuracy)
    whole, parts = (evaluate(net, X, Y, statistics="train", batch_size=size) for size in (None, 7))
    assert abs(parts.loss - whole.loss) > 1e-4


def test_accuracy_of_one_signed_output_and_of_signed_targets():
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    x = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]])
    assert accuracy(net, x, torch.tensor([1.0, 1, 1, -1]), statistics="eval") == 0.75
    assert accuracy(nn.Identity(), torch.eye(3), 2 * torch.eye(3) - 1, statistics="eval") == 1


def test_statistics_is_one_of_two_words():
    with pytest.raises(NormlibError, match="'train'"):
        evaluate(MLP([4, 3]), X, Y, statistics="test")


def test_squared_error_of_classes_is_that_of_signed_targets():
    output = torch.randn(30, 3, generator=G, dtype=torch.float64)
    signed = 2 * nn.functional.one_hot(Y, 3).double() - 1
    slow = sum(float((o - d).square().sum()) for o, d in zip(output, signed, strict=True)) / (2 * 30)
    assert float(squared_error(output, Y)) == pytest.approx(slow, rel=1e-12)
    assert float(squared_error(output, signed)) == pytest.approx(slow, rel=1e-12)


def test_squared_error_of_one_output_does_not_broadcast():
    output, target = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0])
    assert float(squared_error(output, target)) == 0
