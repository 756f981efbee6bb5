r"""Which pairs of sites belong together: by distance, and by direction.

A pair with difference ``h = x_j - x_i`` is in bin ``k`` where ``e_k < ‖h‖ ≤ e_{k+1}``; pairs at distance
``e_0`` itself are in the first bin, so that sites measured twice count where the first edge is 0. With a
direction ``u`` (a unit vector; ``h`` and ``-h`` are the same pair) it must also lie in the cone
``|u·h| ≥ ‖h‖ cos τ`` of tolerance ``τ`` and, with a bandwidth ``b``, in the cylinder ``‖h - (u·h) u‖ ≤ b``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains import Domain, Grid, MaskedGrid, Sphere

# a distance that differs from an edge by rounding is on it
_SLACK = 1e-9
NUMBER = 15
Direction = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class Bins:
    """Edges ``(b + 1,)`` of distances, and the cone of directions (None: all)."""

    edges: np.ndarray
    direction: np.ndarray | None
    tolerance: float
    bandwidth: float | None

    @property
    def number(self) -> int:
        return len(self.edges) - 1

    @property
    def farthest(self) -> float:
        """No pair beyond this distance is in a bin."""
        return float(self.edges[-1]) * (1.0 + _SLACK)

    def index(self, distance: np.ndarray) -> np.ndarray:
        """Bin of each distance; -1 or ``number`` outside."""
        place = np.searchsorted(self.edges * (1.0 + _SLACK), distance, side="left") - 1
        first = self.edges[0]
        place[(distance >= first * (1.0 - _SLACK)) & (distance <= first * (1.0 + _SLACK))] = 0
        return place

    def towards(self, difference: np.ndarray, distance: np.ndarray) -> np.ndarray | None:
        """Whether each difference ``(p, d)`` is in the cone; None where all are."""
        if self.direction is None:
            return None
        along = np.abs(difference @ self.direction)
        inside = along >= distance * (math.cos(math.radians(self.tolerance)) - _SLACK)
        if self.bandwidth is not None:
            across = np.sqrt(np.maximum(distance**2 - along**2, 0.0))
            inside &= across <= self.bandwidth * (1.0 + _SLACK)
        return np.asarray(inside)


def make_bins(
    domain: Domain,
    bins: int | Tensor | Sequence[float] | None,
    direction: Direction | None,
    tolerance: float,
    bandwidth: float | None,
    max_distance: float | None,
    great_circle: bool,
) -> Bins:
    """Check what was asked for, and fill in gstat's defaults: 15 bins of one width up to a third of the
    diagonal of the sites' bounding box (a sixth of a great circle on a sphere; on a grid no bin narrower than
    a cell; no further than half the period of a periodic axis).
    """
    edges = _edges(domain, bins, max_distance, great_circle)
    vector = None
    if direction is not None:
        if great_circle:
            raise ValueError("direction needs a plane or R^d: on a sphere variograms are of all directions")
        vector = unit_vector(direction, domain.dimension)
    elif bandwidth is not None:
        raise ValueError("bandwidth is the width of a direction's corridor: give direction= as well")
    if not 0.0 < tolerance <= 90.0:
        raise ValueError(f"tolerance must be above 0 and at most 90 degrees, got {tolerance!r}")
    if bandwidth is not None and not bandwidth > 0.0:
        raise ValueError(f"bandwidth must be positive, in units of length, got {bandwidth!r}")
    return Bins(edges, vector, float(tolerance), bandwidth)


def check_sphere(domain: Domain) -> None:
    """Raise ValueError unless the sites are on one sphere about the origin of R³."""
    if domain.dimension != 3:
        raise ValueError(
            f"metric='great_circle' needs sites in R³ on a sphere about the origin, {domain} has "
            f"{domain.dimension} coordinates: use R (cos φ cos λ, cos φ sin λ, sin φ)"
        )
    radii = domain.sites().norm(dim=1)
    if not float(radii.max() - radii.min()) < 1e-4 * float(radii.min()):
        raise ValueError(
            "metric='great_circle' needs sites on one sphere about the origin; their distances to it are "
            f"between {float(radii.min()):g} and {float(radii.max()):g}"
        )


def unit_vector(direction: Direction, dimension: int) -> np.ndarray:
    """An angle in degrees, from the first axis towards the second, or a vector ``(d,)``, as a unit vector."""
    if isinstance(direction, int | float):
        if dimension != 2:
            raise ValueError(
                f"direction={direction!r} is an angle in a plane and the sites have {dimension} coordinates: "
                "give a vector"
            )
        angle = math.radians(direction)
        return np.array([math.cos(angle), math.sin(angle)])
    vector = torch.as_tensor(direction, dtype=torch.float64).cpu().numpy()
    length = float(np.linalg.norm(vector))
    if vector.shape != (dimension,) or not math.isfinite(length) or length == 0.0:
        raise ValueError(
            f"direction must be an angle in degrees or a vector of {dimension} numbers, not all 0, got "
            f"{direction!r}"
        )
    return vector / length


def extent(domain: Domain) -> float:
    """Diagonal of the bounding box of the sites."""
    sites = domain.sites()
    return float((sites.amax(dim=0) - sites.amin(dim=0)).norm())


def _edges(
    domain: Domain,
    bins: int | Tensor | Sequence[float] | None,
    max_distance: float | None,
    great_circle: bool,
) -> np.ndarray:
    if max_distance is not None and not (math.isfinite(max_distance) and max_distance > 0.0):
        raise ValueError(f"max_distance must be positive and finite, got {max_distance!r}")
    if bins is not None and not isinstance(bins, int):
        edges = torch.as_tensor(bins, dtype=torch.float64).cpu().numpy().copy()
        if edges.ndim != 1 or len(edges) < 2 or not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
            raise ValueError(f"bins must be a number of bins or at least two increasing edges, got {bins!r}")
        if edges[0] < 0.0:
            raise ValueError(f"the first edge of the bins must be at least 0, got {edges[0]:g}")
        if max_distance is not None:
            raise ValueError("give either edges of bins or max_distance, not both")
        return edges
    if isinstance(bins, bool) or (isinstance(bins, int) and bins < 1):
        raise ValueError(f"bins must be at least 1, got {bins!r}")
    last = max_distance or _default_distance(domain, great_circle)
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    number = bins
    if number is None:
        cell = (
            min(h for n, h in zip(grid.shape, grid.spacing, strict=True) if n > 1 or domain.size == 1)
            if (isinstance(grid, Grid))
            else 0.0
        )
        number = NUMBER if cell == 0.0 else max(1, min(NUMBER, int(last / cell * (1.0 + _SLACK))))
    return np.linspace(0.0, last, number + 1)


def _default_distance(domain: Domain, great_circle: bool) -> float:
    if great_circle:
        radius = domain.radius if isinstance(domain, Sphere) else float(domain.sites()[0].norm())
        return math.pi * radius / 3.0
    diagonal = extent(domain)
    if diagonal == 0.0:
        raise ValueError(f"all sites of {domain} coincide: a variogram needs sites at different places")
    last = diagonal / 3.0
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    if isinstance(grid, Grid):
        # a short grid has at least its nearest neighbours
        last = max(last, min(h for n, h in zip(grid.shape, grid.spacing, strict=True) if n > 1))
        periods = [e / 2.0 for e, wraps in zip(grid.extent, grid.periodic, strict=True) if wraps]
        last = min([last, *periods])
    return last
