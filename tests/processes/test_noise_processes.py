"""Every noise process against the shared case, and what is particular to each."""

from __future__ import annotations

import math

import pytest
import torch
from moments import dense_gamma, generator, normal
from process_case import F64, ProcessCase
from scipy.integrate import quad

from spatialdiff.processes import (
    VE,
    VP,
    BrownianMotion,
    ConstantBeta,
    Cosine,
    LinearBeta,
    OrnsteinUhlenbeck,
    Rectified,
)


class TestVP(ProcessCase):
    is_stationary = True

    def make(self, gamma):
        return VP(gamma)

    def drift_and_rate(self, t):
        beta = 0.1 + 19.9 * t
        return -0.5 * beta, beta

    def test_gamma_is_the_stationary_law(self):
        process = self.make(dense_gamma())
        phi, sigma = process.transition(*self.times(process)[:2])
        assert (phi**2 + sigma).item() == pytest.approx(1.0, abs=1e-15)

    def test_known_values(self):
        process = self.make(dense_gamma())
        assert process.schedule.integral(torch.tensor(1.0, dtype=F64)).item() == pytest.approx(
            10.05, rel=1e-14
        )
        assert process.alpha(1.0).item() == pytest.approx(math.exp(-5.025), rel=1e-14)
        assert process.sde_start_time == 1.0

    def test_another_schedule_replaces_the_linear_one(self):
        process = VP(dense_gamma(), schedule=ConstantBeta(2.0, horizon=3.0))
        assert process.horizon == 3.0
        assert process.alpha(1.5).item() == pytest.approx(math.exp(-1.5), rel=1e-14)


class TestVE(ProcessCase):
    def make(self, gamma):
        return VE(gamma, sigma_min=0.02, sigma_max=30.0)

    def drift_and_rate(self, t):
        ratio = 30.0 / 0.02
        return 0.0, 2.0 * math.log(ratio) * (0.02 * ratio**t) ** 2

    def test_variance_is_the_growth_of_sigma_squared(self):
        process = self.make(dense_gamma())
        assert process.alpha(0.4).item() == 1.0
        exact = (0.02 * 1500.0**0.4) ** 2 - 0.02**2
        assert process.variance(0.4).item() == pytest.approx(exact, rel=1e-13)

    def test_refuses_decreasing_sigma(self):
        with pytest.raises(ValueError, match="sigma_max must be the larger"):
            VE(dense_gamma(), sigma_min=2.0, sigma_max=1.0)


class SingularEnd:
    """What the processes with α_T = 0 must do at their horizon."""

    def test_everything_but_the_sde_works_at_the_horizon(self):
        process = self.make(dense_gamma())
        x, u = normal(2, 1, 2, 3, seed=1), normal(2, 1, 2, 3, seed=2)
        assert process.alpha(1.0).item() == 0.0
        assert process.log_snr(1.0) == -torch.inf
        assert process.time_of_log_snr(-torch.inf).item() == 1.0
        torch.testing.assert_close(process.gamma_score(u, 1.0, x), -u, rtol=1e-14, atol=0)
        velocity = process.alpha_rate(1.0) * x + process.sigma_rate(1.0) * u
        torch.testing.assert_close(process.velocity(u, x, 1.0), velocity, rtol=1e-14, atol=1e-14)
        a, b, v = process.step(1.0, 0.6)
        assert a.item() == 0.0
        assert (b.item(), v.item()) == pytest.approx(
            (process.alpha(0.6).item(), process.variance(0.6).item())
        )
        phi, sigma = process.transition(0.6, 1.0)
        assert phi.item() == 0.0
        assert sigma.item() == pytest.approx(1.0, rel=1e-14)
        assert [c.item() for c in process.transition(1.0, 1.0)] == [1.0, 0.0]

    def test_the_sde_starts_inside_and_says_so(self):
        process = self.make(dense_gamma())
        x = normal(2, 1, 2, 3)
        t = process.sde_start_time
        assert t < 1.0
        assert process.alpha(t).item() == pytest.approx(5e-3, rel=1e-12)
        assert torch.isfinite(process.reverse_drift(x, x, t)).all()
        for call in (
            lambda: process.drift(x, 1.0),
            lambda: process.diffusion(1.0),
            lambda: process.reverse_drift(x, x, 1.0),
        ):
            with pytest.raises(ValueError, match=r"singular at t = 1.*sde_start_time"):
                call()


class TestCosine(SingularEnd, ProcessCase):
    def make(self, gamma):
        return Cosine(gamma)

    def drift_and_rate(self, t):
        beta = math.pi * math.tan(0.5 * math.pi * t)
        return -0.5 * beta, beta

    def test_variance_is_preserved(self):
        process = self.make(dense_gamma())
        t = torch.linspace(0, 1, 11, dtype=F64)
        torch.testing.assert_close(
            process.alpha(t) ** 2 + process.variance(t), torch.ones_like(t), rtol=1e-15, atol=1e-15
        )
        torch.testing.assert_close(process.alpha(t), torch.cos(0.5 * math.pi * t), rtol=0, atol=1e-15)


