"""β schedules: integrals, inverses, differences and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from spatialdiff.processes import ConstantBeta, GeometricBeta, LinearBeta, ReversedBeta

F64 = torch.float64
SCHEDULES = [
    ConstantBeta(0.7, horizon=2.0),
    LinearBeta(0.1, 20.0),
    LinearBeta(3.0, 0.2, horizon=2.5),
    LinearBeta(1.5, 1.5),
    GeometricBeta(0.01, 50.0),
    ReversedBeta(LinearBeta(0.1, 20.0)),
    ReversedBeta(GeometricBeta(0.1, 5.0)),
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
    torch.testing.assert_close(derivative, schedule.rate(t).detach(), rtol=1e-12, atol=0)


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
