"""Whittle's likelihood with missing cells: against the exact likelihood of the cells that were observed."""

from __future__ import annotations

import math

import pytest
import torch

from spatialdiff.covariance import DenseCovariance, covariance
from spatialdiff.domains import Grid, Points
from spatialdiff.fitting.diagnostics import log_covariance
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.imputation import ImputedWhittle
from spatialdiff.fitting.likelihoods.operators import density_jacobian
from spatialdiff.fitting.likelihoods.whittle import SpectralLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.optimise import maximise
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kernel():
    return Matern(nu=1.5, lengthscale=2.0, variance=1.3) + Nugget(0.2)


def scattered(shape, share=0.25, periodic=False):
    return Grid(shape, periodic=periodic).masked(torch.rand(shape, generator=generator(1)) >= share)


def coast(side):
    """Sea with a ragged coast, an island and gaps of clouds, like a map of sea-surface temperature."""
    y, x = torch.meshgrid(*(torch.arange(side) / side for _ in range(2)), indexing="ij")
    land = x + 0.12 * torch.sin(9.0 * y) + 0.05 * torch.sin(31.0 * y) < 0.25
    land |= (x - 0.7).square() + 2.0 * (y - 0.4).square() < 0.012
    cloud = torch.rand(side, side, generator=generator(2)) < 0.1
    return Grid((side, side)).masked(~(land | cloud))


def draw(k, domain, shape, seed=0):
    return DenseCovariance(k, domain).double().sample(shape, generator=generator(seed)).detach() + 0.4


def value_and_slope(likelihood, theta):
    point = theta.clone().requires_grad_()
    value = likelihood(point)
    return float(value.detach()), torch.autograd.grad(value, point)[0]


@pytest.mark.parametrize("mean", [None, "constant", "linear", "field"])
def test_masked_torus_is_exact(mean):
    domain = scattered((9, 10), periodic=True)
    model = KernelParameters(kernel())
    data = observe(draw(kernel(), domain, (3, 2)), domain, mean)
    imputed, exact = ImputedWhittle(model, data), DenseLikelihood(model, data)
    for theta in (model.start(), model.start() - 0.2):
        value, slope = value_and_slope(exact, theta)
        found, gradient = value_and_slope(imputed, theta)
        assert found == pytest.approx(value, abs=1e-7)
        torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-6)
    if mean in ("constant", "linear"):
        torch.testing.assert_close(imputed.coefficients(theta), exact.coefficients(theta))
    torch.testing.assert_close(
        torch.tensor(imputed.mean_variance(theta)),
        torch.tensor(exact.mean_variance(theta)),
        rtol=1e-8,
        atol=0.0,
    )


def test_complete_torus_is_whittle_itself():
    grid = Grid((8, 9), periodic=True)
    model = KernelParameters(kernel())
    data = observe(draw(kernel(), grid, (2,)), grid, None)
    value, slope = value_and_slope(SpectralLikelihood(model, data, density="lattice"), model.start())
    found, gradient = value_and_slope(ImputedWhittle(model, data), model.start())
    assert found == pytest.approx(value, abs=1e-8)
    torch.testing.assert_close(gradient, slope, rtol=1e-7, atol=1e-7)


def test_near_the_exact_likelihood_of_an_open_grid_and_nearer_with_more_padding():
    domain = scattered((16, 14))
    model = KernelParameters(kernel())
    data = observe(draw(kernel(), domain, (2,)), domain, "constant")
    theta = model.start()
    value, slope = value_and_slope(DenseLikelihood(model, data), theta)
    errors, correlations = [], []
    for padding in (0.0, 0.5, 1.0):
        imputed = ImputedWhittle(model, data, padding=padding)
        found, gradient = value_and_slope(imputed, theta)
        errors.append(abs(found - value) + float((gradient - slope).abs().max()))
        correlations.append(imputed.periodic_error(theta))
    # eight cells of padding are four length scales
    assert errors[0] > 10.0 > 0.5 > errors[1] > errors[2]
    assert correlations[0] > 0.5 > 0.05 > correlations[1] > correlations[2]
    assert errors[2] < 1e-2


