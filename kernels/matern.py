r"""Matérn: ``ρ(r) = 2^{1-ν}/Γ(ν) s^ν K_ν(s)``, ``s = √(2ν) r``, for every ``ν > 0``.

``s_d(w²) = 2^d π^{d/2} Γ(ν+d/2) (2ν)^ν / Γ(ν) (2ν + w²)^{-(ν+d/2)}`` (Stein 1999, section 2.7; Rasmussen &
Williams 2006, eq. 4.15). At half-integers ``ν = p + 1/2`` the Bessel function is a polynomial times an
exponential, ``ρ(r) = e^{-s} p!/(2p)! Σ_{i≤p} (p+i)!/(i!(p-i)!) (2s)^{p-i}`` (Rasmussen & Williams, eq. 4.16);
elsewhere it is an integral, see `spatialdiff.kernels.bessel`, or for many distances and a ``ν`` that is no
parameter a table of it, see `spatialdiff.kernels.bessel_table`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.kernels.base import StationaryKernel, align, positive
from spatialdiff.kernels.bessel import matern
from spatialdiff.kernels.bessel_table import fixed_matern

LARGEST = 100.0
# beyond, the polynomial is no faster than the integral
_CLOSED = 9.5


class Matern(StationaryKernel):
    r"""Matérn kernel; ``ν`` is the smoothness: sample paths have derivatives of every order below ``ν``.

    ``ν = 1/2, 3/2, 5/2, …`` are closed forms; other orders up to 20 come from a table where there are many
    distances, at about the same cost, and with ``trainable_nu``, or for few, from an integral, at some twenty
    times the cost.

    Args:
        nu: ``0 < ν ≤ 100``. A number that stays as it is, unless ``trainable_nu``.
        lengthscale: ``ℓ``, one number or one per axis.
        variance: ``σ²``.
        trainable_nu: make ``ν`` a parameter, ``raw_nu`` (its logarithm, ``(*batch_shape,)``); ``nu`` may then
            have one value per member of the batch, and the attribute ``nu`` is a tensor. Closed forms are not
            used.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``ν > 100``, where Matérn and Gaussian differ
            by less than 0.003.
    """

    def __init__(
        self,
        nu: float | Tensor = 1.5,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        trainable_nu: bool = False,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        name = type(self).__name__
        values = positive(nu, f"{name}: nu")
        if bool((values > LARGEST).any()):
            raise ValueError(f"{name}: nu must be at most {LARGEST:g}, got {nu!r}; use Gaussian, the limit.")
        if not trainable_nu and values.numel() != 1:
            raise ValueError(f"{name}: nu of shape {tuple(values.shape)} needs trainable_nu=True.")
        self._nu = None if trainable_nu else float(values)
        if trainable_nu:
            self._register_positive("nu", values)

    @property
    def nu(self) -> float | Tensor:
        """``ν``: a float, or the parameter ``(*batch_shape,)`` with ``trainable_nu``."""
        return self._positive("nu") if self._nu is None else self._nu

    @property
    def trainable_nu(self) -> bool:
        return self._nu is None

    def correlation(self, r: Tensor) -> Tensor:
        nu = self.nu
        if isinstance(nu, float):
            if nu <= _CLOSED and (nu - 0.5).is_integer():
                return _half_integer(round(nu - 0.5), math.sqrt(2 * nu) * r)
            return fixed_matern(nu, r).to(r.dtype)
        return matern(align(nu, r.double()), r).to(r.dtype)

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        nu = torch.as_tensor(self.nu, dtype=torch.float64, device=w2.device)
        log_constant = (
            d * math.log(2)
            + d / 2 * math.log(math.pi)
            + torch.lgamma(nu + d / 2)
            - torch.lgamma(nu)
            - d / 2 * torch.log(2 * nu)
        )
        constant, nu = align(log_constant.exp(), w2), align(nu, w2)
        return constant * (1 + w2 / (2 * nu)).pow(-(nu + d / 2))

    @property
    def microergodic(self) -> Tensor:
        """``σ²/ℓ^{2ν}``, shape ``(*batch,)`` (Zhang 2004, theorem 2: in up to three dimensions, ``ν``
        known).
        """
        return self.variance / isotropic(self).pow(2 * self.nu)

    def _extra(self) -> str:
        if isinstance(nu := self.nu, float):
            return f"nu={nu:g}, "
        return f"nu={numbers(nu)}, trainable_nu=True, "


def _half_integer(p: int, s: Tensor) -> Tensor:
    factor = math.factorial(p) / math.factorial(2 * p)
    polynomial: Tensor | float = 0.0
    for i in range(p + 1):
        c = factor * math.factorial(p + i) / (math.factorial(i) * math.factorial(p - i)) * 2 ** (p - i)
        polynomial = polynomial * s + c
    return polynomial * torch.exp(-s)


def isotropic(kernel: StationaryKernel) -> Tensor:
    """``ℓ``, shape ``(*batch,)``.

    Raises:
        ValueError: one length scale per axis.
    """
    ell = kernel.lengthscale
    if ell.shape[-1] != 1:
        raise ValueError(
            f"{type(kernel).__name__}: the micro-ergodic parameter is defined for one length scale, got one "
            f"for each of {ell.shape[-1]} axes."
        )
    return ell.reshape(kernel.batch_shape)


def numbers(values: Tensor) -> str:
    """``values`` in a ``repr``."""
    shown = [f"{v:g}" for v in values.detach().reshape(-1).tolist()]
    return shown[0] if values.dim() == 0 else f"[{', '.join(shown)}]"


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
