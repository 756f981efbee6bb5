"""Grids with unevenly spaced axes, and dense Γ wherever sites have coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from covariance_case import CovarianceCase, pairwise

import spatialdiff as sd
from spatialdiff.covariance import CosineCovariance, DenseCovariance, TorusCovariance, WhiteCovariance
from spatialdiff.covariance.grids.kronecker import KroneckerCovariance
from spatialdiff.domains import Mesh, Points, RectilinearGrid, Sphere
from spatialdiff.kernels import Gaussian, Matern, Nugget, Spherical

DEPTHS = RectilinearGrid([[0.0, 0.1, 0.4, 1.0, 2.5], [0.0, 1.0, 1.7, 4.0]])
SITES = Points(torch.rand(11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


class TestDense(CovarianceCase):
    grid = DEPTHS
    channels = 2

    def build(self, kernel):
        return DenseCovariance(kernel, self.grid, self.channels)


class TestDensePoints(TestDense):
    grid = SITES
    channels = None

    def kernel(self):
        return Matern(0.8, (0.4, 0.7), 1.3) + Nugget(0.1)


class TestDenseSphere(TestDense):
    """A family of R³ at chordal distance."""

    grid = Sphere((3, 4), grid="gauss_legendre", radius=2.0)
    channels = None


class TestDenseMesh(TestDense):
    grid = Mesh(SITES.coordinates()[:5], torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4]]))
    channels = None


class TestWhitePoints(CovarianceCase):
    grid = SITES

    def kernel(self):
        return Nugget(1.3)

    def build(self, kernel):
        return WhiteCovariance(self.grid, kernel, self.channels)


def test_even_axes_agree_with_a_grid():
    even = RectilinearGrid([[0.0, 0.5, 1.0, 1.5], [0.0, 2.0, 4.0]])
    grid = sd.Grid((4, 3), spacing=(0.5, 2.0))
    kernel = (Gaussian((0.8, 3.0), 1.3) + Nugget(0.1)).requires_grad_(False)
    for structure in (DenseCovariance, KroneckerCovariance):
        torch.testing.assert_close(structure(kernel, even).to_dense(), structure(kernel, grid).to_dense())


def test_kronecker_at_depth():
    """A quarter of a million sites on three uneven axes: an exact density and an exact inverse."""
    g = torch.Generator().manual_seed(0)
    axes = [torch.rand(n, generator=g, dtype=torch.float64).sort().values * n for n in (80, 60, 52)]
    domain = RectilinearGrid(axes)
    kernel = (Gaussian((2.0, 1.5, 3.0), 1.4) + Nugget(0.1)).requires_grad_(False)
    gamma = KroneckerCovariance(kernel, domain).double()
    z = torch.randn(domain.shape, dtype=torch.float64, generator=g)
    x = gamma.color(z)
    torch.testing.assert_close(gamma.whiten(x), z, rtol=0, atol=1e-10)
    torch.testing.assert_close(gamma.matmul(gamma.solve(x)), x, rtol=0, atol=1e-10)
    expected = -0.5 * (z.square().sum() + gamma.log_det() + domain.size * math.log(2 * math.pi))
    torch.testing.assert_close(gamma.log_prob(x), expected, rtol=1e-12, atol=0)


def test_collinear_sites():
    """Γ does not mind: on a line in the plane it is that of the line."""
    along = torch.linspace(0, 3, 7, dtype=torch.float64)
    plane = Points(along[:, None] * torch.tensor([0.6, 0.8], dtype=torch.float64))
    kernel = Matern(1.5, 0.7).requires_grad_(False)
    torch.testing.assert_close(
        DenseCovariance(kernel, plane).to_dense(), DenseCovariance(kernel, Points(along)).to_dense()
    )


def test_duplicates():
    """Equal sites need a nugget, which each of them then has for itself."""
    sites = SITES.coordinates()
    twice = Points(torch.cat([sites, sites[[2, 5]], sites[2:3]]))
    kernel = Matern(1.5, 0.7, 1.3).requires_grad_(False)
    with pytest.raises(ValueError, match=r"3 of 14 sites repeat .* \(sites 2 and 11, 5 and 12, 2 and 13\)"):
        DenseCovariance(kernel, twice)
    nugget = Nugget(0.2).requires_grad_(False)
    gamma = DenseCovariance(kernel + nugget, twice)
    matrix = gamma.to_dense()
    assert matrix[2, 11].item() == pytest.approx(1.3)
    assert matrix[11, 11].item() == pytest.approx(1.5)
    torch.testing.assert_close(matrix[:11, :11], pairwise(kernel + nugget, SITES))
    assert torch.isfinite(gamma.log_prob(torch.ones(14, dtype=torch.float64)))


def test_refuses():
    with pytest.raises(ValueError, match="positive definite in at most 3 dimensions"):
        DenseCovariance(Spherical(), Points(torch.rand(5, 4)))
    with pytest.raises(ValueError, match="at least one site"):
        Points(torch.empty(0, 2))
    for structure in (TorusCovariance, CosineCovariance):
        with pytest.raises(TypeError, match="needs a Grid, got RectilinearGrid"):
            structure(Matern(), DEPTHS)
    with pytest.raises(TypeError, match="needs a domain"):
        DenseCovariance(Matern(), torch.rand(3, 2))
    with pytest.raises(ValueError, match=r"needs a \(20, 20\) matrix"):
        DenseCovariance(torch.eye(3), DEPTHS)
    with pytest.raises(ValueError, match="not symmetric"):
        DenseCovariance(torch.rand(20, 20), DEPTHS)
    with pytest.raises(TypeError, match="kernel or a matrix"):
        DenseCovariance("matern", DEPTHS)
