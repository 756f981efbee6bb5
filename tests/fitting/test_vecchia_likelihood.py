"""Vecchia's likelihood, score and information: exact with all neighbours, compiled as plain."""

from __future__ import annotations

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.vecchia import VecchiaLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Anisotropic, Exponential, Gaussian, Matern, Nugget, RationalQuadratic

G = torch.Generator().manual_seed(0)
POINTS = sd.Points(torch.rand(40, 2, generator=G, dtype=torch.float64))
CLOSED = [
    Matern(nu=1.5, lengthscale=0.3, variance=1.4) + Nugget(0.2),
    Exponential(lengthscale=[0.2, 0.5], variance=0.7) + Nugget(0.1),
    Gaussian(0.1) + Nugget(0.3) + Nugget(0.1),
    Anisotropic(Matern(nu=2.5, lengthscale=0.2), ratios=[2.0], angles=[0.4]) + Nugget(0.1),
]
OTHER = [
    RationalQuadratic(0.2) + Nugget(0.2),
    Exponential(0.2) + Matern(nu=2.5, lengthscale=0.5) + Nugget(0.1),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_slope(likelihood, theta):
    point = theta.clone().requires_grad_()
    value = likelihood(point)
    return value.detach(), torch.autograd.grad(value, point)[0]


def dense_information(likelihood, theta):
    """``½ tr(Γ⁻¹ ∂Γ Γ⁻¹ ∂Γ)``."""
    inverse = torch.linalg.inv(likelihood.covariance(theta).detach())
    products = []
    for k in range(len(theta)):
        step = torch.zeros_like(theta)
        step[k] = 1e-5
        slope = (likelihood.covariance(theta + step) - likelihood.covariance(theta - step)).detach() / 2e-5
        products.append(inverse @ slope)
    return torch.stack([torch.stack([0.5 * (a * b.T).sum() for b in products]) for a in products])


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("kernel", CLOSED + OTHER, ids=repr)
@pytest.mark.parametrize("lead", [(1,), (3,), (2, 2)], ids=str)
def test_all_neighbours_make_it_exact(kernel, lead, restricted):
    data = observe(normal(*lead, 40), POINTS, "linear")
    model = KernelParameters(kernel)
    theta = model.start()
    vecchia = VecchiaLikelihood(model, data, neighbors=39, restricted=restricted)
    dense = DenseLikelihood(model, data, restricted)
    assert vecchia.compiled == any(kernel is k for k in CLOSED)
    (value, slope), (exact, exact_slope) = (value_and_slope(v, theta) for v in (vecchia, dense))
    assert float(value) == pytest.approx(float(exact), abs=1e-8)
    torch.testing.assert_close(slope, exact_slope, rtol=1e-8, atol=1e-8)
    copies = lead[0] * (lead[1] if len(lead) > 1 else 1)
    torch.testing.assert_close(
        vecchia.information(theta), copies * dense_information(dense, theta), rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(vecchia.coefficients(theta), dense.coefficients(theta), rtol=1e-8, atol=1e-9)
    each = dense.coefficient_covariance(theta)[0]
    torch.testing.assert_close(vecchia.coefficient_covariance(theta), each, rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(vecchia.mean_variance(theta), dense.mean_variance(theta), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("kernel", CLOSED, ids=repr)
@pytest.mark.parametrize("mean", [None, "constant"])
def test_compiled_is_plain_with_few_neighbours(kernel, mean):
    data = observe(normal(2, 40), POINTS, mean)
    model = KernelParameters(kernel)
    theta = model.start() + 0.1 * normal(len(model.start()), seed=1)
    compiled, plain = (VecchiaLikelihood(model, data, neighbors=6, engine=e) for e in ("numba", "torch"))
    assert (compiled.compiled, plain.compiled) == (True, False)
    for ours, theirs in zip(value_and_slope(compiled, theta), value_and_slope(plain, theta), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(compiled.information(theta), plain.information(theta), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("kernel", [CLOSED[1], OTHER[0]], ids=repr)
def test_slope_is_that_of_differences(kernel, restricted):
    model = KernelParameters(kernel)
    likelihood = VecchiaLikelihood(
        model, observe(normal(2, 2, 40), POINTS, "linear"), neighbors=6, restricted=restricted
    )
    theta = model.start()
    _, slope = value_and_slope(likelihood, theta)
    for k, unit in enumerate(torch.eye(len(theta), dtype=torch.float64)):
        above, below = (float(likelihood(theta + sign * 1e-5 * unit)) for sign in (1.0, -1.0))
        # rounding of values near 1e2, divided by the step
        assert (above - below) / 2e-5 == pytest.approx(float(slope[k]), rel=1e-6, abs=1e-6)


def test_information_is_the_variance_of_the_score():
    model = KernelParameters(CLOSED[0])
    theta = model.start()
    gamma = sd.VecchiaCovariance(CLOSED[0], POINTS, neighbors=8).double()
    number = 4000
    draws = gamma.sample((number,), generator=torch.Generator().manual_seed(2)).detach()
    slopes = []
    for block in draws.split(1):
        data = observe(block, POINTS, None)
        slopes.append(value_and_slope(VecchiaLikelihood(model, data, neighbors=8), theta)[1])
        if len(slopes) == 400:
            break
    slopes = torch.stack(slopes)
    information = VecchiaLikelihood(model, observe(draws[:1], POINTS, None), neighbors=8).information(theta)
    # scores have mean 0 and this variance: within 5 standard errors of 400 draws
    scale = information.diagonal().sqrt()
    assert float((slopes.mean(0) / scale).abs().max()) < 5.0 / 20.0
    kurtosis = (slopes / scale).pow(4).mean(0)
    error = (kurtosis / 400).sqrt()
    assert bool(((slopes / scale).square().mean(0) - 1.0).abs().lt(5.0 * error).all())


def test_repeated_sites_have_nuggets_of_their_own():
    sites = torch.cat((POINTS.sites(), POINTS.sites()[:2]))
    data = observe(normal(1, 42), sd.Points(sites), None)
    model = KernelParameters(CLOSED[0])
    value = float(VecchiaLikelihood(model, data, neighbors=41)(model.start()))
    r = (sites[:, None] - sites[None]).norm(dim=-1) / 0.3 * 3**0.5
    matrix = 1.4 * (1 + r) * torch.exp(-r) + 0.2 * torch.eye(42, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(42).double(), matrix).log_prob(
        data.flat()[0, 0]
    )
    assert value == pytest.approx(float(exact), abs=1e-8)


def test_what_it_refuses():
    gaps = normal(2, 40)
    gaps[0, 3] = torch.nan
    model = KernelParameters(CLOSED[0])
    with pytest.raises(ValueError, match="same sites"):
        VecchiaLikelihood(model, observe(gaps, POINTS, "constant", "omit"))
    smooth = KernelParameters(Gaussian(30.0))
    for engine in ("numba", "torch"):
        with pytest.raises(NotPositiveDefiniteError):
            VecchiaLikelihood(smooth, observe(normal(1, 40), POINTS, None), engine=engine)(smooth.start())
