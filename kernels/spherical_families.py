"""Families of the great-circle angle, valid on ``S²`` [Gneiting 2013, table 1]; see `spherical_domain`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.kernels.base import align
from spatialdiff.kernels.parameters import register_up_to
from spatialdiff.kernels.spherical_domain import SphericalKernel


def _power(x: Tensor, exponent: Tensor) -> Tensor:
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).pow(exponent))


class _OfAngle(SphericalKernel):
    """A family with a scale ``c`` in radians."""

    def __init__(
        self, angle: float | Tensor = 0.5, variance: float | Tensor = 1.0, *, batch_shape: Sequence[int] = ()
    ) -> None:
        super().__init__(variance, batch_shape=batch_shape)
        self._register_positive("angle", angle)

    @property
    def angle(self) -> Tensor:
        """``c``, radians, shape ``(*batch,)``."""
        return self._positive("angle")

    @angle.setter
    def angle(self, value: float | Tensor) -> None:
        self._set_positive("angle", value)


class SphericalExponential(_OfAngle):
    r"""``k(θ) = σ² exp(-θ/c)``, for every ``c > 0``.

    ``A_l = ∫ e^{-θ/c} P_l(cos θ) sin θ dθ`` with ``a = 1/c``: ``A_0 = (1 + e^{-aπ})/(a²+1)``,
    ``A_1 = (1 - e^{-aπ})/(a²+4)``, ``A_{l+2} = A_l (a²+l²)/(a²+(l+3)²)``, by partial integration.

    Args:
        angle: ``c``, radians.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite.
    """

    def correlation(self, theta: Tensor) -> Tensor:
        return torch.exp(-theta / align(self.angle, theta))

    def _unit_coefficients(self, lmax: int) -> Tensor:
        a = 1 / self.angle
        far = torch.exp(-a * math.pi)
        even = torch.arange(0, lmax + 1, 2, dtype=torch.float64, device=a.device)
        result = []
        for start, first in ((even, (1 + far) / (a.square() + 1)), (even + 1, (1 - far) / (a.square() + 4))):
            square = a.square().unsqueeze(-1)
            ratios = (square + start[:-1].square()) / (square + (start[:-1] + 3).square())
            result.append(first.unsqueeze(-1) * torch.cat([torch.ones_like(square), ratios.cumprod(-1)], -1))
        return 2 * math.pi * torch.stack(result, -1).flatten(-2)[..., : lmax + 1]


class SphericalPoweredExponential(_OfAngle):
    r"""``k(θ) = σ² exp(-(θ/c)^α)``, valid on the sphere for ``0 < α ≤ 1`` only.

    Args:
        alpha: ``0 < α ≤ 1``, a parameter.
        angle: ``c``, radians.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``α > 1``.
    """

    def __init__(
        self,
        alpha: float | Tensor = 1.0,
        angle: float | Tensor = 0.5,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(angle, variance, batch_shape=batch_shape)
        register_up_to(self, "alpha", alpha, 1.0)

    @property
    def alpha(self) -> Tensor:
        """``α``, shape ``(*batch,)``."""
        return self._positive("alpha")

    def correlation(self, theta: Tensor) -> Tensor:
        return torch.exp(-_power(theta / align(self.angle, theta), align(self.alpha, theta)))


class SphericalCompact(_OfAngle):
    r"""``k(θ) = σ² (1 + θ/(2c)) (1 - θ/c)²₊``, the spherical model with the angle as distance.

    Args:
        angle: ``c``, radians, beyond which it is 0.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite.
    """

    def correlation(self, theta: Tensor) -> Tensor:
        s = theta / align(self.angle, theta)
        return (1 + s / 2) * (1 - s).clamp_min(0.0).square()

    def _breaks(self) -> list[float]:
        values: list[float] = self.angle.detach().reshape(-1).tolist()
        return values


class SphericalAskey(_OfAngle):
    r"""``k(θ) = σ² (1 - θ/c)^τ₊``, ``τ ≥ 2``.

    Args:
        tau: ``τ``, a number that stays as it is.
        angle: ``c``, radians, beyond which it is 0.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``τ < 2``.
    """

    def __init__(
        self,
        tau: float = 2.0,
        angle: float | Tensor = 0.5,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(angle, variance, batch_shape=batch_shape)
        if not 2 <= float(tau) < math.inf:
            raise ValueError(f"SphericalAskey: tau must be at least 2 on the sphere, got {tau!r}.")
        self.tau = float(tau)

    def correlation(self, theta: Tensor) -> Tensor:
        return (1 - theta / align(self.angle, theta)).clamp_min(0.0).pow(self.tau)

    def _breaks(self) -> list[float]:
        values: list[float] = self.angle.detach().reshape(-1).tolist()
        return values

    def _extra(self) -> str:
        return f"tau={self.tau:g}, "


class SphericalSinePower(SphericalKernel):
    r"""``k(θ) = σ² (1 - sin^α(θ/2))``, ``0 < α ≤ 2`` [Soubeyrand, Enjalbert & Sache 2008].

    With ``μ = α/2``, ``∫ sin^α(θ/2) P_l(cos θ) sin θ dθ = 2 (-μ)_l/(μ+1)_{l+1}`` with rising factorials.

    Args:
        alpha: ``0 < α ≤ 2``, a parameter; ``σ² (1 + cos θ)/2`` at 2.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``α > 2``.
    """

    def __init__(
        self,
        alpha: float | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(variance, batch_shape=batch_shape)
        register_up_to(self, "alpha", alpha, 2.0)

    @property
    def alpha(self) -> Tensor:
        """``α``, shape ``(*batch,)``."""
        return self._positive("alpha")

    def correlation(self, theta: Tensor) -> Tensor:
        return 1 - _power((theta / 2).sin(), align(self.alpha, theta))

    def _unit_coefficients(self, lmax: int) -> Tensor:
        mu = self.alpha.unsqueeze(-1) / 2
        degree = torch.arange(lmax, dtype=torch.float64, device=mu.device)
        ratios = (degree - mu) / (degree + 2 + mu)
        power = torch.cat([torch.ones_like(mu), ratios.cumprod(-1)], -1) * 2 / (mu + 1)
        constant = torch.zeros(lmax + 1, dtype=torch.float64, device=mu.device)
        constant[0] = 2.0
        return 2 * math.pi * (constant - power)


class SphericalMultiquadric(SphericalKernel):
    r"""``k(θ) = σ² (1-δ)^{2τ}/(1 + δ² - 2δ cos θ)^τ``, ``0 < δ < 1``, ``τ > 0``: the inverse multiquadric.

    At ``τ = 1/2`` the coefficients are ``4π/(2l+1) (1-δ) δ^l``, by the generating function of ``P_l``; at
    ``τ = 3/2``, the Poisson kernel, ``4π (1-δ)² δ^l/(1+δ)``.

    Args:
        delta: ``δ``, a parameter: close to 1 is a short range.
        tau: ``τ``, a parameter.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``δ ≥ 1``.
    """

    def __init__(
        self,
        delta: float | Tensor = 0.5,
        tau: float | Tensor = 0.5,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(variance, batch_shape=batch_shape)
        register_up_to(self, "delta", delta, 1.0)
        if bool((torch.as_tensor(delta) >= 1).any()):
            raise ValueError(f"SphericalMultiquadric: delta must be below 1, got {delta!r}.")
        self._register_positive("tau", tau)

    @property
    def delta(self) -> Tensor:
        """``δ``, shape ``(*batch,)``."""
        return self._positive("delta")

    @property
    def tau(self) -> Tensor:
        """``τ``, shape ``(*batch,)``."""
        return self._positive("tau")

    def correlation(self, theta: Tensor) -> Tensor:
        delta = align(self.delta, theta)
        # (1 + δ² - 2δ cos θ)/(1-δ)² without cancellation
        ratio = 4 * delta * (theta / 2).sin().square() / (1 - delta).square()
        return torch.exp(-align(self.tau, theta) * torch.log1p(ratio))
