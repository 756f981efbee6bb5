r"""Families valid in every dimension, from fast to slow decay.

- Powered exponential ``ρ(r) = exp(-r^α)``, ``0 < α ≤ 2``.
- Generalised Cauchy ``ρ(r) = (1 + r^α)^{-β/α}``, ``0 < α ≤ 2``, ``β > 0`` (Gneiting & Schlather 2004, eq. 1):
  ``α`` is the roughness of the paths, ``ρ ~ r^{-β}`` the memory, long where ``β`` is below the dimension.
- Cauchy ``ρ(r) = (1 + r²)^{-β/2}`` and rational quadratic ``ρ(r) = (1 + r²/(2α))^{-α}``, one family in two
  parametrisations: ``s_d(w²) = π^{d/2}/Γ(b) L_{b-d/2}(w²/4)`` for ``(1 + r²)^{-b}``, the Matérn pair read
  backwards, with `spatialdiff.kernels.bessel.bessel_l`; infinite at ``w = 0`` where ``b ≤ d/2``.

The spectral densities of the first two are integrals, see `spatialdiff.kernels.numerical_spectrum`; at
``w = 0`` they are ``|S^{d-1}| Γ(d/α)/α`` and ``|S^{d-1}| B(d/α, (β-d)/α)/α``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.kernels.base import StationaryKernel, align
from spatialdiff.kernels.bessel import bessel_l
from spatialdiff.kernels.matern import isotropic, numbers
from spatialdiff.kernels.numerical_spectrum import analytic_spectrum, check_numerical
from spatialdiff.kernels.parameters import register_up_to, surface


def _power(r: Tensor, alpha: Tensor) -> Tensor:
    """``r^α``, 0 with all its derivatives at ``r = 0``."""
    zero = r == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, r).pow(alpha))


def _square_cauchy_spectrum(b: Tensor, w2: Tensor, d: int) -> Tensor:
    """``s_d(w²)`` of ``(1 + r²)^{-b}``."""
    b = align(b, w2.double())
    result: Tensor = math.pi ** (d / 2) * torch.exp(-torch.lgamma(b)) * bessel_l(b - d / 2, w2 / 4)
    return result.to(w2.dtype)


class PoweredExponential(StationaryKernel):
    r"""``k(h) = σ² exp(-‖h/ℓ‖^α)``, the stable family; ``α = 1`` is exponential, ``α = 2`` Gaussian with
    ``ℓ/√2``.

    Args:
        alpha: ``0 < α ≤ 2``; paths have Hölder exponents below ``α/2``. A parameter, ``raw_alpha``.
        lengthscale: ``ℓ``, one number or one per axis.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``α > 2``, which is no covariance in any
            dimension.
    """

    def __init__(
        self,
        alpha: float | Tensor = 1.5,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        register_up_to(self, "alpha", alpha, 2.0)

    @property
    def alpha(self) -> Tensor:
        """``α``, shape ``(*batch,)``."""
        return self._positive("alpha")

    def correlation(self, r: Tensor) -> Tensor:
        return torch.exp(-_power(r, align(self.alpha, r)))

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        check_numerical(type(self).__name__, d)
        alpha = self.alpha.to(w2.device)
        origin = surface(d) * torch.lgamma(d / alpha).exp() / alpha

        def rho(z: Tensor) -> Tensor:
            return torch.exp(-z.pow(align(alpha, z.real)))

        sector = math.pi / (2 * float(alpha.detach().max()))
        return analytic_spectrum(rho, origin, w2, d, sector)

    @property
    def microergodic(self) -> Tensor:
        """``σ²/ℓ^α``, shape ``(*batch,)``, for known ``α < 2``: the coefficient of ``r^α`` at the origin.

        Raises:
            ValueError: ``α = 2``, where both parameters are identified.
        """
        _irregular(self)
        return self.variance / isotropic(self).pow(self.alpha)

    def _extra(self) -> str:
        return f"alpha={numbers(self.alpha)}, "


class GeneralizedCauchy(StationaryKernel):
    r"""``k(h) = σ² (1 + ‖h/ℓ‖^α)^{-β/α}``: roughness and memory apart (Gneiting & Schlather 2004).

    Args:
        alpha: ``0 < α ≤ 2``; paths have Hölder exponents below ``α/2``. A parameter, ``raw_alpha``.
        beta: ``β > 0``; ``ρ ~ r^{-β}``. A parameter, ``raw_beta``.
        lengthscale: ``ℓ``, one number or one per axis.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``α > 2``, which is no covariance in any
            dimension.
    """

    def __init__(
        self,
        alpha: float | Tensor = 1.0,
        beta: float | Tensor = 1.0,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        register_up_to(self, "alpha", alpha, 2.0)
        self._register_positive("beta", beta)

    @property
    def alpha(self) -> Tensor:
        """``α``, shape ``(*batch,)``."""
        return self._positive("alpha")

    @property
    def beta(self) -> Tensor:
        """``β``, shape ``(*batch,)``."""
        return self._positive("beta")

    def correlation(self, r: Tensor) -> Tensor:
        alpha, beta = align(self.alpha, r), align(self.beta, r)
        return torch.exp(-beta / alpha * torch.log1p(_power(r, alpha)))

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        check_numerical(type(self).__name__, d)
        alpha, beta = self.alpha.to(w2.device), self.beta.to(w2.device)
        # B(d/α, (β-d)/α), where the integral exists
        rest = torch.where(beta > d, beta - d, 1.0) / alpha
        log_beta = torch.lgamma(d / alpha) + torch.lgamma(rest) - torch.lgamma(d / alpha + rest)
        origin = torch.where(beta > d, surface(d) * log_beta.exp() / alpha, math.inf)

        def rho(z: Tensor) -> Tensor:
            a, b = align(alpha, z.real), align(beta, z.real)
            return torch.exp(-b / a * torch.log(1 + z.pow(a)))

        sector = math.pi / (2 * float(alpha.detach().max()))
        return analytic_spectrum(rho, origin, w2, d, sector)

    @property
    def microergodic(self) -> Tensor:
        """``σ² β/ℓ^α``, shape ``(*batch,)``, for known ``α < 2`` (Bevilacqua & Faouzi 2019).

        Raises:
            ValueError: ``α = 2``, where all parameters are identified.
        """
        _irregular(self)
        return self.variance * self.beta / isotropic(self).pow(self.alpha)

    def _extra(self) -> str:
        return f"alpha={numbers(self.alpha)}, beta={numbers(self.beta)}, "


def _irregular(kernel: PoweredExponential | GeneralizedCauchy) -> None:
    if bool((kernel.alpha.detach() == 2).any()):
        raise ValueError(
            f"{type(kernel).__name__} with alpha = 2 has no micro-ergodic parameter: its paths are analytic, "
            "and variance and length scale are identified each."
        )


class Cauchy(StationaryKernel):
    r"""``k(h) = σ² (1 + ‖h/ℓ‖²)^{-β/2}``: smooth paths, memory ``ρ ~ r^{-β}``.

    Args:
        beta: ``β > 0``; the classical ``1/(1 + r²)`` is ``β = 2``. A parameter, ``raw_beta``.
        lengthscale: ``ℓ``, one number or one per axis.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite.
    """

    def __init__(
        self,
        beta: float | Tensor = 2.0,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        self._register_positive("beta", beta)

    @property
    def beta(self) -> Tensor:
        """``β``, shape ``(*batch,)``."""
        return self._positive("beta")

    def correlation(self, r: Tensor) -> Tensor:
        return torch.exp(-align(self.beta, r) / 2 * torch.log1p(r.square()))

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        return _square_cauchy_spectrum(self.beta / 2, w2, d)

    def _extra(self) -> str:
        return f"beta={numbers(self.beta)}, "


class RationalQuadratic(StationaryKernel):
    r"""``k(h) = σ² (1 + ‖h/ℓ‖²/(2α))^{-α}``: Gaussian kernels of Gamma-distributed precision; Gaussian as
    ``α → ∞``.

    Args:
        alpha: ``α > 0``. A parameter, ``raw_alpha``.
        lengthscale: ``ℓ``, one number or one per axis.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite.
    """

    def __init__(
        self,
        alpha: float | Tensor = 1.0,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        self._register_positive("alpha", alpha)

    @property
    def alpha(self) -> Tensor:
        """``α``, shape ``(*batch,)``."""
        return self._positive("alpha")

    def correlation(self, r: Tensor) -> Tensor:
        alpha = align(self.alpha, r)
        return torch.exp(-alpha * torch.log1p(r.square() / (2 * alpha)))

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        stretch = align(2 * self.alpha, w2)
        return stretch.pow(d / 2) * _square_cauchy_spectrum(self.alpha, stretch * w2, d)

    def _extra(self) -> str:
        return f"alpha={numbers(self.alpha)}, "
