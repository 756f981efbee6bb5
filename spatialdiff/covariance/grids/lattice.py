r"""Eigenvalues of a periodised kernel, each with full *relative* accuracy and at a cost free of the length
scale.

Matérn of every order, Gaussian, rational quadratic and Cauchy are scale mixtures of Gaussians, ``ρ(h) = Σ_g
w_g ∏_a exp(-h_a²/(2 s_{ga}²))``. A Gaussian periodised on a grid separates, and its DFT is a theta function
with two absolutely convergent forms,

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
from spatialdiff.kernels import Cauchy, Gaussian, Matern, Nugget, RationalQuadratic, terms
from spatialdiff.kernels.mixtures import mixture

_MOST_NODES = 4096
# families that are mixtures here; `mixture` knows the first two
_FAMILIES = (Matern, Gaussian, RationalQuadratic, Cauchy)


def _theta(n: int, h: float, scale: Tensor, k: Tensor) -> Tensor:
    """``θ̂(k)`` for every scale ``(*batch, nodes)``: ``(*batch, modes, nodes)``."""
    steps = torch.arange(-4, 5, dtype=torch.float64, device=scale.device)
    centred = torch.where(k > n / 2, k - n, k)
    omega = 2 * math.pi * (centred[:, None] + n * steps) / (n * h)
    wide = scale >= h / 2
    s = torch.where(wide, scale, h)
    # one fold at a time: all nine at once would be the largest array by far
    folded = torch.zeros((), dtype=torch.float64, device=scale.device)
    for fold in omega.T:
        folded = folded + torch.exp(-0.5 * fold.square()[:, None] * s.square().unsqueeze(-2))
    folded = (math.sqrt(2 * math.pi) / h) * s.unsqueeze(-2) * folded
    s = torch.where(wide, h / 2, scale)
    near = torch.exp(-0.5 * (steps[5:, None] * h / s.unsqueeze(-2)).square())
    direct = 1 + 2 * torch.cos(2 * math.pi * k[:, None] * steps[5:] / n) @ near
    return torch.where(wide.unsqueeze(-2), folded, direct)


def _nodes(
    factors: list[gpytorch.kernels.Kernel], grid: Grid, device: torch.device | None
) -> tuple[Tensor, Tensor] | None:
    """Per-axis scales ``(*batch, nodes, d)`` and weights ``(*batch, nodes)`` of a product of factors; None
    where it is no mixture, or too large a one.
    """
    precision = torch.zeros(1, grid.ndim, dtype=torch.float64, device=device)
    weight = torch.ones(1, dtype=torch.float64, device=device)
    for factor in factors:
        ell = factor.lengthscale.to(precision)
        ell = ell.expand(*ell.shape[:-1], grid.ndim)
        longest = ell.detach().reshape(-1, grid.ndim).amax(0).tolist()
        w2 = sum((math.pi * s / h) ** 2 for s, h in zip(longest, grid.spacing, strict=True))
        # on a lattice a scale far below the spacing is white noise of full weight: no help from d/2 in the
        # left tail
        heavy = isinstance(factor, RationalQuadratic | Cauchy)
        found = _heavy_tailed(factor, w2, grid, alone=len(factors) == 1) if heavy else mixture(factor, w2, 0)
        if found is None:
            return None
        g, w = (v.to(precision) for v in found)
        own = 1 / (ell.square() * g.unsqueeze(-1))
        precision = (precision.unsqueeze(-2) + own.unsqueeze(-3)).flatten(-3, -2)
        weight = (weight.unsqueeze(-1) * w.unsqueeze(-2)).flatten(-2)
        if weight.shape[-1] > _MOST_NODES:
            return None
    return precision.rsqrt(), weight


def torus_eigenvalues(
    kernel: gpytorch.kernels.Kernel, grid: Grid, device: torch.device | None = None
) -> tuple[Tensor, tuple[float, ...]] | None:
    """Eigenvalues on the half spectrum, ``(*batch, *FourierBasis(grid).modes)``, of the periodised kernel,
    each term normalised to its variance.

    Returns:
        the eigenvalues and the normalising factors of each term (and member of the batch), or None where a
        term is no (small) mixture of Gaussians.
    """
    total: Tensor | None = None
    factors: list[float] = []
    for term in terms(kernel):
        is_nugget = any(isinstance(f, Nugget) for f in term)
        if not all(isinstance(f, (Nugget, *_FAMILIES)) for f in term):
            return None
        variance = torch.ones((), dtype=torch.float64, device=device)
        for f in term:
            variance = variance * f.variance.to(variance)
        if is_nugget:
            # a product with a nugget is a nugget
            modes = (*grid.shape[:-1], grid.shape[-1] // 2 + 1)
            values = variance.reshape(*variance.shape, *(1,) * grid.ndim).expand(*variance.shape, *modes)
            factor = torch.ones_like(variance)
        else:
            nodes = _nodes(term, grid, device)
            if nodes is None:
                return None
            values, factor = _term(grid, *nodes, variance)
        factors.extend(factor.detach().reshape(-1).tolist())
        total = values if total is None else total + values
    assert total is not None
    return total, tuple(factors)


def _heavy_tailed(
    factor: gpytorch.kernels.Kernel, largest_w2: float, grid: Grid, *, alone: bool
) -> tuple[Tensor, Tensor] | None:
    """Nodes ``G = c/τ`` and weights of ``(1 + r²/(2c))^{-b} = E exp(-τ r²/(2c))``, ``τ ~ Gamma(b, 1)``: the
    rational quadratic is ``b = c = α``, Cauchy's kernel ``b = β/2``, ``c = 1/2``.

    Raises:
        ValueError: ``b ≤ d/2``: the sum over images is infinite.
    """
    rational = isinstance(factor, RationalQuadratic)
    b = factor.alpha if rational else factor.beta / 2
    c = b if rational else torch.full_like(b, 0.5)
    excess = float(b.detach().min()) - grid.ndim / 2
    if excess <= 0:
        if not alone:
            return None
        raise ValueError(
            f"{factor!r} decays no faster than 1/distance^{grid.ndim} and cannot be periodised in "
            f"{grid.ndim} dimension{'s' * (grid.ndim > 1)}: the sum over images is infinite. Use "
            + ("alpha" if rational else "beta")
            + f" above {grid.ndim / 2 if rational else grid.ndim:g}, or a grid that is not periodic."
        )
    # in x = log τ: the mass at frequency w sits at τ = w √(c/2), with a peak 1/√(2τ) wide
    least, most = float(c.detach().min()), float(c.detach().max())
    peak = math.sqrt(largest_w2 * most / 2)
    low, high = -37.0 / excess, math.log(50.0 + 2 * float(b.detach().max()) + 4 * peak)
    low += math.log(min(1.0, least))
    step = min(0.25, 0.55 / math.sqrt(float(b.detach().max()) + 2 * peak + 2))
    if high - low > step * _MOST_NODES:
        return None
    x = torch.arange(low, high, step, dtype=torch.float64, device=b.device)
    b, c = b.unsqueeze(-1), c.unsqueeze(-1)
    weights = step * torch.exp(b * x - x.exp() - torch.lgamma(b))
    return c * torch.exp(-x), weights


def _term(grid: Grid, scale: Tensor, weight: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    modes = [torch.arange(n, dtype=torch.float64, device=scale.device) for n in grid.shape]
    modes[-1] = modes[-1][: grid.shape[-1] // 2 + 1]
    tables = [
        _theta(n, h, scale[..., a], k)
        for a, (n, h, k) in enumerate(zip(grid.shape, grid.spacing, modes, strict=True))
    ]
    product = weight.unsqueeze(-2)
    for table in tables[:-1]:
        product = (product.unsqueeze(-2) * table.unsqueeze(-3)).flatten(-3, -2)
    values = (product @ tables[-1].mT).unflatten(-2, grid.shape[:-1] or (1,))
    if grid.ndim == 1:
        values = values.squeeze(-2)
    last = grid.shape[-1]
    twice = torch.full((values.shape[-1],), 2.0, dtype=torch.float64, device=values.device)
    twice[0] = 1.0
    if last % 2 == 0:
        twice[-1] = 1.0
    origin = (values * twice).sum(tuple(range(-grid.ndim, 0))) / grid.size
    scaled = variance / origin
    return values * scaled.reshape(*scaled.shape, *(1,) * grid.ndim), weight.sum(-1) / origin
