r"""Kernels on the sphere that are given by their angular power spectrum, up to a highest degree ``L``.

``k(θ) = σ² Σ_{l≤L} (2l+1) c_l P_l(cos θ) / Σ_{l≤L} (2l+1) c_l``. Being a finite sum it is exactly positive
definite, and has the variance ``σ²`` at every site.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.kernels.base import align
from spatialdiff.kernels.legendre_series import legendre_sum
from spatialdiff.kernels.spherical_domain import SphericalKernel


class _Series(SphericalKernel):
    """A subclass gives `_shares`."""

    @abstractmethod
    def _shares(self) -> Tensor:
        """``(2l+1) c_l``, up to a factor, ``l = 0, …, L``, float64 ``(*batch, L + 1)``."""

    def _normalised(self) -> Tensor:
        shares = self._shares()
        return shares / shares.sum(-1, keepdim=True)

    def correlation(self, theta: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} gives at_angles.")

    def at_angles(self, theta: Tensor) -> Tensor:
        values = legendre_sum(self._normalised(), theta)
        return align(self.variance, values) * values

    def _unit_coefficients(self, lmax: int) -> Tensor:
        shares = self._normalised()
        kept = shares[..., : lmax + 1]
        padded = torch.nn.functional.pad(kept, (0, lmax + 1 - kept.shape[-1]))
        degree = torch.arange(lmax + 1, dtype=torch.float64, device=shares.device)
        return 4 * math.pi / (2 * degree + 1) * padded


class LegendreMatern(_Series):
    r"""``C_l ∝ (κ² + l(l+1))^{-(ν+1)}``, ``κ = √(2ν)/c``, for ``l ≤ L``: Matérn as the solution of the SPDE
    ``(κ² - Δ)^{(ν+1)/2} x = W`` on the sphere [Lindgren, Rue & Lindström 2011, section 3.2].

    For small ``c`` it is near the planar Matérn with length scale ``c``. Of the variance without a highest
    degree, `omitted` is the share beyond ``L``: a small one needs ``L`` well above ``κ``.

    Args:
        nu: ``ν > 0``, a parameter.
        angle: ``c``, radians.
        variance: ``σ²``.
        lmax: ``L``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; an ``L`` that is no whole number.
    """

    def __init__(
        self,
        nu: float | Tensor = 1.5,
        angle: float | Tensor = 0.5,
        variance: float | Tensor = 1.0,
        *,
        lmax: int = 512,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(variance, batch_shape=batch_shape)
        if int(lmax) != lmax or lmax < 0:
            raise ValueError(f"LegendreMatern: lmax must be a whole number from 0 on, got {lmax!r}.")
        self.lmax = int(lmax)
        self._register_positive("nu", nu)
        self._register_positive("angle", angle)

    @property
    def nu(self) -> Tensor:
        """``ν``, shape ``(*batch,)``."""
        return self._positive("nu")

    @property
    def angle(self) -> Tensor:
        """``c``, radians, shape ``(*batch,)``."""
        return self._positive("angle")

    def _shares(self) -> Tensor:
        nu, angle = self.nu.unsqueeze(-1), self.angle.unsqueeze(-1)
        square = 2 * nu / angle.square()
        degree = torch.arange(self.lmax + 1, dtype=torch.float64, device=nu.device)
        # relative to degree 0, so that nothing under- or overflows
        return (2 * degree + 1) * torch.exp(-(nu + 1) * torch.log1p(degree * (degree + 1) / square))

    @property
    def omitted(self) -> Tensor:
        """Share of ``Σ_l (2l+1) (κ² + l(l+1))^{-(ν+1)}`` beyond degree ``L``, ``(*batch,)``.

        The sum beyond is ``∫_{L+1}^∞ f + f'(L+1)/24`` for ``f(m) = 2m (κ² - ¼ + m²)^{-(ν+1)}``, the midpoint
        rule with its first correction.
        """
        with torch.no_grad():
            nu, kappa2 = self.nu, 2 * self.nu / self.angle.square()
            m = self.lmax + 1.0
            # everything relative to κ^{-2(ν+1)}, as the shares are
            scaled = (kappa2 - 0.25 + m * m) / kappa2
            integral = kappa2 / nu * scaled.pow(-nu)
            slope = 2 * scaled.pow(-nu - 1) - 4 * m * m * (nu + 1) / kappa2 * scaled.pow(-nu - 2)
            beyond = integral + slope / 24
            return beyond / (beyond + self._shares().sum(-1))

    def _extra(self) -> str:
        return f"lmax={self.lmax}, "


class LegendreSeries(_Series):
    r"""``C_l ∝ c_l`` for given ``c_0, …, c_L ≥ 0``, such as an estimated angular power spectrum.

    Args:
        spectrum: ``c_l``, ``(L + 1,)`` or ``(*batch_shape, L + 1)``; a constant.
        variance: ``σ²``; default ``Σ_l (2l+1)/(4π) c_l``, with which ``C_l = c_l``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a negative or infinite ``c_l``, or none that is positive.
    """

    spectrum: Tensor

    def __init__(
        self,
        spectrum: Tensor | Sequence[float],
        variance: float | Tensor | None = None,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        values = torch.as_tensor(spectrum, dtype=torch.float64).detach().clone()
        if values.dim() == 0 or values.shape[-1] == 0:
            raise ValueError("LegendreSeries: needs a spectrum c_0, …, c_L.")
        if not bool((torch.isfinite(values) & (values >= 0)).all()) or not bool((values > 0).any(-1).all()):
            raise ValueError(
                "LegendreSeries: every c_l must be finite and not negative, and one of them positive; the "
                f"smallest is {float(values.min()):g}."
            )
        degree = torch.arange(values.shape[-1], dtype=torch.float64)
        total = ((2 * degree + 1) * values).sum(-1) / (4 * math.pi)
        super().__init__(total if variance is None else variance, batch_shape=batch_shape)
        self.register_buffer("spectrum", values.expand(*self.batch_shape, values.shape[-1]).clone())

    def _shares(self) -> Tensor:
        degree = torch.arange(self.spectrum.shape[-1], dtype=torch.float64, device=self.spectrum.device)
        return (2 * degree + 1) * self.spectrum

    def _extra(self) -> str:
        return f"degrees 0 to {self.spectrum.shape[-1] - 1}, "
