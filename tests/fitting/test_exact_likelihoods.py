"""Exact likelihoods with linear means, gaps and restriction against linear algebra written out."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.structured import StructuredLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import (
    Chordal,
    Exponential,
    Gaussian,
    Matern,
    Nugget,
    RationalQuadratic,
    Separable,
    at_pairs,
)

G = torch.Generator().manual_seed(0)
POINTS = sd.Points(torch.rand(25, 2, generator=G, dtype=torch.float64))
KERNEL = Matern(nu=1.5, lengthscale=0.3, variance=1.4) + Nugget(0.2)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(gamma, design, fields, restricted):
    """The (restricted) log-likelihood of independent vectors, each with its observed rows, common
    coefficients."""
    q = design.shape[1]
    gram, cross = torch.zeros(q, q).double(), torch.zeros(q).double()
    plain = torch.zeros(q, q).double()
    value = 0.0
    parts = []
    for x in fields:
        rows = ~x.isnan()
        inverse = torch.linalg.inv(gamma[rows][:, rows])
        f = design[rows]
        gram, cross = gram + f.T @ inverse @ f, cross + f.T @ inverse @ x[rows]
        plain = plain + f.T @ f
        parts.append((rows, inverse, f))
    beta = torch.linalg.solve(gram, cross)
    for x, (rows, inverse, f) in zip(fields, parts, strict=True):
        e = x[rows] - f @ beta
        value -= 0.5 * (
            int(rows.sum()) * math.log(2 * math.pi) - float(torch.logdet(inverse)) + float(e @ inverse @ e)
        )
    if restricted:
        value += 0.5 * (q * math.log(2 * math.pi) - float(torch.logdet(gram)) + float(torch.logdet(plain)))
    return value, beta, torch.linalg.inv(gram)


DESIGN = torch.cat((torch.ones(25, 1).double(), POINTS.sites()), dim=1)


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("number", [1, 3, 40])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("kernel", [KERNEL, RationalQuadratic(0.3) + Nugget(0.1)], ids=["compiled", "plain"])
def test_dense_likelihood_with_a_linear_mean(restricted, number, gaps, kernel):
    x = normal(number, 25) + 2.0
    if gaps:
        x[0, :3] = x[-1, 5] = torch.nan
    data = observe(x, POINTS, "linear", "omit" if gaps else "raise")
    model = KernelParameters(kernel)
    likelihood = DenseLikelihood(model, data, restricted)
    sites = POINTS.sites()
    gamma = at_pairs(kernel, sites[:, None], sites[None]).detach()
    value, beta, covariance = written_out(gamma, DESIGN, x, restricted)
    assert float(likelihood(model.start())) == pytest.approx(value, rel=1e-10)
    added = likelihood.coefficients(model.start())
    torch.testing.assert_close(data.natural_coefficients(added)[0], beta, rtol=1e-8, atol=1e-9)
    transform = data.linear.transform
    found = transform @ likelihood.coefficient_covariance(model.start())[0] @ transform.T
    torch.testing.assert_close(found, covariance, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(data.mean_field(added), DESIGN @ beta, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("restricted", [False, True])
def test_gradient_is_that_of_differences(restricted):
    x = normal(2, 2, 25)
    x[0, 0, :3] = torch.nan
    model = KernelParameters(KERNEL)
    likelihood = DenseLikelihood(model, observe(x, POINTS, "linear", "omit"), restricted)
    theta = model.start().requires_grad_()
    (slope,) = torch.autograd.grad(likelihood(theta), theta)
    for i in range(len(theta)):
        step = torch.zeros(len(theta)).double()
        step[i] = 1e-5
        difference = (likelihood(theta.detach() + step) - likelihood(theta.detach() - step)) / 2e-5
        assert float(slope[i]) == pytest.approx(float(difference), rel=1e-7, abs=1e-7)


def test_restriction_does_not_see_the_mean():
    model = KernelParameters(KERNEL)
    x = normal(2, 25)
    moved = x + (DESIGN @ torch.tensor([3.0, -40.0, 7.0]).double())
    for likelihood in (DenseLikelihood, lambda *a: StructuredLikelihood(*a[:2], "dense", a[2])):
        values = [
            float(likelihood(model, observe(v, POINTS, "linear"), True)(model.start())) for v in (x, moved)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-10)


def test_masked_grid_is_its_valid_cells():
    grid = sd.Grid((6, 7), spacing=(0.5, 1.0))
    mask = torch.rand(grid.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    x = normal(3, *grid.shape)
    kernel = Exponential(1.5) + Nugget(0.1)
    model = KernelParameters(kernel)
    masked = DenseLikelihood(model, observe(x, grid.masked(mask), "linear"))
    points = sd.Points(grid.coordinates()[mask])
    scattered = DenseLikelihood(model, observe(x[:, mask], points, "linear"))
    assert masked.stationary
    assert not scattered.stationary
    assert float(masked(model.start())) == pytest.approx(float(scattered(model.start())), rel=1e-12)


STRUCTURES = [
    ("dense", sd.Grid((5, 6)), KERNEL),
    ("reflection", sd.Grid((6, 8)), Matern(nu=1.5, lengthscale=2.0) + Nugget(0.1)),
    ("kronecker", sd.Grid((5, 6)), Gaussian(1.0) + Nugget(0.3)),
    (
        "kronecker",
        sd.RectilinearGrid([[0.0, 1.0, 2.5, 3.0], [0.0, 0.5, 2.0]]),
        Separable(Exponential(1.0), Matern(nu=1.5, lengthscale=0.7), axes=((0,), (1,))),
    ),
    ("torus", sd.Grid((6, 5), periodic=True), Matern(nu=1.5, lengthscale=0.8) + Nugget(0.2)),
    ("sphere", sd.Sphere((4, 6), poles=False), Chordal(Exponential(0.8))),
]


@pytest.mark.parametrize(
    ("method", "domain", "kernel"), STRUCTURES, ids=[s[0] + str(i) for i, s in enumerate(STRUCTURES)]
)
@pytest.mark.parametrize("mean", [None, "constant", "linear"])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_structures_against_the_normal(method, domain, kernel, mean, channels):
    x = normal(4, *channels, *domain.shape)
    data = observe(x, domain, mean)
    model = KernelParameters(kernel)
    gamma = sd.covariance(kernel, domain, method=method).to_dense().detach()
    vectors = domain.flatten(x).reshape(-1, domain.size)
    for restricted in [False] if mean is None else [False, True]:
        likelihood = StructuredLikelihood(model, data, method, restricted)
        if mean is None:
            zero = torch.zeros(domain.size).double()
            exact = torch.distributions.MultivariateNormal(zero, gamma).log_prob(vectors).sum()
        else:
            exact = sum(
                written_out(gamma, data.design, domain.flatten(each), restricted)[0]
                for each in (x.unsqueeze(1) if not channels else x).unbind(1)
            )
        assert float(likelihood(model.start())) == pytest.approx(float(exact), rel=1e-9)
    # away from where the structure was built
    theta = (model.start() + 0.2 * normal(len(model.start()), seed=4)).requires_grad_()
    (slope,) = torch.autograd.grad(likelihood(theta), theta)
    for i in range(len(theta)):
        step = torch.zeros(len(theta)).double()
        step[i] = 1e-5
        difference = (likelihood(theta.detach() + step) - likelihood(theta.detach() - step)) / 2e-5
        assert float(slope[i]) == pytest.approx(float(difference), rel=1e-6, abs=1e-6)
    at_mean, at_site = likelihood.mean_variance(model.start())
    assert at_mean == pytest.approx(float(gamma.mean()), rel=1e-9)
    assert at_site == pytest.approx(float(gamma.diagonal().mean()), rel=1e-9)


def test_poles_count_once():
    domain = sd.Sphere((5, 6))
    kernel = Chordal(Exponential(0.8))
    gamma = sd.covariance(kernel, domain)
    x = gamma.sample((3,), generator=torch.Generator().manual_seed(2)).double()
    model = KernelParameters(kernel)
    data = observe(x, domain, None)
    likelihood = StructuredLikelihood(model, data, "sphere")
    rows = torch.zeros(domain.shape, dtype=torch.bool)
    rows[1:-1] = True
    rows[0, 0] = rows[-1, 0] = True
    sites = domain.coordinates()[rows]
    dense = at_pairs(kernel, sites[:, None], sites[None]).detach()
    exact = torch.distributions.MultivariateNormal(torch.zeros(len(sites)).double(), dense)
    # the harmonics of a finite grid carry the covariance to the tolerance of the structure
    assert float(likelihood(model.start())) == pytest.approx(
        float(exact.log_prob(x[:, rows]).sum()), rel=1e-6
    )


def test_sparse_precision_of_a_mesh_is_that_of_its_dense_matrix():
    mesh = sd.Mesh.from_grid(sd.Grid((7, 7)))
    kernel = Matern(nu=1.0, lengthscale=2.0, variance=1.3)
    x = normal(3, mesh.size)
    model = KernelParameters(kernel)
    likelihood = StructuredLikelihood(model, observe(x, mesh, "constant"), "spde")
    gamma = sd.covariance(kernel, mesh, method="spde").to_dense().detach()
    value, _, _ = written_out(gamma, torch.ones(mesh.size, 1).double(), x, False)
    assert float(likelihood(model.start())) == pytest.approx(value, rel=1e-8)
