r"""A stationary field on a grid and at scattered sites, jointly and exactly, by one FFT per draw.

Let ``C = H diag(λ) H`` be the circulant embedding of the grid's covariance with ``m`` sites, ``H`` the
orthonormal Hartley transform, so that ``x = H √λ z`` with white ``z`` is the field on the torus. A site
``s_o`` off the lattice has the covariances ``c_o`` with the torus, the kernel at the nearest image of each
difference, which on the part of the torus that is the grid are the kernel's own. Then

``x_o = B_o z + e_o``, ``B_o = λ^{-1/2} H c_o``, ``Cov(e) = K_oo - B Bᵀ``,

has exactly ``Cov(x_o, x_g) = k(s_o - x_g)`` and ``Cov(x_o, x_o') = k(s_o - s_o')``, provided that the
residual covariance is positive semi-definite: that of the continuous periodic extension is, an extension that
is a covariance on the lattice only may not be, and then a larger torus is taken.
"""

from __future__ import annotations

import math

import gpytorch
import torch
from torch import Tensor

from spatialdiff.conditioning.stationary import lagged
from spatialdiff.covariance.grids.embedding import (
    Embedding,
    EmbeddingError,
    candidates,
    judge,
    spectrum,
    table,
    unfold,
)
from spatialdiff.domains import Grid

# modes below this share of the largest eigenvalue are rounding: nothing is regressed on them
_FLOOR = 1e-13
# an eigenvalue of the residual covariance down to -NEGATIVE times the variance is rounding
NEGATIVE = 1e-9
# values of B that are made at once
_CHUNK = 2**22


def residual_root(covariance: Tensor, variance: float, tolerance: float = NEGATIVE) -> Tensor | None:
    """``L`` with ``L Lᵀ`` the covariance, its eigenvalues between ``-tolerance · variance`` and 0 set to 0;
    None where one is below.
    """
    matrix = (covariance + covariance.mT) / 2
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) == 0 and bool(torch.isfinite(factor).all()):
        result: Tensor = factor
        return result
    values, vectors = torch.linalg.eigh(matrix)
    if float(values[0]) < -tolerance * variance:
        return None
    root: Tensor = vectors * values.clamp_min(0.0).sqrt()
    return root


class TorusJoint:
    """The joint law of a stationary field on ``grid`` and at ``sites``.

    Args:
        kernel: continuous and stationary.
        grid: the grid, whose first site is the origin of coordinates; on its axes that are not periodic all
            sites lie between its first and its last site.
        sites: ``(p, d)`` float64.
        max_growth, max_sites: of the embedding, see `CirculantCovariance`.

    Attributes:
        factor_size: length of the white noise that `color` takes.
        error: bound on the error of a covariance between a site and a cell, a share of the variance.

    Raises:
        EmbeddingError: no plain embedding within the limits is a covariance that leaves a positive
            semi-definite residual.
    """

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        grid: Grid,
        sites: Tensor,
        *,
        max_growth: float = 8.0,
        max_sites: int = 2**24,
    ) -> None:
        self.grid, self.sites = grid, sites
        if all(grid.periodic):
            options = [Embedding(grid.shape)]
        else:
            found, _ = candidates(kernel, grid, "plain", max_growth, max_sites)
            options = [option for option in found if math.prod(option.sizes) <= max_sites]
        self.variance = float(lagged(kernel, grid, torch.zeros(1, grid.ndim, dtype=torch.float64))[0])
        with torch.no_grad():
            if not any(self._prepare(kernel, option) for option in options):
                shown = ", ".join(str(option) for option in options) or "those within max_sites"
                raise EmbeddingError(
                    f"A joint draw of {kernel!r} on {grid} and at {len(sites)} sites off the grid needs a "
                    f"periodic extension that is a covariance between lattice sites too; none of {shown} is. "
                    'Use route="window", a shorter length scale, or a larger max_growth or max_sites.'
                )

    def _prepare(self, kernel: gpytorch.kernels.Kernel, embedding: Embedding) -> bool:
        sizes = embedding.sizes
        values = spectrum(table(kernel, self.grid, embedding), sizes)
        if not judge(values, embedding, torch.tensor(self.variance)).is_covariance:
            return False
        eigenvalues = unfold(values, sizes).clamp_min(0.0)
        kept = eigenvalues > _FLOOR * eigenvalues.max()
        inverse_root = torch.where(kept, eigenvalues.clamp_min(1e-300).rsqrt(), 0.0)
        total = math.prod(sizes)
        rows, lost = [], 0.0
        for some in self.sites.split(max(1, _CHUNK // total)):
            cross = hartley(lagged(kernel, self.grid, self._lags(some, sizes)), self.grid.ndim)
            rows.append((cross * inverse_root).flatten(1))
            lost = max(lost, float((cross.abs() * ~kept).flatten(1).sum(-1).max()) / math.sqrt(total))
        weights = torch.cat(rows)
        own = lagged(kernel, self.grid, self.sites[:, None] - self.sites[None])
        root = residual_root(own - weights @ weights.mT, self.variance)
        if root is None:
            return False
        self.sizes, self.weights, self.residual = sizes, weights, root
        self.root = eigenvalues.sqrt()
        # every entry of the Hartley matrix is at most √(2/m)
        self.error = math.sqrt(2.0) * lost / self.variance
        self.factor_size = total + len(self.sites)
        return True

    def _lags(self, sites: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Differences to the nearest image of every torus site, ``(p, *sizes, d)``."""
        axes = []
        for axis, (m, h) in enumerate(zip(sizes, self.grid.spacing, strict=True)):
            offset = torch.arange(m, dtype=torch.float64) - sites[:, axis, None] / h
            # the nearest image; whole numbers and the spacing, so that 0 is exact
            offset = offset - m * torch.floor(offset / m + 0.5)
            shape = [len(sites), *(m if a == axis else 1 for a in range(self.grid.ndim))]
            axes.append((offset * h).reshape(shape).expand(len(sites), *sizes))
        return torch.stack(axes, dim=-1)

    def color(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """``(..., factor_size)`` → the field ``(..., *grid.shape)`` and the values at the sites
        ``(..., p)``, float64.
        """
        total = math.prod(self.sizes)
        z = white[..., :total].to(torch.float64)
        values = z @ self.weights.mT + white[..., total:].to(torch.float64) @ self.residual.mT
        field = hartley(z.reshape(*z.shape[:-1], *self.sizes) * self.root, self.grid.ndim)
        for axis, n in zip(range(-self.grid.ndim, 0), self.grid.shape, strict=True):
            field = field.narrow(axis, 0, n)
        return field, values


def hartley(x: Tensor, ndim: int) -> Tensor:
    """``H x`` over the last ``ndim`` axes, ``H = (Re F - Im F)/√m``: orthonormal and its own inverse."""
    y = torch.fft.fftn(x, dim=tuple(range(-ndim, 0)), norm="ortho")
    result: Tensor = y.real - y.imag
    return result
