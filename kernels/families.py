r"""The families.

Matérn ``ρ(r) = 2^{1-ν}/Γ(ν) (√(2ν) r)^ν K_ν(√(2ν) r)``, in closed form for ``ν = 1/2, 3/2, 5/2``, with
``s_d(w²) = 2^d π^{d/2} Γ(ν+d/2) (2ν)^ν / Γ(ν) (2ν + w²)^{-(ν+d/2)}`` (Stein 1999, section 2.7; Rasmussen &
Williams 2006, eq. 4.15); Gaussian ``ρ(r) = exp(-r²/2)`` with ``s_d(w²) = (2π)^{d/2} exp(-w²/2)``; nugget
``ρ(r) = 1{r=0}``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.kernels.base import StationaryKernel, gaussian_constant


class Matern(StationaryKernel):
    r"""Matérn kernel; ``ν`` is the smoothness: sample paths have derivatives of every order below ``ν``.

    Args:
        nu: one of 1/2, 3/2, 5/2 (the closed forms).
        lengthscale: ``ℓ``, one number or one per axis.
        variance: ``σ²``.

    Raises:
        ValueError: another ``nu``; a parameter that is not positive.
    """

    SMOOTHNESS = (0.5, 1.5, 2.5)

    def __init__(
        self,
        nu: float = 1.5,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        if float(nu) not in self.SMOOTHNESS:
            raise ValueError(f"{type(self).__name__}: nu must be one of {self.SMOOTHNESS}, got {nu!r}.")
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        self.nu = float(nu)

    def correlation(self, r: Tensor) -> Tensor:
        s = math.sqrt(2 * self.nu) * r
        polynomial: Tensor | float = 1.0
        if self.nu == 1.5:
            polynomial = 1 + s
        elif self.nu == 2.5:
            polynomial = 1 + s + s.square() / 3
        return polynomial * torch.exp(-s)

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        nu, power = self.nu, self.nu + d / 2
        log_constant = (
            d * math.log(2)
            + d / 2 * math.log(math.pi)
            + math.lgamma(power)
            - math.lgamma(nu)
            + nu * math.log(2 * nu)
        )
        return math.exp(log_constant) * (2 * nu + w2).pow(-power)

    def _extra(self) -> str:
        return f"nu={self.nu:g}, "


class Exponential(Matern):
    """``k(h) = σ² exp(-‖h/ℓ‖)``: Matérn with ``ν = 1/2``."""

    def __init__(
        self,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(0.5, lengthscale, variance, batch_shape=batch_shape)

    def _extra(self) -> str:
        return ""


class Gaussian(StationaryKernel):
    """``k(h) = σ² exp(-‖h/ℓ‖²/2)``, the squared exponential. Very smooth: on a fine grid Γ is numerically
    singular without a nugget.
    """

    def correlation(self, r: Tensor) -> Tensor:
        return torch.exp(-r.square() / 2)

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        return gaussian_constant(d) * torch.exp(-w2 / 2)


class Nugget(StationaryKernel):
    """``k(h) = σ² 1{h=0}``: variance without correlation (measurement error, variation below the grid
    spacing).

    Two points with exactly equal coordinates share the nugget. It has no spectral density on the continuum,
    so `spectral_density` is 0 and `nugget` is ``σ²``; on a lattice its spectral density is the constant
    ``σ²`` × cell volume.

    Args:
        variance: ``σ²``.
    """

    has_lengthscale = False

    def __init__(self, variance: float | Tensor = 1.0, *, batch_shape: Sequence[int] = ()) -> None:
        super(StationaryKernel, self).__init__(batch_shape=torch.Size(batch_shape))
        self._register_positive("variance", variance)
        self.double()

    @property
    def nugget(self) -> Tensor:
        return self.variance

    @property
    def effective_range(self) -> Tensor:
        return torch.zeros(*self.batch_shape, 1, 1, dtype=torch.float64)

    def scaled_distance(self, h: Tensor) -> Tensor:
        return h.abs().amax(-1).expand(*self.batch_shape, *h.shape[:-1])

    def correlation(self, r: Tensor) -> Tensor:
        return (r == 0).to(r.dtype)

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        return torch.zeros_like(w2)

    def spectral_density(self, omega: Tensor) -> Tensor:
        return torch.zeros_like(omega[..., 0]).expand(*self.batch_shape, *omega.shape[:-1])

    def __repr__(self) -> str:
        values = [round(v, 6) for v in self.variance.detach().reshape(-1).tolist()]
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"Nugget(variance={values if self.batch_shape else format(values[0], 'g')}{batch})"
