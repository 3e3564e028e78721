import math

import pytest
import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.networks import DropPath, ResNet, nf_resnet
from normlib.residual import RESIDUALS, Join, ScalarBias, expected_variances

KNOWN = [  # a ResNet-18 and a ResNet-50 for ImageNet, a ResNet-56 for CIFAR with projections
    ({"stages": [2, 2, 2, 2], "stem": "imagenet", "classes": 1000}, 11_689_512),
    ({"stages": [3, 4, 6, 3], "stem": "imagenet", "classes": 1000, "unit": "bottleneck"}, 25_557_032),
    ({"stages": [9, 9, 9], "width": 16}, 855_770),
]


@pytest.mark.parametrize(("arguments", "parameters"), KNOWN)
def test_resnets_of_version_1_have_the_parameters_that_are_known(arguments, parameters):
    assert sum(p.numel() for p in ResNet(version=1, **arguments).parameters()) == parameters


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
def test_resnet_version_2_is_the_sum_of_its_branches_on_a_clean_shortcut(unit):
    net = ResNet([2], width=8, unit=unit, in_channels=8, norm="batch", stem="cifar").double()
    x = torch.randn(3, 32 if unit == "bottleneck" else 8, 6, 6, dtype=torch.float64)
    block = net.blocks[1]
    assert block.shortcut is None
    torch.testing.assert_close(block(x), x + block.branch(block.before(x)))
    assert [name for name, _ in block.before.named_children()] == ["norm", "activation"]


def test_resnet_orders_and_paddings():
    swapped = ResNet([1], width=8, order="activation-norm")
    assert [name for name, _ in swapped.final.named_children()] == ["activation", "norm"]
    assert {m.padding_mode for m in ResNet([1, 1], width=8, padding_mode="circular").modules() if isinstance(m, nn.Conv2d)} == {
        "circular"
    }


def test_resnet_projection_hears_the_activated_input_in_version_2_and_the_raw_one_in_version_1():
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    second, first = (ResNet([1, 1], width=8, version=v).double().blocks[1] for v in (2, 1))
    torch.testing.assert_close(second(x), second.shortcut(second.before(x)) + second.branch(second.before(x)))
    torch.testing.assert_close(first(x), (first.shortcut(x) + first.branch(x)).relu())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stages": []}, "blocks of each stage"),
        ({"stages": [1], "version": 3}, "version=3; expected 1"),
        ({"stages": [1], "unit": "botleneck"}, "did you mean 'bottleneck'"),
        ({"stages": [1], "stem": "imagnet"}, "did you mean 'imagenet'"),
        ({"stages": [1], "order": "norm"}, "order of ResNet"),
    ],
)
def test_resnet_errors_say_what_fits(arguments, says):
    with pytest.raises(NormlibError, match=says):
        ResNet(**arguments)


SCHEMES = ["sum", "scaled_sum", "skipinit:gain=0.5", "rezero", "fixup", "rescale", "nf:alpha=0.5"]
NOISE = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_every_residual_scheme_is_tested():
    assert {scheme.partition(":")[0] for scheme in SCHEMES} == set(RESIDUALS)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_builds_its_blocks_and_differs_from_the_sum_in_nothing_that_is_drawn(scheme, version):
    if scheme.startswith("nf") and version == 1:
        pytest.skip("an error, tested below")
    arguments = {"stages": [2, 1], "width": 8, "norm": "none", "classes": 5, "version": version}
    net, plain = ResNet(residual=scheme, **arguments), ResNet(**arguments)
    assert net(NOISE).shape == (6, 5)
    ours, theirs = ([m for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (net, plain))
    if scheme != "fixup":
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, theirs, strict=True))
    own = {name: p for name, p in net.named_parameters() if name not in dict(plain.named_parameters())}
    assert all(p.ndim == 0 for p in own.values()), "schemes learn scalars"


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
@pytest.mark.parametrize("version", [1, 2])
def test_fixup_starts_at_zero_output_and_shifts_every_weight_layer_and_activation_of_a_branch(version, unit):
    net = ResNet([2, 1], width=8, unit=unit, version=version, norm="none", residual="fixup").double()
    assert not net(NOISE.double()).any()
    for block in net.blocks:
        kinds = [type(m) for part in (block.before, block.branch) for m in part.modules() if not list(m.children())]
        kinds = [kind for kind in kinds if kind is not nn.Identity]
        for position, kind in enumerate(kinds):
            if kind in (nn.Conv2d, nn.ReLU):
                assert kinds[position - 1] is ScalarBias, kinds
    convolutions = [m for m in net.blocks[0].branch.modules() if isinstance(m, nn.Conv2d)]
    plain = ResNet([2, 1], width=8, unit=unit, version=version, norm="none").blocks[0].branch
    first = next(m for m in plain.modules() if isinstance(m, nn.Conv2d)).weight.double()
    factor = 3 ** (-1 / (2 * len(convolutions) - 2))
    torch.testing.assert_close(convolutions[0].weight, factor * first, rtol=1e-6, atol=0)
    assert not convolutions[-1].weight.any()


