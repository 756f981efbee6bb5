r"""Families of compact support: the correlation is exactly 0 from ``r = 1`` on, so that Γ is sparse.

- Spherical ``1 - 3r/2 + r³/2``, the overlap of two balls in three dimensions;
- circular ``(2/π)(arccos r - r√(1-r²))``, the overlap of two discs in the plane;
- cubic ``1 - 7r² + 35r³/4 - 7r⁵/2 + 3r⁷/4``, twice differentiable at the origin (Chilès & Delfiner 2012,
  section 2.5.1);
- Askey ``(1 - r)^λ``, positive definite in ``d`` dimensions for ``λ ≥ (d+1)/2`` (Askey 1973; Gneiting 2002).

Spectral densities by `spatialdiff.kernels.numerical_spectrum.compact_spectrum`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.kernels.base import DimensionError, StationaryKernel, align
from spatialdiff.kernels.matern import isotropic, numbers
from spatialdiff.kernels.numerical_spectrum import check_numerical, compact_spectrum


class CompactKernel(StationaryKernel):
    """Base of the families whose correlation is 0 at distances from ``ℓ`` on.

    Attributes:
        support: scaled distance from which on the correlation is 0.
    """

    support: float = 1.0

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        check_numerical(type(self).__name__, d)
        return compact_spectrum(self.correlation, w2, d, len(self.batch_shape))


class Spherical(CompactKernel):
    """``k(h) = σ² (1 - 3r/2 + r³/2)`` for ``r = ‖h/ℓ‖ < 1``, else 0; in one to three dimensions.

    Args:
        lengthscale: ``ℓ``, the range, one number or one per axis.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; sites of more than three coordinates.
    """

    max_dimension = 3

    def correlation(self, r: Tensor) -> Tensor:
        r = r.clamp(max=1.0)
        # (1-r)² (2+r)/2, free of cancellation
        return (1 - r).square() * (2 + r) / 2


class Circular(CompactKernel):
    """``k(h) = σ² (2/π) (arccos r - r √(1-r²))`` for ``r = ‖h/ℓ‖ < 1``, else 0; in one and two dimensions.

    Args:
        lengthscale: ``ℓ``, the range, one number or one per axis.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; sites of more than two coordinates.
    """

    max_dimension = 2

    def correlation(self, r: Tensor) -> Tensor:
        inside = r < 1
        r = torch.where(inside, r, 0.0)
        # with r = cos 2φ: (2/π)(2φ - sin 4φ/2), and φ keeps its digits near r = 1
        angle = 2 * torch.asin(((1 - r) / 2).sqrt())
        small = angle < 0.2
        y = torch.where(small, 2 * angle, 0.0)
        series = y.pow(3) / 6 * (1 - y.square() / 20 * (1 - y.square() / 42 * (1 - y.square() / 72)))
        value = torch.where(small, series, 2 * angle - torch.sin(2 * angle)) / math.pi
        return torch.where(inside, value, 0.0)


class Cubic(CompactKernel):
    """``k(h) = σ² (1 - 7r² + 35r³/4 - 7r⁵/2 + 3r⁷/4)`` for ``r = ‖h/ℓ‖ < 1``, else 0; in one to three
    dimensions.

    Args:
        lengthscale: ``ℓ``, the range, one number or one per axis.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; sites of more than three coordinates.
    """

    max_dimension = 3

    def correlation(self, r: Tensor) -> Tensor:
        r = r.clamp(max=1.0)
        # the polynomial divided by (1-r)⁴
        return (1 - r).pow(4) * (1 + r * (4 + r * (3 + 0.75 * r)))


def largest_dimension(kernel: str, bound: Tensor, condition: str, d: int, given: str) -> None:
    """Raise DimensionError where ``d`` is above ``bound``, the (real) largest dimension of each member of a
    batch.
    """
    if bool((d > bound.detach() * (1 + 1e-12)).any()):
        raise DimensionError(
            f"{kernel} is positive definite in d dimensions for {condition}, but the sites have {d} "
            f"coordinates and {given}."
        )


class Askey(CompactKernel):
    r"""``k(h) = σ² (1 - ‖h/ℓ‖)_+^λ``; in ``d ≤ 2λ - 1`` dimensions.

    Args:
        power: ``λ ≥ 1``. A parameter, ``raw_power``.
        lengthscale: ``ℓ``, the range, one number or one per axis.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``λ < 1``, which is no covariance in any
            dimension; sites of more than ``2λ - 1`` coordinates.
    """

    def __init__(
        self,
        power: float | Tensor = 2.0,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        self._register_positive("power", power)
        self.check_dimension(1)

    @property
    def power(self) -> Tensor:
        """``λ``, shape ``(*batch,)``."""
        return self._positive("power")

    @property
    def max_dimension(self) -> float:  # type: ignore[override]
        return math.floor(float((2 * self.power.detach() - 1).min()) * (1 + 1e-12))

    def check_dimension(self, d: int) -> None:
        given = f"power = {numbers(self.power)}"
        largest_dimension("Askey", 2 * self.power - 1, "power ≥ (d+1)/2", d, given)

    def least_valid(self, d: int) -> dict[str, float]:
        return {"power": (d + 1) / 2}

    def correlation(self, r: Tensor) -> Tensor:
        inside = r < 1
        return torch.where(inside, torch.where(inside, 1 - r, 1.0).pow(align(self.power, r)), 0.0)

    @property
    def microergodic(self) -> Tensor:
        """``σ² λ/ℓ``, shape ``(*batch,)``: `GeneralizedWendland.microergodic` with ``κ = 0``."""
        return self.variance * self.power / isotropic(self)

    def _extra(self) -> str:
        return f"power={numbers(self.power)}, "
