r"""Spectral densities of products of kernels.

A family that is a scale mixture of Gaussians, ``ρ(r) = E exp(-r²/(2G))``, with ``r² = hᵀ Q h``: a product of
such is a mixture of Gaussians with precision ``P = Σ_j Q_j/G_j``, so that ``S(ω) = ∏σ_j² E[(2π)^{d/2}
|P|^{-1/2} exp(-½ ωᵀ P⁻¹ ω)]``, by the trapezoidal rule in ``log G`` (geometric convergence). Matérn and
Gaussian: see `spatialdiff.kernels.mixtures`. Rational quadratic and Cauchy, ``(1 + r²/(2c))^{-b}``: ``G =
c/T``, ``T ~ Gamma(b)``.

Other isotropic families, where all factors have the same anisotropy, ``Q_j = c_j Q``: the product is
``∏ρ_j(√c_j r)`` of ``r² = hᵀ Q h``, and ``S(ω) = ∏σ_j² |Q|^{-1/2} s_d(√(ωᵀ Q⁻¹ ω))`` with ``s_d`` by
quadrature: over the support where one of them has compact support, else by `spatialdiff.kernels.fourier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.kernels.base import StationaryKernel, align, gaussian_constant, safe_sqrt
from spatialdiff.kernels.compact import CompactKernel
from spatialdiff.kernels.fourier import radial_transform
from spatialdiff.kernels.mixtures import mixture
from spatialdiff.kernels.numerical_spectrum import compact_spectrum
from spatialdiff.kernels.tails import Cauchy, RationalQuadratic

_CHUNK = 4_000_000
_MOST_NODES = 1_000_000
_STEP = 0.25
# frequencies at a time in the radial transform, which has some thousand nodes for each
_FREQUENCIES = 2048


@dataclass(frozen=True)
class _Factor:
    """``σ² ρ(√(hᵀ Tᵀ T h))``: the family, and ``T`` with its batch, ``(*batch, d, d)``."""

    family: StationaryKernel
    transform: Tensor

    @property
    def precision(self) -> Tensor:
        return self.transform.mT @ self.transform


def _radial(kernel: Kernel, d: int, like: Tensor) -> _Factor | None:
    """``kernel`` as a family of the length of transformed lags; None where it is not one."""
    if isinstance(kernel, StationaryKernel):
        plain = type(kernel).scaled_distance is StationaryKernel.scaled_distance
        if not plain or not kernel.has_lengthscale:
            return None
        kernel.check_dimension(d)
        scales = kernel._scales(like.new_zeros(1, d)).squeeze(-2)
        return _Factor(kernel, torch.diag_embed(1 / scales.expand(*scales.shape[:-1], d)))
    if hasattr(kernel, "to_principal_axes"):
        inner = _radial(kernel.kernel, d, like)
        if inner is None:
            return None
        return _Factor(inner.family, inner.transform @ kernel.to_principal_axes(d).to(like))
    return None


def product_density(factors: list[Kernel], omega: Tensor) -> Tensor:
    """``S(ω)`` of ``∏_j k_j`` at angular frequencies ``(..., d)`` → ``(*batch, ...)``.

    Raises:
        TypeError: a factor that is not one of the isotropic families here, or a transform of one.
        ValueError: factors that are not all mixtures of Gaussians, and that differ in their anisotropy or
            oscillate; or too many nodes.
    """
    d = omega.shape[-1]
    parts = []
    for kernel in factors:
        part = _radial(kernel, d, omega)
        if part is None:
            raise TypeError(
                "spectral_density of a product needs isotropic families of spatialdiff.kernels as factors, "
                f"whose lags may be stretched and turned; got {type(kernel).__name__}."
            )
        parts.append(part)
    variance = torch.ones((), dtype=omega.dtype, device=omega.device)
    for part in parts:
        variance = variance * part.family.variance.to(omega)
    if all(isinstance(part.family, Cauchy | RationalQuadratic) or _is_mixture(part) for part in parts):
        values = _mixture_density(parts, omega)
    else:
        values = _common_density(parts, omega)
    return align(variance, values) * values


def _is_mixture(part: _Factor) -> bool:
    return mixture(part.family, 1.0, 1) is not None


def _nodes(part: _Factor, largest: float, d: int) -> tuple[Tensor, Tensor]:
    """``G`` and weights, ``(*batch, nodes)``, good for squared frequencies up to ``largest``."""
    singular = torch.linalg.matrix_norm(torch.linalg.inv(part.transform.detach().double()), ord=2)
    w2 = largest * float(singular.max()) ** 2
    found = mixture(part.family, w2, d)
    if found is not None:
        return found
    family = part.family
    if isinstance(family, RationalQuadratic):
        power, scale = family.alpha, family.alpha
    else:
        assert isinstance(family, Cauchy)
        power, scale = family.beta / 2, torch.full_like(family.beta, 0.5)
    least, most = float(power.detach().min()), float(power.detach().max())
    step = min(_STEP, 0.55 / math.sqrt(most + 2))
    right = math.log(40.0 + 2 * most + 2 * math.sqrt(w2 * 2 * float(scale.detach().max())))
    x = torch.arange(-37.0 / least, right, step, dtype=torch.float64, device=power.device)
    b = power.unsqueeze(-1)
    weight = step * torch.exp(b * x - x.exp() - torch.lgamma(b))
    return scale.unsqueeze(-1) * torch.exp(-x), weight


def _mixture_density(parts: list[_Factor], omega: Tensor) -> Tensor:
    d = omega.shape[-1]
    flat = omega.reshape(-1, d)
    largest = float(flat.detach().double().square().sum(-1).max()) if len(flat) else 0.0
    precision, weight = omega.new_zeros(1, d, d), omega.new_ones(1)
    for part in parts:
        g, w = (v.to(omega) for v in _nodes(part, largest, d))
        # every pair of an old node and a new one
        new = part.precision.unsqueeze(-3) / g[..., None, None]
        precision = (precision.unsqueeze(-3) + new.unsqueeze(-4)).flatten(-4, -3)
        weight = (weight.unsqueeze(-1) * w.unsqueeze(-2)).flatten(-2)
        if weight.shape[-1] > _MOST_NODES:
            raise ValueError(
                f"spectral_density of a product of {len(parts)} factors needs {weight.shape[-1]:.1e} nodes "
                "per frequency; use at most two non-Gaussian factors."
            )
    covariance = torch.linalg.inv(precision)
    coefficient = weight * gaussian_constant(d) * torch.linalg.det(covariance).sqrt()
    exponents = -0.5 * covariance.flatten(-2).mT
    joined = torch.cat(
        [
            (
                torch.exp((rows.unsqueeze(-1) * rows.unsqueeze(-2)).flatten(-2) @ exponents)
                @ coefficient.unsqueeze(-1)
            ).squeeze(-1)
            for rows in flat.split(max(1, _CHUNK // coefficient.numel()))
        ],
        -1,
    )
    values = joined.reshape(*joined.shape[:-1], *omega.shape[:-1])
    infinite = (omega.detach() == 0).all(-1)
    if bool(infinite.any()):
        slow = torch.zeros(joined.shape[:-1], dtype=torch.float64, device=omega.device)
        for part in parts:
            slow = slow + _decay(part.family)
        values = torch.where(infinite & (align(slow, values) <= d / 2), math.inf, values)
    return values


def _decay(family: StationaryKernel) -> Tensor:
    """``b`` of a correlation that falls as ``r^{-2b}``; infinite for the families that fall faster."""
    if isinstance(family, RationalQuadratic):
        return family.alpha.detach()
    if isinstance(family, Cauchy):
        return family.beta.detach() / 2
    return torch.tensor(math.inf, dtype=torch.float64)


def _common_density(parts: list[_Factor], omega: Tensor) -> Tensor:
    d = omega.shape[-1]
    first = parts[0].precision
    ratios = []
    for part in parts:
        trace = part.precision.diagonal(dim1=-2, dim2=-1).sum(-1)
        ratio = trace / first.diagonal(dim1=-2, dim2=-1).sum(-1)
        if not torch.allclose(part.precision, ratio[..., None, None] * first, rtol=1e-9, atol=0.0):
            names = ", ".join(type(p.family).__name__ for p in parts)
            raise ValueError(
                f"spectral_density of a product of {names} needs the same anisotropy in every factor, "
                "since not all of them are mixtures of Gaussians known here; use a method that needs only "
                "the covariance."
            )
        ratios.append(ratio.sqrt())
    compact = [i for i, part in enumerate(parts) if isinstance(part.family, CompactKernel)]
    if not compact and any(part.family.max_dimension < math.inf for part in parts):
        name = next(type(p.family).__name__ for p in parts if p.family.max_dimension < math.inf)
        raise ValueError(
            f"spectral_density of a product with {name}, which oscillates, is not available; use a method "
            "that needs only the covariance."
        )
    if d > 3:
        raise ValueError(
            f"spectral_density of a product by quadrature is for 1, 2 and 3 dimensions, got {d}."
        )
    batch = torch.broadcast_shapes(*(p.family.batch_shape for p in parts), *(r.shape for r in ratios))

    def correlation(r: Tensor) -> Tensor:
        """The product at ``r`` ``(*batch, ...)``."""
        values = torch.ones((), dtype=r.dtype, device=r.device)
        for part, ratio in zip(parts, ratios, strict=True):
            values = values * part.family.correlation(align(ratio, r) * r)
        return values

    scaled = torch.linalg.solve(first, omega.reshape(-1, d).mT).mT
    w2 = (scaled * omega.reshape(-1, d)).sum(-1)
    w2 = w2.expand(*batch, w2.shape[-1])
    volume = torch.linalg.det(first).rsqrt()
    if compact:
        support = torch.stack([(1 / ratios[i]).expand(batch) for i in compact]).amin(0)
        unit = compact_spectrum(
            lambda r: correlation(align(support, r) * r), w2 * align(support, w2).square(), d, len(batch)
        )
        density = align(support, unit) ** d * unit
    else:
        w = safe_sqrt(w2)
        density = torch.cat([_smooth(correlation, part, d) for part in w.split(_FREQUENCIES, -1)], -1)
    values = align(volume, density) * density
    return values.reshape(*batch, *omega.shape[:-1])


def _smooth(correlation: Callable[[Tensor], Tensor], w: Tensor, d: int) -> Tensor:
    # the nodes are constants: s_d(w) at a fixed frequency w_0 with f(r w_0/w) carries the derivative in w
    fixed = w.detach()
    ratio = torch.where(fixed == 0, 1.0, fixed / torch.where(fixed == 0, 1.0, w))
    return ratio.pow(d) * radial_transform(lambda r: correlation(r * ratio.unsqueeze(-1)), fixed, d)
