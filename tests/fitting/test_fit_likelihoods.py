"""Likelihoods against torch.distributions and brute-force linear algebra."""

from __future__ import annotations

import itertools
import math

import gpytorch
import pytest
import torch

from spatialdiff.covariance import DenseCovariance, TorusCovariance
from spatialdiff.domains import Grid
from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.spectra import (
    axis_tapers,
    cosine_taper,
    expected_weights,
    outer,
    periodogram,
    spectral_density,
)
from spatialdiff.fitting.likelihoods.whittle import SpectralLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget

GRIDS = [
    Grid((7,), spacing=0.5),
    Grid((5, 6), spacing=(1.0, 0.7)),
    Grid((6, 5), periodic=(True, False)),
    Grid((6, 8), periodic=True),
]


def kernel():
    return Matern(nu=1.5, lengthscale=1.7, variance=1.3) + Nugget(0.2)


def fields(grid, number=4, channels=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    lead = (number,) if channels is None else (number, channels)
    return DenseCovariance(kernel(), grid).double().sample(lead, generator=g).detach() + 0.4


def dense(grid, k=None):
    return DenseCovariance(k or kernel(), grid).to_dense()


def normal(grid, mean, k=None):
    return torch.distributions.MultivariateNormal(
        torch.full((grid.size,), float(mean), dtype=torch.float64), dense(grid, k).detach()
    )


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("number", "channels"), [(3, None), (90, None), (4, 2)])
def test_dense_likelihood_is_the_multivariate_normal(grid, number, channels):
    x = fields(grid, number, channels)
    model = KernelParameters(kernel())
    value = DenseLikelihood(model, observe(x, grid, None))(model.start())
    expected = normal(grid, 0.0).log_prob(x.flatten(-grid.ndim)).sum()
    torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_constant_mean_is_profiled_by_generalised_least_squares(grid):
    x = fields(grid, 3)
    model = KernelParameters(kernel())
    likelihood = DenseLikelihood(model, observe(x, grid, "constant"))
    covariance = dense(grid).detach()
    ones = torch.ones(grid.size, dtype=torch.float64)
    weights = torch.linalg.solve(covariance, ones)
    best = weights @ x.flatten(1).mean(0) / weights.sum()
    torch.testing.assert_close(likelihood.data.mean_field(likelihood.coefficients(model.start())), best)
    expected = normal(grid, best).log_prob(x.flatten(1)).sum()
    torch.testing.assert_close(likelihood(model.start()).detach(), expected.detach(), rtol=1e-10, atol=1e-8)


def test_mean_per_site_gives_the_restricted_likelihood_of_the_contrasts():
    grid = Grid((4, 3))
    x = fields(grid, 5)
    model = KernelParameters(kernel())
    value = DenseLikelihood(model, observe(x, grid, "field"))(model.start())
    helmert = torch.linalg.qr(torch.cat((torch.ones(5, 1), torch.eye(5)[:, :4]), 1).double())[0][:, 1:]
    contrasts = helmert.T @ x.flatten(1)
    expected = normal(grid, 0.0).log_prob(contrasts).sum()
    torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("mean", [None, "constant", "field"])
