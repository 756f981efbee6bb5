r"""A stationary field on a large grid and at many scattered sites: each site from a window of cells.

``x_o = w_oᵀ x_J(o) + e_o`` with the simple-kriging weights ``w_o = C_JJ⁻¹ c_J`` of the cells ``J(o)``: all
near the site, every second, fourth, eighth, … farther away. The windows of all sites are one window, shifted,
so that ``C_JJ`` is one matrix. The covariance of ``x_o`` with the cells of its window is exact; with the
others ``k(s_o - x) - w_oᵀ k(x_J - x)`` is missing, which screening makes small, and which is measured:
`WindowJoint.error`. Residuals ``e`` of sites farther from each other than where that is below a tenth of the
tolerance are independent.
"""

from __future__ import annotations

import itertools
from typing import Any

import gpytorch
import numpy as np
import torch
from torch import Tensor

from spatialdiff.conditioning.offgrid_dense import exact_covariance
from spatialdiff.conditioning.offgrid_torus import residual_root
from spatialdiff.conditioning.stationary import lagged
from spatialdiff.domains import Grid

# cells within NEAR are all in the window; each further level doubles the reach and the step
_WINDOWS = {1: (24, 4), 2: (8, 3), 3: (4, 1)}
# largest error that is accepted unless a tolerance is given, by dimension
_TOLERANCE = {1: 1e-6, 2: 1e-6, 3: 1e-4}
_FLOOR = 1e-14
_CHUNK = 2_000_000
_LARGEST_GROUP = 5000
_PROBES = 8


