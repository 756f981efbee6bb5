"""Matrix-free covariances: the shared case with both engines, and what only they do."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from covariance_case import CovarianceCase

import spatialdiff as sd
from spatialdiff.covariance.dense import DenseCovariance
from spatialdiff.covariance.points.low_rank_preconditioner import low_rank_preconditioner, pivoted_cholesky
from spatialdiff.covariance.points.matrix_free import MatrixFreeCovariance
from spatialdiff.domains import Points
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget, at_pairs


def scattered(n, d=2, seed=0, extent=4.0):
    g = torch.Generator().manual_seed(seed)
    return Points(torch.rand(n, d, generator=g, dtype=torch.float64) * extent)


class _Case(CovarianceCase):
    grid = scattered(20)
    backend = "plain"

    def build(self, kernel):
        return MatrixFreeCovariance(kernel, self.grid, self.channels, backend=self.backend, tolerance=2e-12)


class TestPlain(_Case):
    pass


class TestNumba(_Case):
    backend = "numba"


class TestNumbaWithCorrelatedChannels(_Case):
    backend = "numba"
    grid = scattered(12, 3)
    channels: ClassVar = [[1.0, 0.4], [0.4, 2.0]]

    def kernel(self):
        return (
            Exponential(lengthscale=[1.6, 2.0, 0.9], variance=1.2)
            + Gaussian(lengthscale=0.8, variance=0.5)
            + Nugget(0.2)
        )


class TestPairs(_Case):
    """A kernel that is no closed form, on a grid with a hole."""

    grid = sd.Grid((4, 5)).masked(torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.3)
    channels = 2

    def kernel(self):
        return Matern(nu=1.5, lengthscale=1.6, variance=1.7) * Matern(nu=0.5, lengthscale=3.0) + Nugget(0.2)


# ---- what only this structure does
def test_roots_to_the_stated_tolerance():
    """600 sites, default tolerance: ``R z`` and ``R⁻¹ x`` against eigenvectors, ``R`` symmetric."""
    points = scattered(600, seed=3)
    kernel = Matern(1.5, 0.7, 1.3) + Nugget(0.01)
    gamma = MatrixFreeCovariance(kernel, points).double().requires_grad_(False)
    values, vectors = torch.linalg.eigh(DenseCovariance(kernel, points).to_dense().detach())
    z = torch.randn(2, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for operation, power in ((gamma.color, 0.5), (gamma.whiten, -0.5)):
        exact = (z @ vectors * values.pow(power)) @ vectors.T
        assert ((operation(z) - exact).norm(dim=-1) <= 1e-6 * exact.norm(dim=-1)).all()
    a, b = gamma.color(z)
    assert (z[1] @ a).item() == pytest.approx((z[0] @ b).item(), rel=1e-4)


@pytest.mark.parametrize("nu", [0.5, 1.5])
def test_roots_without_a_nugget(nu):
    """Nothing bounds the spectrum from below but what Lanczos finds."""
    points = scattered(300, seed=5)
    kernel = Matern(nu, 0.6)
    gamma = MatrixFreeCovariance(kernel, points, tolerance=1e-4, max_iterations=4000).requires_grad_(False)
    values, vectors = torch.linalg.eigh(DenseCovariance(kernel, points).to_dense().detach())
    z = torch.randn(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for operation, power in ((gamma.color, 0.5), (gamma.whiten, -0.5)):
        exact = (z @ vectors * values.pow(power)) @ vectors.T
        assert ((operation(z) - exact).norm(dim=-1) <= 1e-4 * exact.norm(dim=-1)).all()


def test_preconditioner_makes_solves_fast(monkeypatch):
    points = scattered(1000, seed=4)
    kernel = Matern(2.5, 2.0, 4.0) + Nugget(0.01)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = []
    for rank in (1, 100):
        gamma = MatrixFreeCovariance(kernel, points, rank=rank, tolerance=1e-8).requires_grad_(False)
        products = []
        product = gamma._product
        monkeypatch.setattr(gamma, "_product", lambda v, p=product, c=products: (c.append(1), p(v))[1])
        solved = gamma.solve(x)
        counts.append(len(products))
        torch.testing.assert_close(gamma.matmul(solved), x, rtol=0, atol=1e-6)
    assert counts[1] < counts[0] / 4


def test_preconditioner():
    """Its powers and determinant are those of ``L Lᵀ + δ I``; pivoted Cholesky with all columns is exact."""
    points = scattered(40, seed=2)
    kernel = Matern(1.5, torch.tensor([[0.5], [2.0]]), batch_shape=(2,)) + Nugget(0.1)
    nugget = torch.full((2,), 0.1, dtype=torch.float64)
    sites = points.sites()
    with torch.no_grad():
        matrix = at_pairs(kernel, sites[:, None], sites[None])
    factor, left = pivoted_cholesky(kernel, sites, nugget, 40)
    smooth = matrix - 0.1 * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close((factor @ factor.mT).detach(), smooth, rtol=0, atol=1e-9)
    assert left.max().item() < 1e-9
    near = low_rank_preconditioner(kernel, sites, nugget, 7)
    factor, left = pivoted_cholesky(kernel, sites, nugget, 7)
    shift = 0.1 + left.mean(-1)
    m = (factor @ factor.mT + shift[:, None, None] * torch.eye(40, dtype=torch.float64)).detach()
    values, vectors = torch.linalg.eigh(m)
    x = torch.randn(3, 2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for p in (-1.0, -0.5, 0.5):
        power = (vectors * values.pow(p).unsqueeze(-2)) @ vectors.mT
        torch.testing.assert_close(near.power(x, p), (power @ x.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(near.log_det(), torch.logdet(m))


def test_stochastic_log_det():
    """Value within five standard errors, and the gradient that the determinant has, in a batch."""
    points = scattered(400, seed=6)

    def kernel():
        return Matern(1.5, torch.tensor([[0.4], [0.8]]), 1.3, batch_shape=(2,)) + Nugget(0.1)

    mine, exact = kernel(), kernel()
    gamma = MatrixFreeCovariance(mine, points, exact_log_det_sites=10, log_det_tolerance=5e-3)
    value, error = gamma.log_det(), gamma.log_det_standard_error()
    dense = DenseCovariance(exact, points).log_det()
    assert value.shape == error.shape == (2,)
    assert (error > 0).all()
    assert (error <= 5e-3 * 400).all()
    assert ((value - dense).abs() <= 5 * error + 5e-4 * 400).all()
    assert "standard error" in gamma.report.log_det
    gradients = torch.autograd.grad(value.sum(), list(mine.parameters()))
    expected = torch.autograd.grad(dense.sum(), list(exact.parameters()))
    for a, b in zip(gradients, expected, strict=True):
        # the probes are few: a few per cent of the number of sites
        torch.testing.assert_close(a, b, rtol=0.1, atol=4.0)
    with torch.no_grad():
        assert torch.equal(gamma.log_det(), gamma.log_det())
        assert gamma.log_prob(torch.zeros(400, dtype=torch.float64)).shape == (2,)


def test_loose_tolerance_in_float32():
    points = scattered(500, seed=8)
    kernel = Matern(1.5, 0.7) + Nugget(0.05)
    gamma = MatrixFreeCovariance(kernel, points, tolerance=1e-4).requires_grad_(False)
    x = gamma.sample((3,), generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32
    exact = MatrixFreeCovariance(kernel, points, tolerance=1e-10).requires_grad_(False)
    reference = exact.sample((3,), generator=torch.Generator().manual_seed(0))
    assert ((x - reference).norm(dim=-1) <= 1.1e-4 * reference.norm(dim=-1)).all()


def test_report_names_the_backend():
    report = MatrixFreeCovariance(Matern(1.5), scattered(20)).report
    assert "backend numba" in report.reason
    assert not report.exact
    assert report.relative_error == 2e-6
    plain = MatrixFreeCovariance(Matern(1.5) * Matern(0.5), scattered(20)).report
    assert "backend plain (the compiled tiles have" in plain.reason


def test_equal_sites():
    sites = torch.cat([scattered(20).sites(), scattered(3).sites()])
    with pytest.raises(ValueError, match=r"3 of 23 sites repeat an earlier one \(sites 0 and 20"):
        MatrixFreeCovariance(Matern(1.5), Points(sites))
    kernel = Matern(1.5) + Nugget(0.1)
    gamma = MatrixFreeCovariance(kernel, Points(sites), tolerance=1e-10).requires_grad_(False)
    dense = DenseCovariance(kernel, Points(sites)).requires_grad_(False)
    torch.testing.assert_close(gamma.to_dense(), dense.to_dense(), rtol=0, atol=1e-12)
    x = torch.linspace(-1, 1, 23, dtype=torch.float64)
    torch.testing.assert_close(gamma.log_prob(x), dense.log_prob(x), rtol=1e-8, atol=0)


def test_singular_or_nearly():
    """A Gaussian without nugget on many sites: its roots and determinant are lost to rounding."""
    gamma = MatrixFreeCovariance(Gaussian(2.0), scattered(150), max_iterations=300).requires_grad_(False)
    x = torch.ones(150, dtype=torch.float64)
    with pytest.raises(ValueError, match="Γ is singular or nearly so"):
        gamma.whiten(x)
    with pytest.raises(ValueError, match="not positive definite"):
        gamma.log_det()
    with pytest.raises(RuntimeError, match="ill-conditioned"):
        gamma.solve(torch.randn(150, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    # the root exists, but not to 1e-6 in float64: it says so instead of giving another
    with pytest.raises(RuntimeError, match="the square root of Γ"):
        gamma.color(torch.randn(150, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def test_refuses():
    with pytest.raises(TypeError, match="gpytorch kernel"):
        MatrixFreeCovariance(torch.eye(3), scattered(3))
    with pytest.raises(ValueError, match="tolerance must be between 0 and 1"):
        MatrixFreeCovariance(Matern(1.5), scattered(3), tolerance=0.0)
    with pytest.raises(ValueError, match="periodic axis wrap around"):
        MatrixFreeCovariance(Matern(1.5), sd.Grid((4, 4), periodic=(True, False)))
    with pytest.raises(ValueError, match="length scales"):
        MatrixFreeCovariance(Matern(1.5, [1.0, 2.0, 3.0]), scattered(3))
    with pytest.raises(ValueError, match="backend must be one of"):
        MatrixFreeCovariance(Matern(1.5), scattered(3), backend="cuda")


def test_fitting_by_gradient():
    """A length scale found again by the exact density's gradient, through matrix-free products."""
    points = scattered(300, seed=9)
    truth = DenseCovariance(Matern(1.5, 0.8) + Nugget(0.05), points).requires_grad_(False)
    x = truth.double().sample((20,), generator=torch.Generator().manual_seed(0))
    kernel = Matern(1.5, 0.3) + Nugget(0.05)
    gamma = MatrixFreeCovariance(kernel, points)
    optimiser = torch.optim.LBFGS(
        [kernel.kernels[0].raw_lengthscale], max_iter=8, line_search_fn="strong_wolfe"
    )

    def loss():
        optimiser.zero_grad()
        value = -gamma.log_prob(x).mean()
        value.backward()
        return value

    optimiser.step(loss)
    assert kernel.kernels[0].lengthscale.item() == pytest.approx(0.8, rel=0.1)
    assert math.isfinite(loss().item())


def test_default_determinant_of_a_few_thousand_sites():
    # stochastic Lanczos would need some 1400 probes for its default tolerance here
    points = sd.Points(torch.rand(2100, 2, generator=torch.Generator().manual_seed(0)))
    kernel = (Matern(1.5, 0.1) + Nugget(0.01)).requires_grad_(False)
    gamma = MatrixFreeCovariance(kernel, points)
    torch.testing.assert_close(gamma.log_det(), sd.covariance(kernel, points, method="dense").log_det())
    assert gamma.log_det_standard_error() == 0