class TestRectified(SingularEnd, ProcessCase):
    def make(self, gamma):
        return Rectified(gamma)

    def drift_and_rate(self, t):
        return -1.0 / (1.0 - t), 2.0 * t / (1.0 - t)

    def test_paths_are_straight(self):
        process = self.make(dense_gamma())
        x, t = normal(3, 1, 2, 3, seed=1), self.times(process)
        u, noise = process.perturb(x, t, generator=generator(1))
        torch.testing.assert_close(process.velocity(u, x, t), noise - x, rtol=1e-12, atol=1e-12)
        a, b = process.velocity_weights(t)
        torch.testing.assert_close(
            a.reshape(3, 1, 1, 1) * x + b.reshape(3, 1, 1, 1) * noise, noise - x, rtol=0, atol=0
        )


class TestBrownianMotion(ProcessCase):
    def make(self, gamma):
        return BrownianMotion(gamma, horizon=2.0)

    def drift_and_rate(self, t):
        return 0.0, 1.0

    def test_increments_are_independent_of_the_past(self):
        phi, sigma = self.make(dense_gamma()).transition(0.5, 1.75)
        assert (phi.item(), sigma.item()) == (1.0, 1.25)


class TestBrownianMotionWithASchedule(ProcessCase):
    def make(self, gamma):
        return BrownianMotion(gamma, schedule=LinearBeta(0.5, 3.0, horizon=1.5))

    def drift_and_rate(self, t):
        return 0.0, 0.5 + 2.5 * t / 1.5


class TestOrnsteinUhlenbeck(ProcessCase):
    is_stationary = True

    def make(self, gamma):
        return OrnsteinUhlenbeck(gamma, rate=0.8, horizon=3.0)

    def drift_and_rate(self, t):
        return -0.8, 1.0

    def test_stationary_law_is_gamma_over_twice_the_rate(self):
        process = self.make(dense_gamma())
        phi, sigma = process.transition(0.3, 1.1)
        stationary = 1.0 / 1.6
        assert (phi**2 * stationary + sigma).item() == pytest.approx(stationary, rel=1e-14)

    def test_half_rate_is_vp(self):
        process, other = OrnsteinUhlenbeck(dense_gamma()), VP(dense_gamma(), schedule=ConstantBeta(1.0, 10.0))
        t = torch.linspace(0, 10, 7, dtype=F64)
        torch.testing.assert_close(process.alpha(t), other.alpha(t), rtol=0, atol=0)
        torch.testing.assert_close(process.variance(t), other.variance(t), rtol=0, atol=0)

    def test_vanishing_rate_is_brownian_motion(self):
        process, limit = (
            OrnsteinUhlenbeck(dense_gamma(), rate=1e-9, horizon=2.0),
            BrownianMotion(dense_gamma(), 2.0),
        )
        t = torch.linspace(0.1, 2, 7, dtype=F64)
        torch.testing.assert_close(process.variance(t), limit.variance(t), rtol=1e-8, atol=0)
        torch.testing.assert_close(process.log_snr(t), limit.log_snr(t), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(process.time_of_log_snr(limit.log_snr(t)), t, rtol=1e-7, atol=0)

    def test_derivatives_at_the_data_end(self):
        """σ² = b - θ b² + …: value, slope and curvature at t = 0, where the closed form is 0/0."""
        process = self.make(dense_gamma())
        t = torch.zeros((), dtype=F64, requires_grad=True)
        variance = process.variance(t)
        (slope,) = torch.autograd.grad(variance, t, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, t)
        assert (variance.item(), slope.item()) == (0.0, 1.0)
        assert curvature.item() == pytest.approx(-1.6, rel=1e-12)

    @pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
    def test_refuses_a_rate_that_does_not_revert(self, rate):
        with pytest.raises(ValueError, match="rate was"):
            OrnsteinUhlenbeck(dense_gamma(), rate=rate)


def test_every_integral_is_the_quadrature_of_its_rate():
    gamma = dense_gamma()
    for process in (VP(gamma), VE(gamma), Cosine(gamma), Rectified(gamma), BrownianMotion(gamma)):
        for t in (0.1, 0.7, 0.95):
            rate = process.schedule.rate
            exact, _ = quad(
                lambda r, rate=rate: rate(torch.tensor(r, dtype=F64)).item(), 0.0, t, epsrel=1e-12
            )
            assert process.schedule.integral(torch.tensor(t, dtype=F64)).item() == pytest.approx(
                exact, rel=1e-10
            )