def test_each_field_may_miss_cells_of_its_own():
    x = draw(kernel(), Grid((8, 9), periodic=True), (3, 2))
    x[torch.rand(x.shape, generator=generator(5)) < 0.2] = math.nan
    data = observe(x, Grid((8, 9), periodic=True), "constant", missing="omit")
    model = KernelParameters(kernel())
    value, slope = value_and_slope(DenseLikelihood(model, data), model.start())
    found, gradient = value_and_slope(ImputedWhittle(model, data), model.start())
    assert found == pytest.approx(value, abs=1e-7)
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", [0.2, 1.0])
def test_random_determinant_agrees_with_the_exact_one(padding):
    domain = coast(20)
    model = KernelParameters(kernel())
    data = observe(draw(kernel(), domain, (2,)), domain, "constant")
    theta = model.start() + 0.1
    exact = ImputedWhittle(model, data, padding=padding)
    random = ImputedWhittle(model, data, padding=padding, exact_sites=0, imputations=32)
    value, slope = value_and_slope(exact, theta)
    found, gradient = value_and_slope(random, theta)
    assert exact.standard_error(theta) == 0.0 < random.standard_error(theta)
    assert abs(found - value) < 4.5 * random.standard_error(theta)
    assert bool(((gradient - slope).abs() < 4.5 * random.gradient_standard_error(theta) + 1e-6).all())
    torch.testing.assert_close(random.coefficients(theta), exact.coefficients(theta), rtol=1e-6, atol=1e-8)
    # 16 probes of 270 cells: an entry of V to some percent
    torch.testing.assert_close(
        random.score_covariance(theta), exact.score_covariance(theta), rtol=0.15, atol=10.0
    )


def test_gradient_is_the_score_of_whittle_averaged_over_imputations():
    domain = coast(16)
    model = KernelParameters(kernel())
    data = observe(draw(kernel(), domain, (2,)), domain, None)
    likelihood = ImputedWhittle(model, data, padding=0.3)
    theta = model.start()
    _, gradient = value_and_slope(likelihood, theta)
    number = 300
    fields = likelihood.impute(theta, number, generator())
    size = math.prod(likelihood.torus.shape)
    power = (torch.fft.fftn(fields, dim=(-2, -1)).abs().square() / size).sum((1, 2))
    point = theta.clone().requires_grad_()
    density = likelihood.density_at(point)
    # the complete-data score is linear in the power: one backward pass for each parameter's form
    jacobian = likelihood.jacobian(theta)
    weights = (0.5 * jacobian / density.detach().square()).flatten(1)
    scores = (power - 2.0 * density.detach()).flatten(1) @ weights.T
    error = scores.std(0) / math.sqrt(number)
    assert bool(((scores.mean(0) - gradient).abs() < 4.5 * error).all())
    # and the error is small enough to tell it from the score without the missing cells
    assert bool((error < 4.0).all())


def test_imputations_are_the_conditional_law():
    domain = scattered((6, 5), 0.4)
    model = KernelParameters(kernel())
    x = draw(kernel(), domain, (1,))
    data = observe(x, domain, None)
    likelihood = ImputedWhittle(model, data, padding=2.0)
    number = 4000
    corner = likelihood.impute(model.start(), number, generator())[:, 0, 0, :6, :5]
    observed, hidden = domain.valid, ~domain.valid
    torch.testing.assert_close(corner[:, observed], x[0][observed].expand(number, -1), rtol=1e-6, atol=1e-6)
    gamma = DenseCovariance(kernel(), Grid((6, 5))).to_dense().detach()
    o, h = observed.reshape(-1), hidden.reshape(-1)
    gain = torch.linalg.solve(gamma[o][:, o], gamma[o][:, h]).T
    mean = gain @ x[0][observed]
    law = gamma[h][:, h] - gain @ gamma[o][:, h]
    draws = corner[:, hidden]
    errors = (law.diagonal() / number).sqrt()
    assert float(((draws.mean(0) - mean) / errors).abs().max()) < 4.5
    products = (law.diagonal()[:, None] * law.diagonal() + law.square()) / number
    assert float(((torch.cov(draws.T) - law).abs() / products.sqrt()).max()) < 5.0


