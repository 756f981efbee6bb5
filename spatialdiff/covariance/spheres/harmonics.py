r"""Spherical harmonics on latitude–longitude grids.

A field of degree ``L`` is ``x(φ, λ) = Σ_l [c_l0 P̄_l0 + √2 Σ_{m=1}^{l} P̄_lm (c_lm cos mλ + s_lm sin mλ)]``,
whose ``(L+1)²`` functions are orthonormal on the unit sphere. Coefficients are an array ``(L+1, L+1)``
without gaps: ``c_lm`` at ``[l, m]``, ``s_lm`` at ``[m-1, l]``; entry ``[i, j]`` has degree ``max(i, j)``.

`synthesis` gives ``x`` on the grid: Legendre sums, one order at a time, of half the latitudes for each
parity, and an inverse FFT. Orders beyond ``n_λ/2`` are not dropped: on the grid they coincide with lower ones
and are added to them. `analysis` gives the coefficients by quadrature, exactly for a field of degree ``L``
where the grid's rule integrates degree ``2L``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.covariance.spheres.legendre import associated_legendre, first_index
from spatialdiff.domains.sphere import Sphere


class Harmonics:
    """The transforms between fields on ``sphere`` and coefficients up to degree ``lmax``.

    Raises:
        ValueError: a degree that is not a whole number from 0 on.
    """

    def __init__(self, sphere: Sphere, lmax: int) -> None:
        if int(lmax) != lmax or lmax < 0:
            raise ValueError(f"Harmonics: lmax must be a whole number from 0 on, got {lmax!r}.")
        self.sphere, self.lmax = sphere, int(lmax)
        self._half = (sphere.shape[0] + 1) // 2
        self._tables: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def degrees(self) -> Tensor:
        """Degree ``l`` of each coefficient, ``(L+1, L+1)``."""
        index = torch.arange(self.lmax + 1)
        return torch.maximum(index[:, None], index)

    def order(self, m: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """``P̄_lm`` for ``l = m, m+2, …`` and for ``l = m+1, m+3, …`` at the latitudes from the north down to
        the equator, ``(·, h)`` each.
        """
        key = (like.dtype, like.device)
        if key not in self._tables:
            latitudes = self.sphere.latitudes.flip(0)[: self._half]
            cosines = self.sphere.cosines.flip(0)[: self._half]
            with torch.inference_mode(False):
                self._tables[key] = associated_legendre(self.lmax, latitudes.sin(), cosines).to(like)
        rows = self._tables[key][first_index(self.lmax, m) : first_index(self.lmax, m + 1)]
        return rows[: (self.lmax - m) // 2 + 1], rows[(self.lmax - m) // 2 + 1 :]

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Fields from coefficients, ``(..., L+1, L+1)`` → ``(..., n_φ, n_λ)``."""
        lead = coefficients.shape[:-2]
        flat = coefficients.reshape(math.prod(lead), *coefficients.shape[-2:])
        rows, columns = self.sphere.shape
        spectrum = [flat.new_zeros(0)] * (columns // 2 + 1)
        for m in range(self.lmax + 1):
            even, odd = self.order(m, flat)
            cosine = flat[:, m:, m]
            sine = flat[:, m - 1, m:] if m else torch.zeros_like(cosine)
            parts = torch.stack([cosine, -sine]) * (math.sqrt(0.5) if m else 1.0)
            symmetric, antisymmetric = parts[..., ::2] @ even, parts[..., 1::2] @ odd
            north, south = symmetric + antisymmetric, symmetric - antisymmetric
            field = torch.complex(*torch.cat([south, north[..., : rows // 2].flip(-1)], dim=-1))
            target, twice, conjugate = alias(m, columns)
            if twice:
                field = torch.complex(2 * field.real, torch.zeros_like(field.real))
            elif conjugate:
                field = field.conj().resolve_conj()
            spectrum[target] = field if not spectrum[target].numel() else spectrum[target] + field
        zero = torch.zeros_like(spectrum[0])
        stacked = torch.stack([s if s.numel() else zero for s in spectrum], dim=-1)
        result: Tensor = torch.fft.irfft(stacked, n=columns, dim=-1, norm="forward")
        return result.reshape(*lead, rows, columns)

    def analysis(self, field: Tensor) -> Tensor:
        """Coefficients of fields of degree ``L``, ``(..., n_φ, n_λ)`` → ``(..., L+1, L+1)``.

        Raises:
            ValueError: a grid whose quadrature is not exact for degree ``2L``.
        """
        rows, columns = self.sphere.shape
        degree = 2 * rows - 1 if self.sphere.grid == "gauss_legendre" else rows - 1
        if 2 * self.lmax > degree or 2 * self.lmax >= columns:
            raise ValueError(
                f"analysis: {self.sphere} gives coefficients up to degree {min(degree, columns - 1) // 2}, "
                "not "
                f"{self.lmax}; use a smaller lmax, or a Gauss-Legendre grid of at least ({self.lmax + 1}, "
                f"{2 * self.lmax + 1})."
            )
        lead = field.shape[:-2]
        flat = field.reshape(math.prod(lead), rows, columns)
        weights = (self.sphere.weights[:, :1] / self.sphere.radius**2).to(flat)
        spectrum = torch.fft.rfft(flat * weights, dim=-1)[..., : self.lmax + 1]
        south, north = spectrum[:, : self._half], spectrum.flip(-2)[:, : self._half]
        once = torch.ones(self._half, 1, dtype=flat.dtype, device=flat.device)
        once[-1] = 0.5 if rows % 2 else 1.0
        sums = torch.view_as_real((north + south) * once), torch.view_as_real((north - south) * once)
        result = flat.new_zeros(len(flat), self.lmax + 1, self.lmax + 1)
        for m in range(self.lmax + 1):
            even, odd = self.order(m, flat)
            values = flat.new_zeros(len(flat), 2, self.lmax + 1 - m)
            values[..., ::2] = sums[0][:, :, m].mT @ even.T
            values[..., 1::2] = sums[1][:, :, m].mT @ odd.T
            result[:, m:, m] = values[:, 0] * (math.sqrt(2) if m else 1.0)
            if m:
                result[:, m - 1, m:] = -math.sqrt(2) * values[:, 1]
        return result.reshape(*lead, self.lmax + 1, self.lmax + 1)

    def power(self, field: Tensor) -> Tensor:
        """``Σ_m |a_lm|² / (2l+1)``, the estimate of ``C_0, …, C_L``, ``(..., n_φ, n_λ)`` → ``(..., L+1)``."""
        square = self.analysis(field).square().flatten(-2)
        total = square.new_zeros(*square.shape[:-1], self.lmax + 1)
        total = total.index_add(-1, self.degrees.flatten().to(square.device), square)
        return total / (2 * torch.arange(self.lmax + 1, device=square.device) + 1)


def alias(m: int, columns: int) -> tuple[int, bool, bool]:
    """What order ``m`` is on ``columns`` longitudes: the order of the half spectrum; whether ``m`` and ``-m``
    both are it (``m > 0``); whether ``-m`` is, not ``m``.
    """
    rest = m % columns
    if 2 * rest % columns == 0:
        return rest, m > 0, False
    return min(rest, columns - rest), False, 2 * rest > columns
