r"""Isotropic kernels on the sphere ``S²``: functions ``k(θ)`` of the great-circle angle ``0 ≤ θ ≤ π``.

``k(θ) = Σ_l (2l+1)/(4π) C_l P_l(cos θ)`` is positive definite on ``S²`` exactly where every ``C_l ≥ 0`` and
``Σ_l (2l+1) C_l`` is finite [Schoenberg 1942]; then the variance is ``k(0) = Σ_l (2l+1)/(4π) C_l``. Families
and their valid parameters are those of Gneiting [2013, table 1]. Most families of ``R³`` are not valid with
the angle as distance (Matérn with ``ν > 1/2`` is not); with the chord ``2R sin(θ/2)`` as distance all are:
`Chordal`.

Angles are in radians. Sites are points of ``R³``, on a sphere of any radius about the origin.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel
from torch import Tensor

from spatialdiff.kernels.base import SpatialKernel, align
from spatialdiff.kernels.families import Nugget
from spatialdiff.kernels.lags import paired
from spatialdiff.kernels.legendre_series import legendre_transform

# a Legendre coefficient between -NEGATIVE and 0, for unit variance, is rounding
NEGATIVE = 1e-12


def great_circle_angle(x1: Tensor, x2: Tensor) -> Tensor:
    """``θ = 2 atan2(|u - v|, |u + v|)`` of the directions ``u, v`` of sites ``(..., 3)`` that broadcast;
    accurate at every angle, and 0 for equal sites.

    Raises:
        ValueError: sites that are not on one sphere about the origin.
    """
    if x1.shape[-1] != 3 or x2.shape[-1] != 3:
        raise ValueError(
            f"A kernel on the sphere needs sites in R³, got {x1.shape[-1]} and {x2.shape[-1]} coordinates; "
            "use those of a Sphere, (cos φ cos λ, cos φ sin λ, sin φ)."
        )
    norms = [x.norm(dim=-1, keepdim=True) for x in (x1, x2)]
    sizes = torch.cat([n.detach().reshape(-1) for n in norms])
    if sizes.numel() and not float(sizes.max() - sizes.min()) < 1e-4 * float(sizes.min()):
        raise ValueError(
            "A kernel on the sphere needs sites on one sphere about the origin; their distances to it are "
            f"between {float(sizes.min()):g} and {float(sizes.max()):g}."
        )
    u, v = (x / n for x, n in zip((x1, x2), norms, strict=True))
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))


class SphericalKernel(SpatialKernel, ABC):
    """Base of the families on the sphere. A subclass gives `correlation`, and where it knows them
    `_unit_coefficients`.

    Args:
        variance: ``σ²``, one number or ``(*batch_shape,)``.
        batch_shape: shape of a batch of hyperparameters.
    """

    has_lengthscale = False
    max_dimension = 3.0

    def __init__(self, variance: float | Tensor = 1.0, *, batch_shape: Sequence[int] = ()) -> None:
        super().__init__(batch_shape=torch.Size(batch_shape))
        self._register_positive("variance", variance)

    @property
    def is_stationary(self) -> bool:
        """False: isotropic on the sphere, but not a function of ``x - x'``."""
        return False

    def check_dimension(self, d: int) -> None:
        if d != 3:
            raise ValueError(
                f"{type(self).__name__} is a kernel on the sphere, whose sites have 3 coordinates, not {d}; "
                "use a Sphere, or points in R³ on one."
            )

    @abstractmethod
    def correlation(self, theta: Tensor) -> Tensor:
        """``ρ(θ)`` of angles ``(*batch, ...)``; ``ρ(0) = 1``."""

    def at_angles(self, theta: Tensor) -> Tensor:
        """``k(θ)`` at great-circle angles ``(...)``, radians → ``(*batch, ...)``."""
        joint = theta.expand(*self.batch_shape, *theta.shape) if self.batch_shape else theta
        return align(self.variance, joint) * self.correlation(joint)

    def at_pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.at_angles(great_circle_angle(x1, x2))

    def legendre_coefficients(self, lmax: int) -> Tensor:
        """``C_0, …, C_lmax``, the angular power spectrum of the continuous part, float64 ``(*batch, lmax +
        1)``.

        Raises:
            ValueError: a negative coefficient, beyond rounding: no covariance on the sphere.
        """
        if int(lmax) != lmax or lmax < 0:
            raise ValueError(f"legendre_coefficients: lmax must be a whole number from 0 on, got {lmax!r}.")
        values = self._unit_coefficients(int(lmax))
        smallest = float(values.detach().min())
        if smallest < -NEGATIVE:
            degree = int((values.detach() < -NEGATIVE).reshape(-1, lmax + 1).any(0).nonzero()[0])
            raise ValueError(
                f"{self!r} is not positive definite on the sphere: its Legendre coefficient of degree "
                f"{degree} is negative (smallest for unit variance {smallest:.3g})."
            )
        return align(self.variance, values) * values.clamp_min(0.0)

    def _unit_coefficients(self, lmax: int) -> Tensor:
        """Coefficients for ``σ² = 1``, by quadrature."""

        def unit(theta: Tensor) -> Tensor:
            return self.correlation(theta.expand(*self.batch_shape, *theta.shape))

        return legendre_transform(unit, lmax, self._breaks())

    def _breaks(self) -> list[float]:
        """Angles other than 0 where the correlation is not smooth."""
        return []

    @property
    def effective_range(self) -> Tensor:
        """Smallest angle at which the correlation is 0.05, ``(*batch,)``; infinite where it is above
        everywhere.
        """
        with torch.no_grad():
            batch = self.batch_shape
            low = torch.zeros(batch, dtype=torch.float64)
            high = torch.full(batch, math.pi, dtype=torch.float64)
            grid = torch.linspace(0, math.pi, 1025, dtype=torch.float64)
            below = self.at_angles(grid) <= 0.05 * align(self.variance, self.at_angles(grid))
            first = below.to(torch.int8).argmax(-1)
            low, high = grid[(first - 1).clamp_min(0)], grid[first]
            for _ in range(60):
                middle = (low + high) / 2
                value = paired(self.at_angles, self, middle, batch)
                above = value > 0.05 * self.variance
                low, high = torch.where(above, middle, low), torch.where(above, high, middle)
            return torch.where(below.any(-1), (low + high) / 2, math.inf)

    def __repr__(self) -> str:
        names = [n.removeprefix("raw_") for n, _ in self.named_parameters(recurse=False)]
        shown = {
            name: self._positive(name).detach() for name in [*sorted(n for n in names if n != "variance")]
        }
        shown["variance"] = self.variance.detach()
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        text = ", ".join(
            f"{name}={[round(v, 6) for v in value.reshape(-1).tolist()]}"
            if value.dim()
            else f"{name}={float(value):g}"
            for name, value in shown.items()
        )
        return f"{type(self).__name__}({self._extra()}{text}{batch})"

    def _extra(self) -> str:
        return ""