def test_nf_block_is_the_formula_and_its_transition_projects_what_was_divided():
    alpha, stages = 0.7, [2, 2]
    net = nf_resnet(stages, alpha=alpha, width=8).double()
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64)
    for block, book in zip(net.blocks, expected_variances(stages, alpha), strict=True):
        h = x.relu() / book.beta
        shortcut = x if block.shortcut is None else block.shortcut(h)
        expected = shortcut + alpha * block.branch(h)
        torch.testing.assert_close(block(x), expected)
        x = expected
    assert [block.shortcut is not None for block in net.blocks] == [False, False, True, False]


def test_nf_by_its_specs_is_the_network_that_nf_resnet_builds():
    arguments = {"stages": [1, 2], "width": 8, "bias": True, "init": "lecun"}
    ours = ResNet(version=2, norm="scaled_weight", residual="nf:alpha=0.2", **arguments)
    assert torch.equal(ours(NOISE), nf_resnet([1, 2], width=8)(NOISE))


@pytest.mark.parametrize(("alpha", "unit"), [(1.0, "basic"), (0.2, "basic"), (1.0, "bottleneck")])
def test_nf_variances_at_initialization_are_those_of_the_books(alpha, unit):
    """The mean over 4 seeds is within 3 % at width 64, circular padding; no channel mean to speak of."""
    stages, measured, means = [3, 2, 2], [], []
    for seed in range(4):
        width = 64 if unit == "basic" else 32
        net = nf_resnet(stages, alpha=alpha, width=width, unit=unit, padding_mode="circular", seed=seed)
        x, row = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), []
        with torch.no_grad():
            x = net.stem(x)
            assert float(x.var((0, 2, 3)).mean()) == pytest.approx(1, rel=0.03)
            for block in net.blocks:
                x = block(x)
                row.append(float(x.var((0, 2, 3)).mean()))
                means.append(float(x.mean((0, 2, 3)).square().mean()))
        measured.append(torch.tensor(row))
    expected = torch.tensor([book.variance for book in expected_variances(stages, alpha)])
    torch.testing.assert_close(torch.stack(measured).mean(0), expected, rtol=0.03, atol=0)
    assert max(means) < 0.02


def test_without_standardized_weights_the_books_do_not_hold():
    stages = [3, 2]
    net = nf_resnet(stages, alpha=1.0, width=64, norm="none", init="he", padding_mode="circular")
    with torch.no_grad():
        x = net.blocks(net.stem(torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))))
    assert float(x.var((0, 2, 3)).mean()) < 0.8 * expected_variances(stages, 1.0)[-1].variance


def test_batch_norm_gives_the_variances_of_its_closed_form():
    """BN, ReLU, He's weights: a branch adds 1 - 1/π, and so does a projection; `l + 1` of them after block l of a stage."""
    net = ResNet([2, 3], width=64, norm="batch", padding_mode="circular")
    with torch.no_grad():
        x = net.blocks[:2](net.stem(torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))))
        for passed, block in enumerate(net.blocks[2:], start=2):
            x = block(x)
            assert float(x.var((0, 2, 3)).mean()) == pytest.approx(passed * (1 - 1 / math.pi), rel=0.05)


def test_drop_path_rates_grow_linearly_and_act_in_training_only():
    net = ResNet([2, 2], width=8, norm="group:size=4", drop_path=0.4)
    assert [block.drop_path.rate for block in net.blocks] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    plain = ResNet([2, 2], width=8, norm="group:size=4")
    assert torch.equal(net.eval()(NOISE), plain.eval()(NOISE))
    torch.manual_seed(0)
    assert not torch.equal(net.train()(NOISE), plain(NOISE))


