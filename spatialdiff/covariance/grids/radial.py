r"""Isotropic covariances beyond the diameter of a grid: what cut-off and intrinsic embeddings share.

A covariance is a sum of terms ``φ_t(x_t)`` of scaled distances ``x_t = ‖h/ℓ_t‖ / D_t``, where ``D_t`` is the
scaled diameter of the grid, so that ``x_t ≤ 1`` for every lag of the grid. An extension keeps ``φ_t`` there
and chooses ``ψ_t`` on ``[1, R]``, zero beyond; the periodic covariance is ``c(h) = Σ_t Σ_s ψ_t(h + sL)`` over
whole periods ``L``, and equals ``Σ ψ_t`` on the grid if ``L_a ≥ (n_a - 1) h_a + R D_t ℓ_{ta}`` in every axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.periodic import additive_terms, lag_grid
from spatialdiff.domains import Grid
from spatialdiff.kernels import Nugget, StationaryKernel, at_lags, terms

_NODES, _WIDTH = 14, 0.3


class NotRadialError(ValueError):
    """A covariance that is not a sum of functions of a scaled distance."""


@dataclass
class RadialTerm:
    """One additive term.

    Attributes:
        kernel: the term.
        metric: ``D ℓ_a`` per axis, ``(*batch, d)``: ``x² = Σ (h_a / metric_a)²``.
        profile: ``φ(x)`` of ``(*batch, ...)``; None for a nugget, which has no extension.
    """

    kernel: gpytorch.kernels.Kernel
    metric: Tensor
    profile: Callable[[Tensor], Tensor] | None

    def distance_squared(self, h: Tensor) -> Tensor:
        """``x²`` of differences ``(..., d)``, ``(*batch, ...)``."""
        metric = self.metric.to(h)
        batch = metric.shape[:-1]
        return (h / metric.reshape(*batch, *(1,) * (h.dim() - 1), h.shape[-1])).square().sum(-1)


def edges(grid: Grid) -> list[float]:
    """Largest lag per axis, in units of length."""
    return [(n - 1) * h for n, h in zip(grid.shape, grid.spacing, strict=True)]


def radial_terms(kernel: gpytorch.kernels.Kernel, grid: Grid) -> list[RadialTerm]:
    """The additive terms of ``kernel``.

    Raises:
        NotRadialError: a periodic axis; a term that is not isotropic after scaling the axes.
    """
    if any(grid.periodic):
        raise NotRadialError("cut-off and intrinsic embeddings need a grid without periodic axes")
    return [_radial(term, grid) for term in additive_terms(kernel)]


def _radial(term: gpytorch.kernels.Kernel, grid: Grid) -> RadialTerm:
    factors = terms(term)[0]
    if any(isinstance(factor, Nugget) for factor in factors):
        return RadialTerm(term, torch.ones(grid.ndim, dtype=torch.float64), None)
    for factor in factors:
        if not isinstance(factor, StationaryKernel) or not factor.reflection_symmetric:
            raise NotRadialError(
                f"{type(factor).__name__} is not known to be a function of a scaled distance, which cut-off "
                "and intrinsic embeddings need"
            )
    scales = [f.lengthscale.squeeze(-2).to(torch.float64) for f in factors]
    wide = [s.expand(*s.shape[:-1], grid.ndim) for s in scales]
    ratios = [w[..., :1] / w for w in wide]
    if any(not torch.allclose(r.detach(), ratios[0].detach(), rtol=1e-9) for r in ratios[1:]):
        raise NotRadialError(
            "a product of factors with different anisotropy is not a function of one scaled distance, which "
            "cut-off and intrinsic embeddings need"
        )
    extent = torch.tensor(edges(grid), dtype=torch.float64, device=wide[0].device)
    # a hair more than the diameter, so that rounding cannot push a lag of the grid beyond it
    diameter = (extent / wide[0]).square().sum(-1).sqrt() * (1 + 1e-9)
    metric = wide[0] * diameter[..., None]

    def profile(x: Tensor) -> Tensor:
        result = torch.ones((), dtype=x.dtype, device=x.device)
        for factor, ell in zip(factors, wide, strict=True):
            scaled = x * front(metric[..., 0] / ell[..., 0], x)
            result = result * front(factor.variance, x) * factor.correlation(scaled)
        return result

    return RadialTerm(term, metric, profile)


def front(value: Tensor, like: Tensor) -> Tensor:
    """``(*batch,)`` as ``(*batch, 1, …)``, as many axes as ``like``."""
    return value.to(like).reshape(*value.shape, *(1,) * (like.dim() - value.dim()))


def least_sizes(found: Sequence[RadialTerm], grid: Grid, reach: Sequence[Tensor | float]) -> tuple[int, ...]:
    """Sites per axis that hold the grid and the support ``R_t D_t ℓ_{ta}`` of every term."""
    sizes = []
    for axis, (n, h) in enumerate(zip(grid.shape, grid.spacing, strict=True)):
        longest = 0.0
        for term, r in zip(found, reach, strict=True):
            if term.profile is not None:
                longest = max(longest, float((term.metric[..., axis].detach() * r).max()))
        sizes.append(
            1 if n == 1 and grid.ndim > 1 and longest == 0 else n - 1 + math.ceil(longest / h - 1e-6)
        )
    return tuple(sizes)


def derivatives(profile: Callable[[Tensor], Tensor], batch: torch.Size, count: int) -> Tensor:
    """``φ(1), φ'(1), …``, ``(*batch, count)``, from values around 1: differentiable in the parameters."""
    nodes, weights = _stencil(count)
    values = profile(nodes.expand(*batch, _NODES))
    return values @ weights.to(values)