def test_score_covariance_is_the_variance_of_scores_of_fields_on_the_open_grid():
    """Without padding the periodic field is wrong, and so is its information; V is not."""
    domain = scattered((8, 7))
    model = KernelParameters(Exponential(lengthscale=3.0, variance=1.0) + Nugget(0.3))
    theta = model.start()
    x = draw(model.kernel, domain, (4000,)) - 0.4
    likelihood = ImputedWhittle(model, observe(x[0], domain, None), padding=0.0)
    covariance = likelihood._dense.covariance(theta).detach()
    slopes = density_jacobian(model, likelihood._dense.covariance, theta)
    y = torch.linalg.solve(covariance, domain.flatten(x).T).T
    scores = 0.5 * torch.einsum("na,iab,nb->ni", y, slopes, y)
    constant = 0.5 * torch.linalg.solve(covariance, slopes).diagonal(dim1=-2, dim2=-1).sum(-1)
    _, gradient = value_and_slope(likelihood, theta)
    torch.testing.assert_close(gradient, scores[0] - constant, rtol=1e-5, atol=1e-5)
    expected = likelihood.score_covariance(theta)
    spread = expected.diagonal().sqrt()
    # of a quadratic form in 40 values the kurtosis is below 15, that of a square
    difference = (torch.cov(scores.T) - expected) / (spread[:, None] * spread)
    assert float(difference.abs().max()) < 4.5 * math.sqrt(14.0 / 4000)
    information = ImputedWhittle(model, likelihood.data, padding=6.0).score_covariance(theta)
    assert float((expected / information - 1.0).diagonal().abs().max()) > 0.3


@pytest.mark.parametrize("where", ["coast", "half"])
def test_parameters_of_a_masked_grid_are_recovered_and_zeros_fail(where):
    side, number = 28, 4
    truth = Matern(nu=0.5, lengthscale=3.0, variance=1.5)
    grid = Grid((side, side))
    if where == "coast":
        domain = coast(side)
    else:
        mask = torch.ones(side, side, dtype=torch.bool)
        mask[4:24, 3:23] = False
        domain = grid.masked(mask)
    x = (
        covariance(truth, grid, method="circulant")
        .double()
        .sample((number,), generator=generator(4))
        .detach()
    )
    model = KernelParameters(Matern(nu=0.5, lengthscale=4.0, variance=1.0))
    expected = KernelParameters(truth).start()
    data = observe(torch.where(domain.valid, x, math.nan), grid, "constant", missing="omit")
    likelihood = ImputedWhittle(model, data, imputations=4)
    assert likelihood.data.domain == domain
    found = maximise(likelihood, [model.start()])
    assert found.converged
    errors = log_covariance(found, likelihood).diagonal().sqrt()
    assert bool(((found.theta - expected).abs() < 4.0 * errors).all())
    assert float(errors.max()) < 0.35
    # what the imputation is there for: cells set to the mean
    naive = SpectralLikelihood(model, observe(torch.where(domain.valid, x, 0.0), grid, None))
    zeros = maximise(naive, [model.start()])
    # one large hole has few edges for its size, and hurts less
    assert float(((zeros.theta - expected).abs() / errors).max()) > (5.0 if where == "coast" else 2.0)


def test_what_it_does_not_take_is_refused():
    domain = scattered((5, 6))
    data = observe(draw(kernel(), domain, ()), domain, None)
    model = KernelParameters(kernel())
    with pytest.raises(ValueError, match="complete grids"):
        ImputedWhittle(model, data, taper=0.2)
    with pytest.raises(ValueError, match="padding"):
        ImputedWhittle(model, data, padding=-0.1)
    points = Points(torch.rand(20, 2, generator=generator(), dtype=torch.float64))
    with pytest.raises(ValueError, match="regular grid"):
        ImputedWhittle(model, observe(torch.randn(20).double(), points, None))
    with pytest.raises(ValueError, match="at least 2"):
        ImputedWhittle(model, data, imputations=1)


def test_other_kernels_and_one_axis():
    domain = Grid((60,), spacing=0.5).masked(torch.rand(60, generator=generator(3)) > 0.3)
    for k in (Gaussian(lengthscale=1.0) + Nugget(0.1), Exponential(lengthscale=1.0)):
        model = KernelParameters(k)
        data = observe(draw(k, domain, (2,)), domain, "constant")
        value, _ = value_and_slope(DenseLikelihood(model, data), model.start())
        found, _ = value_and_slope(ImputedWhittle(model, data, padding=1.0), model.start())
        assert found == pytest.approx(value, abs=1e-3)