def test_drop_path_keeps_or_drops_whole_samples_with_the_expectation_kept():
    torch.manual_seed(0)
    rate, x = 0.3, torch.ones(20_000, 2, 2, dtype=torch.float64)
    factor = DropPath(rate)(x)
    assert torch.equal(factor, factor[:, :1, :1].expand_as(factor))
    kept = factor[:, 0, 0] > 0
    torch.testing.assert_close(factor[kept], torch.full_like(factor[kept], 1 / (1 - rate)))
    share = float(kept.double().mean())
    assert share == pytest.approx(1 - rate, abs=5 * math.sqrt(rate * (1 - rate) / len(x)))


def test_drop_path_of_linear_branches_is_the_whole_network_in_expectation():
    """All 2^L choices of L branches, weighed by their probabilities; the sum is exact where the branches are linear."""
    net = ResNet([1, 1], width=4, norm="none", activation="identity", drop_path=0.4, classes=3).double()
    x, rates = NOISE[:2].double(), [block.drop_path.rate for block in net.blocks]
    expected, total = net.eval()(x), torch.zeros(2, 3, dtype=torch.float64)
    for dropped in ((a, b) for a in (False, True) for b in (False, True)):
        weight = math.prod(rate if drop else 1 - rate for rate, drop in zip(rates, dropped, strict=True))
        for block, rate, drop in zip(net.blocks, rates, dropped, strict=True):
            block.drop_path = Times(0.0 if drop else 1 / (1 - rate))
        total += weight * net(x)
    torch.testing.assert_close(total, expected)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, input):
        return self.factor * input


def test_drop_path_draws_for_each_network_of_a_batch_of_networks():
    torch.manual_seed(0)
    layer, x = DropPath(0.5), torch.ones(3, 40, 2)
    y = torch.vmap(layer, randomness="different")(x)
    assert y.shape == x.shape and set(y.flatten().tolist()) == {0.0, 2.0}
    assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_refuses_what_is_no_rate(rate):
    with pytest.raises(NormlibError, match="stochastic depth"):
        ResNet([1], drop_path=rate)


@pytest.mark.parametrize(("unit", "group_size", "groups"), [("bottleneck", 4, 2), ("inverted", 1, 48), ("bottleneck", None, 1)])
def test_groups_stand_in_the_middle_convolution_alone(unit, group_size, groups):
    net = ResNet([1, 1], width=8, unit=unit, group_size=group_size)
    found = [[m.groups for m in block.branch.modules() if isinstance(m, nn.Conv2d)] for block in net.blocks]
    assert found == [[1, groups, 1], [1, 2 * groups if groups > 1 else 1, 1]]
    assert net(NOISE).shape == (6, 10)


def test_inverted_unit_of_an_efficient_net_keeps_the_width_and_works_normalizer_free():
    net = nf_resnet([2], width=8, unit="inverted", group_size=1)
    assert [tuple(m.weight.shape) for m in net.blocks[1].branch.modules() if isinstance(m, nn.Conv2d)] == [
        (48, 8, 1, 1),
        (48, 1, 3, 3),
        (8, 48, 1, 1),
    ]
    assert net.blocks[1].shortcut is None
    assert net(NOISE).isfinite().all()


def test_bias_and_dropout_are_there_when_asked_for():
    net = ResNet([1], width=8, bias=True, dropout=0.5)
    assert all(m.bias is not None and not m.bias.any() for m in net.modules() if isinstance(m, nn.Conv2d))
    assert isinstance(net.dropout, nn.Dropout)
    assert torch.equal(net.eval()(NOISE), ResNet([1], width=8).eval()(NOISE))
    assert isinstance(ResNet([1], width=8).blocks[0].join, Join)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"residual": "nf", "version": 1}, "Pass version=2"),
        ({"residual": "skipinitt"}, "did you mean 'skipinit'"),
        ({"group_size": 4}, "unit 'bottleneck' or 'inverted'"),
        ({"group_size": 3, "unit": "bottleneck", "width": 8}, "a divisor of these"),
        ({"residual": "fixup", "norm": "weight"}, "computed from other parameters"),
    ],
)
def test_errors_of_what_is_new_say_what_fits(arguments, says):
    with pytest.raises(NormlibError, match=says):
        ResNet([1], **arguments)
