"""The test case that every bridge inherits.

A subclass says how to build its bridge and gives, written independently of the library, the drift coefficient
f(t) and the rate β(t) of the reference ``dX = f X dt + √β Γ^{1/2} dW``. Everything is then compared with
*conditioning the reference*: its joint Gaussian law over several times, from the moment equations solved by
scipy, conditioned densely on the far end.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from moments import (
    assert_covariance,
    assert_mean,
    condition,
    dense_gamma,
    generator,
    normal,
    torus_gamma,
)
from scipy.integrate import solve_ivp
from torch import Tensor

from spatialdiff.covariance import white
from spatialdiff.domains import Grid
from spatialdiff.processes import Bridge

F64 = torch.float64


class BridgeCase:
    inside = (0.15, 0.5, 0.85)

    def make(self, gamma) -> Bridge:
        raise AssertionError("a subclass builds its bridge")

    def drift_and_rate(self, t: float) -> tuple[float, float]:
        """f(t) and β(t) of the reference."""
        raise AssertionError("a subclass writes its coefficients down")

    def times(self, bridge) -> Tensor:
        return torch.tensor(self.inside, dtype=F64) * bridge.horizon

    def reference(self, times: list[float]) -> tuple[Tensor, Tensor]:
        """Means (per unit of X_0) and covariances (per Γ) of the unpinned reference at ``times`` from a
        fixed X_0 at 0.
        """

        def moments(r, y):
            f, rate = self.drift_and_rate(r)
            return [f * y[0], 2.0 * f * y[1] + rate]

        steps = []
        for s, t in pairwise([0.0, *times]):
            solution = solve_ivp(moments, (s, t), [1.0, 0.0], method="DOP853", rtol=1e-12, atol=1e-15)
            steps.append(solution.y[:, -1])
        size = len(times)
        mean, covariance = np.zeros(size), np.zeros((size, size))
        phi, sigma = 1.0, 0.0
        for i, (step, noise) in enumerate(steps):
            phi, sigma = step * phi, step**2 * sigma + noise
            mean[i], covariance[i, i] = phi, sigma
            covariance[i, :i] = covariance[:i, i] = step * covariance[i - 1, :i] if i else 0.0
        return torch.from_numpy(mean), torch.from_numpy(covariance)

    def pinned(self, bridge, times: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (T*n,) and covariance (T*n, T*n) of the bridge at ``times``, by dense conditioning on X_τ =
        x1.
        """
        gamma = bridge.covariance.to_dense()
        mean, covariance = self.reference([*times.tolist(), bridge.horizon])
        size = len(times) * x0.numel()
        joint = torch.kron(covariance, gamma)
        return condition(joint, torch.kron(mean, x0), slice(size, None), slice(0, size), x1)

    # -- coefficients ---------------------------------------------------------------------------------------

    def test_transition_is_that_of_the_reference(self):
        bridge = self.make(dense_gamma())
        times = self.times(bridge).tolist()
        mean, covariance = self.reference(times)
        a, v = bridge.transition(0.0, times[2])
        assert a.shape == v.shape == (1, 1)
        torch.testing.assert_close(a[0, 0], mean[2], rtol=1e-9, atol=0)
        torch.testing.assert_close(v[0, 0], covariance[2, 2], rtol=1e-9, atol=0)

    def test_coefficients_are_the_conditioned_reference(self):
        bridge = self.make(dense_gamma())
        x0, x1 = normal(6, seed=1), normal(6, seed=2)
        for t in self.times(bridge):
            mean, covariance = self.pinned(bridge, t[None], x0, x1)
            c_0, c_1, v = bridge.coefficients(t)
            torch.testing.assert_close(c_0 * x0 + c_1 * x1, mean, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(v * bridge.covariance.to_dense(), covariance, rtol=1e-8, atol=1e-8)

    def test_posterior_is_conditioning_on_both_sides(self):
        bridge = self.make(dense_gamma())
        x0, x1, value = normal(6, seed=1), normal(6, seed=2), normal(6, seed=3)
        t, s, _ = self.times(bridge)
        mean, covariance = self.pinned(bridge, torch.stack([t, s]), x0, x1)
        exact, spread = condition(covariance, mean, slice(0, 6), slice(6, 12), value)
        a, b, v = bridge.posterior(t, s)
        torch.testing.assert_close(a * value + b * x1, exact, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(v * bridge.covariance.to_dense(), spread, rtol=1e-8, atol=1e-8)

    def test_the_ends_are_exact(self):
        bridge = self.make(dense_gamma())
        tau = bridge.horizon
        assert [c.item() for c in bridge.coefficients(0.0)] == [1.0, 0.0, 0.0]
        assert [c.item() for c in bridge.coefficients(tau)] == [0.0, 1.0, 0.0]
        assert [c.item() for c in bridge.posterior(0.4 * tau, tau)] == [0.0, 1.0, 0.0]
        assert [c.item() for c in bridge.posterior(tau, tau)] == [0.0, 1.0, 0.0]
        assert [c.item() for c in bridge.posterior(0.4 * tau, 0.4 * tau)] == pytest.approx([1.0, 0.0, 0.0])

    def test_coefficient_rates_are_derivatives(self):
        bridge = self.make(dense_gamma())
        t = self.times(bridge).requires_grad_()
        for rate, value in zip(bridge.coefficient_rates(t), bridge.coefficients(t), strict=True):
            (exact,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
            torch.testing.assert_close(rate, exact, rtol=1e-9, atol=1e-11)

    # -- drift ----------------------------------------------------------------------------------------------

    def test_drift_without_gamma_is_the_doob_transform_with_it(self):
        """drift = f X + β Γ ∇_X log N(x_τ; a X, v Γ), with Γ and Γ⁻¹ written out densely."""
        bridge = self.make(dense_gamma())
        gamma = bridge.covariance.to_dense()
        precision = torch.linalg.inv(gamma)
        x1 = normal(6, seed=2)
        for i, t in enumerate(self.times(bridge)):
            f, rate = self.drift_and_rate(t.item())
            mean, covariance = self.reference([t.item(), bridge.horizon])
            a = mean[1] / mean[0]
            v = covariance[1, 1] - a**2 * covariance[0, 0]
            x = normal(6, seed=10 + i).requires_grad_()
            residual = x1 - a * x
            (gradient,) = torch.autograd.grad(-0.5 * residual @ precision @ residual / v, x)
            pull = rate * gamma @ gradient
            shape = (1, 1, 2, 3)
            state, end = x.detach().reshape(shape), x1.reshape(shape)
            adjustment = bridge.drift_adjustment(state, end, t).flatten()
            torch.testing.assert_close(adjustment, pull, rtol=1e-7, atol=1e-7)
            drift = bridge.drift_target(state, end, t).flatten()
            torch.testing.assert_close(drift, f * x.detach() + pull, rtol=1e-7, atol=1e-7)

    def test_drift_integrates_to_the_marginals_with_first_order(self):
        """The drift is affine, so Euler–Maruyama is a recursion of moments: its error must fall by 2 per
        halved step.
        """
        bridge = self.make(white(Grid((1,))).double())
        end, x0, x1 = 0.8 * bridge.horizon, 0.7, -1.2
        one, zero = torch.ones(1, 1, 1, dtype=F64), torch.zeros(1, 1, 1, dtype=F64)
        c_0, c_1, v = (c.item() for c in bridge.coefficients(end))

        def errors(steps: int) -> np.ndarray:
            mean, variance, h = x0, 0.0, end / steps
            for i in range(steps):
                slope = bridge.drift_target(one, zero, i * h).item()
                forcing = x1 * bridge.drift_target(zero, one, i * h).item()
                mean = mean + h * (slope * mean + forcing)
                variance = (1.0 + h * slope) ** 2 * variance + h * bridge.diffusion(i * h).item() ** 2
            return np.array([mean - c_0 * x0 - c_1 * x1, variance - v])

        coarse, fine = errors(200), errors(400)
        size = abs(c_0 * x0 + c_1 * x1) + v
        assert np.all(np.abs(fine) < 0.02 * size)
        for a, b in zip(coarse, fine, strict=True):
            # the mean of a Brownian bridge is a straight line, which Euler follows exactly
            assert abs(b) < 1e-12 or 1.85 < a / b < 2.15

    # -- draws ----------------------------------------------------------------------------------------------

    def test_perturb_is_its_formula(self):
        gamma = torus_gamma(channels=torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64))
        bridge = self.make(gamma)
        x0, x1, z = (normal(3, 2, 6, 4, seed=i) for i in range(3))
        t = self.times(bridge)
        state, noise = bridge.perturb(x0, x1, t, white=z)
        torch.testing.assert_close(noise, gamma.color(z), rtol=0, atol=1e-14)
        for b in range(3):
            c_0, c_1, v = bridge.coefficients(t[b])
            exact = c_0 * x0[b] + c_1 * x1[b] + v.sqrt() * noise[b]
            torch.testing.assert_close(state[b], exact, rtol=1e-14, atol=1e-14)

    def test_simulated_paths_have_the_exact_moments_over_times_and_sites(self):
        count = 5000
        bridge = self.make(dense_gamma())
        times = self.times(bridge)
        x0, x1 = normal(6, seed=1), normal(6, seed=2)
        ends = [x.reshape(1, 1, 2, 3).expand(count, -1, -1, -1) for x in (x0, x1)]
        path = bridge.simulate(*ends, times, generator=generator(3))
        assert path.shape == (3, count, 1, 2, 3)
        mean, covariance = self.pinned(bridge, times, x0, x1)
        samples = path.transpose(0, 1).reshape(count, 18)
        assert_covariance(samples - mean, covariance)
        assert_mean(samples, mean, covariance.diagonal())

    def test_paths_begin_and_end_at_the_ends(self):
        bridge = self.make(torus_gamma())
        x0, x1 = normal(2, 1, 6, 4, seed=1), normal(2, 1, 6, 4, seed=2)
        path = bridge.simulate(x0, x1, [0.0, 0.5 * bridge.horizon, bridge.horizon], generator=generator(3))
        assert torch.equal(path[0], x0)
        assert torch.equal(path[2], x1)
        assert not torch.allclose(path[1], 0.5 * (x0 + x1))

    def test_whitening_equivalence(self):
        gamma = torus_gamma(channels=torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64))
        coloured, plain = self.make(gamma), self.make(white(gamma.domain, channels=2).double())
        x0, x1, z = (normal(3, 2, 6, 4, seed=i) for i in range(3))
        y0, y1, t = gamma.whiten(x0), gamma.whiten(x1), self.times(coloured)

        def same(actual: Tensor, whitened: Tensor) -> None:
            torch.testing.assert_close(gamma.whiten(actual), whitened, rtol=1e-10, atol=1e-10)

        u, v = coloured.perturb(x0, x1, t, white=z)[0], plain.perturb(y0, y1, t, white=z)[0]
        same(u, v)
        same(coloured.drift_target(u, x1, t), plain.drift_target(v, y1, t))
        same(coloured.drift_adjustment(u, x1, t), plain.drift_adjustment(v, y1, t))
        chain = normal(3, 3, 2, 6, 4, seed=3)
        paths = coloured.simulate(x0, x1, t, white=chain), plain.simulate(y0, y1, t, white=chain)
        for a, b in zip(*paths, strict=True):
            same(a, b)

    # -- tensors --------------------------------------------------------------------------------------------

    def test_gradients_dtypes_and_seeds(self):
        bridge = self.make(dense_gamma())
        x0, x1, z = (normal(3, 1, 2, 3, seed=i) for i in range(3))
        t = self.times(bridge)
        state, noise = bridge.perturb(x0, x1, t, white=z)
        gradient = torch.autograd.grad(state.square().sum(), list(bridge.parameters()))
        assert all(torch.isfinite(g).all() and g.abs().max() > 1e-3 for g in gradient)
        single, _ = bridge.perturb(x0.float(), x1.float(), t, white=z.float())
        assert single.dtype == bridge.drift_target(single, x1.float(), t).dtype == torch.float32
        torch.testing.assert_close(single.double(), state, rtol=1e-5, atol=1e-5)
        assert all(c.dtype == F64 for c in bridge.coefficients(t.float()))
        draws = [bridge.perturb(x0, x1, t, generator=generator(s))[0] for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert noise.shape == x1.shape

    def test_bad_inputs_are_named(self):
        bridge = self.make(torus_gamma())
        x, t = normal(3, 1, 6, 4), self.times(bridge)
        with pytest.raises(ValueError, match="drift of a bridge is singular at its end"):
            bridge.drift_target(x, x, bridge.horizon)
        with pytest.raises(ValueError, match="times of this process lie in"):
            bridge.perturb(x, x, 1.5 * bridge.horizon)
        with pytest.raises(ValueError, match="t must not exceed s"):
            bridge.posterior(t[1], t[0])
        with pytest.raises(ValueError, match="the two ends must match"):
            bridge.perturb(x[:2], x, t)
        with pytest.raises(ValueError, match=r"x0 has shape \(3, 1, 4, 6\)"):
            bridge.simulate(x.mT, x, t)
        with pytest.raises(ValueError, match="x1: 24 of 72 values are NaN"):
            bridge.perturb(x, x.index_fill(0, torch.tensor([1]), torch.nan), t)
        with pytest.raises(ValueError, match=r"colours white noise of \(3, 1, 6, 4\)"):
            bridge.perturb(x, x, t, white=x[:2])
        with pytest.raises(TypeError, match="needs a Covariance"):
            self.make(None)
