"""Spectral processes: against the moment equations of every mode, their limits, on every basis."""

from __future__ import annotations

import copy
import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from moments import dense_gamma, generator, normal
from scipy.integrate import quad, solve_ivp

from spatialdiff.covariance import CosineCovariance, TorusCovariance, white
from spatialdiff.covariance.basis import CosineBasis, FourierBasis, SiteBasis
from spatialdiff.covariance.meshes.graph_basis import GraphBasis
from spatialdiff.covariance.meshes.graph_matern import GraphMaternCovariance
from spatialdiff.covariance.spheres.spherical_spectrum import HarmonicCovariance
from spatialdiff.domains import Graph, Grid, Sphere
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.processes import VP, BrownianMotion, ConstantBeta, Cosine, LinearBeta, OrnsteinUhlenbeck
from spatialdiff.processes.learned_beta import LearnedBeta
from spatialdiff.processes.named_paths import EDMPath
from spatialdiff.processes.paths import CosinePath, LinearPath
from spatialdiff.processes.spectral import (
    FrequencyVP,
    HeatDissipation,
    SpectralDiffusion,
    StochasticHeat,
    laplacian_eigenvalues,
)
from spatialdiff.processes.spectral_paths import FrequencyPath, HeatPath, SineBlur

F64 = torch.float64
TORUS = Grid((6, 5), spacing=(0.5, 1.0), periodic=True)
NEUMANN = Grid((5, 4), spacing=(1.0, 0.7))


def torus():
    return TorusCovariance(Exponential(lengthscale=1.5, variance=0.8), TORUS).double()


def cosine():
    return CosineCovariance(Matern(nu=1.5, lengthscale=1.2, variance=1.3), NEUMANN).double()


def sphere():
    degrees = torch.arange(6, dtype=F64)
    return HarmonicCovariance((1.0 + degrees) ** -1.5, Sphere((7, 13), "gauss_legendre", 2.0)).double()


def graph():
    domain = Graph.from_edges([[0, 1], [1, 2], [2, 3], [3, 0], [1, 3], [3, 4]], 5)
    return GraphMaternCovariance(Matern(nu=2.0, lengthscale=1.5, variance=1.1), domain).double()


def white_noise():
    return white(NEUMANN).double()


GAMMAS = [torus, cosine, sphere, graph, white_noise]


def heat(gamma):
    return HeatDissipation(gamma, 1.4)


def pure_heat(gamma):
    return HeatDissipation(gamma, 1.1, path=LinearPath(LinearBeta(0.2, 6.0), 0.5), floor=0.0)


def inverse_heat(gamma):
    return HeatDissipation(gamma, ConstantBeta(0.3, 2.0), path=EDMPath(2.0), floor=0.0)


def frequency(gamma):
    weights = [lambda v: 1.0 / (1.0 + v), lambda v: v / (1.0 + v)]
    return FrequencyVP(gamma, weights, [LinearBeta(0.1, 20.0), LinearBeta(12.0, 1.0)])


def stochastic_heat(gamma):
    return StochasticHeat(gamma, 0.3, 0.2, beta=LinearBeta(0.3, 4.0))


MAKERS = [heat, pure_heat, inverse_heat, frequency, stochastic_heat]


def coefficients(maker, level: float, t: float) -> tuple[float, float]:
    """f and g² of one mode, written down from the definitions."""
    if maker is stochastic_heat:
        beta = 0.3 + 3.7 * t
        return -(0.3 * level + 0.2) * beta, beta
    if maker is frequency:
        beta = (0.1 + 19.9 * t) / (1.0 + level) + (12.0 - 11.0 * t) * level / (1.0 + level)
        return -0.5 * beta, beta
    if maker is inverse_heat:
        f = -level * 0.3
        return f, 2.0 * t - 2.0 * f * t**2
    if maker is pure_heat:
        angle = 0.5 * math.pi * t
        rate = 1.1**2 * math.sin(angle) ** 3 * math.cos(angle) * math.pi
        beta, integral = 0.2 + 5.8 * t, 0.2 * t + 2.9 * t**2
        f = -0.5 * beta - level * rate
        variance = 1.0 - math.exp(-integral)
        return f, beta * math.exp(-integral) - 2.0 * f * variance
    angle = 0.5 * math.pi * t
    time = 0.5 * 1.4**2 * math.sin(angle) ** 4
    rate = 1.4**2 * math.sin(angle) ** 3 * math.cos(angle) * math.pi
    gone = (1.0 - 1e-3) * math.exp(-level * time)
    f = -0.5 * math.pi * math.tan(angle) - level * rate * gone / (gone + 1e-3)
    return f, math.pi * math.sin(angle) * math.cos(angle) - 2.0 * f * math.sin(angle) ** 2


