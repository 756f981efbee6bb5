"""Graphs: nodes joined by edges of weight ``w_ij = w_ji ≥ 0``, with Laplacian ``L = diag(Σ_j w_ij) - W``.

``L = BᵀB``, where the row of ``B`` of an edge between ``i`` and ``j`` is ``√w_ij (e_i - e_j)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains.base import Domain


class Graph(Domain):
    """A weighted undirected graph; a field has shape ``(n,)``. There are no coordinates.

    Args:
        weights: symmetric ``(n, n)``, non-negative, zero on the diagonal: a dense tensor or array, a sparse
            torch tensor, or a scipy sparse matrix.

    Raises:
        ValueError: weights that are not square, symmetric, finite and non-negative, or that join a node to
            itself.
    """

    def __init__(self, weights: Any) -> None:
        n, rows, columns, values = _as_edges(weights)
        self._edges = torch.stack([rows, columns], dim=-1)
        self._weights = values
        self.shape, self.periodic = (n,), (False,)
        data = self._edges.numpy().tobytes() + values.numpy().tobytes()
        self._digest = hashlib.sha256(data + str(n).encode()).hexdigest()

    # ---- constructors
    @classmethod
    def from_edges(
        cls, edges: Tensor | Sequence[Sequence[int]], n: int, weights: Tensor | None = None
    ) -> Graph:
        """The graph of ``n`` nodes with the given edges.

        Args:
            edges: pairs of nodes ``(m, 2)``, each edge once, in either direction.
            n: number of nodes.
            weights: ``(m,)``; 1 by default.

        Raises:
            ValueError: an index out of range, a node joined to itself, an edge given twice, a wrong number of
                weights.
        """
        from scipy.sparse import coo_array

        pairs = torch.as_tensor(edges)
        if pairs.is_floating_point() or pairs.dim() != 2 or pairs.shape[1] != 2:
            raise ValueError(
                "Graph.from_edges: edges must be integer pairs (m, 2), got "
                f"{pairs.dtype} {tuple(pairs.shape)}."
            )
        pairs = pairs.detach().cpu().long().sort(-1).values
        values = torch.ones(len(pairs)) if weights is None else torch.as_tensor(weights).detach().cpu()
        if values.shape != (len(pairs),):
            raise ValueError(
                f"Graph.from_edges: {len(pairs)} edges, but weights of shape {tuple(values.shape)}."
            )
        if len(pairs) and (int(pairs.min()) < 0 or int(pairs.max()) >= n):
            raise ValueError(
                f"Graph.from_edges: edges name nodes {int(pairs.min())} to {int(pairs.max())}, there are "
                f"nodes 0 to {n - 1}."
            )
        if len(torch.unique(pairs, dim=0)) < len(pairs):
            raise ValueError("Graph.from_edges: an edge is given more than once; add up the weights.")
        if bool((pairs[:, 0] == pairs[:, 1]).any()):
            raise ValueError(
                "Graph.from_edges: an edge joins a node to itself, which a Laplacian does not see."
            )
        i, j = pairs.T.numpy()
        return cls(
            coo_array((values.double().repeat(2).numpy(), (np.append(i, j), np.append(j, i))), shape=(n, n))
        )

    @classmethod
    def path(cls, n: int) -> Graph:
        """``n`` nodes in a row, neighbours joined with weight 1."""
        return cls.grid((n,))

    @classmethod
    def grid(cls, shape: Sequence[int]) -> Graph:
        """The nodes of a regular grid, row-major, neighbours along every axis joined with weight 1."""
        index = torch.arange(int(torch.tensor(shape).prod())).reshape(tuple(shape))
        pairs = [
            torch.stack(
                [index.narrow(a, 0, m - 1).reshape(-1), index.narrow(a, 1, m - 1).reshape(-1)], dim=-1
            )
            for a, m in enumerate(shape)
        ]
        return cls.from_edges(torch.cat(pairs), index.numel())

    # ---- what it is
    @property
    def dimension(self) -> int:
        return 0

    def coordinates(self) -> Tensor:
        """A graph has none.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "A Graph has no coordinates, so that kernels of a distance do not apply; use "
            'method="graph", or Points or a Mesh where sites have coordinates.'
        )

    @property
    def edges(self) -> Tensor:
        """Pairs ``i < j`` that are joined, ``(m, 2)``."""
        return self._edges.clone()

    @property
    def weights(self) -> Tensor:
        """Weights of `edges`, ``(m,)`` float64."""
        return self._weights.clone()

    @property
    def degrees(self) -> Tensor:
        """``Σ_j w_ij``, ``(n,)`` float64."""
        total = torch.zeros(self.size, dtype=torch.float64)
        return total.index_add(0, self._edges[:, 0], self._weights).index_add(
            0, self._edges[:, 1], self._weights
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Graph)
            and self.shape == other.shape
            and torch.equal(self._edges, other._edges)
            and torch.equal(self._weights, other._weights)
        )

    def __hash__(self) -> int:
        return hash((type(self), self._digest))

    def __repr__(self) -> str:
        return f"Graph({self.shape[0]} nodes, {len(self._edges)} edges)"


