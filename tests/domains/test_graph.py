"""Graphs: what they hold, how they are made, what they refuse."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch

from spatialdiff.domains.graph import Graph

WEIGHTS = torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, 0.5], [0.0, 0.5, 0.0]], dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.clone,
        torch.Tensor.numpy,
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        lambda w: scipy.sparse.csr_matrix(w.numpy()),
        lambda w: scipy.sparse.coo_array(w.numpy()),
    ],
)
def test_takes_dense_and_sparse_weights(convert):
    graph = Graph(convert(WEIGHTS))
    assert graph == Graph(WEIGHTS)
    assert (graph.shape, graph.ndim, graph.size, graph.dimension, graph.periodic) == ((3,), 1, 3, 0, (False,))
    assert graph.edges.tolist() == [[0, 1], [1, 2]]
    assert graph.weights.tolist() == [2.0, 0.5]
    assert graph.degrees.tolist() == [2.0, 2.5, 0.5]
    assert hash(graph) == hash(copy.deepcopy(graph)) == hash(pickle.loads(pickle.dumps(graph)))
    assert repr(graph) == "Graph(3 nodes, 2 edges)"
    assert graph != Graph(2 * WEIGHTS)


def test_from_edges():
    graph = Graph.from_edges([[1, 0], [1, 2]], 3, torch.tensor([2.0, 0.5]))
    assert graph == Graph(WEIGHTS)
    assert Graph.from_edges(torch.tensor([[0, 1]]), 4).degrees.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_path_and_grid():
    assert Graph.path(4).edges.tolist() == [[0, 1], [1, 2], [2, 3]]
    grid = Graph.grid((3, 4))
    assert len(grid.edges) == 3 * 3 + 2 * 4
    corner_edge_inside = torch.tensor([[2, 3, 3, 2], [3, 4, 4, 3], [2, 3, 3, 2]], dtype=torch.float64)
    assert torch.equal(grid.degrees.reshape(3, 4), corner_edge_inside)
    assert len(Graph.grid((2, 3, 4)).edges) == 1 * 12 + 2 * 8 + 3 * 6
    assert len(Graph.path(1).edges) == 0


def test_laplacian_of_a_path_has_cosine_eigenvalues():
    """``2 - 2 cos(πk/n)`` (Strang 1999)."""
    graph = Graph.path(9)
    laplacian = torch.diag(graph.degrees)
    for (i, j), w in zip(graph.edges.tolist(), graph.weights, strict=True):
        laplacian[i, j] = laplacian[j, i] = -w
    expected = 2 - 2 * torch.cos(math.pi * torch.arange(9) / 9).double()
    torch.testing.assert_close(torch.linalg.eigvalsh(laplacian), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (torch.zeros(2, 3), "square"),
        (torch.zeros(0, 0), "at least one node"),
        (torch.zeros(4), r"must be \(n, n\)"),
        (torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "not symmetric"),
        (torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), "not symmetric"),
        (torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), "negative, the smallest is -1"),
        (torch.tensor([[0.0, math.nan], [math.nan, 0.0]]), "2 weights are NaN"),
        (torch.eye(3), "3 nodes are joined to themselves"),
        (scipy.sparse.csr_matrix(np.array([[0.0, 1.0], [0.0, 0.0]])), "not symmetric"),
    ],
)
def test_refuses(weights, match):
    with pytest.raises(ValueError, match=match):
        Graph(weights)


def test_from_edges_refuses():
    with pytest.raises(ValueError, match="nodes 0 to 3, there are nodes 0 to 2"):
        Graph.from_edges([[0, 3]], 3)
    with pytest.raises(ValueError, match="more than once"):
        Graph.from_edges([[0, 1], [1, 0]], 3)
    with pytest.raises(ValueError, match="to itself"):
        Graph.from_edges([[1, 1]], 3)
    with pytest.raises(ValueError, match="1 edges, but weights of shape"):
        Graph.from_edges([[0, 1]], 3, torch.ones(2))
    with pytest.raises(ValueError, match="integer pairs"):
        Graph.from_edges([[0.5, 1.0]], 3)


def test_has_no_coordinates():
    with pytest.raises(ValueError, match="no coordinates"):
        Graph.path(3).coordinates()
