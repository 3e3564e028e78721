import math

import pytest

from normlib.errors import NormlibError, UnknownNameError
from normlib.training import SCHEDULES, make_schedule

STEPS = 40
CLOSED_FORMS = {
    "constant": lambda u: 1.0,
    "linear": lambda u: 1 - u,
    "linear:final=0.2": lambda u: 1 - 0.8 * u,
    "cosine": lambda u: math.cos(math.pi * u / 2) ** 2,
    "cosine:final=0.1": lambda u: 0.1 + 0.9 * math.cos(math.pi * u / 2) ** 2,
    "step": lambda u: 1.0 if u < 0.5 else 0.1 if u < 0.75 else 0.01,
    "step:at=0.25,factor=0.5": lambda u: 1.0 if u < 0.25 else 0.5,
    "exponential:growth=0.9": lambda u: 0.9 ** (u * STEPS),
    "exponential:growth=1.3": lambda u: 1.3 ** (u * STEPS),
}


@pytest.mark.parametrize("spec", CLOSED_FORMS)
def test_schedule_is_its_closed_form(spec):
    rate = make_schedule(spec, 0.5, STEPS)
    for step in range(STEPS + 1):
        assert rate(step) == pytest.approx(0.5 * CLOSED_FORMS[spec](step / STEPS), rel=1e-12, abs=1e-16)


def test_every_schedule_has_a_closed_form_here():
    assert {spec.partition(":")[0] for spec in CLOSED_FORMS} == set(SCHEDULES)


@pytest.mark.parametrize("spec", CLOSED_FORMS)
@pytest.mark.parametrize("warmup", ["10", "0.2"])
def test_warmup_is_linear_and_then_the_schedule_takes_the_rest_of_the_run(spec, warmup):
    warm = make_schedule(f"{spec}{',' if ':' in spec else ':'}warmup={warmup}", 2.0, 50)
    count = 10
    plain = make_schedule(spec, 2.0, 50 - count)
    assert [warm(step) for step in range(count)] == pytest.approx([2.0 * (step + 1) / 11 for step in range(count)])
    assert [warm(step) for step in range(count, 50)] == [plain(step) for step in range(50 - count)]
    assert warm(count) == 2.0


def test_growing_rate_makes_up_for_the_weight_decay_of_a_scale_invariant_model():
    # f(w) = a·w/|w|: with decay at a constant rate, and without it at a growing one, the directions are the same
    rate, decay, steps = 0.1, 0.3, 60
    growing = make_schedule(f"exponential:growth={(1 - rate * decay) ** -2!r}", rate / (1 - rate * decay), steps)
    a, w, v = (0.6, -0.8), (1.0, 0.5), (1.0, 0.5)

    def gradient(w):
        size = math.hypot(*w)
        along = (a[0] * w[0] + a[1] * w[1]) / size**2
        return tuple((a[i] - along * w[i]) / size for i in (0, 1))

    for step in range(steps):
        w = tuple((1 - rate * decay) * w[i] - rate * gradient(w)[i] for i in (0, 1))
        v = tuple(v[i] - growing(step) * gradient(v)[i] for i in (0, 1))
        assert math.atan2(*w) == pytest.approx(math.atan2(*v), rel=1e-9)
    assert math.hypot(*v) > 2 * math.hypot(*w)


def test_a_rate_without_limit_ends_at_infinity_and_not_in_an_error():
    assert make_schedule("exponential:growth=2", 1.0, 10)(10_000) == math.inf


def test_a_function_is_its_own_schedule():
    assert make_schedule("constant", lambda step: 1 / (1 + step), 10)(3) == 0.25
    with pytest.raises(NormlibError, match="rate is a function"):
        make_schedule("cosine", lambda step: 1.0, 10)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cosin", "'cosine'"),
        ("cosine:warmpu=3", "'warmup'"),
        ("cosine:warmup=-1", "fraction of the run"),
        ("cosine:warmup=long", "fraction of the run"),
        ("step:at=0.5|x", "fractions"),
        ("step:at=100", "fractions"),
        ("exponential", "growth"),
        ("exponential:growth=0", "positive"),
    ],
)
def test_what_is_no_schedule_is_refused(spec, message):
    with pytest.raises(NormlibError, match=message):
        make_schedule(spec, 0.1, 10)


def test_names_are_looked_up():
    with pytest.raises(UnknownNameError):
        make_schedule("one_cycle", 0.1, 10)
