"""The vision transformer: attention against torch's, symmetry under permutations, the three orders by hand."""

import pytest
import torch
from torch import nn

from normlib import reference
from normlib.errors import NormlibError
from normlib.networks import ViT
from normlib.networks.attention import SelfAttention
from normlib.networks.vit import fixed_positions

TINY = {"image_size": 8, "patch": 2, "dim": 12, "depth": 3, "heads": 3, "mlp_ratio": 2.0, "in_channels": 1, "classes": 5}
IMAGES = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(4, 16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def build(**arguments):
    return ViT(**{**TINY, **arguments}).double()


def test_tiny_vit_for_image_net_has_the_parameters_that_are_known():
    net = ViT(image_size=224, patch=16, dim=192, depth=12, heads=3, classes=1000, pool="token")
    assert sum(p.numel() for p in net.parameters()) == 5_717_416


def attention(seed=0):
    torch.manual_seed(seed)
    return SelfAttention(nn.Linear(12, 36), nn.Linear(12, 12), heads=3).double()


def test_attention_is_torchs():
    ours, theirs = attention(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    names = {
        "in_proj_weight": "qkv.weight",
        "in_proj_bias": "qkv.bias",
        "out_proj.weight": "out.weight",
        "out_proj.bias": "out.bias",
    }
    theirs.load_state_dict({name: ours.state_dict()[other] for name, other in names.items()})
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS, TOKENS, TOKENS, need_weights=False)[0])


def test_attention_by_formula_is_the_fused_one_and_has_second_derivatives():
    layer, x = attention(), TOKENS.clone().requires_grad_()
    fast = layer(x)
    (slope,) = torch.autograd.grad(fast.square().sum(), x)
    with reference():
        slow = layer(x)
        (by_formula,) = torch.autograd.grad(slow.square().sum(), x, create_graph=True)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(slope, by_formula)
    (second,) = torch.autograd.grad(by_formula.square().sum(), x)
    assert second.isfinite().all() and second.any()


@pytest.mark.parametrize("order", ["pre", "post", "peri"])
def test_blocks_are_equivariant_under_permutations_of_the_tokens(order):
    net, shuffle = build(order=order), torch.randperm(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net.blocks(TOKENS[:, shuffle]), net.blocks(TOKENS)[:, shuffle])


@pytest.mark.parametrize("pool", ["mean", "token"])
@pytest.mark.parametrize("positions", ["none", "learned", "fixed"])
def test_only_positions_tell_where_a_patch_is(positions, pool):
    net = build(positions=positions, pool=pool)
    turned = IMAGES.unflatten(2, (4, 2)).flip(2).flatten(2, 3)  # rows of patches upside down
    same = torch.allclose(net(turned), net(IMAGES), rtol=1e-9, atol=1e-9)
    assert same == (positions == "none")


def layer_norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("order", ["pre", "post", "peri"])
def test_orders_are_what_they_say(order):
    net, x = build(order=order), TOKENS
    for block in net.blocks:
        for f in (block.attention.branch, block.mlp.branch):
            if order == "pre":
                x = x + f(layer_norm(x))
            elif order == "post":
                x = layer_norm(x + f(x))
            else:
                x = x + layer_norm(f(layer_norm(x)))
    torch.testing.assert_close(net.blocks(TOKENS), x)
    assert isinstance(net.final, nn.Identity) == (order == "post")


def test_variance_that_leaves_post_and_that_peri_adds():
    """Post: mean 0 and variance 1 for each token. Peri: each of the 2L sublayers adds a vector of variance 1 to it."""
    after, ones = build(order="post").blocks(TOKENS), torch.ones(4, 16, dtype=torch.float64)
    torch.testing.assert_close(after.var(-1, correction=0), ones, rtol=1e-4, atol=0)
    torch.testing.assert_close(after.mean(-1), 0 * ones, rtol=0, atol=1e-12)
    wide = ViT(**{**TINY, "dim": 768, "depth": 4}, order="peri").double()
    x = torch.randn(2, 4, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for sublayer in (part for block in wide.blocks for part in (block.attention, block.mlp)):
            added = sublayer(x) - x
            torch.testing.assert_close(added.var(-1, correction=0), torch.ones(2, 4, dtype=torch.float64), rtol=1e-3, atol=0)
            x = x + added


def test_arms_of_every_order_share_their_weights():
    first = build(order="pre", norm="none", positions="none")
    for other in (build(order="post"), build(order="peri", norm="batch", pool="token"), build(norm="scaled_weight + rms")):
        assert torch.equal(first.head.weight, other.head.weight)
        assert torch.equal(first.patches.weight, other.patches.weight)


def test_norms_stand_where_the_order_says_and_weight_norms_on_the_linear_layers_of_blocks():
    net = build(norm="scaled_weight:gain=1.0 + group:groups=3", order="peri")
    sublayer = net.blocks[0].mlp
    assert type(sublayer.before).__name__ == type(sublayer.inside).__name__ == "ChannelsLast"
    assert isinstance(sublayer.after, nn.Identity)
    linear = [m for m in net.blocks.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 4 * 3 and all(hasattr(m, "parametrizations") for m in linear)
    assert not hasattr(net.head, "parametrizations")


def test_fixed_positions_are_near_to_each_other_by_their_offset_alone():
    positions = fixed_positions(5, 16).double().unflatten(0, (5, 5))
    for offset in (1, 2):
        rows = (positions[offset:] * positions[:-offset]).sum(-1)
        columns = (positions[:, offset:] * positions[:, :-offset]).sum(-1)
        torch.testing.assert_close(rows, rows[0, 0].expand_as(rows))
        torch.testing.assert_close(columns, rows[0, 0].expand_as(columns))
    assert float((positions**2).sum(-1).mean()) == pytest.approx(8)


def test_fixed_positions_are_no_parameters_and_the_class_token_has_none():
    net = build(positions="fixed", pool="token")
    assert "positions" not in net.state_dict() and "token" in net.state_dict()
    assert not net.positions[0].any()
    torch.testing.assert_close(net.positions[1:], fixed_positions(4, 12).double())
    assert torch.equal(net.embed(IMAGES)[:, 0], net.token[0].expand(4, -1))


def test_drop_path_grows_with_depth_and_both_sublayers_of_a_block_share_a_rate():
    net = build(drop_path=0.3)
    rates = [(block.attention.drop_path.rate, block.mlp.drop_path.rate) for block in net.blocks]
    assert [rate for pair in rates for rate in pair] == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert torch.equal(net.eval()(IMAGES), build()(IMAGES))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"order": "prae"}, "order of ViT named 'prae'; did you mean 'pre'"),
        ({"positions": "lerned"}, "did you mean 'learned'"),
        ({"pool": "cls"}, "Known: mean, token"),
        ({"heads": 5}, "heads=5 with 12 features"),
        ({"depth": 0}, "number of blocks"),
        ({"positions": "fixed", "dim": 6}, "multiple of 4"),
    ],
)
def test_errors_say_what_fits(arguments, says):
    with pytest.raises(NormlibError, match=says):
        build(**arguments)


def test_images_of_another_size_are_refused():
    with pytest.raises(NormlibError, match="Build it with their in_channels and image_size"):
        build()(torch.zeros(2, 1, 10, 8, dtype=torch.float64))
