r"""An approximate inverse for a covariance that is cut to some cells of a grid, to precondition with.

``G ≈ Γ_g`` is the closest matrix (Frobenius) that is diagonal in a mixed basis, Fourier on periodic axes and
cosine on the others, ``M = G⁻¹``. For the valid cells ``v`` and the others ``m``,

``(P G Pᵀ)⁻¹ = M_vv - M_vm (M_mm)⁻¹ M_mv``,

so that the inverse of the *cut* matrix costs two products with ``M`` and one Cholesky factor of ``M_mm``, the
size of which is the number of masked cells. Far from every valid cell a masked one hardly matters, so that
only the nearest are kept; what is left is positive definite all the same, and the exact inverse of the cut
``G`` where none is dropped.

Entries of ``M`` need no products: with the even extension of the non-periodic axes to twice their length it
is a sum over reflections, ``M(x, y) = Σ_r t(x - r(y))``, ``r(y) = y`` or ``-y - 1`` along each such axis.
"""

from __future__ import annotations

import itertools

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.grids.cosine import autocorrelation
from spatialdiff.covariance.numerics.dct import along
from spatialdiff.covariance.periodic import reflection_symmetric, stationary_at
from spatialdiff.domains import Grid, MaskedGrid

# all masked cells are kept up to MOST_CELLS of them, else the NEAREST; eigenvalues of G are at least FLOOR
# times the largest
MOST_CELLS, NEAREST, FLOOR = 4096, 2048, 1e-11


def mixed_eigenvalues(
    kernel: gpytorch.kernels.Kernel, grid: Grid, device: torch.device | None = None
) -> Tensor:
    """Eigenvalues of ``G``, ``(*batch, *modes)``: half a spectrum along the last periodic axis."""
    symmetric = reflection_symmetric(kernel)
    lags = [
        torch.arange(n) if wraps or symmetric else torch.arange(-n + 1, n)
        for n, wraps in zip(grid.shape, grid.periodic, strict=True)
    ]
    values, _ = stationary_at(kernel, grid, lags, device)
    for axis, n, wraps in zip(range(-grid.ndim, 0), grid.shape, grid.periodic, strict=True):
        if wraps:
            continue
        if not symmetric:
            front = values.narrow(axis, 0, n - 1).flip(axis)
            back = values.narrow(axis, n - 1, n)
            values = back + torch.cat([torch.zeros_like(back.narrow(axis, 0, 1)), front], dim=axis)
        weight = torch.full((n,), 2.0 if symmetric else 1.0, dtype=torch.float64, device=values.device)
        weight[0] = 1.0
        table = autocorrelation(n, values.device) * weight
        values = (values.movedim(axis, -1) @ table.mT).movedim(-1, axis)
    periodic = _periodic_axes(grid)
    return torch.fft.rfftn(values, dim=periodic).real if periodic else values


def mixed_multiply(x: Tensor, grid: Grid, multiplier: Tensor) -> Tensor:
    """A field times ``multiplier`` per mode of the mixed basis."""
    plain = [a for a, wraps in zip(range(-grid.ndim, 0), grid.periodic, strict=True) if not wraps]
    periodic = _periodic_axes(grid)
    for axis in plain:
        x = along(x, axis, inverse=False)
    if periodic:
        sizes = [grid.shape[a] for a in periodic]
        x = torch.fft.irfftn(multiplier * torch.fft.rfftn(x, dim=periodic), s=sizes, dim=periodic)
    else:
        x = multiplier * x
    for axis in plain:
        x = along(x, axis, inverse=True)
    return x


def nearest_masked(domain: MaskedGrid) -> Tensor:
    """Flat indices of the masked cells that are kept."""
    masked = (~domain.valid).reshape(-1).nonzero()[:, 0]
    if len(masked) <= MOST_CELLS:
        return masked
    from scipy.ndimage import distance_transform_edt

    distance = torch.from_numpy(
        distance_transform_edt((~domain.valid).numpy(), sampling=domain.grid.spacing)
    ).reshape(-1)
    order = distance[masked].argsort(stable=True)
    return masked[order[:NEAREST]].sort().values


def inverse_entries(inverse: Tensor, grid: Grid, cells: Tensor) -> Tensor:
    """``M`` between cells with flat indices ``cells``, ``(*batch, p, p)``, from ``M``'s eigenvalues."""
    periodic = _periodic_axes(grid)
    table = inverse
    if periodic:
        table = torch.fft.irfftn(table, s=[grid.shape[a] for a in periodic], dim=periodic)
    plain = [a for a in range(-grid.ndim, 0) if a not in periodic]
    for axis in plain:
        # the mode n of the extension is 0 on every cell, whatever its eigenvalue
        n = grid.shape[axis]
        back = table.narrow(axis, 1, n - 1).flip(axis)
        table = torch.cat([table, table.narrow(axis, n - 1, 1), back], dim=axis)
    if plain:
        table = torch.fft.ifftn(table, dim=plain).real
    sizes = table.shape[-grid.ndim :]
    flat = table.flatten(-grid.ndim)
    position = torch.stack(torch.unravel_index(cells.cpu(), grid.shape), dim=-1).to(table.device)
    total = torch.zeros((), dtype=torch.float64, device=table.device)
    for flips in itertools.product(*((False,) if wraps else (False, True) for wraps in grid.periodic)):
        index = torch.zeros((), dtype=torch.int64, device=table.device)
        for axis, (flip, size) in enumerate(zip(flips, sizes, strict=True)):
            here = position[:, axis]
            image = size - 1 - here if flip else here
            lag = here[:, None] - image
            index = index * size + torch.where(lag < 0, lag + size, lag)
        total = total + flat[..., index]
    return total


def mixed_weights(grid: Grid, device: torch.device | None = None) -> Tensor:
    """How many modes each of `mixed_eigenvalues` stands for, broadcastable to its modes; the sum is ``n``."""
    periodic = _periodic_axes(grid)
    if not periodic:
        return torch.ones((1,) * grid.ndim, dtype=torch.float64, device=device)
    n = grid.shape[periodic[-1]]
    weights = torch.full((n // 2 + 1,), 2.0, dtype=torch.float64, device=device)
    weights[0] = 1.0
    if n % 2 == 0:
        weights[-1] = 1.0
    return weights.reshape(-1, *(1,) * (-periodic[-1] - 1))


def _periodic_axes(grid: Grid) -> list[int]:
    return [axis for axis, wraps in zip(range(-grid.ndim, 0), grid.periodic, strict=True) if wraps]