def _as_triplets(weights: Any) -> tuple[torch.Size, Tensor, Tensor, Tensor]:
    """Shape, rows, columns and values of the entries that are not 0, in row-major order, repeated ones
    added.
    """
    from scipy.sparse import coo_array

    if hasattr(weights, "tocoo"):
        sparse = weights.tocsr().tocoo()
    else:
        given = torch.as_tensor(weights).detach().cpu()
        if given.dim() != 2:
            raise ValueError(f"Graph: weights must be (n, n), got {tuple(given.shape)}.")
        if given.layout == torch.strided:
            rows, columns = given.nonzero().unbind(-1)
            sparse = coo_array(
                (given[rows, columns].numpy(), (rows.numpy(), columns.numpy())), shape=given.shape
            )
        else:
            given = given.to_sparse_coo().coalesce()
            rows, columns = given.indices()
            sparse = coo_array((given.values().numpy(), (rows.numpy(), columns.numpy())), shape=given.shape)
        sparse = sparse.tocsr().tocoo()
    values = torch.from_numpy(sparse.data.astype(float))
    rows, columns = (torch.from_numpy(v.astype(int)) for v in (sparse.row, sparse.col))
    order = torch.argsort(rows * sparse.shape[1] + columns)
    return torch.Size(sparse.shape), rows[order], columns[order], values[order]


def _as_edges(weights: Any) -> tuple[int, Tensor, Tensor, Tensor]:
    """``n`` and the edges ``i < j`` with their weights, each once."""
    shape, rows, columns, values = _as_triplets(weights)
    if shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"Graph: weights must be square with at least one node, got {tuple(shape)}.")
    n = shape[0]
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"Graph: {int((~torch.isfinite(values)).sum())} weights are NaN or infinite.")
    if bool((values < 0).any()):
        raise ValueError(f"Graph: weights must not be negative, the smallest is {float(values.min()):g}.")
    keep = values > 0
    rows, columns, values = rows[keep], columns[keep], values[keep]
    if bool((rows == columns).any()):
        raise ValueError(
            f"Graph: {int((rows == columns).sum())} nodes are joined to themselves; set the diagonal to 0, a "
            "Laplacian does not see it."
        )
    upper = rows < columns
    # sorted by (row, column) on one side and by (column, row) on the other, the two halves must agree
    order = torch.argsort(columns[~upper] * n + rows[~upper])
    same = int(upper.sum()) * 2 == len(rows) and all(
        torch.equal(a, b)
        for a, b in [(rows[upper], columns[~upper][order]), (columns[upper], rows[~upper][order])]
    )
    if not same or not torch.allclose(values[upper], values[~upper][order], rtol=1e-12, atol=0):
        raise ValueError(
            "Graph: weights are not symmetric; for a directed graph use (W + Wᵀ)/2 if that is meant."
        )
    return n, rows[upper], columns[upper], values[upper]
