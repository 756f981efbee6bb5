"""The test case of noise processes with one variable and closed forms: the shared one, and what they add.

A subclass writes down f and g² of its SDE ``du = f u dt + g Γ^{1/2} dW``, and gets, besides ``linear_case``,
the rates of α and σ, the levels of log-SNR, the scalar steps, and draws at every wavenumber.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_case import F64, LinearProcessCase
from moments import assert_spectrum, dense_gamma, generator, normal, torus_gamma


class ProcessCase(LinearProcessCase):
    def drift_and_rate(self, t: float) -> tuple[float, float]:
        """f(t) and g(t)², from the definition of the process."""
        raise AssertionError("a subclass writes its coefficients down")

    def matrices(self, process, t):
        f, rate = self.drift_and_rate(t)
        return np.array([[f]]), np.array([[rate]])

    def test_rates_are_derivatives(self):
        process = self.make(dense_gamma())
        t = self.times(process).requires_grad_()

        def derivative(y):
            return torch.autograd.grad(y.sum(), t, retain_graph=True)[0]

        alpha, variance = process.alpha(t), process.variance(t)
        alpha_rate = derivative(alpha)
        torch.testing.assert_close(process.alpha_rate(t), alpha_rate, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(
            process.sigma_rate(t), derivative(process.sigma(t)), rtol=1e-10, atol=1e-14
        )
        f, rate = map(list, zip(*(self.drift_and_rate(x) for x in t.tolist()), strict=True))
        torch.testing.assert_close(alpha_rate / alpha, torch.tensor(f, dtype=F64), rtol=1e-9, atol=1e-14)
        squared = derivative(variance) - 2.0 * alpha_rate / alpha * variance
        torch.testing.assert_close(squared, torch.tensor(rate, dtype=F64), rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(process.diffusion(t) ** 2, squared, rtol=1e-10, atol=0)
        torch.testing.assert_close(process.schedule.rate(t), squared, rtol=1e-10, atol=0)
        torch.testing.assert_close(derivative(process.schedule.integral(t)), squared, rtol=1e-10, atol=0)

    def test_log_snr_and_its_inverse(self):
        process = self.make(dense_gamma())
        t = torch.linspace(0.001, 0.999, 101, dtype=F64) * process.horizon
        level = process.log_snr(t)
        assert bool((level.diff() < 0).all())
        torch.testing.assert_close(
            level, 2.0 * torch.log(process.alpha(t) / process.sigma(t)), rtol=1e-10, atol=1e-10
        )
        torch.testing.assert_close(
            process.time_of_log_snr(level), t, rtol=1e-11, atol=1e-13 * process.horizon
        )
        assert process.log_snr(0.0) == torch.inf
        assert process.time_of_log_snr(2000.0) == 0.0
        assert process.time_of_log_snr(-2000.0).item() == pytest.approx(process.horizon, rel=1e-12)

    def test_steps_keep_the_marginals(self):
        process = self.make(dense_gamma())
        t = torch.tensor([0.3, 0.6, 1.0], dtype=F64) * process.horizon
        s = torch.tensor([0.2, 0.1, 0.9], dtype=F64) * process.horizon
        a, b, v = process.step(t, s)
        torch.testing.assert_close(a * process.alpha(t) + b, process.alpha(s), rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(a**2 * process.variance(t) + v, process.variance(s), rtol=1e-13, atol=0)

    def test_the_last_step_has_exact_coefficients(self):
        process = self.make(dense_gamma())
        for t in (0.01 * process.horizon, process.horizon):
            assert [c.item() for c in process.step(t, process.end_time)] == [0.0, 1.0, 0.0]
        assert [c.item() for c in process.step(process.horizon, process.horizon)] == [1.0, 0.0, 0.0]
        assert (process.start_time, process.end_time) == (process.horizon, 0.0)

    def test_perturb_has_the_spectrum_of_gamma(self):
        count = 4000
        process = self.make(torus_gamma().requires_grad_(False))
        t = self.times(process)[1]
        x = normal(1, 2, 6, 4, seed=3)
        u, _ = process.perturb(x.expand(count, -1, -1, -1), t, generator=generator(5))
        residual = u - process.alpha(t) * x
        for c in range(2):
            assert_spectrum(residual[:, c], process.variance(t).item(), process.covariance)
        channels = residual.reshape(count, 2, 24)
        power = channels.square().mean(2).mean(0).prod()
        cross = (channels[:, 0] * channels[:, 1]).mean(1)
        assert cross.mean().abs() < 5.5 * (power / count).sqrt(), "channels=None means independent channels"

    def test_one_time_of_a_path_is_a_perturbation(self):
        process = self.make(torus_gamma())
        x, z, t = normal(3, 1, 6, 4, seed=1), normal(1, 3, 1, 6, 4, seed=2), self.times(process)[1]
        path = process.simulate(x, t[None], white=z)
        torch.testing.assert_close(path[0], process.perturb(x, t, white=z[0])[0], rtol=1e-13, atol=1e-13)
