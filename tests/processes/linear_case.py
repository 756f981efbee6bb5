"""The test case that every linear noise process inherits, of any number of variables, shared or modal.

A subclass says how to build its process and, written down independently of the library, the matrices F and Q
of its SDE ``du = F u dt + (Q^{1/2} ⊗ Γ^{1/2}) dW`` (per mode where they differ from mode to mode). It gets:
transitions against the moment equations solved by scipy and against each other, the stationary law, the
sufficient statistic, posteriors against dense Gaussian conditioning, draws and paths against exact moments at
every pair of times, variables and sites, the whitening equivalence, time reversal of Gaussian data,
gradients, dtypes, seeds, copies and bad inputs.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from moments import assert_covariance, assert_mean, condition, dense_gamma, generator, normal, torus_gamma
from scipy.integrate import solve_ivp
from torch import Tensor

from spatialdiff.covariance import CosineCovariance, Covariance, DenseCovariance, white
from spatialdiff.domains import Grid
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.processes import NoiseProcess

F64 = torch.float64
CHANNELS = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64)


def operator(process: NoiseProcess, matrix: Tensor, channels: int = 1) -> Tensor:
    """``M ⊗ I`` on states ``(J*C, *grid)`` as a dense matrix, M ``([modes], I, J)``, without ``mix``."""
    rows, columns = matrix.shape[-2:]
    grid = tuple(process.covariance.domain.shape)
    sites = int(np.prod(grid))
    eye = torch.eye(sites, dtype=F64)
    if process.basis is None:
        block = torch.einsum("ij,pq->ipjq", matrix, eye)
    else:
        fields = eye.reshape(sites, *grid)
        entries = [
            torch.stack(
                [process.basis.multiply(fields, matrix[..., i, j]).flatten(1).T for j in range(columns)]
            )
            for i in range(rows)
        ]
        block = torch.stack(entries).permute(0, 2, 1, 3)
    whole = torch.einsum("ipjq,cd->icpjdq", block, torch.eye(channels, dtype=F64))
    return whole.reshape(rows * channels * sites, columns * channels * sites)


class LinearProcessCase:
    #: K
    variables = 1
    #: whether coefficients differ from mode to mode
    modal = False
    #: whether Γ may have channels (one Γ per variable: no)
    channel_matrix = True
    #: whether there is a stationary law
    is_stationary = False
    #: fractions of the horizon at which the SDE is regular and the noise not negligible
    inside = (0.2, 0.45, 0.8)

    def make(self, gamma) -> NoiseProcess:
        raise AssertionError("a subclass builds its process")

    def matrices(self, process, t: float) -> tuple[np.ndarray, np.ndarray]:
        """F(t) and Q(t) ``([modes], K, K)``, from the definition of the process."""
        raise AssertionError("a subclass writes its coefficients down")

    def whitened(self, process, gamma) -> NoiseProcess:
        """The process of Γ^{-1/2}u; ``gamma`` is white."""
        return self.make(gamma)

    def times(self, process) -> Tensor:
        return torch.tensor(self.inside, dtype=F64) * process.horizon

    def small(self) -> Covariance:
        """A Γ on 6 sites."""
        if not self.modal:
            return dense_gamma().requires_grad_(False)
        kernel = Matern(nu=1.5, lengthscale=1.7, variance=1.3).requires_grad_(False)
        return CosineCovariance(kernel, Grid((2, 3))).double()

    def coloured(self) -> Covariance:
        """A Γ on 6×4 sites with a symmetric root, with 2 correlated channels where it may have them."""
        return torus_gamma(CHANNELS if self.channel_matrix else None).requires_grad_(False)

    def data(self) -> Covariance:
        """A covariance of data on the 6 sites, with no basis in common with Γ."""
        return DenseCovariance(Exponential(lengthscale=1.9, variance=2.0), Grid((2, 3))).double()

    def covariance(self, process, sigma: Tensor) -> Tensor:
        """``Σ ⊗ Γ`` as a dense matrix."""
        dense = process.covariance.to_dense().detach()
        channels = process.covariance.channels or 1
        return operator(process, sigma, channels) @ torch.kron(torch.eye(sigma.shape[-1], dtype=F64), dense)

    def coefficients(self, process, t: float) -> tuple[Tensor, Tensor]:
        drift, diffusion = self.matrices(process, t)
        return torch.as_tensor(drift, dtype=F64), torch.as_tensor(diffusion, dtype=F64)

    def shape(self, process) -> tuple[int, ...]:
        return tuple(process.basis.modes) if self.modal else ()

    # -- transitions ----------------------------------------------------------------------------------------

    def test_matrices_of_the_sde(self):
        process = self.make(self.small())
        assert process.variables == self.variables
        assert (process.basis is not None) == self.modal
        t = self.times(process)
        shape = (*self.shape(process), self.variables, self.variables)
        drift, diffusion, root = process.drift_matrix(t), process.diffusion_matrix(t), process.noise_root(t)
        for i, now in enumerate(t.tolist()):
            F, Q = (c.expand(shape) for c in self.coefficients(process, now))
            torch.testing.assert_close(drift[i].expand(shape), F, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(diffusion[i].expand(shape), Q, rtol=1e-12, atol=1e-14)
            square = (root @ root.mT)[i].expand(shape)
            torch.testing.assert_close(square, Q, rtol=1e-12, atol=1e-14 * float(Q.abs().max()))

    def test_moments_solve_the_moment_equations(self):
        process = self.make(self.small())
        shape = (*self.shape(process), self.variables, self.variables)
        size = int(np.prod(shape))
        for s, t in pairwise([0.0, *self.times(process).tolist()]):

            def moments(r, y):
                F, Q = (np.asarray(c) for c in self.coefficients(process, r))
                phi, sigma = y[:size].reshape(shape), y[size:].reshape(shape)
                flow = F @ sigma
                return np.concatenate([(F @ phi).ravel(), (flow + np.swapaxes(flow, -1, -2) + Q).ravel()])

            start = np.concatenate([np.broadcast_to(np.eye(self.variables), shape).ravel(), np.zeros(size)])
            solution = solve_ivp(moments, (s, t), start, method="DOP853", rtol=1e-12, atol=1e-15).y[:, -1]
            phi, sigma = (c.detach() for c in process.transition(s, t))
            assert phi.shape == sigma.shape == shape
            exact = torch.from_numpy(solution[size:].reshape(shape))
            deviation = exact.diagonal(dim1=-2, dim2=-1).sqrt()
            scale = deviation[..., :, None] * deviation[..., None, :]
            torch.testing.assert_close(
                phi, torch.from_numpy(solution[:size].reshape(shape)), rtol=1e-9, atol=1e-11
            )
            assert float(((sigma - exact).abs() / scale).max()) < 1e-9

    def test_chapman_kolmogorov(self):
        process = self.make(self.small())
        r, s, t = self.times(process)
        phi_rs, sigma_rs = process.transition(r, s)
        phi_st, sigma_st = process.transition(s, t)
        phi_rt, sigma_rt = process.transition(r, t)
        torch.testing.assert_close(phi_rt, phi_st @ phi_rs, rtol=1e-12, atol=1e-14)
        composed = phi_st @ sigma_rs @ phi_st.mT + sigma_st
        torch.testing.assert_close(sigma_rt, composed, rtol=1e-12, atol=1e-15 * float(composed.abs().max()))
        # and from the data: the marginal at t is that at s, carried on
        phi, sigma = process.marginal(s)
        onward = phi_st @ sigma @ phi_st.mT + sigma_st
        torch.testing.assert_close(
            process.marginal(t)[0], (phi_st @ phi[..., None])[..., 0], rtol=1e-12, atol=1e-14
        )
        torch.testing.assert_close(process.marginal(t)[1], onward, rtol=1e-12, atol=1e-14)

    def test_marginal_is_the_transition_from_the_data_and_an_integrated_start(self):
        process = self.make(self.small())
        t = torch.cat([torch.zeros(1, dtype=F64), self.times(process), torch.tensor([process.horizon])])
        phi, sigma = process.marginal(t)
        shape = (5, *self.shape(process), self.variables)
        assert phi.shape == shape
        assert sigma.shape == (*shape, self.variables)
        assert phi.dtype == sigma.dtype == F64
        forward, noise = process.transition(torch.zeros_like(t), t)
        start = process.initial_root @ process.initial_root.mT
        assert not start[..., 0, :].any()
        torch.testing.assert_close(phi, forward[..., :, 0], rtol=1e-14, atol=0)
        torch.testing.assert_close(
            sigma, noise + forward @ start @ forward.mT, rtol=1e-13, atol=1e-15 * float(sigma.abs().max())
        )
        first = torch.zeros(self.variables, dtype=F64)
        first[0] = 1.0
        torch.testing.assert_close(phi[0], first.expand_as(phi[0]), rtol=0, atol=0)
        torch.testing.assert_close(sigma[0], start.expand_as(sigma[0]), rtol=0, atol=1e-15)
        root = process.root(t)
        assert not root.triu(1).any()
        torch.testing.assert_close(root @ root.mT, sigma, rtol=1e-12, atol=1e-14 * float(sigma.abs().max()))
        precision = process.precision(t[1:])
        eye = torch.eye(self.variables, dtype=F64).expand_as(precision)
        torch.testing.assert_close(precision @ sigma[1:], eye, rtol=0, atol=1e-8)

    def test_short_transitions_do_not_cancel(self):
        process = self.make(self.small())
        s = self.times(process)
        t = s + 2.0**-40 * process.horizon
        sigma = process.transition(s, t)[1]
        for i, now in enumerate(s.tolist()):
            rate = self.coefficients(process, now)[1]
            # the difference of variances would be off by 1e-4 relative here
            found = sigma[i] / (t[i] - s[i])
            torch.testing.assert_close(
                found, rate.expand_as(found), rtol=1e-8, atol=1e-8 * float(rate.abs().max())
            )

    def test_stationary_law(self):
        process = self.make(self.small())
        law = process.stationary
        assert (law is not None) == self.is_stationary
        if law is None:
            return
        for now in self.times(process).tolist():
            F, Q = self.coefficients(process, now)
            scale = float(Q.abs().max())
            torch.testing.assert_close(
                F @ law + law @ F.mT, (-Q).expand_as(F @ law), rtol=1e-11, atol=1e-12 * scale
            )
        r, s, t = self.times(process)
        for begin, end in ((0.0, r), (s, t), (0.0, process.horizon)):
            phi, sigma = process.transition(begin, end)
            torch.testing.assert_close(
                phi @ law @ phi.mT + sigma, law.expand_as(sigma), rtol=1e-12, atol=1e-13
            )
        # Σ(0, ∞) = S: the longest transition comes as close as what is left of Φ
        phi, sigma = process.transition(0.0, process.horizon)
        left = float((phi.abs() @ law.abs() @ phi.abs().mT).max())
        assert float((sigma - law).abs().max()) <= left + 1e-13

    # -- the statistic --------------------------------------------------------------------------------------

    def test_the_statistic_is_sufficient(self):
        """y = qᵀ(u - o) has signal α, noise σ², α²/σ² = φᵀΣ⁻¹φ; given y the state tells no more of x."""
        process = self.make(self.small())
        t = self.times(process)
        phi, sigma = process.marginal(t)
        q, alpha, variance = process.statistic(t), process.alpha(t), process.variance(t)
        assert q.shape == phi.shape
        assert alpha.shape == variance.shape == phi.shape[:-1]
        torch.testing.assert_close((q * phi).sum(-1), alpha, rtol=1e-10, atol=1e-12)
        noise = (sigma @ q[..., None])[..., 0]
        torch.testing.assert_close((q * noise).sum(-1), variance, rtol=1e-9, atol=1e-12)
        information = (phi * torch.linalg.solve(sigma, phi[..., None])[..., 0]).sum(-1)
        torch.testing.assert_close(alpha.square() / variance, information, rtol=1e-8, atol=0)
        torch.testing.assert_close(process.information(t), information, rtol=1e-8, atol=0)
        torch.testing.assert_close(process.sigma(t), variance.sqrt(), rtol=1e-12, atol=0)
        if self.variables > 1:
            torch.testing.assert_close(alpha.square() + variance, torch.ones_like(alpha), rtol=1e-12, atol=0)
        # E[u | y, x] = φ x + Σq (y - α x)/σ² does not depend on x
        depends = phi - noise * (alpha / variance)[..., None]
        torch.testing.assert_close(depends, torch.zeros_like(phi), rtol=0, atol=1e-9)
        weights = process.noise_weights(t)
        torch.testing.assert_close(weights.square().sum(-1), torch.ones_like(alpha), rtol=1e-9, atol=0)
        onto = (process.root(t).mT @ q[..., None])[..., 0]
        torch.testing.assert_close(onto, weights * process.sigma(t)[..., None], rtol=1e-8, atol=1e-10)

    def test_the_posterior_mean_by_the_statistic_is_dense_bayes(self):
        """E[x | u] and E[x | y] for Gaussian x, on K·6 and on 6 values."""
        gamma, data = self.small(), self.data().to_dense().detach()
        process = self.make(gamma)
        u = normal(2, self.variables, 2, 3, seed=1)
        for now in self.times(process):
            phi, sigma = process.marginal(now)
            signal = operator(process, phi[..., None])
            state = signal @ data @ signal.T + self.covariance(process, sigma)
            exact = (data @ signal.T @ torch.linalg.solve(state, u.flatten(1).T)).T
            y = process.reduce(u, now).flatten(1)
            signal = operator(process, process.alpha(now)[..., None, None])
            noise = self.covariance(process, process.variance(now)[..., None, None])
            reduced = (data @ signal.T @ torch.linalg.solve(signal @ data @ signal.T + noise, y.T)).T
            torch.testing.assert_close(reduced, exact, rtol=1e-8, atol=1e-9)

    def test_information_falls_at_its_rate(self):
        process = self.make(self.small())
        t = self.times(process).requires_grad_()
        information = process.information(t)
        flat = information.reshape(3, -1)
        rate = process.information_rate(t).reshape(3, -1)
        assert bool((rate < 0).all())
        for k in range(flat.shape[1]):
            (slope,) = torch.autograd.grad(flat[:, k].sum(), t, retain_graph=True)
            torch.testing.assert_close(rate[:, k], slope, rtol=1e-8, atol=1e-12)

    def test_time_of_log_snr_inverts_it(self):
        process = self.make(self.small())
        t = torch.linspace(0.001, 0.999, 41, dtype=F64) * process.horizon
        level = process.log_snr(t)
        assert level.shape == t.shape
        assert bool((level.diff() < 0).all())
        torch.testing.assert_close(process.time_of_log_snr(level), t, rtol=1e-9, atol=1e-12)
        assert process.log_snr(0.0) == torch.inf
        assert process.time_of_log_snr(torch.inf) == 0.0
        assert process.time_of_log_snr(-2000.0).item() == pytest.approx(process.horizon, rel=1e-12)

    # -- steps to the data ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.2, 0.45), (0.45, 1.0), (0.0, 1.0)])
    def test_posterior_is_dense_conditioning(self, fractions):
        process = self.make(self.small())
        s, t = (f * process.horizon for f in fractions)
        size = 6 * self.variables
        x, u = normal(6, seed=1), normal(size, seed=2)
        (phi_s, sigma_s), (phi_t, sigma_t) = process.marginal(s), process.marginal(t)
        phi, _ = process.transition(s, t)
        cross = self.covariance(process, phi @ sigma_s)
        joint = torch.cat(
            [
                torch.cat([self.covariance(process, sigma_s), cross.T], 1),
                torch.cat([cross, self.covariance(process, sigma_t)], 1),
            ]
        ).detach()
        mean = torch.cat([operator(process, c[..., None]) @ x for c in (phi_s, phi_t)])
        exact, covariance = condition(joint, mean, slice(size, None), slice(0, size), u)
        a, b, v = process.posterior(t, s)
        shape = (*self.shape(process), self.variables)
        assert a.shape == v.shape == (*shape, self.variables)
        assert b.shape == shape
        found = operator(process, a) @ u + operator(process, b[..., None]) @ x
        torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(
            self.covariance(process, v),
            covariance,
            rtol=1e-6,
            atol=1e-9 * float(sigma_t.detach().abs().max() + 1),
        )

    def test_posterior_steps_keep_the_marginals(self):
        process = self.make(self.small())
        t = torch.tensor([0.3, 0.6, 1.0, 0.5], dtype=F64) * process.horizon
        s = torch.tensor([0.2, 0.1, 0.9, 0.0], dtype=F64) * process.horizon
        a, b, v = process.posterior(t, s)
        (phi_t, sigma_t), (phi_s, sigma_s) = process.marginal(t), process.marginal(s)
        torch.testing.assert_close((a @ phi_t[..., None])[..., 0] + b, phi_s, rtol=1e-9, atol=1e-10)
        size = 1e-10 * float(sigma_s.abs().max())
        torch.testing.assert_close(a @ sigma_t @ a.mT + v, sigma_s, rtol=1e-9, atol=size)
        assert float(torch.linalg.eigvalsh(v).min()) > -1e-14 * float(sigma_s.abs().max())

    def test_the_last_step_returns_the_data_exactly(self):
        process = self.make(self.small())
        first = torch.zeros(self.variables, dtype=F64)
        first[0] = 1.0
        x, u = normal(1, 1, 2, 3, seed=1), normal(1, self.variables, 2, 3, seed=2)
        for t in (0.01 * process.horizon, process.horizon):
            a, b, v = process.posterior(t, process.end_time)
            assert not a[..., 0, :].any()
            assert bool((b[..., 0] == 1.0).all())
            assert not v[..., 0, :].any()
            assert not v[..., :, 0].any()
            state = process.mix(a, u) + process.mix(b[..., None], x)
            torch.testing.assert_close(state[:, :1], x, rtol=0, atol=1e-14)
        a, b, v = process.posterior(process.horizon, process.horizon)
        torch.testing.assert_close(a, torch.eye(self.variables, dtype=F64).expand_as(a), rtol=0, atol=0)
        assert not b.any()
        assert not v.any()
        assert (process.start_time, process.end_time) == (process.horizon, 0.0)

    # -- draws ----------------------------------------------------------------------------------------------

    def whites(self, process, *lead: int, seed: int) -> Tensor:
        """White noise behind ``(*lead, K*C, 6, 4)`` of the coloured Γ."""
        channels = process.covariance.channels or 1
        return normal(*process.white_shape(lead, channels), seed=seed)

    def apply(self, process, matrix: Tensor, field: Tensor) -> Tensor:
        """``(M ⊗ I) u`` of one state ``(J*C, *grid)`` by a dense product."""
        channels = process.covariance.channels or 1
        grid = field.shape[1:]
        return (operator(process, matrix, channels) @ field.flatten()).reshape(-1, *grid)

    def test_perturb_is_its_formula(self):
        gamma = self.coloured()
        process = self.make(gamma)
        count, t = gamma.channels or 1, self.times(process)
        x, z = normal(3, count, 6, 4, seed=1), self.whites(process, 3, seed=2)
        u, noise = process.perturb(x, t, white=z)
        assert u.shape == noise.shape == (3, self.variables * count, 6, 4)
        torch.testing.assert_close(noise, gamma.color(z).reshape(noise.shape), rtol=0, atol=1e-14)
        phi, root = process.marginal(t)[0], process.root(t)
        for b in range(3):
            exact = self.apply(process, phi[b][..., None], x[b]) + self.apply(process, root[b], noise[b])
            torch.testing.assert_close(u[b], exact, rtol=1e-12, atol=1e-12)
            now = process.perturb(x[b : b + 1], t[b], white=z[b : b + 1])[0]
            torch.testing.assert_close(u[b : b + 1], now, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(process.variable_noise(u, t, x), noise, rtol=1e-7, atol=1e-7)
        reduced = process.reduce_noise(noise, t)
        torch.testing.assert_close(process.noise(u, t, x), reduced, rtol=1e-7, atol=1e-7)
        y = process.scale(process.alpha(t), x) + process.scale(process.sigma(t), reduced)
        torch.testing.assert_close(process.reduce(u, t), y, rtol=1e-8, atol=1e-8)

    def test_perturb_has_the_exact_covariance(self):
        count = 4000
        process = self.make(self.small())
        t = self.times(process)[1]
        x = normal(1, 1, 2, 3, seed=3)
        u, _ = process.perturb(x.expand(count, -1, -1, -1), t, generator=generator(4))
        phi, sigma = process.marginal(t)
        exact = self.covariance(process, sigma).detach()
        residual = u.detach().flatten(1) - operator(process, phi[..., None]).detach() @ x.flatten()
        assert_covariance(residual, exact)
        assert_mean(residual, torch.zeros(len(exact), dtype=F64), exact.diagonal())

    def test_simulated_paths_have_the_exact_moments_over_times_variables_and_sites(self):
        count = 5000
        process = self.make(self.small())
        times = self.times(process)
        x = normal(1, 1, 2, 3, seed=6)
        with torch.no_grad():
            path = process.simulate(x.expand(count, -1, -1, -1), times, generator=generator(7))
            assert path.shape == (3, count, self.variables, 2, 3)
            size = 6 * self.variables
            exact = torch.zeros(3 * size, 3 * size, dtype=F64)
            mean = []
            for i in range(3):
                here, sigma = process.marginal(times[i])
                mean.append(operator(process, here[..., None]) @ x.flatten())
                for j in range(i, 3):
                    phi, _ = process.transition(times[i], times[j])
                    block = self.covariance(process, phi @ sigma)
                    rows, columns = slice(j * size, (j + 1) * size), slice(i * size, (i + 1) * size)
                    exact[rows, columns], exact[columns, rows] = block, block.T
            samples = path.transpose(0, 1).reshape(count, 3 * size) - torch.cat(mean)
        assert_covariance(samples, exact)
        assert_mean(samples, torch.zeros(3 * size, dtype=F64), exact.diagonal())

    def test_start_is_the_gaussian_marginal(self):
        count = 4000
        process = self.make(self.small())
        z = normal(*process.white_shape(5, 2), seed=1)
        start = process.start(5, 2, white=z)
        noise = process.covariance.color(z)
        for b in range(5):
            root = operator(process, process.root(process.start_time), 2)
            exact = (root @ noise[b].flatten()).reshape(start[b].shape)
            torch.testing.assert_close(start[b], exact, rtol=1e-12, atol=1e-13)
        data = self.data()
        mean, t = normal(1, 2, 3, seed=2), 0.45 * process.horizon
        with torch.no_grad():
            state = process.start((count,), 1, time=t, data=(mean, data), generator=generator(3), dtype=F64)
            phi, sigma = process.marginal(t)
            signal = operator(process, phi[..., None])
            exact = self.covariance(process, sigma) + signal @ data.to_dense() @ signal.T
            residual = state.flatten(1) - signal @ mean.flatten()
        assert_covariance(residual, exact)
        assert_mean(residual, torch.zeros(len(exact), dtype=F64), exact.diagonal())

    # -- dynamics -------------------------------------------------------------------------------------------

    def test_score_is_the_gradient_of_the_log_density(self):
        gamma = self.coloured()
        process = self.make(gamma)
        channels, t = gamma.channels or 1, self.times(process)
        x = normal(3, channels, 6, 4, seed=1)
        u = normal(3, self.variables * channels, 6, 4, seed=2)
        with torch.no_grad():
            score, scaled = process.score(u, t, x), process.gamma_score(u, t, x)
            spread = torch.kron(torch.eye(self.variables, dtype=F64), gamma.to_dense())
        for b in range(3):
            phi, sigma = process.marginal(t[b])
            law = torch.distributions.MultivariateNormal(
                self.apply(process, phi[..., None].detach(), x[b]).flatten(),
                self.covariance(process, sigma).detach(),
                validate_args=False,
            )
            at = u[b].flatten().requires_grad_()
            (exact,) = torch.autograd.grad(law.log_prob(at), at)
            scale = float(exact.abs().max())
            torch.testing.assert_close(score[b].flatten(), exact, rtol=1e-7, atol=1e-8 * scale)
            torch.testing.assert_close(scaled[b].flatten(), spread @ exact, rtol=1e-7, atol=1e-8 * scale)

    def test_reverse_sde_and_flow_keep_the_marginals_of_gaussian_data(self):
        """With data N(0, C) and the exact posterior mean both are linear; their covariance equation must be
        that of u_t, for any C on the sites.
        """
        process = self.make(self.small()).requires_grad_(False)
        size = 6 * self.variables
        states = torch.eye(size, dtype=F64).reshape(size, self.variables, 2, 3)
        data = self.data().to_dense().detach()

        def covariance(now: Tensor) -> Tensor:
            phi, sigma = process.marginal(now)
            signal = operator(process, phi[..., None])
            return signal @ data @ signal.T + self.covariance(process, sigma)

        for now in self.times(process):
            total, rate = torch.autograd.functional.jvp(covariance, now, torch.ones((), dtype=F64))
            signal = operator(process, process.marginal(now)[0][..., None])
            mean = (data @ signal.T @ torch.linalg.solve(total, states.flatten(1).T)).T.reshape(size, 1, 2, 3)
            root = process.noise_root(now)
            injected = self.covariance(process, root @ root.mT)
            scale = float(rate.abs().max()) + float(injected.abs().max())

            def of(field: Tensor, total: Tensor = total) -> Tensor:
                """``M P + P Mᵀ`` of the linear map whose images of the unit states are ``field``."""
                half = field.flatten(1).T @ total
                return half + half.T

            flow, reverse = process.velocity(states, mean, now), process.reverse_drift(states, mean, now)
            torch.testing.assert_close(of(flow), rate, rtol=1e-8, atol=1e-9 * scale)
            torch.testing.assert_close(of(reverse) + injected, -rate, rtol=1e-8, atol=1e-9 * scale)
            torch.testing.assert_close(
                of(process.drift(states, now)) + injected, rate, rtol=1e-8, atol=1e-9 * scale
            )

    def test_whitening_equivalence(self):
        """Under Γ = R² everything is the white-noise process of R⁻¹x with the same white draws."""
        gamma = self.coloured()
        channels = gamma.channels or 1
        process = self.make(gamma)
        plain = self.whitened(process, white(gamma.domain, channels=gamma.channels).double())
        x, z, t = normal(3, channels, 6, 4, seed=1), self.whites(process, 3, seed=2), self.times(process)
        y = gamma.whiten(x)

        def same(actual: Tensor, whitened: Tensor) -> None:
            apart = actual.reshape(-1, channels, 6, 4)
            torch.testing.assert_close(
                gamma.whiten(apart).reshape(actual.shape),
                whitened,
                rtol=1e-9,
                atol=1e-10 * float(whitened.detach().abs().max() + 1),
            )

        u, v = process.perturb(x, t, white=z)[0], plain.perturb(y, t, white=z)[0]
        same(u, v)
        chain = self.whites(process, 3 + (self.variables > 1), 3, seed=3)
        same(process.simulate(x, t, white=chain), plain.simulate(y, t, white=chain))
        same(process.drift(u, t), plain.drift(v, t))
        same(process.gamma_score(u, t, x), plain.gamma_score(v, t, y))
        same(process.reverse_drift(u, x, t), plain.reverse_drift(v, y, t))
        same(process.velocity(u, x, t), plain.velocity(v, y, t))
        same(process.reduce(u, t), plain.reduce(v, t))
        same(process.start(3, channels, white=z), plain.start(3, channels, white=z))
        a, b, c = process.posterior(t, 0.5 * t)
        same(
            process.mix(a, u) + process.mix(b[..., None], x) + process.mix(c, u),
            plain.mix(a, v) + plain.mix(b[..., None], y) + plain.mix(c, v),
        )

    # -- tensors --------------------------------------------------------------------------------------------

    def test_gradients_reach_every_parameter(self):
        """Through draws and through log-densities, against finite differences along a direction."""
        process = self.make(self.small().requires_grad_(True))
        x, t = normal(2, 1, 2, 3, seed=1), self.times(process)[:2]
        z, v = self.small_whites(process), normal(2, self.variables, 2, 3, seed=3)
        weight = normal(2, self.variables, 2, 3, seed=4)
        parameters = [p for p in process.parameters() if p.requires_grad]
        assert parameters

        def value() -> Tensor:
            u, _ = process.perturb(x, t, white=z)
            noise = process.variable_noise(v, t, x)
            apart = noise.reshape(2 * self.variables, 1, 2, 3)
            volume = process.root(t).diagonal(dim1=-2, dim2=-1).log().sum()
            density = process.covariance.log_prob(apart).sum() - volume
            return (weight * u + u**2).sum() + 1e-3 * density

        gradient = torch.autograd.grad(value(), parameters)
        for i, (parameter, exact) in enumerate(zip(parameters, gradient, strict=True)):
            direction = normal(*parameter.shape, seed=10 + i).to(parameter)
            step, values = 1e-6, []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    parameter.add_(sign * step * direction)
                    values.append(value().item())
                    parameter.sub_(sign * step * direction)
            numeric = (values[0] - values[1]) / (2.0 * step)
            assert abs(numeric) > 1e-4
            assert (exact * direction).sum().item() == pytest.approx(numeric, rel=2e-5)

    def small_whites(self, process) -> Tensor:
        return normal(*process.white_shape(2, 1), seed=2)

    def test_float32_agrees_and_seeds_repeat(self):
        gamma = self.coloured()
        process = self.make(gamma)
        channels, t = gamma.channels or 1, self.times(process)
        x, z = normal(3, channels, 6, 4, seed=1), self.whites(process, 3, seed=2)
        exact, _ = process.perturb(x, t, white=z)
        single, noise = process.perturb(x.float(), t, white=z.float())
        assert single.dtype == noise.dtype == torch.float32
        torch.testing.assert_close(
            single.double(), exact, rtol=1e-5, atol=2e-5 * float(exact.detach().abs().max())
        )
        assert process.simulate(x.float(), t, generator=generator(1)).dtype == torch.float32
        assert process.velocity(single, x.float(), t).dtype == torch.float32
        assert process.reverse_drift(single, x.float(), t).dtype == torch.float32
        assert process.reduce(single, t).dtype == torch.float32
        assert process.alpha(t.float()).dtype == F64
        for draw in (
            lambda g: process.perturb(x, t, generator=g)[0],
            lambda g: process.simulate(x, t, generator=g),
            lambda g: process.start(3, channels, generator=g),
        ):
            assert torch.equal(draw(generator(5)), draw(generator(5)))
            assert not torch.equal(draw(generator(5)), draw(generator(6)))

    def test_copies_casts_and_state_dicts(self):
        process, other = self.make(self.small()), self.make(self.small())
        x, t = normal(2, 1, 2, 3, seed=1), self.times(process)[:2]
        z = self.small_whites(process)
        cast = copy.deepcopy(process).float()
        assert cast.start(2, 1).dtype == torch.float32
        twin = copy.deepcopy(process)
        exact = process.perturb(x, t, white=z)[0]
        assert torch.equal(twin.perturb(x, t, white=z)[0], exact)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1)
        assert not torch.allclose(other.perturb(x, t, white=z)[0], exact)
        other.load_state_dict(process.state_dict())
        torch.testing.assert_close(other.perturb(x, t, white=z)[0], exact, rtol=1e-13, atol=1e-13)
        assert torch.equal(twin.perturb(x, t, white=z)[0], exact)
        assert other.covariance in list(other.children())
        with torch.inference_mode():
            inside = process.perturb(x.clone(), t.clone(), white=z.clone())[0]
        torch.testing.assert_close(inside, exact.detach(), rtol=1e-13, atol=1e-13)

    def test_the_law_of_one_time_follows_its_parameters(self):
        """Asked again at the same tensor of times after a change in place: nothing stale."""
        process = self.make(self.small())
        t = self.times(process)
        with torch.no_grad():
            process.marginal(t)
            t.mul_(0.5)
            torch.testing.assert_close(
                process.marginal(t)[1], process.marginal(t.clone())[1], rtol=1e-13, atol=0
            )
            for parameter in process.parameters():
                parameter.mul_(1.1)
            torch.testing.assert_close(
                process.marginal(t)[1], process.marginal(t.clone())[1], rtol=1e-13, atol=0
            )

    def test_bad_inputs_are_named(self):
        process = self.make(torus_gamma().requires_grad_(False))
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
        with pytest.raises(ValueError, match=r"t has shape \(2,\).*it must be a scalar or have shape \(3,\)"):
            process.perturb(x, t[:2])
        missing = x.clone()
        missing[0, 0, 1, 2] = torch.nan
        with pytest.raises(ValueError, match="1 of 72 values are NaN"):
            process.perturb(missing, t)
        with pytest.raises(TypeError, match="floating-point"):
            process.perturb(torch.zeros(3, 1, 6, 4, dtype=torch.long), t)
        with pytest.raises(ValueError, match=r"white has shape .* colours white noise of"):
            process.perturb(x, t, white=normal(3, 6, 4))
        with pytest.raises(ValueError, match="non-decreasing"):
            process.simulate(x, t.flip(0))
        u = normal(3, self.variables, 6, 4)
        with pytest.raises(ValueError, match=r"sigma\(t\) = 0"):
            process.score(u, 0.0, x)
        with pytest.raises(ValueError, match="initial= is for a Paired coupling only"):
            process.start(3, 1, initial=x)
        if self.channel_matrix:
            three = self.make(torus_gamma(channels=3))
            with pytest.raises(ValueError, match=r"1 channel\(s\) and the covariance acts on 3"):
                three.perturb(x, t)
        if self.variables > 1:
            with pytest.raises(ValueError, match=f"a state of {self.variables} variables needs a multiple"):
                process.drift(x, t)
