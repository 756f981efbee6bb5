"""What a covariance checks about its inputs, and how it warns."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import gpytorch
import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.kernels import StationaryKernel, at_lags

#: where no caller is looked for: this package, and torch.no_grad() around its functions
_INSIDE = (str(Path(__file__).parents[1]), str(torch.utils._contextlib.__file__))


class SpatialWarning(UserWarning):
    """Something about a field, a grid or a length scale that is allowed but seldom meant."""


def warn(message: str) -> None:
    """Issue a `SpatialWarning` that points at the first caller outside this package."""
    depth, frame = 1, sys._getframe(0)
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE) and frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, SpatialWarning, stacklevel=depth)


def check_lengthscale(kernel: gpytorch.kernels.Kernel, grid: Grid) -> None:
    """Warn where a length scale is below the grid spacing or beyond the extent of the grid."""
    known = (
        StationaryKernel,
        gpytorch.kernels.RBFKernel,
        gpytorch.kernels.MaternKernel,
        gpytorch.kernels.RQKernel,
    )
    for part, axes in _parts(kernel, tuple(range(grid.ndim))):
        if not isinstance(part, known) or not part.has_lengthscale or part.active_dims is not None:
            continue
        scales = part.lengthscale.detach().reshape(-1, part.lengthscale.shape[-1])
        if scales.shape[-1] not in (1, len(axes)):
            raise ValueError(
                f"{type(part).__name__} has {scales.shape[-1]} length scales, the grid has {len(axes)} axes."
            )
        scales = scales.expand(-1, len(axes))
        for axis, least, most in zip(axes, scales.amin(0).tolist(), scales.amax(0).tolist(), strict=True):
            h, extent = grid.spacing[axis], grid.extent[axis]
            if grid.shape[axis] == 1:
                continue
            if least < h * (1 - 1e-9):
                warn(
                    f"{type(part).__name__}: length scale {least:g} is below the grid spacing {h:g} on axis "
                    f"{axis}: neighbouring sites are nearly independent. Length scales are in the units of "
                    "`spacing`, not of the domain; use a larger one, "
                    "a finer grid, or a Nugget for variation below the spacing."
                )
            elif most > extent * (1 + 1e-9):
                warn(
                    f"{type(part).__name__}: length scale {most:g} is beyond the extent {extent:g} of axis "
                    f"{axis}: fields are nearly constant along it. Use a smaller one or a larger grid."
                )


def _parts(
    kernel: gpytorch.kernels.Kernel, axes: tuple[int, ...]
) -> list[tuple[gpytorch.kernels.Kernel, tuple[int, ...]]]:
    """Elementary kernels and the axes that they take; not those behind a transform of the coordinates."""
    if isinstance(kernel, gpytorch.kernels.ScaleKernel):
        return _parts(kernel.base_kernel, axes)
    if isinstance(kernel, gpytorch.kernels.AdditiveKernel | gpytorch.kernels.ProductKernel):
        return [found for part in kernel.kernels for found in _parts(part, axes)]
    factors = getattr(kernel, "factors", None)
    if factors is not None:
        return [
            found
            for inner, part in factors
            if max(inner) < len(axes)
            for found in _parts(part, tuple(axes[i] for i in inner))
        ]
    return [(kernel, axes)]


def check_stationary(kernel: gpytorch.kernels.Kernel, grid: Grid, structure: str) -> None:
    """Raise unless ``k(x, x')`` is a function of ``x - x'``; kernels that say so are tried on a few sites."""
    advice = f'{structure} needs a stationary kernel; use method="dense" for {type(kernel).__name__}.'
    if not kernel.is_stationary:
        raise ValueError(f"{type(kernel).__name__} is not stationary. {advice}")
    if isinstance(kernel, StationaryKernel):
        return
    # neighbours along every axis at both ends and in the middle: far sites may all be uncorrelated
    corners = torch.tensor([[round(q * (n - 1)) for n in grid.shape] for q in (0.0, 0.5, 1.0)])
    steps = torch.cat([torch.zeros(1, grid.ndim, dtype=torch.long), torch.eye(grid.ndim, dtype=torch.long)])
    near = (corners[:, None] + steps).reshape(-1, grid.ndim)
    sites = near.to(torch.float64) * torch.tensor(grid.spacing, dtype=torch.float64)
    with torch.no_grad():
        direct = kernel(sites).to_dense().to(torch.float64)
        lagged = at_lags(kernel, sites[:, None] - sites[None])
    if not torch.allclose(direct, lagged, rtol=1e-3, atol=1e-3 * float(lagged.abs().max())):
        raise ValueError(
            f"{type(kernel).__name__} claims to be stationary, but depends on more than x - x'. {advice}"
        )


def check_finite(x: Tensor, what: str) -> None:
    """Raise where ``x`` has NaN or infinite entries."""
    if bool(torch.isfinite(x.detach().sum())):
        return  # a tenth of the cost of looking at every entry
    bad = int(x.numel() - torch.isfinite(x).sum())
    if bad:
        raise ValueError(
            f"{what}: {bad} of {x.numel()} values are NaN or infinite (shape {tuple(x.shape)}); fill or "
            "remove them first."
        )
