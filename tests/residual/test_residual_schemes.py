"""Every residual scheme in one small network, against the variance that its formula gives; specs, errors, the join itself."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.residual import RESIDUALS, Join, NormalizerFree, ReZero, ScalarBias, Scale, SkipInit, make_residual
from normlib.spec import SpecError

STAGES = (4, 3)
DEPTH = sum(STAGES)
WIDTH, BATCH, SEEDS = 1024, 64, 2
PLACES = [(stage, block) for stage, blocks in enumerate(STAGES) for block in range(blocks)]


class Toy(nn.Module):
    """A residual network of square linear layers that keep the variance; the first block of stage 1 projects its shortcut."""

    def __init__(self, spec: str, seed: int = 0, width: int = WIDTH, layers: int = 2, **factory_kwargs: object) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def linear() -> nn.Linear:
            layer = nn.Linear(width, width, bias=False)
            nn.init.normal_(layer.weight, std=width**-0.5, generator=generator)
            return layer

        scheme = make_residual(spec, STAGES, **factory_kwargs)
        self.entries = nn.ModuleList(scheme.entry(*place) for place in PLACES)
        self.branches = nn.ModuleList(
            nn.Sequential(*[part for _ in range(layers) for part in (scheme.shift(), linear())]) for _ in PLACES
        )
        self.projections = nn.ModuleList(linear() if place == (1, 0) else nn.Identity() for place in PLACES)
        self.joins = nn.ModuleList(scheme.join(*place) for place in PLACES)
        self.head = nn.Linear(width, 3)
        scheme.initialize(self.branches, self.head)

    def blocks(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for place, entry, branch, projection, join in zip(
            PLACES, self.entries, self.branches, self.projections, self.joins, strict=True
        ):
            h = entry(x)
            x = join(projection(h) if place == (1, 0) else x, branch(h))
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[-1])


AFTER = range(1, DEPTH + 1)  # blocks passed
VARIANCES = {
    "sum": [2.0**block for block in AFTER],
    "scaled_sum": [1.0] * DEPTH,
    "skipinit": [1.0] * DEPTH,
    "skipinit:gain=1/sqrt(d)": [(1 + 1 / DEPTH) ** block for block in AFTER],
    "skipinit:gain=0.5": [1.25**block for block in AFTER],
    "rezero": [1.0] * DEPTH,
    "fixup": [1.0] * DEPTH,
    "rescale": [1.0] * DEPTH,
    "rescale:gain=1": [1.0] * DEPTH,
    "nf:alpha=1": [2.0, 3.0, 4.0, 5.0, 2.0, 3.0, 4.0],
    "nf": [1.04, 1.08, 1.12, 1.16, 1.04, 1.08, 1.12],
    "nf:alpha=1,gain=0": [1.0] * 4 + [0.2] * 3,  # the books do not know that the branches are shut: the projection gets 1 / 5
}


def test_every_scheme_has_a_closed_form() -> None:
    assert {spec.partition(":")[0] for spec in VARIANCES} == set(RESIDUALS)


@pytest.mark.parametrize("spec", VARIANCES)
def test_variance_at_initialization_is_the_closed_form(spec: str) -> None:
    found = torch.zeros(DEPTH)
    for seed in range(SEEDS):
        x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(100 + seed))
        x /= x.square().mean().sqrt()
        with torch.no_grad():
            found += torch.stack([y.square().mean() for y in Toy(spec, seed).blocks(x)]) / SEEDS
    # width 1024: a random layer keeps the mean square within about 1 %, and errors add up over 7 blocks
    torch.testing.assert_close(found, torch.tensor(VARIANCES[spec]), rtol=0.04, atol=0)


def test_the_plain_sum_is_the_block_written_by_hand() -> None:
    net, x = Toy("sum", width=8).double(), torch.randn(2, 8, dtype=torch.float64)
    y = x
    for place, branch, projection in zip(PLACES, net.branches, net.projections, strict=True):
        first, second = branch[1].weight, branch[3].weight
        y = (y @ projection.weight.T if place == (1, 0) else y) + y @ first.T @ second.T
    torch.testing.assert_close(net.blocks(x)[-1], y)


@pytest.mark.parametrize("spec", VARIANCES)
def test_arms_differ_in_scalars_alone_and_every_scalar_learns(spec: str) -> None:
    torch.manual_seed(0)
    plain, net = Toy("sum", width=8), Toy(spec, width=8)
    own = {name for name, _ in net.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert all(net.get_parameter(name).shape == () for name in own)
    gated = spec == "fixup" or "gain" in spec or spec in ("skipinit", "rezero")
    wanted = {f"joins.{block}.gain" for block in range(DEPTH) if gated}
    wanted |= {f"branches.{block}.{place}.bias" for block in range(DEPTH) for place in (0, 2) if spec == "fixup"}
    assert own == wanted
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    start = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    x = torch.randn(6, 8)
    for _ in range(3):  # by the third step the gradient has passed what starts at zero
        optimizer.zero_grad()
        (net(x) - 1).square().sum().backward()
        optimizer.step()
    assert all((parameter.detach() != start[name]).any() for name, parameter in net.named_parameters())


@pytest.mark.parametrize("spec", VARIANCES)
def test_networks_are_copied_pickled_compiled_and_placed(spec: str) -> None:
    net, x = Toy(spec, width=4), torch.randn(2, 4)
    y = net(x)
    assert torch.equal(copy.deepcopy(net)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(net.joins[1]))(x, x), net.joins[1](x, x))
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), y)
    scheme = make_residual(spec, STAGES, device="meta", dtype=torch.float64)
    made = [scheme.entry(1, 0), scheme.shift(), scheme.join(1, 0)]
    assert all((p.device.type, p.dtype) == ("meta", torch.float64) for module in made for p in module.parameters())
    assert torch.vmap(net)(x[:, None]).shape == (2, 1, 3)


@pytest.mark.parametrize("spec", VARIANCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scalars_in_float32_leave_the_dtype_of_the_signal(spec: str, dtype: torch.dtype) -> None:
    scheme = make_residual(spec, STAGES)
    x = torch.ones(2, 3, dtype=dtype)
    assert scheme.join(0, 1)(scheme.entry(0, 1)(x), scheme.shift()(x)).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scheme.join(0, 1)(x, scheme.shift()(x)).dtype == dtype


@pytest.mark.parametrize("name", RESIDUALS)
def test_each_scheme_keeps_the_contract(name: str) -> None:
    factory = RESIDUALS[name]
    parameters = list(inspect.signature(factory).parameters.values())
    assert parameters[0].name == "stages"
    assert {"device", "dtype"} <= {p.name for p in parameters}
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
    text = inspect.getdoc(factory)
    assert all(part in text for part in ("**Idea.**", "**Formula.**", "Args:", "Example:", "Source: `"))
    assert repr(make_residual(name, [2, 1])) == f"{factory.__name__}(stages=[2, 1])"


@pytest.mark.parametrize("gain", [None, 0.7])
def test_join_is_its_formula_in_value_and_gradient(gain: float | None) -> None:
    module = Join(0.6, -1.5, gain, dtype=torch.float64)
    x, f, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    g = 1.0 if gain is None else gain
    y = module(x, f)
    torch.testing.assert_close(y, 0.6 * x - 1.5 * g * f)
    found = torch.autograd.grad(y, [x, f, *module.parameters()], up)
    wanted = [0.6 * up, -1.5 * g * up, -1.5 * (f * up).sum()]
    torch.testing.assert_close(found, tuple(wanted[: len(found)]))
    assert len(found) == (2 if gain is None else 3)


def test_join_does_not_broadcast() -> None:
    with pytest.raises(NormlibError, match=r"\(2, 4, 1, 1\).*projection"):
        Join()(torch.ones(2, 4, 3, 3), torch.ones(2, 4, 1, 1))


def test_parameters_are_set_again_after_an_empty_move() -> None:
    for module, value in ((Join(gain=0.3), 0.3), (ScalarBias(), 0.0)):
        (parameter,) = module.to_empty(device="cpu").parameters()
        nn.init.constant_(parameter, 9.0)
        module.reset_parameters()
        torch.testing.assert_close(parameter.detach(), torch.tensor(value))


def test_scale_and_bias_are_what_they_say_and_can_be_applied_to() -> None:
    bias = ScalarBias(dtype=torch.float64)
    nn.init.constant_(bias.bias, 2.0)
    net = nn.Sequential(Scale(3.0), bias).apply(lambda module: None)
    assert net(torch.ones(2, dtype=torch.float64)).tolist() == [5.0, 5.0]


def test_rezero_is_skipinit_at_zero() -> None:
    ours, theirs = ReZero(STAGES).join(0, 0), SkipInit(STAGES).join(0, 0)
    x, f = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(ours(x, f), theirs(x, f))
    assert ours.gain.item() == theirs.gain.item() == 0


def test_skipinit_starts_at_one_over_the_root_of_the_depth_if_asked() -> None:
    for depth in (1, 4, 25):
        assert make_residual("skipinit:gain=1/sqrt(d)", [depth]).join(0, 0).gain.item() == pytest.approx(depth**-0.5)


def test_blocks_are_counted_through_the_stages() -> None:
    scheme = make_residual("sum", STAGES)
    assert [scheme.position(*place) for place in PLACES] == list(range(DEPTH))
    assert scheme.depth == DEPTH


@pytest.mark.parametrize("place", [(0, 4), (2, 0), (-1, 0), (0, -1)])
@pytest.mark.parametrize("spec", ["rescale", "nf"])
def test_a_place_outside_the_network_is_an_error(spec: str, place: tuple[int, int]) -> None:
    scheme = make_residual(spec, STAGES)
    build = scheme.entry if isinstance(scheme, NormalizerFree) else scheme.join
    with pytest.raises(NormlibError, match=r"stages hold \(4, 3\)"):
        build(*place)


@pytest.mark.parametrize("spec", RESIDUALS)
@pytest.mark.parametrize("stages", [[], [3, 0], 5, [2.0], "33", [-1]])
def test_stages_are_counts_of_blocks(spec: str, stages: object) -> None:
    with pytest.raises(NormlibError, match=r"as in \[3, 4, 6, 3\]"):
        make_residual(spec, stages)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("skipinti", UnknownNameError, "did you mean 'skipinit'"),
        ("nf:alhpa=1", UnknownNameError, "did you mean 'alpha'"),
        ("rezero:gain=1", UnknownNameError, "argument of residual scheme 'rezero'"),
        ("sum:device=cpu", UnknownNameError, "argument of residual scheme 'sum'"),
        ("skipinit:gain=1/sqrt(L)", NormlibError, r"1/sqrt\(d\)"),
        ("nf:", SpecError, "argument=value"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make_residual(spec, STAGES)


def test_the_scaled_sum_forgets_its_input() -> None:
    signal, silence = torch.ones(1), torch.zeros(1)
    for place in PLACES:
        signal = make_residual("scaled_sum", STAGES).join(*place)(signal, silence)
    assert signal.square().item() == pytest.approx(2.0**-DEPTH)
    assert math.isclose(float(make_residual("scaled_sum", STAGES).join(0, 0)(silence, torch.ones(1))), math.sqrt(0.5), rel_tol=1e-6)
