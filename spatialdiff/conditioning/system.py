r"""The kriging equations of all observations together, by one Cholesky factorisation.

With ``A = Γ_oo + N = L Lᵀ``, ``F`` the drift at the observations and ``k`` the covariance with a target,

``β̂ = (FᵀA⁻¹F)⁻¹ FᵀA⁻¹ y``, ``x̂ = kᵀA⁻¹(y - Fβ̂) + fᵀβ̂``,
``Var(x - x̂) = k_tt - kᵀA⁻¹k + rᵀ(FᵀA⁻¹F)⁻¹ r``, ``r = f - FᵀA⁻¹k``

(Chilès & Delfiner 2012, eq. 3.21 and 3.22). Everything is a product with ``L⁻¹k`` and ``r``.
"""

from __future__ import annotations

import torch
from torch import Tensor


class DenseSystem:
    """Factorised kriging equations.

    Args:
        covariance: ``A``, ``(m, m)``.
        drift: ``F``, ``(m, q)``.
        values: ``y``, ``(..., m)``.

    Raises:
        ValueError: ``A`` is not positive definite.
    """

    def __init__(self, covariance: Tensor, drift: Tensor, values: Tensor) -> None:
        factor, info = torch.linalg.cholesky_ex(covariance)
        # of an observation given those before it, a share of its variance
        left = factor.diagonal().square() / covariance.diagonal()
        if int(info) != 0:
            _check_definite(covariance)
        if int(info) != 0 or float(left.min()) < 1e-14:
            raise ValueError(
                "the covariance of the observations is singular to working precision: the kernel is very "
                "smooth for sites so close. Give noise= (the variance of measurement errors), add a Nugget "
                "to the kernel, or take a rougher one."
            )
        self.factor: Tensor = factor
        self.basis: Tensor
        self.triangle: Tensor
        self.q = drift.shape[1]
        # columns of any size give a well-scaled triangle
        self._size = drift.square().mean(dim=0).sqrt().clamp(min=1e-300)
        whitened = torch.linalg.solve_triangular(factor, drift / self._size, upper=False)
        self.basis, self.triangle = torch.linalg.qr(whitened)
        self.values = self.whiten(values)
        self.coefficients = self._coefficients(self.values)
        self.residual = self._rest(self.values)

    def weights(self, cross: Tensor, drift: Tensor) -> Tensor:
        """Kriging weights ``(m, t)``, by which predictions are ``y`` times them."""
        white, rest = self.project(cross, drift)
        result: Tensor = torch.linalg.solve_triangular(self.factor.T, white + self.basis @ rest, upper=True)
        return result

    def whiten(self, values: Tensor) -> Tensor:
        """``L⁻¹ y`` of ``(..., m)``."""
        flat = values.reshape(-1, values.shape[-1])
        white: Tensor = torch.linalg.solve_triangular(self.factor, flat.T, upper=False)
        return white.T.reshape(values.shape)

    def _coefficients(self, whitened: Tensor) -> Tensor:
        projected = whitened @ self.basis
        flat = projected.reshape(projected.shape[:-1].numel(), self.q)
        solved: Tensor = torch.linalg.solve_triangular(self.triangle, flat.T, upper=True).T
        return solved.reshape(projected.shape) / self._size

    def _rest(self, whitened: Tensor) -> Tensor:
        return whitened - (whitened @ self.basis) @ self.basis.T

    @property
    def coefficient_covariance(self) -> Tensor:
        """``(FᵀA⁻¹F)⁻¹``, ``(q, q)``."""
        inverse: Tensor = torch.linalg.solve_triangular(
            self.triangle, torch.eye(self.q, dtype=torch.float64), upper=True
        )
        scaled = inverse / self._size[:, None]
        return scaled @ scaled.T

    def project(self, cross: Tensor, drift: Tensor) -> tuple[Tensor, Tensor]:
        """``L⁻¹ k`` ``(m, t)`` and ``R⁻ᵀ r`` ``(q, t)`` of covariances ``(t, m)`` and drift ``(t, q)``."""
        white = torch.linalg.solve_triangular(self.factor, cross.T, upper=False)
        rest = (drift / self._size).T - self.triangle.T @ (self.basis.T @ white)
        return white, torch.linalg.solve_triangular(self.triangle.T, rest, upper=False)

    def mean(self, cross: Tensor, drift: Tensor, values: Tensor | None = None) -> Tensor:
        """Predictions ``(..., t)`` from the observations, or from other ``values`` ``(..., m)`` there."""
        if values is None:
            residual, coefficients = self.residual, self.coefficients
        else:
            white = self.whiten(values)
            residual, coefficients = self._rest(white), self._coefficients(white)
        flat = residual.reshape(-1, residual.shape[-1])
        weights: Tensor = torch.linalg.solve_triangular(self.factor.T, flat.T, upper=True).T
        return (weights @ cross.T).reshape(*residual.shape[:-1], -1) + coefficients @ drift.T


def _check_definite(covariance: Tensor) -> None:
    """Raise where a negative eigenvalue is more than rounding."""
    values = torch.linalg.eigvalsh(covariance)
    rounding = len(covariance) * torch.finfo(torch.float64).eps * float(values[-1])
    if float(values[0]) < -10.0 * rounding:
        raise ValueError(
            f"the covariance of the {len(covariance)} observations has a negative eigenvalue, "
            f"{float(values[0]):.3g} (the largest is {float(values[-1]):.3g}): the kernel is not positive "
            "definite on these sites; use a family that is valid in as many dimensions and on such a domain"
        )