class WindowJoint:
    """The joint law of a stationary field on ``grid`` and at ``sites``, with a covariance error that is
    measured.

    Args:
        kernel: continuous and stationary.
        grid: the grid, whose first site is the origin of coordinates; on its axes that are not periodic all
            sites lie between its first and its last site.
        sites: ``(p, d)`` float64.
        tolerance: largest `error` that is accepted: 1e-6 unless given, in three dimensions 1e-4.

    Attributes:
        factor_size: length of the white noise that `color` takes.
        error: largest error of a covariance that was found, a share of the variance: of eight random sites
            with up to 8000 cells near and far, and of residuals with places beyond the range in which they
            are dependent.

    Raises:
        ValueError: a larger error; residuals that cannot be factorised.
    """

    def __init__(
        self, kernel: gpytorch.kernels.Kernel, grid: Grid, sites: Tensor, *, tolerance: float | None = None
    ) -> None:
        tolerance = _TOLERANCE[grid.ndim] if tolerance is None else tolerance
        self.kernel, self.inner, self.sites = kernel, grid, sites
        near, levels = _WINDOWS[grid.ndim]
        window = _window(grid, near, levels)
        self.reach = int(window.abs().max())
        self.margin = [0 if wraps else self.reach for wraps in grid.periodic]
        shape = [n + 2 * extra for n, extra in zip(grid.shape, self.margin, strict=True)]
        self.grid = Grid(shape, grid.spacing, grid.periodic)
        self.spacing = torch.tensor(grid.spacing, dtype=torch.float64)
        self.gamma = exact_covariance(kernel, self.grid)
        self.variance = float(lagged(kernel, grid, torch.zeros(1, grid.ndim, dtype=torch.float64))[0])

        places = sites / self.spacing
        cells = places.round().long()
        offsets = window * self.spacing
        matrix = lagged(kernel, self.grid, offsets[:, None] - offsets[None])
        values, vectors = torch.linalg.eigh(matrix)
        kept = values > _FLOOR * len(values) ** 0.5 * values[-1]
        self._vectors, self._values, self.offsets = vectors[:, kept], values[kept], offsets
        inside = (places - cells) * self.spacing
        self.weights = torch.cat([self._solve(some) for some in inside.split(max(1, _CHUNK // len(window)))])
        self.error, self.range = self._measure(near, tolerance)
        if self.error > tolerance:
            raise ValueError(
                f"a window of {len(window)} cells leaves a covariance error of {self.error:.2g} of the "
                f"variance for {kernel!r}, {tolerance:.2g} was asked: give a larger tolerance, or fewer "
                'sites with route="torus", which is exact.'
            )
        index = cells[:, None, :] + window
        sizes = torch.tensor(self.grid.shape)
        index = torch.where(torch.tensor(grid.periodic), index % sizes, index + torch.tensor(self.margin))
        strides = torch.tensor([int(np.prod(self.grid.shape[a + 1 :])) for a in range(grid.ndim)])
        self.index = (index * strides).sum(-1)
        self.cells = cells
        self._factorise()
        self.colors = self.gamma.factor_shape.numel()
        self.factor_size = self.colors + len(sites)

    def _solve(self, inside: Tensor) -> Tensor:
        """Weights ``(p, J)`` of sites at ``inside`` from their cell."""
        cross = lagged(self.kernel, self.grid, inside[:, None] - self.offsets)
        result: Tensor = ((cross @ self._vectors) / self._values) @ self._vectors.mT
        return result

    def _missing(self, inside: Tensor, weights: Tensor, at: Tensor) -> Tensor:
        """``k(s_o - x) - w_oᵀ k(x_J - x)`` of probes ``(p, d)`` and places ``(q, d)``, ``(p, q)``."""
        parts = [
            lagged(self.kernel, self.grid, inside[:, None] - some)
            - weights @ lagged(self.kernel, self.grid, self.offsets[:, None] - some)
            for some in at.split(max(1, _CHUNK // len(self.offsets)))
        ]
        return torch.cat(parts, -1)

    def _measure(self, near: int, tolerance: float) -> tuple[float, float]:
        """The error at cells, and the distance in cells beyond which residuals are as good as independent."""
        ndim = self.grid.ndim
        generator = torch.Generator().manual_seed(0)
        inside = (torch.rand(_PROBES, ndim, generator=generator, dtype=torch.float64) - 0.5) * self.spacing
        weights = self._solve(inside)
        half = torch.tensor([max(1, n // 2) for n in self.grid.shape])
        sides = [min(3 * near, int(n)) for n in half]
        close = torch.tensor(list(itertools.product(*(range(-s, s + 1) for s in sides)))).double()
        if len(close) > 4_000:
            close = close[torch.randperm(len(close), generator=generator)[:4_000]]
        far = torch.rand(4_000, ndim, generator=generator, dtype=torch.float64) * 2 - 1
        at = torch.cat([close, (far * half).round()]) * self.spacing
        error = float(self._missing(inside, weights, at).abs().max())
        level = max(error, 0.1 * tolerance * self.variance)
        reach = 2
        while reach < self.reach:
            # places between cells, at this distance from the site
            step = torch.rand(2000, ndim, generator=generator, dtype=torch.float64) * 2 - 1
            step = (
                step
                / step.abs().amax(-1, keepdim=True)
                * reach
                * (1 + torch.rand(2000, 1, generator=generator, dtype=torch.float64))
            )
            left_out = float(self._missing(inside, weights, step * self.spacing).abs().max())
            if left_out <= level:
                error = max(error, left_out)
                break
            reach *= 2
        return error / self.variance, float(reach)

    def _factorise(self) -> None:
        """Roots of the residual covariance, one per group of sites that are near each other."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
        from scipy.spatial import cKDTree

        box: Any = [n if wraps else 0.0 for n, wraps in zip(self.grid.shape, self.grid.periodic, strict=True)]
        places = self.sites / self.spacing
        wrapped = torch.where(
            torch.tensor(self.grid.periodic), places % torch.tensor(self.grid.shape), places
        )
        least = torch.where(torch.tensor(self.grid.periodic), 0.0, wrapped.amin(0))
        tree = cKDTree((wrapped - least).numpy(), boxsize=box if any(self.grid.periodic) else None)
        pairs = tree.query_pairs(self.range, p=np.inf, output_type="ndarray")
        p = len(self.sites)
        graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(p, p))
        count, label = connected_components(graph, directed=False)
        order = np.argsort(label, kind="stable")
        edges = np.searchsorted(label[order], np.arange(count + 1))
        largest = int(np.diff(edges).max())
        if largest > _LARGEST_GROUP:
            raise ValueError(
                f"{largest} sites off the grid lie within {self.range:g} cells of each other in one chain; "
                f"at most {_LARGEST_GROUP} can be drawn jointly with the grid; use a finer grid, or Vecchia "
                "prediction."
            )
        singles = [int(order[a]) for a, b in itertools.pairwise(edges) if b - a == 1]
        own = torch.tensor(singles, dtype=torch.long)
        at = self.cells[own] * self.spacing
        variance = (
            self.variance
            - (
                self.weights[own]
                * torch.cat(
                    [
                        lagged(self.kernel, self.grid, (self.offsets - some[:, None]))
                        for some in (self.sites[own] - at).split(max(1, _CHUNK // len(self.offsets)))
                    ]
                )
            ).sum(-1)
            if len(own)
            else torch.zeros(0)
        )
        self._single, self._deviation = own, variance.clamp_min(0.0).sqrt()
        self._groups = []
        for a, b in itertools.pairwise(edges):
            if b - a > 1:
                members = torch.from_numpy(order[a:b].astype(np.int64))
                root = residual_root(self._residual(members), self.variance, max(self.error, 1e-9) * (b - a))
                if root is None:
                    raise ValueError(
                        f"the residuals of {b - a} sites off the grid have no covariance to the accuracy of "
                        f'the window ({self.error:.2g}); use route="torus".'
                    )
                self._groups.append((members, root))

    def _residual(self, members: Tensor) -> Tensor:
        sites, cells = self.sites[members], self.cells[members] * self.spacing
        sizes = torch.tensor(self.grid.shape, dtype=torch.float64)
        wraps = torch.tensor(self.grid.periodic)
        matrix = torch.zeros(len(members), len(members), dtype=torch.float64)
        for i, (site, cell, weight) in enumerate(zip(sites, cells, self.weights[members], strict=True)):
            away = (sites[i:] - site) / self.spacing
            away = torch.where(wraps, away - sizes * torch.round(away / sizes), away)
            close = i + (away.abs() <= self.range).all(-1).nonzero().squeeze(-1)
            to_window = lagged(self.kernel, self.grid, (cell + self.offsets)[:, None] - sites[close])
            matrix[i, close] = lagged(self.kernel, self.grid, site - sites[close]) - weight @ to_window
        return matrix + matrix.triu(1).mT

    def color(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """``(..., factor_size)`` → the field ``(..., *grid.shape)`` and the values at the sites
        ``(..., p)``, float64.
        """
        z = white[..., : self.colors].to(torch.float64)
        field = self.gamma.color(z.reshape(*z.shape[:-1], *self.gamma.factor_shape))
        flat = field.flatten(-self.grid.ndim)
        lead = flat.shape[:-1]
        values = torch.stack(
            [(one[self.index] * self.weights).sum(-1) for one in flat.reshape(-1, flat.shape[-1])]
        ).reshape(*lead, len(self.sites))
        rest = white[..., self.colors :].to(torch.float64)
        noise = torch.zeros_like(values)
        noise[..., self._single] = rest[..., self._single] * self._deviation
        for members, root in self._groups:
            noise[..., members] = rest[..., members] @ root.mT
        for axis, (n, extra) in zip(
            range(-self.grid.ndim, 0), zip(self.inner.shape, self.margin, strict=True), strict=True
        ):
            field = field.narrow(axis, extra, n)
        return field, values + noise


def _window(grid: Grid, near: int, levels: int) -> Tensor:
    """Offsets in cells, ``(J, d)``, those that a periodic axis has room for."""
    found = set()
    for level in range(levels + 1):
        step = 2**level
        found |= set(itertools.product(*(range(-near * step, near * step + 1, step),) * grid.ndim))
    room = [(n - 1) // 2 if wraps else 10**9 for n, wraps in zip(grid.shape, grid.periodic, strict=True)]
    kept = [o for o in sorted(found) if all(abs(j) <= most for j, most in zip(o, room, strict=True))]
    return torch.tensor(kept).reshape(len(kept), grid.ndim)