# -- eigenvalues --------------------------------------------------------------------------------------------


def test_discrete_laplacian_is_that_of_the_neighbours():
    for grid, basis in ((TORUS, FourierBasis(TORUS)), (NEUMANN, CosineBasis(NEUMANN))):
        x = normal(3, *grid.shape)
        expected = torch.zeros_like(x)
        for axis, h in ((-2, grid.spacing[0]), (-1, grid.spacing[1])):
            for shift in (1, -1):
                moved = x.roll(shift, axis)
                if not all(grid.periodic):  # no flux: the neighbour beyond the edge is the site itself
                    edge = 0 if shift == 1 else grid.shape[axis] - 1
                    moved.select(axis, edge).copy_(x.select(axis, edge))
                expected = expected + (x - moved) / h**2
        found = basis.multiply(x, laplacian_eigenvalues(basis, discrete=True))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_continuous_laplacian_of_waves():
    x, y = (torch.arange(n, dtype=F64) * h for n, h in zip(TORUS.shape, TORUS.spacing, strict=True))
    wave = torch.cos(2 * math.pi * (2 * x[:, None] / 3.0 - y / 5.0))
    found = FourierBasis(TORUS).multiply(wave, laplacian_eigenvalues(FourierBasis(TORUS)))
    level = (2 * math.pi) ** 2 * ((2 / 3.0) ** 2 + (1 / 5.0) ** 2)
    torch.testing.assert_close(found, level * wave, rtol=1e-11, atol=1e-11)
    basis = CosineBasis(NEUMANN)
    u = (torch.arange(5, dtype=F64) + 0.5) / 5.0
    standing = torch.cos(3 * math.pi * u)[:, None].expand(5, 4)
    found = basis.multiply(standing, laplacian_eigenvalues(basis))
    torch.testing.assert_close(found, (3 * math.pi / 5.0) ** 2 * standing, rtol=1e-11, atol=1e-11)


def test_continuous_and_discrete_agree_for_long_waves():
    basis = FourierBasis(Grid((256,), spacing=0.1, periodic=True))
    long = laplacian_eigenvalues(basis)[:4] / laplacian_eigenvalues(basis, discrete=True)[:4].clamp(min=1e-30)
    torch.testing.assert_close(long[1:], torch.ones(3, dtype=F64), rtol=2e-3, atol=0)
    assert bool((laplacian_eigenvalues(basis, discrete=True) <= laplacian_eigenvalues(basis)).all())


def test_sphere_and_graph_eigenvalues():
    gamma = sphere()
    domain = gamma.domain
    sites = domain.coordinates() / domain.radius
    harmonic = sites[..., 0] * sites[..., 1] * sites[..., 2]  # of degree 3
    found = gamma.basis.multiply(harmonic, laplacian_eigenvalues(gamma.basis))
    torch.testing.assert_close(found, 12.0 / 4.0 * harmonic, rtol=1e-12, atol=1e-12)
    network = graph()
    x = normal(2, 5)
    laplacian = torch.diag(network.domain.degrees)
    for i, j in network.domain.edges.tolist():
        laplacian[i, j] = laplacian[j, i] = -1.0
    found = network.basis.multiply(x, laplacian_eigenvalues(network.basis))
    torch.testing.assert_close(found, x @ laplacian, rtol=1e-12, atol=1e-12)


