"""Meshes of simplices: segments, triangles (also on surfaces in R³) and tetrahedra.

A field has one value per vertex and is linear on every element. With the edges ``E = (v_1 - v_0, …, v_m -
v_0)`` of an element of dimension ``m`` its volume is ``√det(EᵀE) / m!``.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains.base import Domain
from spatialdiff.domains.grid import Grid
from spatialdiff.domains.points import as_sites

# elements flatter than this are taken off the hull of a Delaunay mesh, where nearly aligned sites make them
_SLIVER = 1e-2
# an element whose volume is below this share of (longest edge)^m is flat: gradients on it are rounding errors
_FLAT = 1e-10
_KINDS = {2: "segments", 3: "triangles", 4: "tetrahedra"}


class Mesh(Domain):
    """Vertices ``(n, d)`` joined by elements; a field has shape ``(n,)``.

    Args:
        vertices: coordinates ``(n, d)``, or ``(n,)`` on a line, in the length unit of the kernel.
        elements: indices of vertices, ``(m, 2)`` segments, ``(m, 3)`` triangles or ``(m, 4)`` tetrahedra, in
            at least 1, 2 and 3 dimensions.

    Raises:
        ValueError: no vertex or element, NaN, an index out of range, an element that is flat or given twice,
            a vertex that no element uses.
        TypeError: indices that are not integers.
    """

    def __init__(self, vertices: Tensor, elements: Tensor) -> None:
        self._vertices = as_sites(vertices, "Mesh")
        self._elements = _as_elements(elements, *self._vertices.shape)
        self.shape, self.periodic = (len(self._vertices),), (False,)
        volumes, longest = self.volumes(), self._longest_edges()
        _name_bad(volumes <= _FLAT * longest**self.element_dimension, "are flat (zero volume)")
        data = self._vertices.numpy().tobytes() + self._elements.numpy().tobytes()
        self._digest = hashlib.sha256(data).hexdigest()

    # ---- constructors
    @classmethod
    def from_grid(cls, grid: Grid) -> Mesh:
        """The mesh whose vertices are the sites of a grid, row-major; every cell is cut into ``d!`` simplices
        along the same diagonal (Kuhn's triangulation).

        Raises:
            ValueError: a periodic axis, or an axis with one site.
        """
        if any(grid.periodic):
            raise ValueError(
                f"Mesh.from_grid: {grid} is periodic, a mesh in R^d cannot wrap around; use a Grid with "
                'method="torus", which is exact.'
            )
        if min(grid.shape) < 2:
            raise ValueError(f"Mesh.from_grid: every axis needs at least 2 sites, got shape {grid.shape}.")
        d = grid.ndim
        index = torch.arange(grid.size).reshape(grid.shape)
        simplices = []
        for order in itertools.permutations(range(d)):
            corner, corners = [0] * d, []
            for axis in (None, *order):
                if axis is not None:
                    corner[axis] = 1
                window = tuple(slice(c, n - 1 + c) for c, n in zip(corner, grid.shape, strict=True))
                corners.append(index[window].reshape(-1))
            simplices.append(torch.stack(corners, dim=-1))
        return cls(grid.coordinates().reshape(-1, d), torch.cat(simplices))

    @classmethod
    def delaunay(cls, points: Tensor) -> Mesh:
        """Delaunay mesh of the convex hull of sites ``(n, d)``, ``d`` from 1 to 3 (`scipy.spatial.Delaunay`).

        Raises:
            ValueError: too few sites, duplicates, or sites on one line (``d = 2``) or plane (``d = 3``).
        """
        from scipy.spatial import Delaunay, QhullError

        sites = as_sites(points, "Mesh.delaunay")
        n, d = sites.shape
        if d > 3 or n < d + 1:
            raise ValueError(
                "Mesh.delaunay: needs at least d + 1 sites in d = 1, 2 or 3 dimensions, got "
                f"{n} sites in {d}."
            )
        distinct = len(_equal_rows(sites)[1])
        if distinct < n:
            raise ValueError(
                f"Mesh.delaunay: {n - distinct} of {n} sites are duplicates; remove "
                "them (Points(...).duplicates() lists them)."
            )
        if d == 1:
            order = sites[:, 0].argsort()
            return cls(sites, torch.stack([order[:-1], order[1:]], dim=-1))
        what = "line" if d == 2 else "plane"
        try:
            found = torch.from_numpy(Delaunay(sites.numpy()).simplices).long()
        except QhullError as error:
            raise ValueError(
                f"Mesh.delaunay: the {n} sites lie on one {what}, or too close to one for a mesh in {d} "
                f"dimensions; give coordinates along the {what} ({d - 1} per site) instead."
            ) from error
        found = _without_hull_slivers(sites, found)
        return cls(sites, found)

    @classmethod
    def sphere(cls, refinements: int, radius: float = 1.0) -> Mesh:
        """Icosahedral triangulation of a sphere in R³ with ``10 · 4^refinements + 2`` vertices.

        Raises:
            ValueError: a negative number of refinements, a radius that is not positive.
        """
        if refinements < 0 or not radius > 0 or not math.isfinite(radius):
            raise ValueError(
                f"Mesh.sphere: needs refinements >= 0 and a positive radius, got {refinements} and {radius}."
            )
        golden = (1 + math.sqrt(5)) / 2
        corners = [
            p for a in (-1.0, 1.0) for b in (-golden, golden) for p in ((0, a, b), (a, b, 0), (b, 0, a))
        ]
        vertices = torch.tensor(corners, dtype=torch.float64)
        near = torch.cdist(vertices, vertices) < 2.1
        faces = [
            f
            for f in itertools.combinations(range(12), 3)
            if all(near[i, j] for i, j in itertools.combinations(f, 2))
        ]
        elements = torch.tensor(faces)
        for _ in range(refinements):
            pairs = torch.stack([elements[:, [0, 1]], elements[:, [1, 2]], elements[:, [2, 0]]], dim=1)
            pairs = pairs.sort(-1).values.reshape(-1, 2)
            inverse, count = _equal_rows(pairs)
            edges = torch.empty(len(count), 2, dtype=torch.int64)
            edges[inverse] = pairs
            middle = len(vertices) + inverse.reshape(-1, 3)
            vertices = torch.cat([vertices, vertices[edges].mean(1)])
            vertices = vertices / vertices.norm(dim=-1, keepdim=True)
            (a, b, c), (ab, bc, ca) = elements.unbind(-1), middle.unbind(-1)
            parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
            elements = torch.cat([torch.stack(part, dim=-1) for part in parts])
        return cls(radius * vertices / vertices.norm(dim=-1, keepdim=True), elements)

    # ---- what it is
    @property
    def dimension(self) -> int:
        return self._vertices.shape[1]

    @property
    def element_dimension(self) -> int:
        """Dimension ``m`` of the elements: 1 segments, 2 triangles, 3 tetrahedra; ``m < d`` on a surface."""
        return self._elements.shape[1] - 1

    @property
    def vertices(self) -> Tensor:
        """Coordinates ``(n, d)``, float64."""
        return self._vertices.clone()

    @property
    def elements(self) -> Tensor:
        """Indices ``(m, element_dimension + 1)``, int64."""
        return self._elements.clone()

    def coordinates(self) -> Tensor:
        return self._vertices.clone()

    def edges(self) -> Tensor:
        """``v_i - v_0`` of every element, shape ``(elements, element_dimension, d)``."""
        return _edges(self._vertices, self._elements)

    def volumes(self) -> Tensor:
        """Length, area or volume of every element, shape ``(elements,)``."""
        return _volumes(self.edges())

    def edge_lengths(self) -> Tensor:
        """Lengths of all sides of every element, shape ``(elements, sides)``."""
        corners = self._vertices[self._elements]
        pairs = list(itertools.combinations(range(self._elements.shape[1]), 2))
        return torch.stack([(corners[:, i] - corners[:, j]).norm(dim=-1) for i, j in pairs], dim=-1)

    def _longest_edges(self) -> Tensor:
        return self.edge_lengths().amax(-1)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mesh)
            and torch.equal(self._vertices, other._vertices)
            and torch.equal(self._elements, other._elements)
        )

    def __hash__(self) -> int:
        return hash((type(self), self._digest))

    def __repr__(self) -> str:
        kind = _KINDS[self._elements.shape[1]]
        return f"Mesh({self.shape[0]} vertices in {self.dimension} dimensions, {len(self._elements)} {kind})"


def _edges(vertices: Tensor, elements: Tensor) -> Tensor:
    corners = vertices[elements]
    return corners[:, 1:] - corners[:, :1]


def _longest(edges: Tensor) -> Tensor:
    result: Tensor = edges.norm(dim=-1).amax(-1)
    return result


def _volumes(edges: Tensor) -> Tensor:
    gram = edges @ edges.mT
    result: Tensor = torch.linalg.det(gram).clamp_min(0.0).sqrt() / math.factorial(edges.shape[1])
    return result


def _equal_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the group of equal rows that a row is in, ``(m,)``, and the size of each group."""
    # many times faster than torch.unique along an axis
    order = torch.from_numpy(np.lexsort(rows.T.numpy()))
    ordered = rows[order]
    new = torch.cat([torch.zeros(1, dtype=torch.bool), (ordered[1:] != ordered[:-1]).any(-1)])
    group = torch.empty(len(rows), dtype=torch.int64)
    group[order] = new.cumsum(0)
    return group, torch.bincount(group)


def _without_hull_slivers(sites: Tensor, elements: Tensor) -> Tensor:
    """Flat elements with a facet on the boundary removed, again and again, where every site stays in use."""
    d = sites.shape[1]
    while True:
        edges = _edges(sites, elements)
        quality = _volumes(edges) * math.factorial(d) / _longest(edges) ** d
        facets = torch.stack([elements[:, [j for j in range(d + 1) if j != i]] for i in range(d + 1)], dim=1)
        group, count = _equal_rows(facets.sort(-1).values.reshape(-1, d))
        outer = (count[group] == 1).reshape(-1, d + 1).any(-1)
        drop = outer & (quality < _SLIVER)
        used = torch.zeros(len(sites), dtype=torch.bool)
        used[elements[~drop].reshape(-1)] = True
        drop &= used[elements].all(-1)
        if not bool(drop.any()):
            return elements
        elements = elements[~drop]


def _name_bad(bad: Tensor, what: str, kind: Callable[[int], str] = lambda i: f"element {i}") -> None:
    if bool(bad.any()):
        shown = ", ".join(kind(int(i)) for i in bad.nonzero()[:5, 0])
        more = ", …" if int(bad.sum()) > 5 else ""
        raise ValueError(f"Mesh: {int(bad.sum())} of {len(bad)} {what}: {shown}{more}; remove them.")


def _as_elements(elements: Tensor, n: int, d: int) -> Tensor:
    found = torch.as_tensor(elements)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"Mesh: elements must be integer indices of vertices, got {found.dtype}.")
    if found.dim() != 2 or found.shape[0] == 0 or found.shape[1] not in _KINDS:
        raise ValueError(
            "Mesh: elements must have shape (m, 2), (m, 3) or (m, 4) (segments, triangles, tetrahedra), got "
            f"{tuple(found.shape)}."
        )
    if found.shape[1] - 1 > d:
        raise ValueError(
            f"Mesh: {_KINDS[found.shape[1]]} need vertices in at least {found.shape[1] - 1} dimensions, got "
            f"{d}."
        )
    found = found.detach().to(device="cpu", dtype=torch.int64).clone()
    if int(found.min()) < 0 or int(found.max()) >= n:
        raise ValueError(
            f"Mesh: elements name vertices {int(found.min())} to {int(found.max())}, there are vertices 0 to "
            f"{n - 1}."
        )
    ordered = found.sort(-1).values
    _name_bad((ordered[:, 1:] == ordered[:, :-1]).any(-1), "elements name a vertex twice")
    group, count = _equal_rows(ordered)
    _name_bad(count[group] > 1, "elements are given more than once")
    used = torch.zeros(n, dtype=torch.bool)
    used[found.reshape(-1)] = True
    _name_bad(~used, "vertices belong to no element", lambda i: f"vertex {i}")
    return found