def legendre_coefficients(kernel: Kernel, lmax: int) -> Tensor:
    """``C_l`` of a kernel on the sphere, or of a sum or a product of such and of `Nugget`: the continuous
    part, float64 ``(*batch, lmax + 1)``.

    Raises:
        TypeError: another kernel.
    """
    if isinstance(kernel, SphericalKernel):
        return kernel.legendre_coefficients(lmax)
    if isinstance(kernel, Nugget):
        return torch.zeros(*kernel.batch_shape, lmax + 1, dtype=torch.float64)
    if isinstance(kernel, AdditiveKernel):
        total = torch.zeros(lmax + 1, dtype=torch.float64)
        for part in kernel.kernels:
            total = total + legendre_coefficients(part, lmax)
        return total
    if isinstance(kernel, ProductKernel):
        factors = list(kernel.kernels)
        if any(isinstance(factor, Nugget) for factor in factors):
            return torch.zeros(*kernel.batch_shape, lmax + 1, dtype=torch.float64)
        if all(isinstance(factor, SphericalKernel) for factor in factors):

            def product(theta: Tensor) -> Tensor:
                values = torch.ones_like(theta)
                for factor in factors:
                    values = values * factor.at_angles(theta)
                return values

            breaks = [angle for factor in factors for angle in factor._breaks()]
            return legendre_transform(product, lmax, breaks)
    raise TypeError(
        f"legendre_coefficients needs kernels on the sphere, their sums and their products, got "
        f"{type(kernel).__name__}; wrap a kernel of R³ in Chordal."
    )
