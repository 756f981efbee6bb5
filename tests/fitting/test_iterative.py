"""The iterative likelihood against the dense one: value, gradient, and the standard errors of both."""

from __future__ import annotations

import math

import pytest
import torch

from spatialdiff.covariance import DenseCovariance
from spatialdiff.domains import Graph, Grid, Points
from spatialdiff.fitting import fit
from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.iterative import IterativeLikelihood
from spatialdiff.fitting.likelihoods.monte_carlo import (
    MonteCarloError,
    added_variance,
    difference_is_resolved,
    require_precision,
    require_resolved,
)
from spatialdiff.fitting.likelihoods.quadratic_logarithm import inverse_logarithmic_mean, logarithm_forms
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.optimise import maximise
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Coregionalization, Exponential, Gaussian, Matern, Nugget, RationalQuadratic


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n=300, seed=3):
    return Points(8.0 * torch.rand(n, 2, generator=generator(seed), dtype=torch.float64))


def noisy():
    return Matern(nu=1.5, lengthscale=2.0, variance=1.3) + Nugget(0.2)


def draw(kernel, domain, shape, seed=0):
    return DenseCovariance(kernel, domain).double().sample(shape, generator=generator(seed)).detach() + 0.4


def holes(shape, share=0.25, seed=1):
    return Grid(shape).masked(torch.rand(shape, generator=generator(seed)) >= share)


def gapped():
    """Fields of two channels, each with NaN in places of its own."""
    x = draw(noisy(), Grid((12, 14)), (2, 2))
    x[torch.rand(x.shape, generator=generator(5)) < 0.2] = math.nan
    return x


def value_and_slope(likelihood, theta):
    point = theta.clone().requires_grad_()
    value = likelihood(point)
    return float(value.detach()), torch.autograd.grad(value, point)[0]


CASES = {
    "grid": (noisy, lambda: Grid((16, 15)), "constant"),
    "mask": (lambda: Exponential(lengthscale=3.0, variance=2.0), lambda: holes((18, 17)), "linear"),
    "points": (noisy, points, "linear"),
    "smooth": (lambda: Matern(nu=1.5, lengthscale=2.0), lambda: points(200), None),
    "periodic": (noisy, lambda: Grid((16, 10), periodic=(True, False)), "field"),
    "plain tiles": (
        lambda: RationalQuadratic(lengthscale=2.0) + Nugget(0.2),
        lambda: points(120),
        "constant",
    ),
}


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_value_and_gradient_are_the_dense_ones_within_their_errors(case, restricted):
    make, where, mean = CASES[case]
    if restricted and mean not in ("constant", "linear"):
        restricted = False
    kernel, domain = make(), where()
    data = observe(draw(kernel, domain, (3,)), domain, mean)
    model = KernelParameters(kernel)
    theta = model.start() + 0.1
    exact = DenseLikelihood(model, data, restricted)
    iterative = IterativeLikelihood(model, data, restricted)
    value, slope = value_and_slope(exact, theta)
    found, gradient = value_and_slope(iterative, theta)
    assert abs(found - value) < 4.5 * iterative.standard_error(theta)
    # an entry without randomness, such as that of the one variance, is exact
    errors = iterative.gradient_standard_error(theta)
    assert bool(((gradient - slope).abs() < 4.5 * errors + 1e-5).all())
    if data.design is not None:
        torch.testing.assert_close(
            iterative.coefficients(theta), exact.coefficients(theta), rtol=1e-6, atol=1e-7
        )
        torch.testing.assert_close(
            iterative.coefficient_covariance(theta), exact.coefficient_covariance(theta), rtol=1e-6, atol=1e-8
        )
    for a, b in zip(iterative.mean_variance(theta), exact.mean_variance(theta), strict=True):
        assert a == pytest.approx(b, rel=1e-8)


def test_patterns_of_missing_values_of_several_channels():
    data = observe(gapped(), Grid((12, 14)), "constant", missing="omit")
    assert data.observed is not None
    model = KernelParameters(noisy())
    theta = model.start()
    iterative = IterativeLikelihood(model, data)
    value, slope = value_and_slope(DenseLikelihood(model, data), theta)
    found, gradient = value_and_slope(iterative, theta)
    assert abs(found - value) < 4.5 * iterative.standard_error(theta)
    assert bool(((gradient - slope).abs() < 4.5 * iterative.gradient_standard_error(theta)).all())


