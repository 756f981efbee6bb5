"""Paths of sub-VP and EDM: against 50-digit arithmetic, and as processes in the shared case."""

from __future__ import annotations

import mpmath
import pytest
import torch
from process_case import F64, ProcessCase

from spatialdiff.processes import VP, LinearBeta, SignalProcess
from spatialdiff.processes.learned_beta import LearnedBeta
from spatialdiff.processes.named_paths import EDMPath, SubVPPath
from spatialdiff.processes.schedules import CosineBeta

TIMES = [1e-7, 1e-4, 0.01, 0.3, 0.31, 1.0]


class TestSubVP(ProcessCase):
    def make(self, gamma):
        return SignalProcess(gamma, SubVPPath(LinearBeta(0.1, 20.0)))

    def drift_and_rate(self, t):
        beta, integral = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t**2
        return -0.5 * beta, beta * float(1 - mpmath.exp(-2 * integral))


class TestEDM(ProcessCase):
    def make(self, gamma):
        return SignalProcess(gamma, EDMPath(5.0))

    def drift_and_rate(self, t):
        return 0.0, 2.0 * t


class TestCosineSchedule(ProcessCase):
    is_stationary = True

    def make(self, gamma):
        return VP(gamma, schedule=CosineBeta())

    def drift_and_rate(self, t):
        first = mpmath.pi / 2 * 0.008 / 1.008
        speed = mpmath.acos(5e-3 * mpmath.cos(first)) - first
        beta = float(2 * speed * mpmath.tan(first + speed * t))
        return -0.5 * beta, beta


def test_subvp_agrees_with_fifty_digits():
    path = SubVPPath(LinearBeta(0.1, 20.0))
    with mpmath.workdps(50):
        low, slope = mpmath.mpf(0.1), mpmath.mpf(20.0) - mpmath.mpf(0.1)
        big = {t: low * t + slope * mpmath.mpf(t) ** 2 / 2 for t in TIMES}
        for t in TIMES:
            now = torch.tensor(t, dtype=F64)
            sigma = 1 - mpmath.exp(-big[t])
            assert path.variance(now).item() == pytest.approx(float(sigma**2), rel=1e-14)
            exact = big[t] - (1 - mpmath.exp(-2 * big[t])) / 2
            assert path.integral(now).item() == pytest.approx(float(exact), rel=2e-14)
            rate = (low + slope * t) * (1 - mpmath.exp(-2 * big[t]))
            assert path.rate(now).item() == pytest.approx(float(rate), rel=1e-14)
            level = -big[t] - 2 * mpmath.log(sigma)
            assert path.log_snr(now).item() == pytest.approx(float(level), rel=1e-13)
        for s in TIMES:
            for t in TIMES:
                if s < t:
                    keep = mpmath.exp((big[s] - big[t]) / 2)
                    spread = (1 - mpmath.exp(-big[t])) ** 2 - keep**2 * (1 - mpmath.exp(-big[s])) ** 2
                    phi, sigma = path.transition(torch.tensor(s, dtype=F64), torch.tensor(t, dtype=F64))
                    assert phi.item() == pytest.approx(float(keep), rel=1e-14)
                    assert sigma.item() == pytest.approx(float(spread), rel=1e-13)


@pytest.mark.parametrize(
    "path",
    [SubVPPath(LinearBeta()), SubVPPath(LearnedBeta(5.0)), SubVPPath(CosineBeta()), EDMPath(80.0)],
    ids=repr,
)
def test_level_and_time_are_inverse(path):
    t = torch.logspace(-6, 0, 30, dtype=F64) * path.horizon
    torch.testing.assert_close(path.time_of_log_snr(path.log_snr(t)), t, rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", [SubVPPath(LinearBeta()), EDMPath(80.0)], ids=repr)
def test_rates_are_derivatives(path):
    t = (torch.tensor([0.05, 0.4, 0.9], dtype=F64) * path.horizon).requires_grad_()
    for value, rate in ((path.alpha, path.alpha_rate), (lambda t: path.variance(t).sqrt(), path.sigma_rate)):
        derivative = torch.autograd.grad(value(t).sum(), t, allow_unused=True)[0]
        expected = torch.zeros_like(t) if derivative is None else derivative
        torch.testing.assert_close(rate(t).detach(), expected.detach(), rtol=1e-12, atol=0)
    (derivative,) = torch.autograd.grad(path.integral(t).sum(), t)
    torch.testing.assert_close(derivative, path.rate(t).detach(), rtol=1e-12, atol=0)


def test_edm_needs_a_positive_end():
    with pytest.raises(ValueError, match="sigma_max was"):
        EDMPath(0.0)
