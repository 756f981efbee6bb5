r"""A stationary kernel on a grid with periodic axes: ``k_P(h) = Σ_m k(h + m L)``, normalised.

The sum over images is positive definite on the torus. Its variance ``Σ_m k(m L)`` exceeds ``σ²``, so each
additive term is divided by ``Σ_m ρ(m L)``: the first row of Γ is ``σ² Σ_m ρ(h + mL) / Σ_m ρ(mL)`` and the
marginal variance is exactly what was asked for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import gpytorch
import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.kernels import Product, at_lags, terms

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
    values_at: Callable[[Tensor], Tensor],
    grid: Grid,
    indices: Sequence[Tensor],
    device: torch.device | None,
    *,
    name: str,
) -> tuple[Tensor, Tensor]:
    """Normalised periodised covariance of one additive term at whole-number lags, and the factors that
    normalised it.

    Images are added in shells, ``max|m_a| = 1, 2, …``, until a shell adds less than 1e-12 of the sum.

    Args:
        values_at: the term at differences ``(..., d)`` → ``(*batch, ...)``.
        grid, indices, device: see `stationary_at`.
        name: what to call the term in an error.

    Returns:
        values ``(*batch, *lags)`` and factors ``(*batch,)``.

    Raises:
        ValueError: the images do not converge (a length scale far beyond the extent, or a kernel that decays
            slowly or not at all).
    """
    lags = lag_grid(indices, grid, device)
    ndim = grid.ndim
    extent = torch.tensor(grid.extent, dtype=torch.float64, device=lags.device)
    total, origin = values_at(lags), values_at(torch.zeros_like(lags.reshape(-1, ndim)[:1]))[..., 0]
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
            added = added + values_at(lags.unsqueeze(-2) + some).sum(-1)
        total, origin = total + added, origin + values_at(shifts).sum(-1)
        largest = added.detach().abs().reshape(*origin.shape, -1).amax(-1)
        if bool((largest <= TOLERANCE * origin.detach()).all()):
            factor = unit / origin
            return total * factor.reshape(*factor.shape, *(1,) * ndim), factor.detach()
    raise ValueError(
        f"{name}: the sum over periodic images does not converge within {_MOST_SHELLS} periods "
        f"{grid.extent}; its length scale is too long for the torus, or it decays too slowly to be "
        "periodised. Use a shorter length scale, a larger grid, a family that decays faster, or a grid that "
        "is not periodic."
    )


def stationary_at(
    kernel: gpytorch.kernels.Kernel, grid: Grid, indices: Sequence[Tensor], device: torch.device | None = None
) -> tuple[Tensor, tuple[float, ...]]:
    """Covariance at whole-number lags per axis, ``(*batch, *lags)``, periodised on the periodic axes; and the
    normalising factors per term (and, with a batch, per member).
    """
    if not any(grid.periodic):
        return at_lags(kernel, lag_grid(indices, grid, device)), ()
    total: Tensor | None = None
    factors: list[float] = []
    for term in additive_terms(kernel):
        values, factor = periodised(
            functools.partial(at_lags, term), grid, indices, device, name=type(term).__name__
        )
        total = values if total is None else total + values
        factors.extend(factor.reshape(-1).tolist())
    assert total is not None
    return total, tuple(factors)


def difference_table(
    lagged: Callable[[Sequence[Tensor]], Tensor], grid: Grid, valid: Tensor | None = None
) -> Tensor:
    """The ``(*batch, n, n)`` matrix of a stationary covariance from its values at all differences of sites,
    which ``lagged`` gives for whole-number lags per axis; of the sites in the flat mask ``valid``, if given.
    """
    table = lagged([torch.arange(-n + 1, n) for n in grid.shape])
    position = torch.stack(
        torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij"), dim=-1
    ).reshape(-1, grid.ndim)
    if valid is not None:
        position = position[valid]
    offset = (position[:, None] - position[None] + torch.tensor(grid.shape) - 1).to(table.device)
    # the batch axes, if any, are taken whole
    where = (slice(None),) * (table.dim() - grid.ndim) + offset.unbind(-1)
    return table[where]


def reflection_symmetric(kernel: gpytorch.kernels.Kernel) -> bool:
    """Whether ``k(h)`` depends on ``|h_a|`` only, known for the kernels here."""
    return bool(getattr(kernel, "reflection_symmetric", False))
