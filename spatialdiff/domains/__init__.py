"""Where a field lives."""

from __future__ import annotations

from spatialdiff.domains.base import Domain
from spatialdiff.domains.graph import Graph
from spatialdiff.domains.grid import Grid
from spatialdiff.domains.masked import MaskedGrid
from spatialdiff.domains.mesh import Mesh
from spatialdiff.domains.points import Points
from spatialdiff.domains.rectilinear import RectilinearGrid
from spatialdiff.domains.sphere import Sphere

__all__ = ["Domain", "Graph", "Grid", "MaskedGrid", "Mesh", "Points", "RectilinearGrid", "Sphere"]
