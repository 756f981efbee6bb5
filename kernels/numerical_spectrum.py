r"""Spectral densities of isotropic correlations in 1, 2 and 3 dimensions by quadrature.

``s_d(w) = |S^{d-1}| ∫_0^∞ ρ(r) Ω_d(w r) r^{d-1} dr`` with ``Ω_1 = cos``, ``Ω_2 = J_0``, ``Ω_3(z) = sin(z)/z``
(Stein 1999, section 2.7).

*Compact support* ``[0, 1]``: Gauss–Legendre panels, at least 1.6 nodes per radian, after the substitution
``r = t³ (10 - 15t + 6t²)``, which softens fractional powers at both ends.

*Infinite support, ρ analytic in a sector*: ``Ω_d(wr) r^{d-1}`` is the real part of a Hankel function that
falls in the upper half plane, so the path of integration is turned to ``r = (y/w) e^{iθ}``, where nothing
oscillates:

- ``d = 1``: ``(2/w) Re ∫ ρ(z/w) e^{iz} dz``,
- ``d = 2``: ``(2π/w²) Re ∫ ρ(z/w) H_0^{(1)}(z) z dz``,
- ``d = 3``: ``(4π/w³) Im ∫ ρ(z/w) (e^{iz} - e^{-z}) z dz``,

and the trapezoidal rule in ``log y`` converges geometrically, however rough ρ is at 0 and however slowly it
falls. The error is near rounding, relative to ``s_d(0)`` (where that is finite), at any frequency.

Where there are many frequencies, both are tabulated and interpolated, with errors below 1e-10 of the largest
value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.kernels.base import align, safe_sqrt
from spatialdiff.kernels.parameters import in_parts, surface

_PANEL, _RADIANS = 32, 18.0
_PART = 8192
# interpolation in tables: points, and spacings in frequency (supports of length 1) and in its logarithm, for
# errors below 1e-11 of the largest value
_POINTS = 10
_SPACING, _LOG_SPACING = 0.125, 0.025


class _BesselJ(torch.autograd.Function):
    """``J_0`` or ``J_1``, differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, order: int) -> Tensor:
        # torch's own bessel_j0 and bessel_j1 (2.13) are off by 4e-7 about z = 5
        from scipy.special import j0, j1

        ctx.save_for_backward(z)
        ctx.order = order
        return torch.as_tensor((j1 if order else j0)(z.cpu().numpy()), dtype=z.dtype, device=z.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        one = _BesselJ.apply(z, 1)
        if ctx.order == 0:
            return -gradient * one, None
        small = z.abs() < 1e-4
        ratio = torch.where(small, 0.5 - z.square() / 16, one / torch.where(small, 1.0, z))
        return gradient * (_BesselJ.apply(z, 0) - ratio), None


def sinc(z: Tensor) -> Tensor:
    """``sin(z)/z``, differentiable any number of times at 0 too."""
    small = z.abs() < 0.1
    y = torch.where(small, z, 0.0).square()
    series = 1 - y / 6 * (1 - y / 20 * (1 - y / 42 * (1 - y / 72)))
    safe = torch.where(small, 1.0, z)
    return torch.where(small, series, safe.sin() / safe)


def _radial(z: Tensor, d: int) -> Tensor:
    """``Ω_d(z)``."""
    if d == 1:
        return z.cos()
    result: Tensor = _BesselJ.apply(z, 0) if d == 2 else sinc(z)
    return result


def check_numerical(name: str, d: int) -> None:
    """Raise ValueError unless the transform is written for ``d`` dimensions."""
    if d not in (1, 2, 3):
        raise ValueError(f"{name}: spectral_density is available in 1, 2 and 3 dimensions, got {d}.")


@functools.lru_cache(maxsize=64)
def _panels(count: int) -> tuple[Tensor, Tensor]:
    """Nodes ``r`` in ``(0, 1)`` and weights, ``count`` panels after the substitution."""
    x, weight = np.polynomial.legendre.leggauss(_PANEL)
    t = ((np.arange(count)[:, None] + (x + 1) / 2) / count).reshape(-1)
    r = t**3 * (10 - 15 * t + 6 * t**2)
    return torch.from_numpy(r), torch.from_numpy(np.tile(weight / 2 / count, count) * 30 * (t * (1 - t)) ** 2)


def compact_spectrum(correlation: Callable[[Tensor], Tensor], w2: Tensor, d: int, lead: int) -> Tensor:
    """``s_d(w²)`` of a correlation with support ``[0, 1]``, in the data type of ``w2``.

    Args:
        correlation: ``ρ(r)`` of ``r`` ``(*batch, nodes)``.
        w2: squared frequencies ``(*batch, ...)``.
        d: dimension, 1 to 3.
        lead: number of batch axes.
    """
    batch = w2.shape[:lead]

    def part(omega: Tensor) -> Tensor:
        # the substitution is steepest, 15/8, in the middle
        r, weight = _panels(2 + math.ceil(1.875 * float(omega.detach().abs().max()) / _RADIANS))
        r, weight = r.to(w2.device), weight.to(w2.device)
        values = correlation(r.expand(*batch, len(r))) * weight * r ** (d - 1)

        def sums(column: Tensor) -> Tensor:
            return (_radial(column.unsqueeze(-1) * r, d) * values).sum(-1)

        return in_parts(sums, len(r) * max(1, batch.numel()), omega)

    return surface(d) * _evaluate(part, safe_sqrt(w2.double()), lead, _SPACING).to(w2.dtype)


def _evaluate(part: Callable[[Tensor], Tensor], x: Tensor, lead: int, spacing: float) -> Tensor:
    """``part`` of ``x`` ``(*batch, ...)``, from a table of equal spacing where that has fewer entries.

    ``part`` takes and gives ``(frequencies, *batch)``.
    """
    if x.numel() == 0:
        return x
    flat = x.reshape(*x.shape[:lead], -1).movedim(-1, 0)
    low, high = float(flat.detach().min()), float(flat.detach().max())
    first = math.floor(low / spacing) - _POINTS // 2
    count = math.ceil(high / spacing) + _POINTS // 2 + 1 - first
    if 2 * count < len(flat):
        nodes = spacing * torch.arange(first, first + count, dtype=x.dtype, device=x.device)
        table = _sorted_parts(part, nodes.reshape(-1, *(1,) * lead).expand(-1, *flat.shape[1:]))
        result = _interpolate(table, flat / spacing - first)
    else:
        result = _sorted_parts(part, flat)
    # a density may have zeros, and rounding is on both sides of them
    return result.clamp(min=0.0).movedim(0, -1).reshape(x.shape)


def _sorted_parts(part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``part`` in the order of the size of ``x``, so that each part needs nodes for its own only."""
    order = x.detach().reshape(len(x), -1).sum(-1).argsort()
    return torch.cat([part(chunk) for chunk in x[order].split(_PART)])[order.argsort()]


def _interpolate(table: Tensor, position: Tensor) -> Tensor:
    """Lagrange interpolation of ``table`` ``(count, *batch)`` at fractional rows ``(n, *batch)``."""
    row = position.detach().floor().long()
    t = position - row
    offsets = range(1 - _POINTS // 2, 1 + _POINTS // 2)
    result = torch.zeros_like(t)
    for k in offsets:
        weight = torch.ones_like(t)
        for j in offsets:
            if j != k:
                weight = weight * ((t - j) / (k - j))
        result = result + weight * table.gather(0, row + k)
    return result


@functools.lru_cache(maxsize=64)
def _turned(first: int, last: int, step: float, theta: float, d: int) -> tuple[Tensor, Tensor]:
    """Nodes ``z`` on the turned path and complex weights such that ``s_d = w^{-d} Re Σ weight ρ(z/w)``."""
    from scipy.special import hankel1

    z = np.exp(step * np.arange(first, last + 1) + 1j * theta)
    if d == 1:
        weight = 2 * z * np.exp(1j * z)
    elif d == 2:
        weight = 2 * math.pi * z**2 * hankel1(0, z)
    else:
        # exp(-z) is real on the real axis and adds nothing to the imaginary part; without it small z cancel
        weight = -4j * math.pi * z**2 * np.exp(-z) * np.expm1((1 + 1j) * z)
    return torch.from_numpy(z), torch.from_numpy(step * weight)


def analytic_spectrum(
    correlation: Callable[[Tensor], Tensor], origin: Tensor, w2: Tensor, d: int, sector: float
) -> Tensor:
    """``s_d(w²)`` of a correlation that is analytic and bounded for ``0 < arg r < sector``.

    Args:
        correlation: ``ρ(r)`` of complex ``r`` ``(*batch, nodes)``, with the batch of ``origin``.
        origin: ``s_d(0)``, shape ``(*batch,)``.
        w2: squared frequencies ``(*batch, ...)``.
        d: dimension, 1 to 3.
        sector: angle in radians; beyond π, ``exp(iz)`` does not fall.
    """
    theta = min(sector / 2, math.pi / 4)
    step = 2 * math.pi * theta / 40
    # exp(-y sin θ) has fallen to exp(-40)
    last = math.ceil(math.log(40 / math.sin(theta)) / step)
    batch = origin.shape

    def part(log_omega: Tensor) -> Tensor:
        omega = log_omega.exp()
        first = math.floor((min(float(log_omega.detach().min()), 0.0) - 38 / d) / step)
        z, weight = (v.to(w2.device) for v in _turned(first, last, step, theta, d))

        def sums(column: Tensor) -> Tensor:
            # the batch leads where parameters meet nodes
            frequency = column.movedim(0, -1).unsqueeze(-1)
            total = (weight * correlation(z / frequency)).real.sum(-1) / frequency.squeeze(-1) ** d
            return total.movedim(-1, 0)

        return in_parts(sums, 2 * len(z) * max(1, batch.numel()), omega)

    zero = w2 == 0
    log_w = torch.where(zero, 1.0, w2.double()).log() / 2
    density = _evaluate(part, log_w, len(batch), _LOG_SPACING)
    return torch.where(zero, align(origin, density), density).to(w2.dtype)
