r"""Stationary kernels: ``k(h) = σ² ρ(‖h/ℓ‖)`` with spectral density ``S(ω) = ∫ k(h) exp(-i ω·h) dh``.

A family is two functions of one number: the correlation ``ρ(r)`` of the scaled distance ``r = ‖h/ℓ‖`` and
the spectral density ``s_d(w²)`` of ``ρ`` in ``d`` dimensions as a function of the scaled squared frequency
``w² = ‖ℓ ω‖²``, so that ``S(ω) = σ² (∏ℓ) s_d(‖ℓ ω‖²)``. The length scale is ``ℓ`` itself; where the
correlation reaches 0.05 is ``effective_range``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import Positive
from torch import Tensor


def positive(value: float | Sequence[float] | Tensor, name: str) -> Tensor:
    """``value`` as a float64 tensor; raises ValueError unless every entry is positive and finite."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    if tensor.numel() == 0 or not bool((torch.isfinite(tensor) & (tensor > 0)).all()):
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")
    return tensor


def safe_sqrt(square: Tensor) -> Tensor:
    """``√square`` whose derivatives of every order at 0 are 0, the right ones for a distance as a function
    of parameters.
    """
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


class StationaryKernel(gpytorch.kernels.Kernel, ABC):
    r"""Base of the kernels here, a `gpytorch.kernels.Kernel` with parameters ``lengthscale`` and
    ``variance``.

    Parameters are stored as logarithms (``raw_lengthscale``, ``raw_variance``) in float64 and evaluated in
    the data type of the coordinates. A subclass gives `correlation` and `_unit_spectrum`.

    Args:
        lengthscale: ``ℓ``, one number or one per axis, in units of length.
        variance: ``σ²``, in squared units of the field.

    Raises:
        ValueError: a parameter that is not positive and finite.
    """

    has_lengthscale = True

    def __init__(
        self, lengthscale: float | Sequence[float] | Tensor = 1.0, variance: float | Tensor = 1.0
    ) -> None:
        name = type(self).__name__
        ell = positive(lengthscale, f"{name}: lengthscale")
        if ell.dim() > 1 and ell.shape[:-1].numel() > 1:
            raise ValueError(
                f"{name}: lengthscale must be one number or one per axis, got shape {tuple(ell.shape)}."
            )
        axes = ell.numel() if ell.dim() > 0 and ell.numel() > 1 else None
        super().__init__(ard_num_dims=axes, lengthscale_constraint=Positive(torch.exp, torch.log))
        self.register_parameter("raw_variance", torch.nn.Parameter(torch.zeros(())))
        self.register_constraint("raw_variance", Positive(torch.exp, torch.log))
        self.double()
        self.lengthscale = ell.reshape(1, -1)
        self.variance = positive(variance, f"{name}: variance").reshape(())

    @property
    def variance(self) -> Tensor:
        """``σ²``, the variance of the field at a site."""
        return self.raw_variance_constraint.transform(self.raw_variance)  # type: ignore[no-any-return]

    @variance.setter
    def variance(self, value: float | Tensor) -> None:
        value = torch.as_tensor(value, dtype=self.raw_variance.dtype, device=self.raw_variance.device)
        self.initialize(raw_variance=self.raw_variance_constraint.inverse_transform(value))

    def _set_lengthscale(self, value: float | Tensor) -> None:
        # gpytorch's own goes through float32
        raw = self.raw_lengthscale
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        self.initialize(raw_lengthscale=self.raw_lengthscale_constraint.inverse_transform(value))

    @property
    def nugget(self) -> Tensor:
        """Variance of the discontinuous part ``σ² 1{h=0}``, which has no spectral density: 0 for a
        continuous kernel.
        """
        return torch.zeros_like(self.raw_variance)

    @property
    def is_stationary(self) -> bool:
        return True

    @property
    def effective_range(self) -> Tensor:
        """Distance at which the correlation is 0.05, one per length scale, shape ``(1, d)`` or ``(1, 1)``."""
        return self.lengthscale * self._range_factor()

    def _range_factor(self) -> float:
        low, high = 0.0, 1.0
        while float(self.correlation(torch.tensor(high, dtype=torch.float64))) > 0.05:
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            above = float(self.correlation(torch.tensor(middle, dtype=torch.float64))) > 0.05
            low, high = (middle, high) if above else (low, middle)
        return (low + high) / 2

    @abstractmethod
    def correlation(self, r: Tensor) -> Tensor:
        """``ρ(r)`` of the scaled distance ``r = ‖h/ℓ‖ ≥ 0``; ``ρ(0) = 1``."""

    @abstractmethod
    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        """Spectral density in ``d`` dimensions for ``σ² = ℓ = 1`` at squared frequency ``w2``."""

    def scaled_distance(self, h: Tensor) -> Tensor:
        """``r = ‖h/ℓ‖`` of differences ``h``, shape ``(..., d)`` → ``(...)``."""
        ell = self.lengthscale.to(h)
        ell = ell.reshape(*ell.shape[:-2], *(1,) * (h.dim() - 1 - len(ell.shape[:-2])), ell.shape[-1])
        return safe_sqrt((h / ell).square().sum(-1))

    def at_lags(self, h: Tensor) -> Tensor:
        """``k(h)`` of differences ``h = x - x'``, ``(..., d)`` → ``(...)``, in the data type of ``h``."""
        r = self.scaled_distance(h)
        variance = self.variance.to(h)
        return variance.reshape(variance.shape + (1,) * (r.dim() - variance.dim())) * self.correlation(r)

    def spectral_density(self, omega: Tensor) -> Tensor:
        """``S(ω) = σ² (∏ℓ) s_d(‖ℓ ω‖²)`` of the continuous part at angular frequencies ``(..., d)``, radians
        per unit length.
        """
        d = omega.shape[-1]
        ell = self.lengthscale.to(omega)
        if ell.shape[-1] not in (1, d):
            raise ValueError(
                f"{type(self).__name__}: frequencies have {d} axes, but there are {ell.shape[-1]} length "
                "scales."
            )
        ell = ell.reshape(-1).expand(d)
        return self.variance.to(omega) * ell.prod() * self._unit_spectrum((omega * ell).square().sum(-1), d)

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor:
        if last_dim_is_batch:
            raise ValueError(
                f"{type(self).__name__}: last_dim_is_batch is deprecated in gpytorch and not supported here."
            )
        return self.at_lags(x1 - x2 if diag else x1.unsqueeze(-2) - x2.unsqueeze(-3))

    def __add__(self, other: gpytorch.kernels.Kernel) -> gpytorch.kernels.Kernel:
        from spatialdiff.kernels.algebra import Sum

        return Sum(self, other)

    def __mul__(self, other: gpytorch.kernels.Kernel) -> gpytorch.kernels.Kernel:
        from spatialdiff.kernels.algebra import Product

        return Product(self, other)

    def __repr__(self) -> str:
        ell = [round(v, 6) for v in self.lengthscale.detach().reshape(-1).tolist()]
        shown = f"{ell[0]:g}" if len(ell) == 1 else str(ell)
        variance = float(self.variance.detach())
        return f"{type(self).__name__}({self._extra()}lengthscale={shown}, variance={variance:g})"

    def _extra(self) -> str:
        return ""


def gaussian_constant(d: int) -> float:
    """``(2π)^{d/2}``."""
    return math.pow(2 * math.pi, d / 2)
