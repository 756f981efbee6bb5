"""Where a field lives."""

from __future__ import annotations

from spatialdiff.domains.base import Domain
from spatialdiff.domains.grid import Grid
from spatialdiff.domains.masked import MaskedGrid
from spatialdiff.domains.points import Points
from spatialdiff.domains.rectilinear import RectilinearGrid

__all__ = ["Domain", "Grid", "MaskedGrid", "Points", "RectilinearGrid"]
