"""The bases of graphs and spheres: complete, and Γ is diagonal in them."""

from __future__ import annotations

import pytest
import torch

from spatialdiff.covariance import SphereCovariance, SumCovariance, white
from spatialdiff.covariance.joint import joint_spectrum
from spatialdiff.covariance.meshes.graph_basis import EIGEN_SITES, GraphBasis
from spatialdiff.covariance.meshes.graph_matern import GraphMaternCovariance
from spatialdiff.covariance.spheres.sphere_basis import SphereBasis, resolved_degree
from spatialdiff.covariance.spheres.spherical_spectrum import HarmonicCovariance
from spatialdiff.domains import Graph, Sphere
from spatialdiff.kernels import Matern

F64 = torch.float64
SPHERES = [
    (Sphere((8, 16), "gauss_legendre"), 7),
    (Sphere((7, 15), "gauss_legendre", radius=2.0), 5),
    (Sphere((9, 12), poles=False), 4),
    (Sphere((8, 9), "gauss_legendre"), 3),
    (Sphere((1, 4), "gauss_legendre"), 0),
]


def spectrum(lmax: int) -> torch.Tensor:
    return (1.0 + torch.arange(lmax + 1, dtype=F64)) ** -2


def field(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize(("sphere", "lmax"), SPHERES, ids=str)
def test_sphere_basis_is_complete_and_diagonalises_gamma(sphere, lmax):
    gamma = HarmonicCovariance(spectrum(lmax), sphere).double()
    basis = gamma.basis
    x = field(2, 3, *sphere.shape)
    torch.testing.assert_close(basis.synthesize(basis.analyze(x)), x, rtol=1e-12, atol=1e-12)
    assert float(basis.weights.sum()) == sphere.size
    # Γ = F γ Fᵀ, and F⁻¹ = Fᵀ diag(w) with the areas w of the sites
    areas = sphere.weights / sphere.radius**2
    eye = torch.eye(sphere.size, dtype=F64).reshape(-1, *sphere.shape)
    found = basis.multiply(eye / areas, gamma.spatial_eigenvalues()).reshape(sphere.size, sphere.size)
    torch.testing.assert_close(found, gamma.to_dense(), rtol=1e-12, atol=1e-13)
    # Parseval for the integral over the sphere
    power = (basis.analyze(x).abs().square() * basis.weights).sum((-2, -1))
    torch.testing.assert_close(power, (areas * x.square()).sum((-2, -1)), rtol=1e-12, atol=0)


def test_degrees_of_the_sphere_basis_are_those_of_the_harmonics():
    sphere, lmax = SPHERES[0]
    gamma = HarmonicCovariance(spectrum(lmax), sphere).double()
    for degree in range(lmax + 1):
        coefficients = torch.zeros(lmax + 1, lmax + 1, dtype=F64)
        coefficients[gamma.harmonics.degrees == degree] = field(2 * degree + 1)
        found = gamma.basis.analyze(gamma.harmonics.synthesis(coefficients))
        assert float(found[gamma.basis.degrees != degree].abs().max()) < 1e-13
        assert float(found[gamma.basis.degrees == degree].abs().max()) > 0.1
    assert resolved_degree(sphere) == 7
    assert int(gamma.basis.degrees.max()) == 8


@pytest.mark.parametrize("laplacian", ["combinatorial", "normalized"])
@pytest.mark.parametrize("normalize", ["none", "mean"])
@pytest.mark.parametrize("nu", [0.7, 1.0, 1.5, 2.0])
def test_graph_matern_is_diagonal_in_its_basis(nu, normalize, laplacian):
    gamma = GraphMaternCovariance(
        Matern(nu=nu, lengthscale=2.0), Graph.grid((4, 5)), laplacian=laplacian, normalize=normalize
    ).double()
    x = field(3, 20)
    torch.testing.assert_close(gamma.basis.synthesize(gamma.basis.analyze(x)), x, rtol=1e-12, atol=1e-12)
    found = gamma.basis.multiply(x, gamma.spatial_eigenvalues())
    torch.testing.assert_close(found, gamma.matmul(x), rtol=1e-11, atol=1e-12)
    assert float(gamma.basis.eigenvalues[0]) == 0.0
    assert gamma.basis.normalized == (laplacian == "normalized")


def test_eigenvalues_are_differentiable_and_follow_the_kernel():
    gamma = GraphMaternCovariance(Matern(nu=2.0, lengthscale=2.0), Graph.path(6)).double()
    (gradient,) = torch.autograd.grad(gamma.spatial_eigenvalues().sum(), gamma.kernel.raw_lengthscale)
    assert bool((gradient != 0).all())
    x = field(6)
    gamma.kernel.lengthscale = 0.7
    found = gamma.basis.multiply(x, gamma.spatial_eigenvalues())
    torch.testing.assert_close(found, gamma.matmul(x), rtol=1e-11, atol=1e-12)


def test_the_basis_survives_inference_mode():
    basis = GraphBasis(Graph.path(5))
    other = SphereBasis(Sphere((4, 8), poles=False))
    with torch.inference_mode():
        basis.analyze(torch.ones(5, dtype=F64))
        other.analyze(torch.ones(4, 8, dtype=F64))
    x = torch.ones(5, dtype=F64, requires_grad=True)
    basis.analyze(x).sum().backward()
    z = torch.ones(4, 8, dtype=F64, requires_grad=True)
    other.analyze(z).real.sum().backward()
    assert x.grad is not None
    assert z.grad is not None


def test_where_there_is_no_basis():
    kernel = Matern(nu=2.0, lengthscale=2.0)
    assert GraphMaternCovariance(kernel, Graph.path(6), normalize="site").basis is None
    assert GraphMaternCovariance(kernel, Graph.path(EIGEN_SITES + 1)).basis is None
    with pytest.raises(ValueError, match="dense; at most"):
        GraphBasis(Graph.path(EIGEN_SITES + 1))
    with pytest.raises(ValueError, match="without edges"):
        GraphBasis(Graph.from_edges([[0, 1]], 3), normalized=True)
    with pytest.raises(ValueError, match="repeats each pole"):
        SphereBasis(Sphere((5, 8)))
    # too many degrees for the grid; poles; degrees without end
    assert HarmonicCovariance(spectrum(8), Sphere((8, 16), "gauss_legendre")).basis is None
    assert HarmonicCovariance(spectrum(2), Sphere((9, 16))).basis is None
    assert SphereCovariance(Matern(nu=1.5, lengthscale=1.0), Sphere((6, 9), poles=False)).basis is None


def test_white_noise_is_diagonal_in_orthonormal_bases_only():
    graph = Graph.path(6)
    gamma = GraphMaternCovariance(Matern(nu=2.0, lengthscale=2.0), graph).double()
    assert isinstance(joint_spectrum(white(graph).double(), gamma)[0], GraphBasis)
    total = SumCovariance(gamma, white(graph).double())
    assert isinstance(total.basis, GraphBasis)
    x = field(2, 6)
    torch.testing.assert_close(total.matmul(x), gamma.matmul(x) + x, rtol=1e-12, atol=1e-12)
    sphere, lmax = SPHERES[2]
    harmonic = HarmonicCovariance(spectrum(lmax), sphere).double()
    assert SumCovariance(harmonic, white(sphere).double()).basis is None
    basis, _, _ = joint_spectrum(white(sphere).double(), harmonic)
    assert not isinstance(basis, SphereBasis)
    assert isinstance(joint_spectrum(harmonic, harmonic)[0], SphereBasis)
