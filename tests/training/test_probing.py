import pytest
import torch
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.networks import MLP
from normlib.training import Step, Update, accuracy, accuracy_probe, data_order, train

G = torch.Generator().manual_seed(0)
X = torch.randn(20, 4, generator=G)
Y = torch.randint(3, (20,), generator=G)
ARGS = {"steps": 8, "batch_size": 5, "rate": 0.1, "schedule": "linear", "momentum": 0.9, "weight_decay": 0.01, "seed": 2}


def network():
    return MLP([4, 6, 3], norm="batch", seed=0)


def test_a_step_knows_the_batch_and_the_rate_of_the_update_to_come():
    order, seen = data_order(20, 5, seed=2), []

    def probe(step, model):
        batch = next(order)
        assert step.model is model
        assert torch.equal(step.x, X[batch])
        assert torch.equal(step.y, Y[batch])
        assert step.optimizer.param_groups[0]["momentum"] == 0.9
        seen.append(float(step.loss(model(step.x), step.y).detach()))
        return {"rate": step.rate}

    history = train(network(), X, Y, **ARGS, probe=probe, probe_steps=range(8))
    assert history.probes["rate"] == pytest.approx([0.1 * (1 - step / 8) for step in range(8)])
    assert history.loss == pytest.approx(seen, rel=1e-5)


def test_after_the_last_update_a_step_knows_the_next_batch_and_the_last_rate():
    steps = []
    train(network(), X, Y, **ARGS, probe=lambda step, model: steps.append(step) or {}, probe_steps=[7, 8])
    assert steps == [7, 8]
    assert steps[1].rate == steps[0].rate
    assert steps[1].x.shape == (5, 4)


def test_gradients_are_those_of_the_update_and_leave_no_trace():
    gradients, parameters = [], []

    def probe(step, model):
        parameters.append({name: p.detach().clone() for name, p in model.named_parameters()})
        gradients.append(step.gradients())
        return {}

    net, plain = (nn.Sequential(network(), nn.Dropout(0.3)) for _ in range(2))
    torch.manual_seed(0)
    train(net, X, Y, steps=4, batch_size=5, rate=0.1, seed=2, probe=probe, probe_steps=range(5))
    torch.manual_seed(0)
    train(plain, X, Y, steps=4, batch_size=5, rate=0.1, seed=2)
    for ours, theirs in zip(net.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    for step in range(4):
        for name, before in parameters[step].items():
            torch.testing.assert_close(parameters[step + 1][name], before - 0.1 * gradients[step][name])


def test_gradients_are_taken_at_the_precision_of_the_run():
    found = {}
    for precision in ("float32", "bfloat16"):
        probe = lambda step, model, p=precision: found.update({p: step.gradients()["head.weight"]}) or {}  # noqa: E731
        train(network(), X, Y, **ARGS, probe=probe, probe_steps=[0], update=Update(precision=precision))
    assert not torch.equal(found["float32"], found["bfloat16"])
    torch.testing.assert_close(found["float32"], found["bfloat16"], rtol=0.1, atol=0.01)


def test_a_step_is_a_number_and_cannot_be_changed():
    step = Step(3, rate=0.1)
    assert (step, {3: "three"}[step], f"{step}", step + 1) == (3, "three", "3", 4)
    with pytest.raises(AttributeError, match="read-only"):
        step.rate = 0.2


def test_several_probes_have_columns_and_steps_of_their_own():
    probes = {"norm": lambda step, model: {"norm": model.head.weight.norm()}, "one": lambda step, model: {"part": ["a", "b"]}}
    history = train(network(), X, Y, **ARGS, probe=probes, probe_steps={"norm": [0, 8], "one": iter([3])})
    assert history.probes["norm"]["step"] == [0, 8]
    assert history.probes["one"] == {"step": [3, 3], "part": ["a", "b"]}
    assert type(history.probes["norm"]["step"][0]) is int
    together = train(network(), X, Y, **ARGS, probe=probes, probe_steps=iter([2, 5]))
    assert [set(columns["step"]) for columns in together.probes.values()] == [{2, 5}, {2, 5}]


def test_steps_of_a_probe_that_is_not_there_or_out_of_range_are_refused():
    probes = {"accuracy": accuracy_probe(X, Y, statistics="eval")}
    with pytest.raises(UnknownNameError, match="'accuracy'"):
        train(network(), X, Y, **ARGS, probe=probes, probe_steps={"acuracy": [1]})
    with pytest.raises(NormlibError, match="steps 0 to 8"):
        train(network(), X, Y, **ARGS, probe=probes, probe_steps={"accuracy": [9]})


@pytest.mark.parametrize("statistics", ["train", "eval"])
def test_accuracy_probe_is_the_accuracy_and_changes_nothing(statistics):
    net, plain = network(), network()
    probe = accuracy_probe(X, Y, statistics=statistics, batch_size=10)
    history = train(net, X, Y, **ARGS, probe=probe, probe_steps=[0, 4, 8])
    assert history.probes["accuracy"][-1] == accuracy(net, X, Y, statistics=statistics, batch_size=10)
    assert (history.loss == train(plain, X, Y, **ARGS).loss).all()
    for ours, theirs in zip(net.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
