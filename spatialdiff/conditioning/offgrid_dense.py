"""The simple cases of a joint draw: few cells and sites, by ``R Rᵀ = K``; no site off the cells."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.conditioning.offgrid_torus import residual_root
from spatialdiff.conditioning.stationary import lagged
from spatialdiff.covariance import Covariance, covariance
from spatialdiff.domains import Grid

_CHUNK = 4_000_000


class DenseJoint:
    """The joint law of a stationary field on ``grid`` and at ``sites``, exactly, in ``O((n + p)³)``.

    Args:
        kernel: continuous and stationary.
        grid: the grid, whose first site is the origin of coordinates.
        sites: ``(p, d)`` float64.

    Attributes:
        factor_size: length of the white noise that `color` takes.
        error: 0.

    Raises:
        ValueError: the kernel is not positive definite on these sites.
    """

    error = 0.0

    def __init__(self, kernel: gpytorch.kernels.Kernel, grid: Grid, sites: Tensor) -> None:
        self.grid = grid
        places = torch.cat([grid.sites(), sites])
        rows = places.split(max(1, _CHUNK // len(places)))
        matrix = torch.cat([lagged(kernel, grid, some[:, None] - places) for some in rows])
        root = residual_root(matrix, float(matrix[0, 0]) * len(places), tolerance=1e-13)
        if root is None:
            raise ValueError(
                f"{kernel!r} is not positive definite on {grid} and {len(sites)} sites off it: its smallest "
                f"eigenvalue there is {float(torch.linalg.eigvalsh(matrix)[0]):.3g}."
            )
        self.root, self.factor_size = root, len(places)

    def color(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """``(..., factor_size)`` → the field ``(..., *grid.shape)`` and the values at the sites ``(..., p)``,
        float64.
        """
        values = white.to(torch.float64) @ self.root.mT
        field, rest = values[..., : self.grid.size], values[..., self.grid.size :]
        return field.reshape(*field.shape[:-1], *self.grid.shape), rest


def exact_covariance(kernel: gpytorch.kernels.Kernel, grid: Grid) -> Covariance:
    """Γ of the cells by the cheapest structure, float64.

    Raises:
        ValueError: there is only an approximate one.
    """
    gamma = covariance(kernel, grid, method="torus" if all(grid.periodic) else "auto").double()
    if gamma.method == "vecchia":
        raise ValueError(
            f"{kernel!r} has no exact fast structure on {grid}, which a joint draw with sites off the grid "
            "starts from; use a shorter length scale, a coarser grid, or kriging with method='vecchia'."
        )
    return gamma


class CellsJoint:
    """The law of a stationary field on ``grid`` where no site lies off it, by any structure of Γ.

    Attributes:
        factor_size: length of the white noise that `color` takes.
        error: 0.
    """

    error = 0.0

    def __init__(self, kernel: gpytorch.kernels.Kernel, grid: Grid) -> None:
        self.gamma = exact_covariance(kernel, grid)
        self.factor_size = self.gamma.factor_shape.numel()

    def color(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """``(..., factor_size)`` → the field ``(..., *grid.shape)`` and no values ``(..., 0)``, float64."""
        z = white.to(torch.float64)
        with torch.no_grad():
            field = self.gamma.color(z.reshape(*z.shape[:-1], *self.gamma.factor_shape))
        return field, z[..., :0]
