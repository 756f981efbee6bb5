r"""Joint draws of a stationary field on a grid and at scattered sites: what conditioning a grid on
observations that lie between its cells needs, exactly, not at the nearest cell.

``(x_g, x_o) ~ N(0, K)`` with ``K`` the kernel between all cells and sites. Sites on a cell are read off.
The others follow by regression on the field: on the whole torus of its circulant embedding, exact
(`spatialdiff.conditioning.offgrid_torus`), or, for many sites and large grids, on a window of cells around
each, with a measured error (`spatialdiff.conditioning.offgrid_window`). A nugget is independent at every site
off the cells.
"""

from __future__ import annotations

import math

import gpytorch
import torch
from torch import Tensor

from spatialdiff.conditioning.offgrid_dense import CellsJoint, DenseJoint
from spatialdiff.conditioning.offgrid_torus import TorusJoint
from spatialdiff.conditioning.offgrid_window import WindowJoint
from spatialdiff.conditioning.stationary import split_nugget
from spatialdiff.covariance.checks import check_stationary
from spatialdiff.covariance.grids.embedding import EmbeddingError
from spatialdiff.domains import Grid
from spatialdiff.domains.points import as_sites

ROUTES = ("auto", "torus", "dense", "window")
# numbers that the regression on the torus may hold: sites times cells of the torus
_MOST_WEIGHTS = 2**25
# cells and sites of a dense root
_MOST_DENSE = 3000
# a site this close to a cell, in cells, is on it
_ON_CELL = 1e-9


