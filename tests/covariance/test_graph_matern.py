"""Graph Matérn fields against eigenvectors of a dense Laplacian."""

from __future__ import annotations

import pytest
import torch
from covariance_case import CovarianceCase

from spatialdiff.covariance.meshes.graph_matern import GraphMaternCovariance
from spatialdiff.domains.graph import Graph
from spatialdiff.domains.points import Points
from spatialdiff.kernels import Gaussian, Matern


def random_graph(n: int = 14, seed: int = 0) -> Graph:
    """About a third of all pairs, and a path so that nothing is isolated."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(n, n, generator=g, dtype=torch.float64)
    weights = torch.triu(weights * (torch.rand(n, n, generator=g) < 0.3), 1)
    weights = weights + torch.diag(torch.full((n - 1,), 0.5, dtype=torch.float64), 1)
    return Graph(weights + weights.T)


def laplacian(graph: Graph, normalized: bool) -> torch.Tensor:
    weights = torch.zeros(graph.size, graph.size, dtype=torch.float64)
    for (i, j), w in zip(graph.edges.tolist(), graph.weights.tolist(), strict=True):
        weights[i, j] = weights[j, i] = w
    degrees = weights.sum(1)
    if normalized:
        return torch.eye(graph.size) - weights / (degrees[:, None] * degrees).sqrt()
    return torch.diag(degrees) - weights


class GraphCase(CovarianceCase):
    grid = random_graph()
    nu = 2.0
    laplacian = "combinatorial"
    normalize = "none"
    kind = "auto"

    def kernel(self):
        return Matern(self.nu, lengthscale=1.6, variance=1.7)

    def build(self, kernel):
        options = {"laplacian": self.laplacian, "normalize": self.normalize, "root": self.kind}
        return GraphMaternCovariance(kernel, self.grid, self.channels, tolerance=1e-12, **options)

    def spatial(self, kernel):
        values, vectors = torch.linalg.eigh(laplacian(self.grid, self.laplacian == "normalized"))
        shift = 2 * self.nu / kernel.lengthscale.reshape(()).square()
        power = vectors @ torch.diag((shift + values) ** -self.nu) @ vectors.T
        if self.normalize == "mean":
            power = power / power.diagonal().mean()
        elif self.normalize == "site":
            power = power / (power.diagonal()[:, None] * power.diagonal()).sqrt()
        return kernel.variance * power


class TestTwo(GraphCase):
    pass


class TestOne(GraphCase):
    """Odd: the rectangular root, through the incidence matrix."""

    nu = 1.0
    invertible_root = False


class TestOneSymmetric(GraphCase):
    nu = 1.0
    kind = "symmetric"


class TestHalfIntegerNormalizedLaplacian(GraphCase):
    nu = 1.5
    laplacian = "normalized"
    channels = 2


class TestBelowOneMean(GraphCase):
    nu = 0.5
    normalize = "mean"


class TestGeneralSite(GraphCase):
    nu = 1.3
    normalize = "site"
    grid = Graph.grid((4, 4))
    channels = ((1.0, 0.3), (0.3, 0.5))

    def dense(self, kernel):
        return torch.kron(torch.tensor(self.channels, dtype=torch.float64), self.spatial(kernel).contiguous())


@pytest.mark.parametrize(("nu", "exact"), [(1.0, True), (2.0, True), (1.5, False)])
def test_report(nu, exact):
    report = GraphMaternCovariance(Matern(nu, 2.0), random_graph()).report
    assert report.exact is exact
    assert (report.relative_error is None) is exact
    if not exact:
        assert 0 < report.relative_error <= 2e-8
        assert "poles" in report.reason


def test_constant_fields_and_nodes_alone():
    """``L 1 = 0``: ``Γ 1 = σ² (ℓ²/2ν)^ν 1``; nodes without an edge have that variance."""
    kernel = Matern(2.0, 3.0, 1.3).requires_grad_(False)
    scale = 1.3 * (9.0 / 4.0) ** 2
    gamma = GraphMaternCovariance(kernel, random_graph())
    ones = torch.ones(14, dtype=torch.float64)
    torch.testing.assert_close(gamma.matmul(ones), scale * ones, rtol=1e-12, atol=0)
    alone = GraphMaternCovariance(kernel, Graph(torch.zeros(3, 3)))
    torch.testing.assert_close(
        alone.to_dense(), scale * torch.eye(3, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_large_graph_is_drawn_with_its_variance():
    """80 x 80 nodes, ν = 2, normalised: mean square within five standard errors of σ²."""
    gamma = GraphMaternCovariance(
        Matern(2.0, 4.0, 1.5).requires_grad_(False), Graph.grid((80, 80)), normalize="mean"
    ).double()
    x = gamma.sample((8,), generator=torch.Generator().manual_seed(0))
    # Var(mean of x²) = 2 ‖Γ‖_F²/n², estimated from the products of two independent draws: E (xᵀy)² = ‖Γ‖_F²
    products = x[:4] @ x[4:].T
    spread = (2 * products.square().mean() / gamma.domain.size**2 / 8).sqrt().item()
    assert spread < 0.2
    assert abs(x.square().mean().item() - 1.5) < 5 * spread
    assert float(gamma.variance().mean()) == pytest.approx(1.5, rel=1e-10)


def test_refuses():
    graph = random_graph()
    with pytest.raises(TypeError, match="needs a Graph, got Points"):
        GraphMaternCovariance(Matern(2.0), Points(torch.rand(4, 2)))
    with pytest.raises(ValueError, match="Matern kernel"):
        GraphMaternCovariance(Gaussian(), graph)
    with pytest.raises(ValueError, match="laplacian must be"):
        GraphMaternCovariance(Matern(2.0), graph, laplacian="signless")
    with pytest.raises(ValueError, match="3 nodes have no edges"):
        GraphMaternCovariance(Matern(2.0), Graph(torch.zeros(3, 3)), laplacian="normalized")