@lru_cache(maxsize=8)
def _stencil(count: int) -> tuple[Tensor, Tensor]:
    # derivatives of the interpolating polynomial at Chebyshev nodes
    k = torch.arange(_NODES, dtype=torch.float64)
    x = torch.cos(math.pi * (k + 0.5) / _NODES)
    vandermonde = torch.stack([torch.cos(j * torch.acos(x)) for j in range(_NODES)], -1)
    to_series = torch.linalg.inv(vandermonde)
    # Chebyshev series to its derivatives at 0 by the recurrence T_{j+1} = 2x T_j - T_{j-1}
    rows = torch.zeros(count, _NODES, dtype=torch.float64)
    rows[0, 0] = 1.0
    for j in range(1, _NODES):
        for p in range(count):
            before = rows[p, j - 2] if j > 1 else 0.0
            lower = p * rows[p - 1, j - 1] if p else 0.0
            rows[p, j] = (2.0 if j > 1 else 1.0) * lower - before
    scale = torch.tensor([_WIDTH ** -float(p) for p in range(count)], dtype=torch.float64)
    return 1 + _WIDTH * x, (scale[:, None] * (rows @ to_series)).T.contiguous()


def periodised_table(
    found: Sequence[RadialTerm],
    grid: Grid,
    sizes: Sequence[int],
    extension: Callable[[int, Tensor, Tensor], Tensor],
    device: torch.device | None,
) -> Tensor:
    """``c(h)`` at lags ``0 … m/2`` per axis; ``extension(t, φ, x)`` gives ``ψ_t`` from ``φ_t`` and ``x``."""
    total: Tensor | None = None
    for images in itertools.product((False, True), repeat=grid.ndim):
        if any(back and m == 1 for back, m in zip(images, sizes, strict=True)):
            continue
        lags = [
            (m - torch.arange(m // 2 + 1)) if back else torch.arange(m // 2 + 1)
            for back, m in zip(images, sizes, strict=True)
        ]
        h = lag_grid(lags, grid, device)
        for number, term in enumerate(found):
            if term.profile is None:
                if any(images):
                    continue
                part = at_lags(term.kernel, h)
            else:
                x2 = term.distance_squared(h)
                x = torch.where(x2 > 0, torch.where(x2 > 0, x2, 1.0).sqrt(), 0.0)
                part = extension(number, at_lags(term.kernel, h), x)
            total = part if total is None else total + part
    assert total is not None
    return total