@pytest.mark.parametrize("case", ["mask", "points"])
def test_gradient_is_the_derivative_of_the_value_with_the_same_probes(case):
    make, where, mean = CASES[case]
    domain = where()
    data = observe(draw(make(), domain, (2,)), domain, mean)
    model = KernelParameters(make())
    likelihood = IterativeLikelihood(model, data, restricted=True, probes=3, tolerance=1e-11)
    theta = model.start() + 0.2
    _, gradient = value_and_slope(likelihood, theta)
    for j in range(len(theta)):
        step = torch.zeros_like(theta)
        step[j] = 1e-4
        change = float(likelihood(theta + step) - likelihood(theta - step)) / 2e-4
        # far below the Monte-Carlo error of the gradient, which is some 0.1
        assert float(gradient[j]) == pytest.approx(change, rel=1e-6, abs=1e-5)


def test_standard_errors_are_calibrated_over_seeds():
    domain = points(120)
    data = observe(draw(noisy(), domain, ()), domain, "constant")
    model = KernelParameters(noisy())
    theta = model.start()
    exact, slope = value_and_slope(DenseLikelihood(model, data), theta)
    scores = []
    for seed in range(24):
        likelihood = IterativeLikelihood(model, data, seed=seed, neighbors=6)
        found, gradient = value_and_slope(likelihood, theta)
        errors = likelihood.gradient_standard_error(theta)
        scores.append(
            torch.cat(
                (
                    torch.tensor([(found - exact) / likelihood.standard_error(theta)]),
                    (gradient - slope) / errors,
                )
            )
        )
    squares = torch.stack(scores).square().mean(0)
    # z² of Student's t with 15 degrees of freedom: mean 15/13, standard deviation 1.9, of 24
    assert bool((squares - 15.0 / 13.0).abs().max() < 4.0 * 1.9 / math.sqrt(24)), squares
    assert float(torch.stack(scores).mean(0).abs().max()) < 4.5 * math.sqrt(15.0 / 13.0 / 24)


def test_no_error_is_left_where_every_site_is_given_all_before_it():
    domain = points(60)
    data = observe(draw(noisy(), domain, (2,)), domain, "linear")
    model = KernelParameters(noisy())
    theta = model.start()
    iterative = IterativeLikelihood(model, data, neighbors=59, tolerance=1e-12)
    value, slope = value_and_slope(DenseLikelihood(model, data), theta)
    found, gradient = value_and_slope(iterative, theta)
    assert found == pytest.approx(value, abs=1e-8)
    torch.testing.assert_close(gradient, slope, rtol=1e-7, atol=1e-7)
    assert iterative.standard_error(theta) < 1e-8


def test_forms_of_the_logarithm_are_those_of_the_eigenvectors():
    a = torch.randn(40, 40, generator=generator(), dtype=torch.float64)
    a = a @ a.T / 40 + 0.3 * torch.eye(40, dtype=torch.float64)
    change = torch.randn(40, 40, generator=generator(1), dtype=torch.float64)
    change = change + change.T
    z = torch.randn(3, 40, generator=generator(2), dtype=torch.float64)
    found = logarithm_forms(lambda x: x @ a, z)
    values, vectors = torch.linalg.eigh(a)
    logarithm = vectors @ torch.diag(values.log()) @ vectors.T
    torch.testing.assert_close(found.values, torch.einsum("si,ij,sj->s", z, logarithm, z))
    # Daleckii and Krein
    middle = inverse_logarithmic_mean(values) * (vectors.T @ change @ vectors)
    derivative = vectors @ middle @ vectors.T
    torch.testing.assert_close(
        torch.einsum("sri,ij,srj->s", found.vectors, change, found.vectors),
        torch.einsum("si,ij,sj->s", z, derivative, z),
        rtol=1e-6,
        atol=1e-6,
    )

    def moved(step):
        shifted, axes = torch.linalg.eigh(a + step * change)
        return axes @ torch.diag(shifted.log()) @ axes.T

    torch.testing.assert_close((moved(1e-5) - moved(-1e-5)) / 2e-5, derivative, rtol=1e-6, atol=1e-6)


