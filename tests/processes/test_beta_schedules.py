"""β schedules: integrals, inverses, differences and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from spatialdiff.processes import ConstantBeta, GeometricBeta, LinearBeta, ReversedBeta
from spatialdiff.processes.learned_beta import LearnedBeta
from spatialdiff.processes.paths import LinearPath
from spatialdiff.processes.schedules import CosineBeta

F64 = torch.float64
SCHEDULES = [
    ConstantBeta(0.7, horizon=2.0),
    LinearBeta(0.1, 20.0),
    LinearBeta(3.0, 0.2, horizon=2.5),
    LinearBeta(1.5, 1.5),
    GeometricBeta(0.01, 50.0),
    ReversedBeta(LinearBeta(0.1, 20.0)),
    ReversedBeta(GeometricBeta(0.1, 5.0)),
    CosineBeta(),
    CosineBeta(0.05, 0.2, horizon=3.0),
    ReversedBeta(CosineBeta()),
    LearnedBeta(),
    LearnedBeta(3.0, horizon=2.0, units=5, start=ConstantBeta(1.0, 2.0)),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_integral_is_the_quadrature_of_the_rate(schedule):
    for fraction in (0.01, 0.5, 1.0):
        t = fraction * schedule.horizon
        exact, _ = quad(lambda r: schedule.rate(torch.tensor(r, dtype=F64)).item(), 0.0, t, epsrel=1e-12)
        assert schedule.integral(torch.tensor(t, dtype=F64)).item() == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_rate_is_the_derivative_and_gradients_flow(schedule):
    t = (torch.tensor([0.1, 0.6, 0.9], dtype=F64) * schedule.horizon).requires_grad_()
    (derivative,) = torch.autograd.grad(schedule.integral(t).sum(), t)
    torch.testing.assert_close(derivative, schedule.rate(t).detach(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_inverse_of_the_integral(schedule):
    t = torch.linspace(0, 1, 23, dtype=F64) * schedule.horizon
    torch.testing.assert_close(schedule.time_of_integral(schedule.integral(t)), t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_between_is_the_difference_without_cancellation(schedule):
    s = torch.tensor([0.0, 0.3, 0.7], dtype=F64) * schedule.horizon
    t = s + 0.2 * schedule.horizon
    exact = schedule.integral(t) - schedule.integral(s)
    torch.testing.assert_close(schedule.between(s, t), exact, rtol=1e-10, atol=1e-12)
    near = s[1:] + 2.0**-40
    torch.testing.assert_close(
        schedule.between(s[1:], near) / (near - s[1:]), schedule.rate(s[1:]), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_parameters_are_named(value):
    with pytest.raises(ValueError, match="beta was"):
        ConstantBeta(value)
    with pytest.raises(ValueError, match="horizon was"):
        ConstantBeta(1.0, value)
    with pytest.raises(ValueError, match="beta_min was"):
        LinearBeta(value, 1.0)
    with pytest.raises(ValueError, match="sigma_min was"):
        GeometricBeta(value, 1.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_total_is_the_integral_to_the_horizon(schedule):
    end = torch.tensor(schedule.horizon, dtype=F64)
    torch.testing.assert_close(schedule.total, schedule.integral(end), rtol=1e-13, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_inverse_is_accurate_near_the_data(schedule):
    b = torch.logspace(-14, -3, 12, dtype=F64) * float(schedule.total.detach())
    again = schedule.integral(schedule.time_of_integral(b))
    # a reversed schedule knows its time to the rounding of the horizon
    slack = 1e-15 * schedule.horizon * schedule.rate(torch.zeros((), dtype=F64)).item()
    exact = not isinstance(schedule, ReversedBeta)
    torch.testing.assert_close(again, b, rtol=1e-11, atol=0.0 if exact else 10 * slack)


def test_cosine_follows_nichol_and_dhariwal_and_ends():
    schedule, t = CosineBeta(0.008, 5e-3), torch.linspace(0.0, 1.0, 101, dtype=F64)
    kept = torch.exp(-0.5 * schedule.integral(t))
    assert kept[-1].item() == pytest.approx(5e-3, rel=1e-12)
    # their α̅ is the cosine squared of an angle that reaches π/2; ours stops a little before
    ahead = t * (schedule._angle(t[-1]) / (0.5 * math.pi)).item()
    theirs = torch.cos((ahead + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    torch.testing.assert_close(kept, theirs, rtol=0, atol=2e-4)
    with pytest.raises(ValueError, match="end was"):
        CosineBeta(end=1.0)
    with pytest.raises(ValueError, match="offset was"):
        CosineBeta(offset=0.0)


def moved(units: int = 6) -> LearnedBeta:
    """A learned schedule with every parameter away from its start."""
    schedule = LearnedBeta(4.0, 1.5, units=units)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.7 * torch.randn(parameter.shape, generator=generator, dtype=F64)
    return schedule


def test_learned_schedule_starts_at_its_total_next_to_its_start():
    start = LinearBeta(0.1, 20.0)
    schedule, t = LearnedBeta(10.05, start=start), torch.linspace(0, 1, 50, dtype=F64)
    assert float(schedule.total.detach()) == pytest.approx(10.05, rel=1e-12)
    difference = (schedule.integral(t) - start.integral(t)).abs().max().item()
    assert difference < 0.01 * 10.05
    assert LearnedBeta(2.5, 3.0).total.item() == pytest.approx(2.5, rel=1e-12)


def test_learned_schedule_stays_monotone_and_consistent_away_from_its_start():
    schedule, t = moved(), torch.linspace(0, 1.5, 400, dtype=F64)
    with torch.no_grad():
        assert bool((schedule.rate(t) > 0).all())
        assert bool((schedule.integral(t).diff() > 0).all())
        for a, b in ((0.0, 1.5), (0.2, 0.9)):
            exact, _ = quad(lambda r: schedule.rate(torch.tensor(r, dtype=F64)).item(), a, b, epsrel=1e-12)
            found = schedule.between(torch.tensor(a, dtype=F64), torch.tensor(b, dtype=F64)).item()
            assert found == pytest.approx(exact, rel=1e-10)
        torch.testing.assert_close(schedule.time_of_integral(schedule.integral(t)), t, rtol=1e-12, atol=1e-14)


def test_extreme_parameters_of_a_learned_schedule_stay_finite():
    schedule = LearnedBeta(4.0, 1.5, units=3)
    with torch.no_grad():
        schedule.centres.copy_(torch.tensor([-40.0, 0.7, 90.0], dtype=F64))
        schedule.log_slopes.copy_(torch.tensor([6.0, 9.0, 4.0], dtype=F64))
    t = torch.linspace(0, 1.5, 301, dtype=F64)
    assert bool(torch.isfinite(schedule.rate(t)).all())
    torch.testing.assert_close(schedule.integral(t[-1]), schedule.total, rtol=1e-12, atol=0)
    again = schedule.integral(schedule.time_of_integral(schedule.integral(t)))
    torch.testing.assert_close(again, schedule.integral(t), rtol=1e-10, atol=1e-12)


def test_gradients_of_a_learned_schedule_and_of_its_inverse():
    schedule = moved(4)
    names = [f"schedule.{name}" for name, _ in schedule.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in schedule.parameters())
    b = torch.tensor([0.3, 1.1, 2.0], dtype=F64, requires_grad=True)
    t = torch.tensor([0.2, 0.7, 1.4], dtype=F64, requires_grad=True)

    class Caller(torch.nn.Module):
        def __init__(self, method):
            super().__init__()
            self.schedule, self.method = schedule, method

        def forward(self):
            return getattr(schedule, self.method)(b if self.method == "time_of_integral" else t)

    def call(method, *rest):
        given = dict(zip(names, rest, strict=True))
        return torch.func.functional_call(Caller(method), given, ())

    for method in ("rate", "integral", "time_of_integral"):
        assert torch.autograd.gradcheck(lambda *rest, m=method: call(m, *rest), values, rtol=1e-6, atol=1e-8)
    inverse = torch.autograd.grad(schedule.time_of_integral(b).sum(), b)[0]
    exact = 1.0 / schedule.rate(schedule.time_of_integral(b))
    torch.testing.assert_close(inverse, exact.detach(), rtol=1e-11, atol=0)
    for parameter in schedule.parameters():
        gradient = torch.autograd.grad(schedule.rate(t).square().sum(), parameter)[0]
        assert bool((gradient != 0).all())


def test_learned_schedule_registers_in_a_path_and_is_not_frozen():
    schedule = LearnedBeta(4.0)
    path = LinearPath(schedule, theta=0.5)
    assert {id(p) for p in path.parameters()} == {id(p) for p in schedule.parameters()}
    assert {id(p) for p in ReversedBeta(schedule).parameters()} == {id(p) for p in schedule.parameters()}
    with torch.no_grad():
        schedule.log_total.add_(math.log(2.0))
    assert path.total.item() == pytest.approx(8.0)
    lowest = path.log_snr(torch.tensor(1.0, dtype=F64))
    assert path.time_of_log_snr(lowest).item() == pytest.approx(1.0, abs=1e-9)
    (gradient,) = torch.autograd.grad(path.alpha(torch.tensor(1.0, dtype=F64)), schedule.log_total)
    assert gradient.item() == pytest.approx(-4.0 * math.exp(-4.0), rel=1e-9)


def test_learned_schedule_keeps_double_accuracy_under_a_cast():
    schedule = LearnedBeta(4.0, units=4).float()
    assert schedule.log_total.dtype == torch.float32
    assert schedule.integral(torch.tensor(0.5, dtype=F64)).dtype == F64


def test_bad_learned_schedules_are_refused():
    with pytest.raises(ValueError, match="total was"):
        LearnedBeta(0.0)
    with pytest.raises(ValueError, match="units="):
        LearnedBeta(units=0)
    with pytest.raises(ValueError, match="horizon"):
        LearnedBeta(horizon=2.0, start=LinearBeta())
    with pytest.raises(ValueError, match="reaches from 0 to 4"):
        LearnedBeta(4.0).time_of_integral(torch.tensor([1.0, 5.0], dtype=F64))
