r"""The eigenvectors of a graph's Laplacian, ``L φ_k = λ_k φ_k``: where functions of ``L`` are diagonal.

``L = diag(degrees) - W``, or ``diag(degrees)^{-1/2} L diag(degrees)^{-1/2}``. The eigenvectors are dense: one
decomposition of ``O(n³)``, at the first use, and ``O(n²)`` per field.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from spatialdiff.covariance.basis import Basis
from spatialdiff.domains.graph import Graph

#: largest number of nodes for which the eigenvectors are formed
EIGEN_SITES = 2048


class GraphBasis(Basis):
    """Orthonormal eigenvectors of the Laplacian of a graph, in the order of growing eigenvalues.

    Args:
        graph: the graph, of at most ``EIGEN_SITES`` nodes.
        normalized: whether of the symmetrically normalised Laplacian.

    Raises:
        ValueError: a larger graph; nodes without edges under the normalised Laplacian.
    """

    grid: Graph

    def __init__(self, graph: Graph, normalized: bool = False) -> None:
        super().__init__(graph)
        if graph.size > EIGEN_SITES:
            raise ValueError(
                f"GraphBasis: {graph.size} nodes, and the eigenvectors of a Laplacian are dense; at most "
                f"{EIGEN_SITES}."
            )
        if normalized and bool((graph.degrees == 0).any()):
            raise ValueError("GraphBasis: nodes without edges, the normalised Laplacian is not defined.")
        self.normalized = normalized
        self.modes = torch.Size(graph.shape)

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):
            return self._decompose()

    def _decompose(self) -> tuple[Tensor, Tensor]:
        laplacian = torch.diag(self.grid.degrees)
        first, second = self.grid.edges.T
        laplacian[first, second] = laplacian[second, first] = -self.grid.weights
        if self.normalized:
            root = self.grid.degrees.rsqrt()
            laplacian = root[:, None] * laplacian * root
        values, vectors = torch.linalg.eigh(laplacian)
        # what is below 0 is rounding of the eigenvalue 0 of each connected part
        floor = 4 * len(values) * torch.finfo(torch.float64).eps * float(values.max())
        return torch.where(values < floor, 0.0, values), vectors

    @property
    def eigenvalues(self) -> Tensor:
        """``λ_k`` ``(n,)``, float64, exactly 0 for constants on a connected part."""
        return self._pairs[0]

    def analyze(self, x: Tensor) -> Tensor:
        return x @ self._pairs[1].to(x)

    def synthesize(self, c: Tensor) -> Tensor:
        return c @ self._pairs[1].to(c).mT

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, GraphBasis) and self.grid == other.grid and self.normalized == other.normalized
        )

    def __hash__(self) -> int:
        return hash((type(self), self.grid, self.normalized))