def test_torus_likelihood_is_the_dense_one(mean):
    grid = Grid((6, 8), spacing=(1.0, 0.5), periodic=True)
    x = fields(grid, 4, 2)
    model = KernelParameters(kernel())
    data = observe(x, grid, mean)
    torus = SpectralLikelihood(model, data, exact=True)(model.start())
    torch.testing.assert_close(torus, DenseLikelihood(model, data)(model.start()), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("density", ["expected", "lattice"])
def test_whittle_on_a_torus_is_exact(density):
    grid = Grid((6, 9), periodic=True)
    data = observe(fields(grid), grid, None)
    model = KernelParameters(kernel())
    whittle = SpectralLikelihood(model, data, density=density)(model.start())
    torch.testing.assert_close(whittle, SpectralLikelihood(model, data, exact=True)(model.start()))
    covariance = TorusCovariance(kernel(), grid).double()
    torch.testing.assert_close(whittle.detach(), covariance.log_prob(data.values[:, 0]).sum().detach())


@pytest.mark.parametrize("taper", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_expected_periodogram_is_the_brute_force_expectation(grid, taper):
    """E|Σ g x e^{-iωs}|²/Σg² = w* Γ w, with the taper and Fourier vector w, for every frequency."""
    model = KernelParameters(kernel())
    table = lambda lags: model.covariance(model.start(), grid, lags)  # noqa: E731
    density = spectral_density(table, expected_weights(grid, taper)).detach()
    window = outer(axis_tapers(grid, taper))
    basis = torch.eye(grid.size, dtype=torch.float64).reshape(grid.size, *grid.shape)
    axes = tuple(range(1, grid.ndim + 1))
    transform = torch.fft.fftn(basis * window, dim=axes).reshape(grid.size, grid.size).T
    expected = (transform @ dense(grid).detach().to(transform.dtype) * transform.conj()).sum(1).real
    expected = expected / window.square().sum()
    torch.testing.assert_close(density.reshape(-1), expected, rtol=1e-9, atol=1e-9)


def test_lattice_density_is_the_transform_of_the_covariance_at_all_lags():
    grid = Grid((5, 4), spacing=(1.0, 1.5))
    k = Exponential(lengthscale=1.3, variance=2.0)
    model = KernelParameters(k)
    density = SpectralLikelihood(model, observe(fields(grid), grid, None), density="lattice").density_at(
        model.start()
    )
    lags = torch.tensor(list(itertools.product(range(-45, 46), range(-31, 32))), dtype=torch.float64)
    values = 2.0 * torch.exp(-(lags * torch.tensor([1.0, 1.5])).norm(dim=1) / 1.3)
    for i, j in itertools.product(range(5), range(4)):
        phase = 2.0 * math.pi * (lags[:, 0] * i / 5 + lags[:, 1] * j / 4)
        torch.testing.assert_close(density[i, j].detach(), (values * phase.cos()).sum(), rtol=1e-7, atol=1e-7)


def test_lattice_density_is_the_folded_spectral_density():
    grid = Grid((8,), spacing=0.5)
    k = Gaussian(lengthscale=0.8, variance=1.5)
    model = KernelParameters(k + Nugget(0.1))
    density = SpectralLikelihood(model, observe(fields(grid), grid, None), density="lattice").density_at(
        model.start()
    )
    omega = (
        2.0 * math.pi * (torch.fft.fftfreq(8, 0.5, dtype=torch.float64)[:, None] + torch.arange(-6, 7) / 0.5)
    )
    folded = k.spectral_density(omega[..., None]).sum(1) / 0.5 + 0.1
    torch.testing.assert_close(density.detach(), folded.detach(), rtol=1e-9, atol=1e-9)


def test_periodogram_of_white_noise_is_flat_whatever_the_taper():
    grid = Grid((16, 16))
    x = torch.randn(4000, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for taper in (0.0, 0.5):
        mean = periodogram(x, grid, taper).mean(0)
        # each ordinate is at most twice as variable as a χ²₂/2: 5 standard errors, maximum over 256
        assert float((mean - 1.0).abs().max()) < 5.5 * math.sqrt(2.0 / 4000)


def test_cosine_taper_is_symmetric_and_one_inside():
    g = cosine_taper(20, 0.4)
    torch.testing.assert_close(g, g.flip(0))
    assert bool((g[4:16] == 1.0).all())
    assert 0.0 < float(g[0]) < float(g[3]) < 1.0
    assert bool((cosine_taper(5, 0.0) == 1.0).all())
    with pytest.raises(ValueError, match="between 0 and 1"):
        cosine_taper(5, 1.5)


def likelihoods():
    open_grid, torus = Grid((5, 6)), Grid((6, 6), periodic=True)
    for k in (
        kernel(),
        Exponential(lengthscale=[1.0, 2.0]) * Gaussian(3.0) + Nugget(0.3),
        gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(2.5)) + Nugget(0.1),
    ):
        for grid, mean in ((open_grid, "constant"), (torus, None)):
            data = observe(fields(grid), grid, mean)
            model = KernelParameters(k)
            yield DenseLikelihood(model, data)
            yield SpectralLikelihood(model, data, exact=grid is torus)


@pytest.mark.parametrize("likelihood", list(likelihoods()), ids=lambda f: type(f).__name__)
def test_gradients_and_hessians(likelihood):
    theta = likelihood.model.start().requires_grad_()
    assert torch.autograd.gradcheck(likelihood, theta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("maker", [lambda m, d: DenseLikelihood(m, d), lambda m, d: SpectralLikelihood(m, d)])
def test_observed_information_is_the_autograd_hessian(maker):
    from spatialdiff.fitting.optimise import Objective, observed_information

    grid = Grid((5, 6))
    likelihood = maker(KernelParameters(kernel()), observe(fields(grid), grid, "constant"))
    theta = likelihood.model.start()
    objective = Objective(likelihood)
    information = observed_information(objective, theta, objective.gradient(theta)[1])
    if isinstance(likelihood, DenseLikelihood):
        ones = torch.ones(grid.size, dtype=torch.float64)
        second = fields(grid).flatten(1)

        def reference(t):
            law = likelihood.covariance(t)
            weights = torch.linalg.solve(law, ones)
            mean = (weights @ second.mean(0) / weights.sum()).expand(grid.size)
            return torch.distributions.MultivariateNormal(mean, law).log_prob(second).sum()
    else:
        reference = likelihood
    hessian = torch.autograd.functional.hessian(reference, theta)
    torch.testing.assert_close(information, -hessian, rtol=1e-6, atol=1e-6)


def test_score_covariance_is_the_trace_formula():
    """2 tr(A_i Γ A_j Γ) by dense matrices; Hutchinson's estimate from 32 probes within 5 of its standard
    errors."""
    grid = Grid((9, 10))
    model = KernelParameters(kernel())
    likelihood = SpectralLikelihood(model, observe(fields(grid, 3), grid, None), taper=0.3)
    theta = model.start()
    slopes = torch.autograd.functional.jacobian(likelihood.density_at, theta).movedim(-1, 0)
    density = likelihood.density_at(theta).detach()
    window = outer(axis_tapers(grid, 0.3))
    transform = (
        torch.fft.fftn(torch.eye(90, dtype=torch.float64).reshape(90, 9, 10) * window, dim=(1, 2))
        .reshape(90, 90)
        .T
    )
    covariance = dense(grid).detach()
    forms = [
        (
            transform.conj().T
            @ torch.diag((s / (2 * density**2)).reshape(-1).to(transform.dtype))
            @ transform
        ).real
        / window.square().sum()
        for s in slopes
    ]
    products = [form @ covariance for form in forms]
    exact = torch.stack([torch.stack([6.0 * (p * q.T).sum() for q in products]) for p in products])
    estimate = likelihood.score_covariance(theta)
    for i in range(3):
        m = products[i] @ products[i]
        symmetric = (m + m.T) / 2
        error = 6.0 * math.sqrt(
            2.0 * float(symmetric.square().sum() - symmetric.diagonal().square().sum()) / 32
        )
        assert abs(float(estimate[i, i] - exact[i, i])) < 5.0 * error
        # and the estimator is sharp enough for a standard error: within 25 %
        assert abs(float(estimate[i, i] / exact[i, i]) - 1.0) < 0.5


def test_singular_covariances_are_reported_not_repaired():
    grid = Grid((8, 8))
    model = KernelParameters(Gaussian(lengthscale=20.0))
    data = observe(fields(grid), grid, None)
    with pytest.raises(NotPositiveDefiniteError):
        DenseLikelihood(model, data)(model.start())
    with pytest.raises(NotPositiveDefiniteError):
        SpectralLikelihood(model, data, density="lattice")(model.start())
