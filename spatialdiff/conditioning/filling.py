r"""Missing cells of gridded fields, filled by kriging and by conditional simulation, up to a million cells.

With observed cells ``o``, ``A = K_oo + N`` and the drift ``Fβ``, the kriged field is

``x̂ = F β̂ + K_·o A⁻¹ (y - F_o β̂)``, ``β̂ = (F_oᵀA⁻¹F_o)⁻¹ F_oᵀA⁻¹y``,

and ``x_s + x̂(y - x_s,o - e)`` with an unconditional draw ``x_s`` and errors ``e ~ N(0, N)`` is a draw of the
field given the data (Matheron; Journel & Huijbregts 1978; Chilès & Delfiner 2012, section 7.3). Products with
``K`` and draws ``x_s`` go through FFTs on the whole grid; ``A⁻¹`` is by conjugate gradients, preconditioned
with the sparse factor of Vecchia's approximation of ``A``: some 15 iterations whatever the pattern of gaps,
random cells or half of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from spatialdiff.conditioning.grid_system import GridSystem
from spatialdiff.conditioning.stationary import split_nugget
from spatialdiff.covariance import covariance
from spatialdiff.covariance.checks import check_stationary
from spatialdiff.domains import Grid

Drift = str | Tensor | None

# observed cells times all cells up to which the kriging variance is computed exactly
_EXACT = 20_000_000
# values of the draws that are made at once
_BUFFER = 2**23


@dataclass(frozen=True)
class Filled:
    """Fields without gaps.

    Attributes:
        mean: the kriged fields, shape of the input, float64; with ``noise=0`` equal to the data where there
            are any.
        variance: kriging variance, shape of the input, or None where it is not known.
        variance_from: "exact", or "simulation" (the variance of ``n`` draws, relative standard error
            ``√(2/(n-1))``), or "" without one.
        samples: draws of the fields given the data, ``(n, *shape of the input)``, or None.
    """

    mean: Tensor
    variance: Tensor | None
    variance_from: str
    samples: Tensor | None


def fill(
    fields: Tensor,
    kernel: gpytorch.kernels.Kernel,
    grid: Grid,
    *,
    missing: str | Tensor = "nan",
    drift: Drift = "constant",
    noise: float | Tensor = 0.0,
    n: int | None = None,
    variance: bool = True,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 200,
) -> Filled:
    """Fill the missing cells of fields; see the module for the equations.

    Args:
        fields: ``(..., *grid.shape)``; every field may have gaps of its own.
        kernel: any stationary kernel; its nugget belongs to the field.
        grid: the grid, periodic or not.
        missing: "nan", or a bool tensor that broadcasts to ``fields``, True where a value is missing (what
            the field holds there is ignored).
        drift: None (the mean is 0), "constant", "linear" (1 and the coordinates; not on periodic axes), or
            the drift functions ``(*grid.shape, q)``.
        noise: variance of measurement errors, one number or a field of them, squared units. With errors the
            result is the field without them, at observed cells too.
        n: number of conditional simulations.
        variance: whether to give the kriging variance: exact where observed cells times cells are at most
            20,000,000, elsewhere from the draws if there are two or more.
        generator: of the draws.
        tolerance: relative residual ``‖A a - b‖/‖b‖`` of the conjugate gradients.
        max_iterations: of the conjugate gradients.

    Raises:
        ValueError: fields of another shape, no missing pattern to speak of (all cells missing), infinite
            values, fewer observed cells than drift functions, a covariance that is singular to working
            precision.
        TypeError: something that is no kernel.
        RuntimeError: the conjugate gradients do not reach the tolerance.

    Source: Chilès & Delfiner 2012, Geostatistics, 2nd ed., sections 3.4 and 7.3.
    """
    if not isinstance(kernel, gpytorch.kernels.Kernel):
        raise TypeError(
            f"fill: kernel must be a gpytorch.kernels.Kernel, got {type(kernel).__name__}; "
            "of a fit, give fit.kernel"
        )
    fields = torch.as_tensor(fields).detach()
    shape = tuple(grid.shape)
    if fields.dim() < grid.ndim or tuple(fields.shape[fields.dim() - grid.ndim :]) != shape:
        raise ValueError(f"fill: fields need shape (..., {shape}), got {tuple(fields.shape)}.")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"fill: n must be a whole number from 1 or None, got {n!r}.")
    check_stationary(kernel, grid, "fill")
    split_nugget(kernel)
    values = fields.to(torch.float64)
    gaps = _gaps(values, missing).reshape(-1, *shape)
    flat = torch.where(gaps, 0.0, values.reshape(-1, *shape))
    design = _design(drift, grid)
    errors = torch.as_tensor(noise, dtype=torch.float64).expand(shape)
    if bool((errors < 0).any()) or not bool(torch.isfinite(errors).all()):
        raise ValueError("fill: noise must be finite and not negative; it is a variance.")

    mean, spread = torch.empty_like(flat), torch.empty_like(flat)
    samples = torch.empty(n or 0, *flat.shape, dtype=torch.float64)
    gamma = covariance(kernel, grid, method="torus" if all(grid.periodic) else "circulant").double()
    exact = True
    with torch.no_grad():
        patterns, member = torch.unique(gaps.flatten(1), dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            which = (member == number).nonzero().squeeze(-1)
            system = GridSystem(kernel, grid, gamma, ~pattern, errors, design, tolerance, max_iterations)
            mean[which] = system.krige(flat[which])
            small = variance and system.cells * grid.size <= _EXACT
            exact = exact and small
            if small:
                spread[which] = system.variance()
            for begin in range(0, n or 0, step := max(1, _BUFFER // (grid.size * len(which)))):
                count = min(step, (n or 0) - begin)
                samples[begin : begin + count, which] = system.simulate(flat[which], count, generator)
            if not small and variance and n is not None and n > 1:
                spread[which] = samples[:, which].var(0)
    known = variance and (exact or (n is not None and n > 1))
    return Filled(
        mean.reshape(fields.shape),
        spread.reshape(fields.shape) if known else None,
        ("exact" if exact else "simulation") if known else "",
        None if n is None else samples.reshape(n, *fields.shape),
    )


def _gaps(values: Tensor, missing: str | Tensor) -> Tensor:
    if isinstance(missing, str):
        if missing != "nan":
            raise ValueError(f'fill: missing must be "nan" or a bool tensor, got {missing!r}.')
        gaps = torch.isnan(values)
    else:
        if missing.dtype != torch.bool:
            raise TypeError(
                f"fill: missing must be bool, True where a value is missing, got {missing.dtype}."
            )
        gaps = missing.expand(values.shape)
    bad = int((~torch.isfinite(values) & ~gaps).sum())
    if bad:
        raise ValueError(f"fill: {bad} values that are not missing are NaN or infinite; mark or remove them.")
    return gaps


def _design(drift: Drift, grid: Grid) -> Tensor:
    """Drift functions ``(q, *grid.shape)``."""
    one = torch.ones(1, *grid.shape, dtype=torch.float64)
    if drift is None:
        return one[:0]
    if isinstance(drift, Tensor):
        if tuple(drift.shape[:-1]) != grid.shape:
            raise ValueError(
                f"fill: drift functions need shape {(*grid.shape, 'q')}, got {tuple(drift.shape)}."
            )
        return drift.detach().to(torch.float64).movedim(-1, 0)
    if drift == "constant":
        return one
    if drift == "linear":
        if any(grid.periodic):
            raise ValueError('fill: drift="linear" does not close on a periodic axis; use "constant".')
        x = grid.coordinates().movedim(-1, 0)
        half = torch.tensor(grid.extent, dtype=torch.float64).reshape(-1, *(1,) * grid.ndim) / 2
        return torch.cat([one, x / half - 1])
    raise ValueError(f'fill: drift must be None, "constant", "linear" or functions, got {drift!r}.')
