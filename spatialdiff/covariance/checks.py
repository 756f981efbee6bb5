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

_PACKAGE = str(Path(__file__).parents[1])


class SpatialWarning(UserWarning):
    """Something about a field, a grid or a length scale that is allowed but seldom meant."""


def warn(message: str) -> None:
    """Issue a `SpatialWarning` that points at the first caller outside this package."""
    depth, frame = 1, sys._getframe(0)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
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
    for part in kernel.modules():
        if not isinstance(part, known) or not part.has_lengthscale or part.active_dims is not None:
            continue
        scales = part.lengthscale.detach().reshape(-1).tolist()
        scales = scales * grid.ndim if len(scales) == 1 else scales
        if len(scales) != grid.ndim:
            raise ValueError(
                f"{type(part).__name__} has {len(scales)} length scales, the grid has {grid.ndim} axes."
            )
        for axis, (ell, h, extent) in enumerate(zip(scales, grid.spacing, grid.extent, strict=True)):
            if grid.shape[axis] == 1:
                continue
            if ell < h * (1 - 1e-9):
                warn(
                    f"{type(part).__name__}: length scale {ell:g} is below the grid spacing {h:g} on axis "
                    f"{axis}: neighbouring sites are nearly independent. Length scales are in the units of "
                    "`spacing`, not of the domain; use a larger one, "
                    "a finer grid, or a Nugget for variation below the spacing."
                )
            elif ell > extent * (1 + 1e-9):
                warn(
                    f"{type(part).__name__}: length scale {ell:g} is beyond the extent {extent:g} of axis "
                    f"{axis}: fields are nearly constant along it. Use a smaller one or a larger grid."
                )


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
    bad = int(x.numel() - torch.isfinite(x).sum())
    if bad:
        raise ValueError(
            f"{what}: {bad} of {x.numel()} values are NaN or infinite (shape {tuple(x.shape)}); fill or "
            "remove them first."
        )