class OffGridPrior:
    """The law of a stationary field on a grid and at scattered sites.

    Args:
        kernel: any stationary gpytorch kernel, with or without a nugget; one set of hyperparameters.
        grid: the grid, periodic or not.
        sites: ``(p, d)`` or ``(p,)``, in the coordinates of ``grid`` (its first cell is the origin), inside
            or outside its extent; on periodic axes they wrap around.
        route: "torus" and "dense", exact; "window", for many sites. "auto" takes "torus" where a valid torus
            times the sites is at most 2²⁵ numbers, else "dense" up to 3000 cells and sites, else "window".
        tolerance: of "window": largest covariance error, a share of the variance; 1e-6 unless given, in three
            dimensions 1e-4.
        max_growth, max_sites: of "torus": largest embedding.

    Attributes:
        route: the route taken.
        error: bound on the error of a covariance, a share of the variance: rounding for "torus".
        factor_size: length of the white noise of one draw.

    Raises:
        ValueError: a kernel that is not stationary, coordinates of another dimension, an unknown route;
            what the route refuses.
        EmbeddingError: with ``route="torus"``, no valid periodic extension.
    """

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        grid: Grid,
        sites: Tensor,
        *,
        route: str = "auto",
        tolerance: float | None = None,
        max_growth: float = 8.0,
        max_sites: int = 2**24,
    ) -> None:
        if not isinstance(grid, Grid):
            raise TypeError(f"OffGridPrior needs a Grid, got {type(grid).__name__}.")
        if route not in ROUTES:
            raise ValueError(f"route must be one of {', '.join(map(repr, ROUTES))}, got {route!r}.")
        check_stationary(kernel, grid, "OffGridPrior")
        given = as_sites(sites, "OffGridPrior")
        if given.shape[1] != grid.ndim:
            raise ValueError(
                f"OffGridPrior: sites have {given.shape[1]} coordinates, the grid {grid.ndim} axes."
            )
        self.grid, self.kernel = grid, kernel
        self.smooth, self.nugget = split_nugget(kernel)
        self._place(given)
        self._choose(route, tolerance, max_growth, max_sites)

    def _place(self, sites: Tensor) -> None:
        """The box of cells that holds the grid and all sites, and which sites are on a cell."""
        spacing = torch.tensor(self.grid.spacing, dtype=torch.float64)
        shape = torch.tensor(self.grid.shape)
        wraps = torch.tensor(self.grid.periodic)
        places = sites / spacing
        places = torch.where(wraps, places % shape, places)
        cells = places.round()
        on_cell = ((places - cells).abs() <= _ON_CELL * cells.abs().clamp_min(1.0)).all(-1)
        inside = ((cells >= 0) & (cells < shape) | wraps).all(-1)
        first = torch.where(wraps, 0, places.amin(0).floor().clamp_max(0).long())
        last = torch.where(wraps, shape - 1, torch.maximum(places.amax(0).ceil().long(), shape - 1))
        self.first, self.work = (
            first,
            Grid((last - first + 1).tolist(), self.grid.spacing, self.grid.periodic),
        )
        strides = torch.tensor([math.prod(self.work.shape[a + 1 :]) for a in range(self.grid.ndim)])
        index = torch.where(wraps, cells.long() % shape, cells.long() - first)
        self.on_cell, self.cell = on_cell, (index * strides).sum(-1)
        # with a nugget the first site on a cell has the cell's value, a second one a nugget of its own
        order = torch.arange(len(sites))
        earliest = torch.full((math.prod(self.work.shape),), len(sites))
        earliest.scatter_reduce_(0, self.cell[on_cell], order[on_cell], "amin")
        self.reads = on_cell & inside & (earliest[self.cell] == order)
        between = (places - first) * spacing
        self.off, self.group = torch.unique(between[~on_cell], dim=0, return_inverse=True)

    def _choose(self, route: str, tolerance: float | None, max_growth: float, max_sites: int) -> None:
        self.joint: TorusJoint | WindowJoint | DenseJoint | CellsJoint | None = None
        self.route = "torus" if route == "auto" else route
        if self.smooth is not None and len(self.off) == 0:
            self.joint = CellsJoint(self.smooth, self.work)
        elif self.smooth is not None:
            if route == "auto":
                max_sites = min(max_sites, _MOST_WEIGHTS // max(1, len(self.off)))
            if route == "torus" or (route == "auto" and self.work.size <= max_sites):
                try:
                    self.joint = TorusJoint(
                        self.smooth, self.work, self.off, max_growth=max_growth, max_sites=max_sites
                    )
                except EmbeddingError:
                    if route == "torus":
                        raise
            if self.joint is None and (
                route == "dense" or (route == "auto" and self.work.size + len(self.off) <= _MOST_DENSE)
            ):
                self.joint, self.route = DenseJoint(self.smooth, self.work, self.off), "dense"
            if self.joint is None:
                self.joint, self.route = (
                    WindowJoint(self.smooth, self.work, self.off, tolerance=tolerance),
                    "window",
                )
        self.error = 0.0 if self.joint is None else self.joint.error
        self.smooth_size = 0 if self.joint is None else self.joint.factor_size
        own = int((~self.reads).sum())
        self.factor_size = self.smooth_size + (self.grid.size + own if self.nugget else 0)

    def color(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """The linear map from white noise ``(..., factor_size)`` to the field ``(..., *grid.shape)`` and the
        values at the sites ``(..., p)``, float64.
        """
        lead, ndim = white.shape[:-1], self.grid.ndim
        if self.joint is None:
            field = torch.zeros(*lead, *self.work.shape, dtype=torch.float64)
            off = torch.zeros(*lead, len(self.off), dtype=torch.float64)
        else:
            field, off = self.joint.color(white[..., : self.smooth_size])
        values = torch.zeros(*lead, len(self.on_cell), dtype=torch.float64)
        values[..., self.on_cell] = field.flatten(-ndim)[..., self.cell[self.on_cell]]
        values[..., ~self.on_cell] = off[..., self.group]
        inner = field
        for axis, (n, begin) in zip(
            range(-ndim, 0), zip(self.grid.shape, self.first.tolist(), strict=True), strict=True
        ):
            inner = inner.narrow(axis, -begin, n)
        if not self.nugget:
            return inner, values
        rest = self.nugget**0.5 * white[..., self.smooth_size :].to(torch.float64)
        rough = rest[..., : self.grid.size]
        # cells of the grid among those of the box
        padded = torch.zeros(*lead, *self.work.shape, dtype=torch.float64)
        view = padded
        for axis, (n, begin) in zip(
            range(-ndim, 0), zip(self.grid.shape, self.first.tolist(), strict=True), strict=True
        ):
            view = view.narrow(axis, -begin, n)
        view.copy_(rough.reshape(*lead, *self.grid.shape))
        values[..., self.reads] += padded.flatten(-ndim)[..., self.cell[self.reads]]
        values[..., ~self.reads] += rest[..., self.grid.size :]
        return inner + rough.reshape(*lead, *self.grid.shape), values

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``n`` joint draws of the field ``(n, *grid.shape)`` and of the values at the sites ``(n, p)``,
        float64.
        """
        drawn = [
            self.color(torch.randn(self.factor_size, generator=generator, dtype=torch.float64))
            for _ in range(n)
        ]
        return torch.stack([field for field, _ in drawn]), torch.stack([values for _, values in drawn])

    def __repr__(self) -> str:
        return (
            f"OffGridPrior({self.grid}, {len(self.on_cell)} sites, {int(self.on_cell.sum())} of them on a "
            f"cell, route={self.route!r}, error={self.error:.2g})"
        )
