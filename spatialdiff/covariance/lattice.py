r"""Eigenvalues of a periodised kernel, each with full *relative* accuracy and at a cost free of the length
scale.

The families of `spatialdiff.kernels` are scale mixtures of Gaussians, ``ρ(h) = Σ_g w_g ∏_a exp(-h_a²/(2
s_{ga}²))``. A Gaussian periodised on a grid separates, and its DFT is a theta function with two absolutely
convergent forms,

``θ̂(k) = √(2π) s/h Σ_j exp(-½ s² ω_{k+jn}²) = Σ_m exp(-(m h)²/(2 s²)) cos(2π k m/n)``, ``ω_k = 2πk/(n h)``,

the first for ``s ≥ h/2``, the second for ``s < h/2``; a handful of terms either way. Every summand of ``γ_k
= Σ_g w_g ∏_a θ̂_{ga}(k_a)`` is positive, so that nothing cancels, where the FFT of a sum over images leaves
rounding errors of the size of the largest eigenvalue.
"""

from __future__ import annotations

import math

import gpytorch
import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.kernels import Gaussian, Matern, Nugget
from spatialdiff.kernels.algebra import mixture, terms

_MOST_NODES = 4096


def _theta(n: int, h: float, scale: Tensor, k: Tensor) -> Tensor:
    """``θ̂(k)`` for every scale: ``(modes, nodes)``."""
    steps = torch.arange(-4, 5, dtype=torch.float64, device=scale.device)
    centred = torch.where(k > n / 2, k - n, k)
    omega = 2 * math.pi * (centred[:, None] + n * steps) / (n * h)
    wide = scale >= h / 2
    s = torch.where(wide, scale, h)
    folded = (
        (s / h) * math.sqrt(2 * math.pi) * torch.exp(-0.5 * omega.square()[..., None] * s.square()).sum(1)
    )
    s = torch.where(wide, h / 2, scale)
    near = torch.exp(-0.5 * (steps[5:, None] * h / s).square())
    direct = 1 + 2 * torch.cos(2 * math.pi * k[:, None] * steps[5:] / n) @ near
    return torch.where(wide, folded, direct)


def _nodes(
    factors: list[gpytorch.kernels.Kernel], grid: Grid, device: torch.device | None
) -> tuple[Tensor, Tensor] | None:
    """Per-axis scales ``(nodes, d)`` and weights of a product of factors; None where it is no mixture, or
    too large a one.
    """
    precision = torch.zeros(1, grid.ndim, dtype=torch.float64, device=device)
    weight = torch.ones(1, dtype=torch.float64, device=device)
    for factor in factors:
        if not isinstance(factor, Matern | Gaussian):
            return None
        ell = factor.lengthscale.to(precision).reshape(-1).expand(grid.ndim)
        w2 = sum((math.pi * float(s) / h) ** 2 for s, h in zip(ell.detach(), grid.spacing, strict=True))
        # on a lattice a scale far below the spacing is white noise of full weight: no help from d/2 in the
        # left tail
        g, w = (v.to(precision) for v in mixture(factor, w2, 0) or ())
        precision = (precision[:, None, :] + 1 / (ell.square() * g[:, None])).reshape(-1, grid.ndim)
        weight = (weight[:, None] * w).reshape(-1)
        if len(weight) > _MOST_NODES:
            return None
    return precision.rsqrt(), weight


def torus_eigenvalues(
    kernel: gpytorch.kernels.Kernel, grid: Grid, device: torch.device | None = None
) -> tuple[Tensor, tuple[float, ...]] | None:
    """Eigenvalues on the half spectrum, ``FourierBasis(grid).modes``, of the periodised kernel, each term
    normalised to its variance.

    Returns:
        the eigenvalues and the normalising factor of each term, or None where a term is no (small) mixture
        of Gaussians.
    """
    total: Tensor | None = None
    factors: list[float] = []
    for term in terms(kernel):
        if not all(isinstance(f, Matern | Gaussian | Nugget) for f in term):
            return None
        variance = torch.stack([f.variance.to(device=device, dtype=torch.float64) for f in term]).prod()
        if any(isinstance(f, Nugget) for f in term):
            values, factor = variance.expand((*grid.shape[:-1], grid.shape[-1] // 2 + 1)), 1.0
        else:
            nodes = _nodes(term, grid, device)
            if nodes is None:
                return None
            values, factor = _term(grid, *nodes, variance)
        factors.append(factor)
        total = values if total is None else total + values
    assert total is not None
    return total, tuple(factors)


def _term(grid: Grid, scale: Tensor, weight: Tensor, variance: Tensor) -> tuple[Tensor, float]:
    modes = [torch.arange(n, dtype=torch.float64, device=scale.device) for n in grid.shape]
    modes[-1] = modes[-1][: grid.shape[-1] // 2 + 1]
    tables = [
        _theta(n, h, scale[:, a], k)
        for a, (n, h, k) in enumerate(zip(grid.shape, grid.spacing, modes, strict=True))
    ]
    product = weight[None]
    for table in tables[:-1]:
        product = (product[:, None] * table).reshape(-1, len(weight))
    values = (product @ tables[-1].T).reshape(*grid.shape[:-1], -1)
    last = grid.shape[-1]
    twice = torch.full((values.shape[-1],), 2.0, dtype=torch.float64, device=values.device)
    twice[0] = 1.0
    if last % 2 == 0:
        twice[-1] = 1.0
    origin = (values * twice).sum() / grid.size
    return values * (variance / origin), float((weight.sum() / origin).detach())
