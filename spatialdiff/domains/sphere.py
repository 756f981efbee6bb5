r"""Latitude–longitude grids on a sphere of radius ``a``.

The site of latitude ``φ`` and longitude ``λ`` is ``a (cos φ cos λ, cos φ sin λ, sin φ)`` in ``R³``. Latitudes
increase from south to north and are symmetric about the equator; longitudes are ``2πj/n_λ``, from 0. With
``w_i`` the weights of a rule for ``∫_{-1}^{1} f(sin φ) d(sin φ)``, an integral over the sphere is ``a² Σ_ij
w_i (2π/n_λ) f(φ_i, λ_j)``:

- equiangular with poles, ``φ_i = -π/2 + πi/(n-1)``: Clenshaw–Curtis, exact for polynomials of degree ``n-1``;
- equiangular without poles, ``φ_i = -π/2 + π(i+1/2)/n``: Fejér's first rule, exact for degree ``n-1``;
- Gauss–Legendre, ``sin φ_i`` the zeros of ``P_n``: exact for degree ``2n-1``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spatialdiff.domains.base import Domain

SphereGrid = Literal["equiangular", "gauss_legendre"]


@dataclass(frozen=True, init=False, repr=False)
class Sphere(Domain):
    r"""A grid of ``n_φ`` latitudes and ``n_λ`` longitudes on a sphere; fields have shape ``(n_φ, n_λ)``.

    The half-degree grid of many archives is ``Sphere((361, 720))``, both poles included, and ``Sphere((360,
    720), poles=False)`` the one of the centres of half-degree cells. A row at a pole is *one* site, written
    ``n_λ`` times: a field has the same value all along it, and `size` counts it once.

    Args:
        shape: ``(n_φ, n_λ)``.
        grid: "equiangular", or "gauss_legendre" for latitudes at the nodes of that rule.
        radius: ``a``, in the length unit of the kernel.
        poles: whether the first and last latitude of an equiangular grid are the poles.

    Raises:
        ValueError: a shape without a site, an equiangular grid with poles of one latitude, a radius that is
            not positive and finite, another name of a grid.
    """

    shape: tuple[int, ...]
    grid: SphereGrid
    radius: float
    poles: bool
    # the coordinates are in R³, where nothing wraps
    periodic: tuple[bool, ...] = (False, False)

    def __init__(
        self,
        shape: Sequence[int],
        grid: SphereGrid = "equiangular",
        radius: float = 1.0,
        *,
        poles: bool = True,
    ) -> None:
        sizes = tuple(shape)
        if len(sizes) != 2 or any(int(n) != n or n < 1 for n in sizes):
            raise ValueError(
                f"Sphere: shape must be (latitudes, longitudes), two whole numbers from 1 on, got {sizes}."
            )
        if grid not in ("equiangular", "gauss_legendre"):
            raise ValueError(f'Sphere: grid must be "equiangular" or "gauss_legendre", got {grid!r}.')
        if not (math.isfinite(radius) and radius > 0):
            raise ValueError(f"Sphere: radius must be positive and finite, got {radius!r}.")
        with_poles = bool(poles) and grid == "equiangular"
        if with_poles and sizes[0] < 2:
            raise ValueError(
                "Sphere: an equiangular grid with poles has at least 2 latitudes, got 1; use more, or "
                "poles=False."
            )
        object.__setattr__(self, "shape", tuple(int(n) for n in sizes))
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "radius", float(radius))
        object.__setattr__(self, "poles", with_poles)

    @property
    def size(self) -> int:
        """Number of different sites: a pole counts once."""
        rows, columns = self.shape
        return (rows - 2) * columns + 2 if self.poles else rows * columns

    @property
    def dimension(self) -> int:
        return 3

    @property
    def latitudes(self) -> Tensor:
        """``φ_i`` in radians, south to north, float64, shape ``(n_φ,)``."""
        return self._rule()[0]

    @property
    def longitudes(self) -> Tensor:
        """``λ_j = 2πj/n_λ`` in radians, float64, shape ``(n_λ,)``."""
        return torch.arange(self.shape[1], dtype=torch.float64) * (2 * math.pi / self.shape[1])

    @property
    def weights(self) -> Tensor:
        """Area that a value stands for, in squared units of the radius, float64, shape ``shape``; the sum is
        ``4πa²``.
        """
        row = self._rule()[1] * (2 * math.pi / self.shape[1] * self.radius**2)
        return row[:, None].expand(self.shape).clone()

    @property
    def cosines(self) -> Tensor:
        """``cos φ_i``, exactly 0 at a pole, float64, shape ``(n_φ,)``."""
        values = self.latitudes.cos()
        if self.poles:
            values[0] = values[-1] = 0.0
        return values

    def coordinates(self) -> Tensor:
        """Sites in ``R³``, float64, shape ``(n_φ, n_λ, 3)``; equal along a row at a pole."""
        latitude, longitude, cosine = self.latitudes[:, None], self.longitudes[None], self.cosines[:, None]
        x, y = cosine * longitude.cos(), cosine * longitude.sin()
        return self.radius * torch.stack([x, y, latitude.sin().expand_as(x)], dim=-1)

    def _rule(self) -> tuple[Tensor, Tensor]:
        """Latitudes and weights ``w_i``, which sum to 2."""
        n = self.shape[0]
        if self.grid == "gauss_legendre":
            from scipy.special import roots_legendre

            nodes, weights = (torch.from_numpy(v) for v in roots_legendre(n))
            return _antisymmetric(nodes.asin()), (weights + weights.flip(0)) / 2
        first, last = (0.0, n - 1.0) if self.poles else (0.5, float(n))
        colatitudes = torch.arange(n, dtype=torch.float64).add(first) * (math.pi / last)
        # the cosine interpolant Σ'' c_k cos kθ of the values, integrated against sin θ: 2/(1-k²) for even k
        order = torch.arange(0, n, 2, dtype=torch.float64)
        integral = 2 / (1 - order.square())
        cosine = torch.cos(order[:, None] * colatitudes)
        double = torch.where(order == 0, 1.0, 2.0)
        if self.poles and n % 2:
            double[-1] = 1.0
        weights = (double * integral) @ cosine / last
        if self.poles:
            weights[[0, -1]] /= 2
        return _antisymmetric(colatitudes - math.pi / 2), (weights + weights.flip(0)) / 2

    def __repr__(self) -> str:
        rule = f"poles={self.poles}" if self.grid == "equiangular" else "gauss_legendre"
        return f"Sphere({self.shape}, {rule}, radius={self.radius:g})"


def _antisymmetric(latitudes: Tensor) -> Tensor:
    return (latitudes - latitudes.flip(0)) / 2
