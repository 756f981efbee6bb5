r"""A stationary kernel on a grid with periodic axes: ``k_P(h) = Σ_m k(h + m L)``, normalised.

The sum over images is positive definite on the torus. Its variance ``Σ_m k(m L)`` exceeds ``σ²``, so each
additive term is divided by ``Σ_m ρ(m L)``: the first row of Γ is ``σ² Σ_m ρ(h + mL) / Σ_m ρ(mL)`` and the
marginal variance is exactly what was asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.checks import check_stationary
from spatialdiff.domains import Grid
from spatialdiff.kernels import Product, StationaryKernel, Sum, at_lags, terms

TOLERANCE = 1e-12
_MOST_SHELLS = 64
_CHUNK = 2_000_000


def additive_terms(kernel: gpytorch.kernels.Kernel) -> list[gpytorch.kernels.Kernel]:
    """The summands of ``kernel`` after expanding products of sums."""
    return [factors[0] if len(factors) == 1 else Product(*factors) for factors in terms(kernel)]


def lag_grid(indices: Sequence[Tensor], grid: Grid, device: torch.device | None) -> Tensor:
    """Differences ``(..., d)``, float64, from whole-number lags per axis (products of whole numbers and the
    spacing, so 0 is exact).
    """
    axes = [i.to(device=device, dtype=torch.float64) * h for i, h in zip(indices, grid.spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def periodised(
    term: gpytorch.kernels.Kernel, grid: Grid, indices: Sequence[Tensor], device: torch.device | None
) -> tuple[Tensor, float]:
    """Normalised periodised covariance of one additive term at whole-number lags, and the factor that
    normalised it.

    Images are added in shells, ``max|m_a| = 1, 2, …``, until a shell adds less than 1e-12 of the sum.

    Raises:
        ValueError: the images do not converge (a length scale far beyond the extent, or a kernel that does
            not decay).
    """
    lags = lag_grid(indices, grid, device)
    extent = torch.tensor(grid.extent, dtype=torch.float64, device=lags.device)
    total, origin = at_lags(term, lags), at_lags(term, torch.zeros_like(lags.reshape(-1, grid.ndim)[:1]))
    unit = origin
    for shell in range(1, _MOST_SHELLS + 1):
        ring = [
            steps
            for steps in itertools.product(*(range(-shell, shell + 1) if p else (0,) for p in grid.periodic))
            if max(map(abs, steps)) == shell
        ]
        shifts = torch.tensor(ring, dtype=torch.float64, device=lags.device) * extent
        added = torch.zeros_like(total)
        for some in shifts.split(max(1, _CHUNK // total.numel())):
            added = added + at_lags(term, lags.unsqueeze(-2) + some).sum(-1)
        at_origin = at_lags(term, shifts).sum()
        total, origin = total + added, origin + at_origin
        if float(added.detach().abs().max()) <= TOLERANCE * float(origin.detach()):
            factor = unit / origin
            return total * factor, float(factor.detach())
    raise ValueError(
        f"{type(term).__name__}: the sum over periodic images does not converge within {_MOST_SHELLS} "
        f"periods {grid.extent}; the length scale is too long for the torus. Use a shorter one, a larger "
        "grid, or a grid that is not periodic."
    )


def stationary_at(
    kernel: gpytorch.kernels.Kernel, grid: Grid, indices: Sequence[Tensor], device: torch.device | None = None
) -> tuple[Tensor, tuple[float, ...]]:
    """Covariance at whole-number lags per axis, periodised on the periodic axes; and the normalising factors
    per term.
    """
    if not any(grid.periodic):
        return at_lags(kernel, lag_grid(indices, grid, device)), ()
    values, factors = zip(
        *(periodised(t, grid, indices, device) for t in additive_terms(kernel)), strict=True
    )
    return torch.stack(values).sum(0), tuple(factors)


def difference_table(
    kernel: gpytorch.kernels.Kernel, grid: Grid, device: torch.device | None = None
) -> Tensor:
    """The ``(n, n)`` matrix of a stationary kernel on a grid, from its values at all differences of sites."""
    check_stationary(kernel, grid, "a periodic axis")
    indices = [torch.arange(-n + 1, n) for n in grid.shape]
    table, _ = stationary_at(kernel, grid, indices, device)
    position = torch.stack(
        torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij"), dim=-1
    ).reshape(-1, grid.ndim)
    offset = position[:, None] - position[None] + torch.tensor(grid.shape) - 1
    return table[tuple(offset.unbind(-1))]


def reflection_symmetric(kernel: gpytorch.kernels.Kernel) -> bool:
    """Whether ``k(h)`` depends on ``|h_a|`` only, known for the kernels here."""
    if isinstance(kernel, Sum | Product):
        return all(reflection_symmetric(part) for part in kernel.kernels)
    return isinstance(kernel, StationaryKernel)