# -- moments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_gamma", [torus, cosine], ids=lambda f: f.__name__)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_moments_of_every_mode_solve_its_equations(maker, make_gamma):
    process = maker(make_gamma())
    levels = laplacian_eigenvalues(process.basis).flatten()
    for first, last in ((0.0, 0.3), (0.3, 0.75)):
        s, t = first * process.horizon, last * process.horizon

        def moments(r, y):
            pairs = np.array([coefficients(maker, level, r) for level in levels.tolist()])
            f, rate = pairs.T
            phi, sigma = y.reshape(2, -1)
            return np.concatenate([f * phi, 2.0 * f * sigma + rate])

        start = np.concatenate([np.ones(len(levels)), np.zeros(len(levels))])
        solution = solve_ivp(moments, (s, t), start, method="DOP853", rtol=1e-12, atol=1e-14)
        phi, sigma = process.transition(s, t)
        expected_phi, expected_sigma = solution.y[:, -1].reshape(2, -1)
        assert phi.shape == sigma.shape == (*process.basis.modes, 1, 1)
        np.testing.assert_allclose(phi.flatten(), expected_phi, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(sigma.flatten(), expected_sigma, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_sde_coefficients_are_those_of_the_definition(maker):
    process = maker(torus())
    levels = laplacian_eigenvalues(process.basis)
    t = 0.4 * process.horizon
    expected = np.array([coefficients(maker, level, t) for level in levels.flatten().tolist()])
    np.testing.assert_allclose(process.drift_matrix(t).flatten(), expected[:, 0], rtol=1e-12)
    np.testing.assert_allclose(process.diffusion_matrix(t).flatten(), expected[:, 1], rtol=1e-12)
    np.testing.assert_allclose(process.noise_root(t).flatten() ** 2, expected[:, 1], rtol=1e-12)


@pytest.mark.parametrize("make_gamma", GAMMAS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_transitions_of_every_mode_compose(maker, make_gamma):
    process = maker(make_gamma())
    r, s, t = (f * process.horizon for f in (0.1, 0.35, 0.8))
    phi_rs, sigma_rs = process.transition(r, s)
    phi_st, sigma_st = process.transition(s, t)
    phi_rt, sigma_rt = process.transition(r, t)
    torch.testing.assert_close(phi_rt, phi_st @ phi_rs, rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(sigma_rt, phi_st @ sigma_rs @ phi_st.mT + sigma_st, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        process.transition(0.0, t)[0][..., 0], process.marginal(t)[0], rtol=1e-12, atol=0
    )
    torch.testing.assert_close(process.transition(0.0, t)[1], process.marginal(t)[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("make_gamma", GAMMAS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_signal_to_noise_falls_in_every_mode(maker, make_gamma):
    process = maker(make_gamma())
    t = torch.linspace(0.01, 0.99, 60, dtype=F64) * process.horizon
    information = process.information(t)
    assert information.shape == (60, *process.basis.modes)
    assert bool((information.diff(dim=0) < 0).all())
    assert bool((process.information_rate(t) < 0).all())
    assert process.log_snr(t).shape == (60,)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_information_rate_is_the_derivative(maker):
    process = maker(torus())
    t = (torch.tensor([0.2, 0.6], dtype=F64) * process.horizon).requires_grad_()
    for index in ((0, 0), (2, 1), (5, 2)):
        value = process.information(t)[:, index[0], index[1]]
        (derivative,) = torch.autograd.grad(value.sum(), t)
        found = process.information_rate(t)[:, index[0], index[1]]
        torch.testing.assert_close(found.detach(), derivative, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_posterior_is_bayes_in_every_mode(maker):
    process = maker(cosine())
    s, t = 0.3 * process.horizon, 0.7 * process.horizon
    phi, sigma = (v[..., 0, 0] for v in process.transition(s, t))
    alpha, variance = (v.reshape(process.basis.modes) for v in process.marginal(s))
    precision = 1.0 / variance + phi**2 / sigma
    gain, pull, spread = process.posterior(t, s)
    torch.testing.assert_close(spread[..., 0, 0], 1.0 / precision, rtol=1e-11, atol=0)
    torch.testing.assert_close(gain[..., 0, 0], phi / sigma / precision, rtol=1e-11, atol=0)
    torch.testing.assert_close(pull[..., 0], alpha / variance / precision, rtol=1e-11, atol=1e-14)
    gain, pull, spread = process.posterior(t, 0.0)
    assert bool((gain == 0).all())
    assert bool((pull == 1).all())
    assert bool((spread == 0).all())


@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_variance_over_short_steps_does_not_cancel(floor):
    path = HeatPath(
        CosinePath(), SineBlur(2.0), laplacian_eigenvalues(FourierBasis(TORUS)), FourierBasis(TORUS), floor
    )
    for s, step in ((0.4, 1e-9), (0.7, 1e-6), (1e-3, 1e-8)):
        t = s + step
        found = path.transition(torch.tensor(s, dtype=F64), torch.tensor(t, dtype=F64))[1].flatten()
        with mpmath.workdps(50):
            a, b = mpmath.mpf(s), mpmath.mpf(t)
            for value, level in zip(found.tolist(), path.table.flatten().tolist(), strict=True):
                kept = [
                    mpmath.cos(mpmath.pi * r / 2)
                    * (
                        (1 - mpmath.mpf(floor)) * mpmath.exp(-level * 2 * mpmath.sin(mpmath.pi * r / 2) ** 4)
                        + floor
                    )
                    for r in (a, b)
                ]
                noise = [mpmath.sin(mpmath.pi * r / 2) ** 2 for r in (a, b)]
                exact = noise[1] - (kept[1] / kept[0]) ** 2 * noise[0]
                # t - s itself is known to the rounding of t
                assert value == pytest.approx(float(exact), rel=4e-16 / step + 1e-13)


# -- limits -------------------------------------------------------------------------------------------------


def test_without_diffusion_the_scalar_process_is_left():
    gamma = torus()
    beta = LinearBeta(0.3, 4.0)
    pairs = [
        (StochasticHeat(gamma, 0.0, beta=beta), BrownianMotion(gamma, schedule=beta)),
        (StochasticHeat(gamma, 0.0, 0.5, beta=beta), OrnsteinUhlenbeck(gamma, 0.5, schedule=beta)),
        (HeatDissipation(gamma, 1e-9), Cosine(gamma)),
        (HeatDissipation(gamma, 1e-9, floor=0.0), Cosine(gamma)),
        (FrequencyVP(gamma, torch.ones_like), VP(gamma)),
        (
            FrequencyVP(gamma, [lambda v: v / v.max(), lambda v: 1 - v / v.max()], [LinearBeta()] * 2),
            VP(gamma),
        ),
    ]
    for modal, plain in pairs:
        for s, t in ((0.0, 0.5), (0.2, 0.9)):
            for found, expected in zip(modal.transition(s, t), plain.transition(s, t), strict=True):
                torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-12, atol=1e-16)
        x, white_draw = normal(2, 1, 6, 5), normal(2, 1, 6, 5, seed=1)
        for found, expected in zip(
            modal.perturb(x, 0.6, white=white_draw), plain.perturb(x, 0.6, white=white_draw), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
        u = modal.perturb(x, 0.6, white=white_draw)[0]
        for method in ("velocity", "reverse_drift"):
            found, expected = (getattr(p, method)(u, x, 0.6) for p in (modal, plain))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_blur_of_the_mean_solves_the_heat_equation():
    """With a = 1 and τ = κ t the mean is the heat flow, by the matrix exponential."""
    grid = Grid((4, 3), spacing=0.8)
    gamma = white(grid).double()
    process = HeatDissipation(gamma, ConstantBeta(0.5, 2.0), path=EDMPath(2.0), floor=0.0, discrete=True)
    eye = torch.eye(12, dtype=F64).reshape(12, 1, 4, 3)
    laplacian = CosineBasis(grid).multiply(eye, laplacian_eigenvalues(CosineBasis(grid), discrete=True))
    flow = torch.linalg.matrix_exp(-0.5 * 1.3 * laplacian.reshape(12, 12))
    x = normal(2, 1, 4, 3)
    found = process.mean(x, 1.3).reshape(2, 12)
    torch.testing.assert_close(found, x.reshape(2, 12) @ flow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.sigma(1.3), torch.full((4, 3), 1.3, dtype=F64))


def test_stationary_law_of_the_stochastic_heat_equation():
    gamma = torus()
    process = StochasticHeat(gamma, 0.4, 0.3)
    levels = laplacian_eigenvalues(process.basis)
    expected = 1.0 / (2.0 * (0.4 * levels + 0.3))
    torch.testing.assert_close(process.stationary[..., 0, 0], expected, rtol=1e-12, atol=0)
    phi, sigma = process.transition(0.2, 0.7)
    kept = phi @ process.stationary @ phi.mT + sigma
    torch.testing.assert_close(kept, process.stationary, rtol=1e-12, atol=0)
    # the default schedule leaves as little of the slowest mode as VP does
    assert float(process.marginal(process.horizon)[0].max() / expected.max() ** 0.5) < 6.6e-3
    assert StochasticHeat(gamma, 0.4).stationary is None


def test_stochastic_heat_is_the_spectral_diffusion_of_its_functions():
    """Closed forms against the matrix moments of any linear process."""
    gamma, beta = cosine(), LinearBeta(0.3, 4.0)
    closed = StochasticHeat(gamma, 0.3, 0.2, beta=beta)
    general = SpectralDiffusion(gamma, lambda v: -0.3 * v - 0.2, torch.ones_like, beta=beta)
    for found, expected in zip(closed.transition(0.2, 0.7), general.transition(0.2, 0.7), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)
    t = torch.tensor([0.2, 0.9], dtype=F64)
    torch.testing.assert_close(closed.log_snr(t), general.log_snr(t), rtol=1e-11, atol=1e-12)
    for found, expected in zip(closed.posterior(t, 0.1), general.posterior(t, 0.1), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_frequency_vp_keeps_the_law_of_gamma():
    process = frequency(torus())
    phi, sigma = process.transition(0.1, 0.4)
    kept = phi @ process.stationary @ phi.mT + sigma
    torch.testing.assert_close(kept, torch.ones_like(kept), rtol=1e-14, atol=0)
    assert heat(torus()).stationary is None


def test_one_covariance_for_each_variable():
    first, second = torus(), TorusCovariance(Matern(nu=1.5, lengthscale=0.9), TORUS).double()

    def drift(v):
        zero, one = torch.zeros_like(v), torch.ones_like(v)
        return torch.stack([torch.stack([zero, one], -1), torch.stack([-1.0 - v, -3.0 * one], -1)], -2)

    noise, initial = [[0.0, 0.0], [0.0, 2.0]], [[0.4]]
    beta = ConstantBeta(1.0, 4.0)
    process = SpectralDiffusion((first, second), drift, noise, beta=beta, initial=initial)
    # in units of the first, the second variable is larger by √(γ_2/γ_1)
    ratio = second.spatial_eigenvalues() / first.spatial_eigenvalues()
    factor = torch.zeros(6, 3, 2, 2, dtype=F64)
    factor[..., 1, 1] = 2.0 * ratio
    direct = SpectralDiffusion(
        first, drift, lambda v: factor, beta=beta, initial=0.4 * ratio[..., None, None]
    )
    for found, expected in zip(process.transition(0.2, 1.1), direct.transition(0.2, 1.1), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    for found, expected in zip(process.marginal(1.1), direct.marginal(1.1), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


# -- levels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_gamma", GAMMAS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_level_is_the_mean_over_the_modes(maker, make_gamma):
    """Modes that are alike are counted once in the library, here they are all there."""
    process = maker(make_gamma())
    t = torch.tensor([1e-3, 0.2, 0.7], dtype=F64) * process.horizon
    weights = process.basis.weights
    logs = (process.information(t).log() * weights).flatten(1).sum(1) / weights.sum()
    torch.testing.assert_close(process.log_snr(t), logs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_level_and_time_are_inverse(maker):
    process = maker(torus())
    t = torch.logspace(-5, -0.01, 25, dtype=F64) * process.horizon
    torch.testing.assert_close(process.time_of_log_snr(process.log_snr(t)), t, rtol=1e-8, atol=0)
    low = torch.tensor([-1e6], dtype=F64)
    assert process.time_of_log_snr(low).item() == process.horizon


@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_time_of_a_level_is_differentiable(maker):
    process = maker(torus())
    level = process.log_snr(torch.tensor([0.2, 0.6], dtype=F64) * process.horizon).detach().requires_grad_()
    t = process.time_of_log_snr(level)
    (slope,) = torch.autograd.grad(t.sum(), level)
    at = t.detach().requires_grad_()
    (inverse,) = torch.autograd.grad(process.log_snr(at).sum(), at)
    torch.testing.assert_close(slope, 1.0 / inverse, rtol=1e-8, atol=0)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_rates_are_derivatives_and_the_integral_a_quadrature(maker):
    process = maker(torus())
    path = process.schedule
    t = (torch.tensor([0.15, 0.5], dtype=F64) * process.horizon).requires_grad_()
    for value, rate in ((path.alpha, path.alpha_rate), (lambda t: path.variance(t).sqrt(), path.sigma_rate)):
        for index in ((0, 0), (1, 2), (3, 2)):
            (derivative,) = torch.autograd.grad(value(t)[:, index[0], index[1]].sum(), t, allow_unused=True)
            expected = torch.zeros_like(t) if derivative is None else derivative
            found = rate(t)[:, index[0], index[1]].detach()
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    end = 0.8 * process.horizon
    found = path.integral(torch.tensor(end, dtype=F64))
    levels = laplacian_eigenvalues(process.basis)
    for index in ((0, 0), (1, 1), (3, 2)):
        level = levels[index].item()
        exact, _ = quad(lambda r, v=level: coefficients(maker, v, r)[1], 0.0, end, epsrel=1e-11, limit=400)
        assert found[index].item() == pytest.approx(exact, rel=1e-9)


# -- fields -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_gamma", GAMMAS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("maker", [heat, frequency, stochastic_heat], ids=lambda f: f.__name__)
def test_draws_have_the_covariance_of_every_mode(maker, make_gamma):
    gamma = make_gamma()
    process = maker(gamma)
    t = 0.6 * process.horizon
    count = 20_000
    shape = gamma.domain.shape
    sites = math.prod(shape)
    x = normal(1, 1, *shape, seed=4)
    u, noise = process.perturb(x.expand(count, 1, *shape), t, generator=generator(1))
    assert u.shape == noise.shape == (count, 1, *shape)
    phi, sigma = process.marginal(t)
    mean = process.basis.multiply(x, phi[..., 0])
    # Cov = S Γ Sᵀ with the operator S of the standard deviations, a dense matrix here
    eye = torch.eye(sites, dtype=F64).reshape(sites, *shape)
    root = process.basis.multiply(eye, sigma[..., 0, 0].sqrt()).reshape(sites, sites).mT
    exact = root @ gamma.to_dense() @ root.mT
    centred = (u - mean).reshape(count, sites)
    estimate = centred.mT @ centred / count
    diagonal = exact.diagonal()
    error = ((diagonal[:, None] * diagonal + exact**2) / count).sqrt()
    assert float(((estimate - exact).abs() / error).max()) < 5.5


@pytest.mark.parametrize("maker", [heat, frequency, stochastic_heat], ids=lambda f: f.__name__)
def test_exact_paths_have_the_moments_of_the_process(maker):
    gamma = torus()
    process = maker(gamma)
    times = [0.2 * process.horizon, 0.7 * process.horizon]
    count = 20_000
    paths = process.simulate(torch.zeros(count, 1, 6, 5, dtype=F64), times, generator=generator(2))
    first, second = (process.basis.analyze(paths[i, :, 0]) for i in (0, 1))
    gamma_k = gamma.spatial_eigenvalues()
    early, late = (process.marginal(t)[1][..., 0, 0] * gamma_k for t in times)
    phi = process.transition(*times)[0][..., 0, 0]
    cross = (first.conj() * second).real.mean(0)
    # Var of (conj(a) b).real of complex Gaussians: at most (E|a|² E|b|² + cross²)
    error = ((early * late + (phi * early) ** 2) / count).sqrt()
    assert float(((cross - phi * early).abs() / error).max()) < 5.0
    assert float(((second.abs().square().mean(0) - late).abs() / (late * math.sqrt(2 / count))).max()) < 5.0


@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_flow_and_reverse_sde_keep_the_marginals_of_gaussian_data(maker):
    """Per mode: data N(0, ρ Γ) give P = ρα² + σ²; the flow moves it by dP/dt, so does the SDE."""
    gamma = torus()
    process = maker(gamma)
    rho = 0.3 + laplacian_eigenvalues(process.basis) / 40.0
    t = torch.tensor(0.5 * process.horizon, dtype=F64, requires_grad=True)

    def power(r):
        phi, sigma = process.marginal(r)
        return rho * phi[..., 0] ** 2 + sigma[..., 0, 0]

    p = power(t).detach()
    rates = torch.stack([torch.autograd.grad(power(t)[i, j], t)[0] for i in range(6) for j in range(3)])
    with torch.no_grad():
        at = t.detach()
        u = normal(2, 1, 6, 5)
        phi = process.marginal(at)[0][..., 0]
        data = process.basis.multiply(u, rho * phi / p)
        flow = process.basis.multiply(u, 0.5 * rates.reshape(6, 3) / p)
        torch.testing.assert_close(process.velocity(u, data, at), flow, rtol=1e-8, atol=1e-9)
        g = process.diffusion_matrix(at)[..., 0, 0]
        backward = process.basis.multiply(u, -0.5 * (rates.reshape(6, 3) + g) / p)
        torch.testing.assert_close(process.reverse_drift(u, data, at), backward, rtol=1e-8, atol=1e-8)


# -- K variables --------------------------------------------------------------------------------------------


def wave(gamma):
    """The damped wave equation driven by coloured noise: u'' = Δu - u - 3 u' + noise."""

    def drift(v):
        zero, one = torch.zeros_like(v), torch.ones_like(v)
        rows = [torch.stack([zero, one], -1), torch.stack([-(1.0 + v), -3.0 * one], -1)]
        return torch.stack(rows, -2)

    return SpectralDiffusion(gamma, drift, [[0.0, 0.0], [0.0, 2.0]], beta=ConstantBeta(1.0, 4.0))


@pytest.mark.parametrize("make_gamma", [torus, graph, sphere], ids=lambda f: f.__name__)
def test_two_variables_per_mode(make_gamma):
    process = wave(make_gamma())
    assert process.variables == 2
    assert process.basis == make_gamma().basis
    levels = laplacian_eigenvalues(process.basis)
    phi, sigma = process.transition(0.5, 1.7)
    for index in ((0,) * levels.ndim, tuple(n - 1 for n in levels.shape)):
        A = np.array([[0.0, 1.0], [-(1.0 + levels[index].item()), -3.0]])
        G = np.diag([0.0, 2.0])

        def moments(r, y, A=A, G=G):
            keep, spread = y.reshape(2, 2, 2)
            return np.stack([A @ keep, A @ spread + spread @ A.T + G]).ravel()

        start = np.stack([np.eye(2), np.zeros((2, 2))]).ravel()
        solution = solve_ivp(moments, (0.0, 1.2), start, method="DOP853", rtol=1e-12, atol=1e-14)
        keep, spread = solution.y[:, -1].reshape(2, 2, 2)
        np.testing.assert_allclose(phi[index], keep, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(sigma[index], spread, rtol=1e-8, atol=1e-11)
    # stationary: equipartition, variance 1/(3(1+λ)) of the field and 1/3 of its rate
    expected = torch.zeros(*levels.shape, 2, 2, dtype=F64)
    expected[..., 0, 0], expected[..., 1, 1] = 1.0 / (3.0 * (1.0 + levels)), 1.0 / 3.0
    torch.testing.assert_close(process.stationary, expected, rtol=1e-10, atol=1e-12)


def test_two_variables_perturb_and_step():
    process = wave(torus())
    x = normal(3, 1, 6, 5)
    u, noise = process.perturb(x, 1.0, generator=generator(5))
    assert u.shape == noise.shape == (3, 2, 6, 5)
    y = process.reduce(u, 1.0)
    rebuilt = process.scale(process.alpha(1.0), x) + process.scale(
        process.sigma(1.0), process.reduce_noise(noise, 1.0)
    )
    torch.testing.assert_close(y, rebuilt, rtol=1e-9, atol=1e-10)


# -- the module ---------------------------------------------------------------------------------------------


def test_learned_schedules_register_and_get_gradients():
    process = FrequencyVP(
        torus(), [torch.ones_like, lambda v: v / (1 + v)], [LearnedBeta(4.0), LearnedBeta(2.0)]
    )
    assert len(list(process.schedule.parameters())) == 8
    assert len(process.learned_parameters()) == 8
    loss = process.log_snr(torch.tensor([0.3, 0.8], dtype=F64)).sum()
    loss.backward()
    assert all(bool((p.grad != 0).any()) for p in process.learned_parameters())
    time = process.time_of_log_snr(torch.tensor([0.5], dtype=F64))
    assert torch.autograd.grad(time.sum(), process.learned_parameters()[0])[0].item() != 0.0


@pytest.mark.parametrize("maker", [*MAKERS, wave], ids=lambda f: f.__name__)
def test_copies_and_pickles_are_the_same_process(maker):
    process = maker(sphere())
    level = process.log_snr(0.3)
    time = process.time_of_log_snr(level)
    for twin in (copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
        torch.testing.assert_close(twin.marginal(0.3), process.marginal(0.3), rtol=0, atol=0)
        torch.testing.assert_close(twin.time_of_log_snr(level), time, rtol=1e-12, atol=0)
        assert twin.basis == process.basis
        assert twin.basis == twin.covariance.basis


def test_casts_keep_coefficients_in_double():
    for maker in MAKERS:
        process = maker(torus()).float()
        assert process.alpha(0.3).dtype == F64
        exact = maker(torus()).alpha(0.3)
        torch.testing.assert_close(process.alpha(0.3), exact, rtol=0, atol=0)
        u, _ = process.perturb(torch.zeros(1, 1, 6, 5), 0.3)
        assert u.dtype == torch.float32


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda g: StochasticHeat(g, 0.1),
        lambda g: HeatDissipation(g, 1.0),
        lambda g: FrequencyVP(g, torch.ones_like),
    ],
)
def test_a_covariance_without_a_fast_basis_is_refused(make):
    with pytest.raises(ValueError, match="diagonal in no fast basis"):
        make(dense_gamma())
    with pytest.raises(ValueError, match="from_spectrum"):
        make(white(Sphere((6, 12), poles=False)))
    degrees = torch.ones(9, dtype=F64)
    with pytest.raises(ValueError, match="diagonal in no fast basis"):
        make(HarmonicCovariance(degrees, Sphere((6, 12), poles=False)))


def test_one_covariance_for_each_variable_is_not_for_spectral_processes():
    gamma = white(Grid((4, 4)))
    with pytest.raises(TypeError, match="StochasticHeat needs one Covariance, got list"):
        StochasticHeat([gamma, gamma], 1.0)


def test_a_basis_that_is_not_that_of_gamma_is_refused():
    with pytest.raises(ValueError, match="diagonal in"):
        StochasticHeat(torus(), 0.1, basis=CosineBasis(TORUS))
    with pytest.raises(ValueError, match="not diagonal in"):
        StochasticHeat(white(sphere().domain), 0.1, basis=sphere().basis)
    other = StochasticHeat(white(TORUS).double(), 0.1, basis=CosineBasis(TORUS))
    assert isinstance(other.basis, CosineBasis)
    assert isinstance(StochasticHeat(white(TORUS), 0.1).basis, FourierBasis)
    assert isinstance(StochasticHeat(white(graph().domain), 0.1).basis, GraphBasis)


def test_functions_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="drift gave shape"):
        SpectralDiffusion(torus(), lambda v: v[:2], 1.0)
    with pytest.raises(ValueError, match="unstable"):
        SpectralDiffusion(torus(), lambda v: v - 1.0, 1.0)
    with pytest.raises(ValueError, match="semi-definite"):
        SpectralDiffusion(torus(), lambda v: -v, lambda v: v - 1.0)
    with pytest.raises(ValueError, match="discrete"):
        laplacian_eigenvalues(sphere().basis, discrete=True)
    with pytest.raises(ValueError, match="not those of a Laplacian"):
        laplacian_eigenvalues(SiteBasis(TORUS))


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="diffusivity was"):
        StochasticHeat(torus(), -1.0)
    with pytest.raises(ValueError, match="damping was"):
        StochasticHeat(torus(), 1.0, math.nan)
    with pytest.raises(ValueError, match="floor="):
        HeatDissipation(torus(), 1.0, floor=1.0)
    with pytest.raises(ValueError, match="width was"):
        HeatDissipation(torus(), 0.0)
    with pytest.raises(ValueError, match="horizon"):
        HeatDissipation(torus(), ConstantBeta(1.0, 2.0))
    with pytest.raises(ValueError, match="already"):
        HeatPath(heat(torus()).schedule, SineBlur(1.0), torch.zeros(6, 3, dtype=F64), FourierBasis(TORUS))
    with pytest.raises(ValueError, match="negative"):
        FrequencyVP(torus(), lambda v: 1.0 - v)
    with pytest.raises(ValueError, match="weight 0"):
        FrequencyVP(torus(), lambda v: v)
    with pytest.raises(ValueError, match="1 weights for 2"):
        FrequencyVP(torus(), torch.ones_like, [LinearBeta(), LinearBeta()])
    with pytest.raises(ValueError, match="different horizons"):
        FrequencyVP(torus(), [torch.ones_like] * 2, [LinearBeta(), ConstantBeta(1.0, 2.0)])
    with pytest.raises(ValueError, match="weights have shape"):
        FrequencyPath([LinearBeta()], torch.ones(6, 3, dtype=F64), FourierBasis(TORUS))
