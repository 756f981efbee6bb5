"""A stationary kernel at any difference of sites, and apart from its nugget.

On a periodic axis of period ``L`` the covariance is ``σ² Σ_m ρ(h + mL)/Σ_m ρ(mL)``, as on the sites of a
periodic grid (`spatialdiff.covariance.periodic`), here at differences between its sites too. A nugget is
white in continuous space: it belongs to one site and is no part of any other's value.
"""

from __future__ import annotations

import itertools

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.periodic import additive_terms
from spatialdiff.domains import Grid
from spatialdiff.kernels import Nugget, Product, Sum, at_lags, terms

_TOLERANCE = 1e-13
_MOST_SHELLS = 64


def split_nugget(kernel: gpytorch.kernels.Kernel) -> tuple[gpytorch.kernels.Kernel | None, float]:
    """The continuous part of ``kernel`` (None where there is none) and the variance of its nugget.

    Raises:
        ValueError: a batch of hyperparameters.
    """
    if kernel.batch_shape:
        raise ValueError(
            f"conditioning takes one covariance at a time, got a kernel with batch_shape "
            f"{tuple(kernel.batch_shape)}; take one member of the batch."
        )
    value = torch.as_tensor(getattr(kernel, "nugget", 0.0), dtype=torch.float64)
    nugget = float(value.detach())
    if nugget == 0.0:
        return kernel, 0.0
    smooth = [part for part in terms(kernel) if not any(isinstance(factor, Nugget) for factor in part)]
    if not smooth:
        return None, nugget
    parts = [part[0] if len(part) == 1 else Product(*part) for part in smooth]
    return (parts[0] if len(parts) == 1 else Sum(*parts)), nugget


def lagged(kernel: gpytorch.kernels.Kernel, grid: Grid, h: Tensor) -> Tensor:
    """``k(h)`` of differences ``(..., d)``, float64, periodised on the periodic axes of ``grid`` → ``(...)``.

    Raises:
        ValueError: the sum over periodic images does not converge.
    """
    with torch.no_grad():
        if not any(grid.periodic):
            return at_lags(kernel, h).to(torch.float64)
        extent = torch.tensor(grid.extent, dtype=torch.float64)
        wraps = torch.tensor(grid.periodic)
        h = torch.where(wraps, h - extent * torch.round(h / extent), h)
        return sum(
            (_periodised(part, grid, h, extent) for part in additive_terms(kernel)), torch.zeros(h.shape[:-1])
        ).to(torch.float64)


def _periodised(kernel: gpytorch.kernels.Kernel, grid: Grid, h: Tensor, extent: Tensor) -> Tensor:
    unit = at_lags(kernel, torch.zeros(1, grid.ndim, dtype=torch.float64))[0]
    total, origin = at_lags(kernel, h), unit.clone()
    for shell in range(1, _MOST_SHELLS + 1):
        steps = [
            s
            for s in itertools.product(*(range(-shell, shell + 1) if p else (0,) for p in grid.periodic))
            if max(map(abs, s)) == shell
        ]
        added = torch.zeros_like(total)
        for shift in torch.tensor(steps, dtype=torch.float64) * extent:
            added = added + at_lags(kernel, h + shift)
            origin = origin + at_lags(kernel, shift[None])[0]
        total = total + added
        if float(added.abs().max()) <= _TOLERANCE * float(origin):
            return total * (unit / origin)
    raise ValueError(
        f"{type(kernel).__name__}: the sum over periodic images does not converge within {_MOST_SHELLS} "
        f"periods {grid.extent}; use a shorter length scale, a larger grid or one that is not periodic."
    )
