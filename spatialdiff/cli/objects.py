"""Objects that a configuration names: grids, the law of the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from gpytorch.kernels import Kernel

from spatialdiff.covariance import Covariance, covariance, white
from spatialdiff.domains import Grid
from spatialdiff.fitting import FitResult
from spatialdiff.kernels import Sum

if TYPE_CHECKING:
    from torch import Tensor

Basis: TypeAlias = Literal["auto", "cosine", "torus"]


def one_kernel(kernel: Kernel | Sequence[Kernel]) -> Kernel:
    """The kernel, or the sum of a list of kernels.

    Raises:
        ValueError: an empty list.
    """
    if isinstance(kernel, Kernel):
        return kernel
    if not kernel:
        raise ValueError(
            "The list of kernels is empty: name at least one, such as spatialdiff.kernels.Matern."
        )
    return kernel[0] if len(kernel) == 1 else Sum(*kernel)


def basis_of(grid: Grid, basis: Basis) -> str:
    """The basis in which Γ is diagonal: the torus where every axis is periodic, else the cosine basis."""
    if basis != "auto":
        return basis
    return "torus" if all(grid.periodic) else "cosine"


def noise_covariance(
    noise: str | Kernel | Sequence[Kernel], fit: FitResult | None, grid: Grid, method: str
) -> Covariance:
    """Γ of the noise: "white", "fit" (that of the fit), or of a kernel (then independent between channels).

    Args:
        method: structure of Γ where it is built from a kernel.

    Raises:
        ValueError: "fit" without a fit.
    """
    if noise == "white":
        return white(grid)
    if noise == "fit":
        if fit is None:
            raise ValueError("noise: fit needs a fit: give --fit RUN_FOLDER, or name a kernel, or white.")
        return diagonal(fit, grid, method)
    if isinstance(noise, str):
        raise ValueError(f"noise must be white, fit or a kernel, got {noise!r}.")
    return covariance(one_kernel(noise), grid, method=method)


def diagonal(fit: FitResult, grid: Grid, method: str) -> Covariance:
    """The fitted covariance in a basis where it is diagonal; rebuilt from the fitted kernel where the fit has
    none."""
    if fit.kernel is None or fit.covariance.basis is not None:
        return fit.covariance
    return covariance(fit.kernel, grid, channels=fit.covariance.channels, method=method)


def grid_config(grid: Grid) -> dict[str, list[Any]]:
    """The grid as plain values."""
    return {"shape": list(grid.shape), "spacing": list(grid.spacing), "periodic": list(grid.periodic)}


def seeded(seed: int) -> torch.Generator:
    """A generator for draws; torch's own is seeded too, since it initialises networks."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def with_channel(fields: Tensor, grid: Grid) -> Tensor:
    """Fields `(N, *grid)` or `(N, C, *grid)` as `(N, C, *grid)`."""
    return fields.unsqueeze(1) if fields.ndim == grid.ndim + 1 else fields
