"""The iterative likelihood against the dense one: value, gradient, and the standard errors of both."""

from __future__ import annotations

import math

import pytest
import torch

from spatialdiff.covariance import DenseCovariance
from spatialdiff.domains import Grid, Points
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.iterative import IterativeLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Exponential, Matern, Nugget, RationalQuadratic


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
