"""The test case that every scalar noise process inherits.

A subclass says how to build its process and, written down independently of the library, the coefficients f
and g² of its SDE ``du = f u dt + g Γ^{1/2} dW``. It gets: transitions against the moment equations solved by
scipy and against each other, posteriors against dense Gaussian conditioning, draws and paths against exact
moments at every pair of sites and at every wavenumber, the whitening equivalence, the two marginal-preserving
dynamics, gradients, dtypes, seeds and bad inputs.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from moments import (
    assert_covariance,
    assert_mean,
    assert_spectrum,
    condition,
    dense_gamma,
    generator,
    normal,
    torus_gamma,
)
from scipy.integrate import solve_ivp
from torch import Tensor

from spatialdiff.covariance import DenseCovariance, white
from spatialdiff.domains import Grid
from spatialdiff.kernels import Matern
from spatialdiff.processes import NoiseProcess

F64 = torch.float64


class ProcessCase:
    #: fractions of the horizon at which the SDE is regular and the noise not negligible
    inside = (0.2, 0.45, 0.8)

    def make(self, gamma) -> NoiseProcess:
        raise AssertionError("a subclass builds its process")

    def drift_and_rate(self, t: float) -> tuple[float, float]:
        """f(t) and g(t)², from the definition of the process."""
        raise AssertionError("a subclass writes its coefficients down")

    def times(self, process) -> Tensor:
        return torch.tensor(self.inside, dtype=F64) * process.horizon

    # -- transitions ----------------------------------------------------------------------------------------

    def test_moments_solve_the_moment_equations(self):
        process = self.make(dense_gamma())
        points = [0.0, *self.times(process).tolist()]
        for s, t in pairwise(points):

            def moments(r, y):
                f, rate = self.drift_and_rate(r)
                return [f * y[0], 2.0 * f * y[1] + rate]

            solution = solve_ivp(moments, (s, t), [1.0, 0.0], method="DOP853", rtol=1e-12, atol=1e-15)
            phi, sigma = process.transition(s, t)
            assert phi.shape == sigma.shape == (1, 1)
            np.testing.assert_allclose(phi.item(), solution.y[0, -1], rtol=1e-9)
            np.testing.assert_allclose(sigma.item(), solution.y[1, -1], rtol=1e-9)

    def test_chapman_kolmogorov(self):
        process = self.make(dense_gamma())
        r, s, t = self.times(process)
        phi_rs, sigma_rs = process.transition(r, s)
        phi_st, sigma_st = process.transition(s, t)
        phi_rt, sigma_rt = process.transition(r, t)
        torch.testing.assert_close(phi_rt, phi_st @ phi_rs, rtol=1e-13, atol=0)
        torch.testing.assert_close(sigma_rt, phi_st @ sigma_rs @ phi_st.mT + sigma_st, rtol=1e-13, atol=0)

    def test_marginal_is_the_transition_from_the_data(self):
        process = self.make(dense_gamma())
        t = torch.cat([torch.zeros(1, dtype=F64), self.times(process), torch.tensor([process.horizon])])
        phi, sigma = process.marginal(t)
        assert phi.shape == (5, 1)
        assert sigma.shape == (5, 1, 1)
        assert phi.dtype == sigma.dtype == F64
        from_zero = process.transition(torch.zeros_like(t), t)
        torch.testing.assert_close(phi[..., None], from_zero[0], rtol=1e-14, atol=0)
        torch.testing.assert_close(sigma, from_zero[1], rtol=1e-14, atol=0)
        assert phi[0].item() == 1.0
        assert sigma[0].item() == 0.0

    def test_short_transitions_do_not_cancel(self):
        process = self.make(dense_gamma())
        s = self.times(process)
        t = s + 2.0**-40 * process.horizon
        _, sigma = process.transition(s, t)
        rate = torch.tensor([self.drift_and_rate(x)[1] for x in s.tolist()], dtype=F64)
        # the difference of variances would be off by 1e-4 relative here
        torch.testing.assert_close(sigma.flatten() / (t - s), rate, rtol=1e-8, atol=0)

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

    # -- steps to the data ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.2, 0.45), (0.45, 1.0), (0.0, 1.0)])
    def test_posterior_is_dense_conditioning(self, fractions):
        gamma = dense_gamma()
        process = self.make(gamma)
        s, t = (f * process.horizon for f in fractions)
        x, u = normal(6, seed=1), normal(6, seed=2)
        (phi_s, sigma_s), (phi_t, sigma_t) = process.marginal(s), process.marginal(t)
        phi, _ = process.transition(s, t)
        block = torch.tensor([[sigma_s, phi * sigma_s], [phi * sigma_s, sigma_t]], dtype=F64)
        joint = torch.kron(block, gamma.to_dense())
        mean = torch.cat([phi_s * x, phi_t * x])
        exact, covariance = condition(joint, mean, slice(6, 12), slice(0, 6), u)
        a, b, v = process.posterior(t, s)
        assert a.shape == v.shape == (1, 1)
        assert b.shape == (1,)
        torch.testing.assert_close(a.flatten() * u + b * x, exact, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            v[0, 0] * gamma.to_dense(), covariance, rtol=1e-7, atol=1e-12 * float(sigma_t + 1)
        )

    def test_posterior_steps_keep_the_marginals(self):
        process = self.make(dense_gamma())
        t = torch.tensor([0.3, 0.6, 1.0], dtype=F64) * process.horizon
        s = torch.tensor([0.2, 0.1, 0.9], dtype=F64) * process.horizon
        a, b, v = process.step(t, s)
        torch.testing.assert_close(a * process.alpha(t) + b, process.alpha(s), rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(a**2 * process.variance(t) + v, process.variance(s), rtol=1e-13, atol=0)

    def test_the_last_step_returns_the_data_exactly(self):
        process = self.make(dense_gamma())
        for t in (0.01 * process.horizon, process.horizon):
            assert [c.item() for c in process.step(t, process.end_time)] == [0.0, 1.0, 0.0]
        assert [c.item() for c in process.step(process.horizon, process.horizon)] == [1.0, 0.0, 0.0]
        assert (process.start_time, process.end_time) == (process.horizon, 0.0)

    # -- draws ----------------------------------------------------------------------------------------------

    def test_perturb_is_its_formula(self):
        gamma = torus_gamma(channels=torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64))
        process = self.make(gamma)
        x, z, t = normal(3, 2, 6, 4, seed=1), normal(3, 2, 6, 4, seed=2), self.times(process)
        u, noise = process.perturb(x, t, white=z)
        torch.testing.assert_close(noise, gamma.color(z), rtol=0, atol=1e-14)
        for b in range(3):
            exact = process.alpha(t[b]) * x[b] + process.sigma(t[b]) * noise[b]
            torch.testing.assert_close(u[b], exact, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(process.noise(u, t, x), noise, rtol=1e-9, atol=1e-9)

    def test_perturb_has_the_covariance_and_the_spectrum_of_gamma(self):
        count = 4000
        process = self.make(dense_gamma())
        t = self.times(process)[1]
        x = normal(1, 1, 2, 3, seed=3)
        u, _ = process.perturb(x.expand(count, -1, -1, -1), t, generator=generator(4))
        residual = (u - process.alpha(t) * x).reshape(count, 6)
        assert_covariance(residual, process.variance(t) * process.covariance.to_dense())
        assert_mean(
            residual, torch.zeros(6, dtype=F64), process.variance(t) * process.covariance.variance().flatten()
        )
        process = self.make(torus_gamma())
        x = normal(1, 2, 6, 4, seed=3)
        u, _ = process.perturb(x.expand(count, -1, -1, -1), t, generator=generator(5))
        residual = u - process.alpha(t) * x
        for c in range(2):
            assert_spectrum(residual[:, c], process.variance(t).item(), process.covariance)
        channels = residual.reshape(count, 2, 24)
        power = channels.square().mean(2).mean(0).prod()
        cross = (channels[:, 0] * channels[:, 1]).mean(1)
        assert cross.mean().abs() < 5.5 * (power / count).sqrt(), "channels=None means independent channels"

    def test_simulated_paths_have_the_exact_moments_over_times_and_sites(self):
        count = 5000
        gamma = dense_gamma()
        process = self.make(gamma)
        times = self.times(process)
        x = normal(1, 1, 2, 3, seed=6)
        path = process.simulate(x.expand(count, -1, -1, -1), times, generator=generator(7))
        assert path.shape == (3, count, 1, 2, 3)
        residual = path - process.alpha(times).reshape(3, 1, 1, 1, 1) * x
        block = torch.zeros(3, 3, dtype=F64)
        for i in range(3):
            for j in range(i, 3):
                phi, _ = process.transition(times[i], times[j])
                block[i, j] = block[j, i] = phi.item() * process.variance(times[i])
        samples = residual.transpose(0, 1).reshape(count, 18)
        assert_covariance(samples, torch.kron(block, gamma.to_dense()))
        variance = (block.diagonal()[:, None] * gamma.variance().flatten()).flatten()
        assert_mean(samples, torch.zeros(18, dtype=F64), variance)

    def test_one_time_of_a_path_is_a_perturbation(self):
        process = self.make(torus_gamma())
        x, z, t = normal(3, 1, 6, 4, seed=1), normal(1, 3, 1, 6, 4, seed=2), self.times(process)[1]
        path = process.simulate(x, t[None], white=z)
        torch.testing.assert_close(path[0], process.perturb(x, t, white=z[0])[0], rtol=1e-13, atol=1e-13)

    def test_start_is_the_gaussian_marginal(self):
        count = 4000
        gamma = dense_gamma()
        process = self.make(gamma)
        z = normal(5, 2, 2, 3, seed=1)
        start = process.start(5, 2, white=z)
        torch.testing.assert_close(
            start, process.sigma(process.start_time) * gamma.color(z), rtol=1e-14, atol=0
        )
        data = DenseCovariance(Matern(nu=0.5, lengthscale=1.9, variance=2.0), Grid((2, 3))).double()
        mean, t = normal(1, 2, 3, seed=2), 0.45 * process.horizon
        state = process.start((count,), 1, time=t, data=(mean, data), generator=generator(3), dtype=F64)
        alpha, variance = process.alpha(t), process.variance(t)
        exact = variance * gamma.to_dense() + alpha**2 * data.to_dense()
        residual = (state - alpha * mean).reshape(count, 6)
        assert_covariance(residual, exact)
        assert_mean(residual, torch.zeros(6, dtype=F64), exact.diagonal())

    # -- dynamics -------------------------------------------------------------------------------------------

    def test_score_is_the_gradient_of_the_log_density(self):
        gamma = torus_gamma(channels=torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64))
        process = self.make(gamma)
        x, u, t = normal(3, 2, 6, 4, seed=1), normal(3, 2, 6, 4, seed=2).requires_grad_(), self.times(process)
        sigma = process.sigma(t).reshape(3, 1, 1, 1)
        residual = (u - process.alpha(t).reshape(3, 1, 1, 1) * x) / sigma
        (exact,) = torch.autograd.grad(gamma.log_prob(residual).sum(), u)
        torch.testing.assert_close(process.score(u.detach(), t, x), exact, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            process.gamma_score(u.detach(), t, x), gamma.matmul(exact), rtol=1e-9, atol=1e-9
        )

    @pytest.mark.parametrize("power", [0.0, 0.3, 5.0])
    def test_reverse_sde_and_flow_keep_the_marginals_of_gaussian_data(self, power):
        """With data N(0, c) and the exact posterior mean both are linear; their variance equation must be
        that of u_t.
        """
        process = self.make(white(Grid((1,))).double())
        t = self.times(process).requires_grad_()
        total = process.alpha(t) ** 2 * power + process.variance(t)
        (rate,) = torch.autograd.grad(total.sum(), t)
        t = t.detach()
        u = torch.ones(3, 1, 1, dtype=F64)
        data = (process.alpha(t) * power / total.detach()).reshape(3, 1, 1) * u
        flow = process.velocity(u, data, t).flatten()
        torch.testing.assert_close(2.0 * flow * total, rate, rtol=1e-9, atol=1e-12)
        drift = process.reverse_drift(u, data, t).flatten()
        elapsed = 2.0 * drift * total + process.diffusion(t) ** 2
        torch.testing.assert_close(elapsed, -rate, rtol=1e-9, atol=1e-12 * float(total.detach().max()))
        forward = process.drift(u, t).flatten()
        torch.testing.assert_close(
            2.0 * forward * total + process.diffusion(t) ** 2, rate, rtol=1e-9, atol=1e-12
        )

    def test_whitening_equivalence(self):
        """Under Γ = R² everything is the white-noise process of R⁻¹x with the same white draws, to 1e-10."""
        gamma = torus_gamma(channels=torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64))
        coloured, plain = self.make(gamma), self.make(white(gamma.domain, channels=2).double())
        x, z, t = normal(3, 2, 6, 4, seed=1), normal(3, 2, 6, 4, seed=2), self.times(coloured)
        y = gamma.whiten(x)

        def same(actual: Tensor, whitened: Tensor) -> None:
            torch.testing.assert_close(gamma.whiten(actual), whitened, rtol=1e-10, atol=1e-10)

        u, v = coloured.perturb(x, t, white=z)[0], plain.perturb(y, t, white=z)[0]
        same(u, v)
        chain = normal(3, 3, 2, 6, 4, seed=3)
        for a, b in zip(coloured.simulate(x, t, white=chain), plain.simulate(y, t, white=chain), strict=True):
            same(a, b)
        same(coloured.drift(u, t), plain.drift(v, t))
        same(coloured.gamma_score(u, t, x), plain.gamma_score(v, t, y))
        same(coloured.reverse_drift(u, x, t), plain.reverse_drift(v, y, t))
        same(coloured.velocity(u, x, t), plain.velocity(v, y, t))
        same(coloured.start(3, 2, white=z), plain.start(3, 2, white=z))
        a, b, c = (k.reshape(3, 1, 1, 1) for k in coloured.step(t, 0.5 * t))
        same(a * u + b * x + c.sqrt() * gamma.color(z), a * v + b * y + c.sqrt() * z)

    # -- tensors --------------------------------------------------------------------------------------------

    def test_gradients_reach_the_kernel(self):
        kernel = Matern(nu=1.5, lengthscale=1.7, variance=1.3)
        process = self.make(DenseCovariance(kernel, Grid((2, 3))).double())
        x, z, t = normal(2, 1, 2, 3, seed=1), normal(2, 1, 2, 3, seed=2), self.times(process)[:2]
        weight = normal(2, 1, 2, 3, seed=3)

        def value() -> Tensor:
            u, _ = process.perturb(x, t, white=z)
            return (weight * u + u**2).sum()

        gradient = torch.autograd.grad(value(), list(kernel.parameters()))
        for parameter, exact in zip(kernel.parameters(), gradient, strict=True):
            step, values = 1e-5, []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    parameter.add_(sign * step)
                    values.append(value())
                    parameter.sub_(sign * step)
            assert exact.abs().max() > 1e-3
            numeric = (values[0] - values[1]) / (2.0 * step)
            torch.testing.assert_close(exact.sum().double(), numeric.double(), rtol=1e-6, atol=1e-8)

    def test_float32_agrees_and_seeds_repeat(self):
        process = self.make(torus_gamma())
        x, z, t = normal(3, 1, 6, 4, seed=1), normal(3, 1, 6, 4, seed=2), self.times(process)
        exact, _ = process.perturb(x, t, white=z)
        single, noise = process.perturb(x.float(), t, white=z.float())
        assert single.dtype == noise.dtype == torch.float32
        torch.testing.assert_close(
            single.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.detach().abs().max())
        )
        assert process.simulate(x.float(), t, generator=generator(1)).dtype == torch.float32
        assert process.velocity(single, x.float(), t).dtype == torch.float32
        assert process.reverse_drift(single, x.float(), t).dtype == torch.float32
        assert process.alpha(t.float()).dtype == F64
        for draw in (
            lambda g: process.perturb(x, t, generator=g)[0],
            lambda g: process.start(3, 1, generator=g),
        ):
            assert torch.equal(draw(generator(5)), draw(generator(5)))
            assert not torch.equal(draw(generator(5)), draw(generator(6)))
        float32_covariance = copy.deepcopy(process).float()
        assert float32_covariance.start(2, 1).dtype == torch.float32
        torch.testing.assert_close(float32_covariance.alpha(t), process.alpha(t), rtol=0, atol=0)

    def test_state_dict_round_trip(self):
        process, other = self.make(dense_gamma()), self.make(dense_gamma())
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.3)
        x, z, t = normal(2, 1, 2, 3, seed=1), normal(2, 1, 2, 3, seed=2), self.times(process)[:2]
        before = other.perturb(x, t, white=z)[0]
        assert not torch.allclose(before, process.perturb(x, t, white=z)[0])
        other.load_state_dict(process.state_dict())
        torch.testing.assert_close(other.perturb(x, t, white=z)[0], process.perturb(x, t, white=z)[0])
        assert other.covariance in list(other.children())

    def test_bad_inputs_are_named(self):
        process = self.make(torus_gamma())
        x, t = normal(3, 1, 6, 4), self.times(process)
        with pytest.raises(ValueError, match="times of this process lie in"):
            process.marginal(1.1 * process.horizon)
        with pytest.raises(ValueError, match="times of this process lie in"):
            process.perturb(x, -0.1)
        with pytest.raises(ValueError, match="times of this process lie in"):
            process.perturb(x, torch.full((3,), torch.nan))
        with pytest.raises(ValueError, match="s must not exceed t"):
            process.transition(t[1], t[0])
        with pytest.raises(ValueError, match="s must not exceed t"):
            process.posterior(t[0], t[1])
        with pytest.raises(ValueError, match=r"must be \(B, C, \*grid\) with grid \(6, 4\)"):
            process.perturb(normal(3, 1, 4, 6), t)
        with pytest.raises(ValueError, match=r"must be \(B, C, \*grid\) with grid \(6, 4\)"):
            process.simulate(normal(3, 6, 4), t)
        with pytest.raises(ValueError, match=r"it must be a scalar or have shape \(3,\)"):
            process.perturb(x, t[:2])
        missing = x.clone()
        missing[0, 0, 1, 2] = torch.nan
        with pytest.raises(ValueError, match="1 of 72 values are NaN"):
            process.perturb(missing, t)
        with pytest.raises(TypeError, match="floating-point"):
            process.perturb(torch.zeros(3, 1, 6, 4, dtype=torch.long), t)
        with pytest.raises(ValueError, match=r"white has shape .* colours white noise of \(3, 1, 6, 4\)"):
            process.perturb(x, t, white=normal(3, 6, 4))
        with pytest.raises(ValueError, match="non-decreasing"):
            process.simulate(x, t.flip(0))
        with pytest.raises(ValueError, match=r"sigma\(t\) = 0"):
            process.score(x, 0.0, x)
        with pytest.raises(ValueError, match="initial= is for a Paired coupling only"):
            process.start(3, 1, initial=x)
        three = self.make(torus_gamma(channels=3))
        with pytest.raises(ValueError, match=r"1 channel\(s\) and the covariance acts on 3"):
            three.perturb(x, t)
        with pytest.raises(TypeError, match="needs a Covariance, got Grid"):
            self.make(Grid((6, 4)))