def test_logarithmic_mean_of_equal_and_of_close_values():
    values = torch.tensor([2.0, 2.0, 2.0 * (1 + 1e-6), 3.0], dtype=torch.float64)
    found = inverse_logarithmic_mean(values)
    assert float(found[0, 1]) == 0.5
    assert float(found[0, 2]) == pytest.approx(0.5 * (1 - 0.5e-6), rel=1e-12)
    assert float(found[0, 3]) == pytest.approx(math.log(1.5), rel=1e-14)


def test_singular_covariances_are_reported():
    domain = Grid((20, 20))
    data = observe(draw(noisy(), domain, ()), domain, None)
    model = KernelParameters(Gaussian(lengthscale=15.0))
    with pytest.raises(NotPositiveDefiniteError):
        IterativeLikelihood(model, data)(model.start())


def test_fit_agrees_with_the_exact_one_and_says_its_error():
    domain = points(200)
    x = draw(noisy(), domain, ())
    exact = fit(noisy(), x, domain, method="exact", starts=1)
    iterative = fit(noisy(), x, domain, method="iterative", starts=1, probes=32)
    assert iterative.log_likelihood_error > 0.0
    assert abs(iterative.log_likelihood - exact.log_likelihood) < 4.5 * iterative.log_likelihood_error + 0.1
    for name, error in exact.standard_errors.items():
        assert abs(iterative.parameters[name] - exact.parameters[name]) < 0.5 * error
        assert iterative.standard_errors[name] == pytest.approx(error, rel=0.3)


def test_estimates_that_the_probes_decide_are_refused():
    domain = points(150)
    data = observe(draw(noisy(), domain, ()), domain, None)
    model = KernelParameters(noisy())
    good = IterativeLikelihood(model, data, probes=64, neighbors=30)
    optimum = maximise(good, [model.start()])
    assert require_precision(good, optimum.theta, optimum.information, limit=0.002) < 0.002
    poor = IterativeLikelihood(model, data, probes=2, neighbors=2)
    assert added_variance(poor, optimum.theta, optimum.information) > 0.002
    with pytest.raises(MonteCarloError, match="probes"):
        require_precision(poor, optimum.theta, optimum.information, limit=0.002)


def test_added_variance_is_the_spread_of_estimates_over_seeds():
    """Estimates from other probes differ by H⁻¹ g: their variance is the share of that of the data."""
    domain = points(100)
    data = observe(draw(noisy(), domain, ()), domain, None)
    model = KernelParameters(noisy(), fixed={"nugget": 0.2})
    theta = model.start()
    optima = [
        maximise(IterativeLikelihood(model, data, probes=8, neighbors=3, seed=s), [theta]) for s in range(10)
    ]
    estimates = torch.stack([o.theta for o in optima])
    information = optima[0].information
    likelihood = IterativeLikelihood(model, data, probes=256, neighbors=3)
    inverse = torch.linalg.inv(information)
    expected = inverse @ (32.0 * likelihood.gradient_covariance(optima[0].theta)) @ inverse
    spread = torch.cov(estimates.T)
    ratio = spread.diagonal() / expected.diagonal()
    # χ² with 9 degrees of freedom: 99.99 % of it
    assert bool(((ratio > 0.07) & (ratio < 3.8)).all()), ratio


def test_comparisons_that_the_error_decides_are_refused():
    assert difference_is_resolved(10.0, 1.0, 1.0)
    assert not difference_is_resolved(2.0, 1.0, 1.0)
    assert difference_is_resolved(0.01, 0.1, 0.1)
    require_resolved(-10.0, 1.0, 2.0)
    with pytest.raises(MonteCarloError, match="within the Monte-Carlo error"):
        require_resolved(2.0, 1.0, 1.0)


def test_what_it_does_not_take_is_refused():
    domain = points(30)
    data = observe(draw(noisy(), domain, ()), domain, None)
    with pytest.raises(ValueError, match="at least 2"):
        IterativeLikelihood(KernelParameters(noisy()), data, probes=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        IterativeLikelihood(KernelParameters(noisy()), data, tolerance=0.0)
    two = observe(draw(noisy(), domain, (2, 2)), domain, None)
    joint = Coregionalization([(torch.eye(2, dtype=torch.float64), noisy())])
    with pytest.raises(ValueError, match="Coregionalization"):
        IterativeLikelihood(KernelParameters(joint), two)
    graph = Graph(torch.ones(3, 3) - torch.eye(3))
    with pytest.raises(ValueError, match="coordinates"):
        IterativeLikelihood(KernelParameters(noisy()), observe(torch.randn(4, 3).double(), graph, None))
