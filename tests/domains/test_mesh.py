"""Meshes: what they hold, how they are made, what they refuse."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch

import spatialdiff as sd
from spatialdiff.domains.mesh import Mesh

TRIANGLE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
ONE = torch.tensor([[0, 1, 2]])


def test_holds_vertices_and_elements():
    mesh = Mesh(TRIANGLE, ONE)
    assert mesh.shape == (3,)
    assert (mesh.ndim, mesh.size, mesh.dimension, mesh.element_dimension) == (1, 3, 2, 2)
    assert mesh.periodic == (False,)
    assert mesh.coordinates().dtype == torch.float64
    torch.testing.assert_close(mesh.coordinates(), TRIANGLE.double())
    mesh.coordinates().zero_()
    torch.testing.assert_close(mesh.coordinates(), TRIANGLE.double())
    assert mesh == Mesh(TRIANGLE, ONE)
    assert mesh != Mesh(2 * TRIANGLE, ONE)
    assert hash(mesh) == hash(copy.deepcopy(mesh)) == hash(pickle.loads(pickle.dumps(mesh)))
    assert repr(mesh) == "Mesh(3 vertices in 2 dimensions, 1 triangles)"


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 5)])
def test_from_grid_fills_the_box(shape):
    """``d!`` simplices of equal volume per cell; sites in row-major order."""
    spacing = (0.5, 2.0, 1.5)[: len(shape)]
    grid = sd.Grid(shape, spacing)
    mesh = Mesh.from_grid(grid)
    d = len(shape)
    torch.testing.assert_close(mesh.coordinates().reshape(*shape, d), grid.coordinates())
    cells = math.prod(n - 1 for n in shape)
    assert len(mesh.elements) == math.factorial(d) * cells
    torch.testing.assert_close(
        mesh.volumes(), torch.full((len(mesh.elements),), math.prod(spacing) / math.factorial(d)).double()
    )
    assert_conforming(mesh)


def assert_conforming(mesh: Mesh, boundary: bool = True) -> None:
    """Every facet belongs to one or two elements (two everywhere on a closed surface)."""
    k = mesh.elements.shape[1]
    facets = torch.cat([mesh.elements[:, [j for j in range(k) if j != i]] for i in range(k)]).sort(-1).values
    counts = torch.unique(facets, dim=0, return_counts=True)[1]
    assert int(counts.max()) <= 2
    assert bool((counts == 1).any()) is boundary


@pytest.mark.parametrize("d", [1, 2, 3])
def test_delaunay_covers_the_hull(d):
    from scipy.spatial import ConvexHull

    sites = torch.rand(60, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    mesh = Mesh.delaunay(sites)
    torch.testing.assert_close(mesh.coordinates(), sites)
    volume = float(sites.max() - sites.min()) if d == 1 else ConvexHull(sites.numpy()).volume
    # slivers on the hull are left out
    assert volume * 0.98 <= float(mesh.volumes().sum()) <= volume * (1 + 1e-12)
    assert_conforming(mesh)


def test_delaunay_leaves_out_slivers_of_the_hull():
    """A site a hair inside the edge of a square: no flat triangle between it and the edge."""
    side = torch.arange(5, dtype=torch.float64)
    sites = torch.stack(torch.meshgrid(side, side, indexing="ij"), dim=-1).reshape(-1, 2)
    sites[sites[:, 0].eq(0) & sites[:, 1].eq(2), 0] = 1e-4
    mesh = Mesh.delaunay(sites)
    longest = mesh.edge_lengths().amax(-1)
    assert float((mesh.volumes() / longest.square()).min()) > 0.1
    assert float(mesh.volumes().sum()) == pytest.approx(16 - 1e-4, abs=1e-9)


def test_sphere():
    """``10·4^k + 2`` vertices at the radius, no boundary; the area tends to ``4πr²`` as ``4^{-k}``."""
    errors = []
    for k in range(5):
        mesh = Mesh.sphere(k, radius=3.0)
        assert mesh.size == 10 * 4**k + 2
        assert len(mesh.elements) == 20 * 4**k
        torch.testing.assert_close(mesh.coordinates().norm(dim=-1), torch.full((mesh.size,), 3.0).double())
        assert (mesh.dimension, mesh.element_dimension) == (3, 2)
        assert_conforming(mesh, boundary=False)
        errors.append(1 - float(mesh.volumes().sum()) / (36 * math.pi))
    assert all(3.7 < a / b < 4.2 for a, b in itertools.pairwise(errors[1:]))


def test_surface_areas_do_not_depend_on_the_frame():
    mesh = Mesh.sphere(1)
    g = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
    torch.testing.assert_close(Mesh(mesh.vertices @ rotation, mesh.elements).volumes(), mesh.volumes())


@pytest.mark.parametrize(
    ("vertices", "elements", "error", "match"),
    [
        (torch.zeros(0, 2), ONE, ValueError, "at least one site"),
        (TRIANGLE * math.nan, ONE, ValueError, "NaN"),
        (TRIANGLE, ONE.double(), TypeError, "integer"),
        (TRIANGLE, torch.zeros(0, 3, dtype=torch.long), ValueError, r"\(m, 2\), \(m, 3\) or \(m, 4\)"),
        (TRIANGLE, torch.tensor([[0, 1, 3]]), ValueError, "vertices 0 to 3, there are vertices 0 to 2"),
        (TRIANGLE, torch.tensor([[0, 1, -1]]), ValueError, "vertices -1 to 1"),
        (TRIANGLE, torch.tensor([[0, 1, 1]]), ValueError, "name a vertex twice: element 0"),
        (TRIANGLE, torch.tensor([[0, 1, 2], [2, 0, 1]]), ValueError, "more than once: element 0, element 1"),
        (torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), ONE, ValueError, "flat.*element 0"),
        (
            torch.cat([TRIANGLE, TRIANGLE + 5]),
            ONE,
            ValueError,
            "3 of 6 vertices belong to no element: vertex 3",
        ),
        (TRIANGLE[:, 0], ONE, ValueError, "triangles need vertices in at least 2 dimensions"),
        (torch.tensor([0.0, 1.0, 1.0]), torch.tensor([[0, 1], [1, 2]]), ValueError, "flat.*element 1"),
    ],
)
def test_refuses(vertices, elements, error, match):
    with pytest.raises(error, match=match):
        Mesh(vertices, elements)


@pytest.mark.parametrize(
    ("points", "match"),
    [
        (torch.zeros(0, 2), "at least one site"),
        (torch.rand(2, 2), "at least d"),
        (torch.rand(9, 4), "d = 1, 2 or 3"),
        (torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), "lie on one line"),
        (torch.cat([torch.rand(8, 2), torch.ones(8, 1)], dim=1), "lie on one plane"),
        (torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), "1 of 4 sites are duplicates"),
    ],
)
def test_delaunay_refuses(points, match):
    with pytest.raises(ValueError, match=match):
        Mesh.delaunay(points)


def test_other_constructors_refuse():
    with pytest.raises(ValueError, match="periodic"):
        Mesh.from_grid(sd.Grid((4, 4), periodic=(True, False)))
    with pytest.raises(ValueError, match="at least 2 sites"):
        Mesh.from_grid(sd.Grid((4, 1)))
    with pytest.raises(ValueError, match="refinements >= 0"):
        Mesh.sphere(-1)
    with pytest.raises(ValueError, match="positive radius"):
        Mesh.sphere(1, radius=0.0)
