"""Kernels of ``R³`` on the sphere, at the distance through the ball, ``2R sin(θ/2)``."""

from __future__ import annotations

import math

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.kernels.algebra import at_lags
from spatialdiff.kernels.base import align, positive
from spatialdiff.kernels.lags import check_kernel, is_isotropic, paired, scale_variance
from spatialdiff.kernels.legendre_series import legendre_transform
from spatialdiff.kernels.spherical_domain import NEGATIVE, SphericalKernel


class Chordal(SphericalKernel):
    r"""``k(θ) = k_0(2R sin(θ/2))``: an isotropic kernel of ``R³`` at chordal distance, valid on every sphere.

    Args:
        kernel: ``k_0``, isotropic and valid in ``R³``; its variance is the variance.
        radius: ``R``, in the unit of its length scale.

    Raises:
        TypeError: something that is not a kernel.
        ValueError: a kernel that is not stationary, not isotropic, or not valid in ``R³``.
    """

    def __init__(self, kernel: Kernel, radius: float = 1.0) -> None:
        check_kernel(kernel, "Chordal")
        super(SphericalKernel, self).__init__()
        self.radius = float(positive(radius, "Chordal: radius"))
        self.kernel = kernel
        if hasattr(kernel, "check_dimension"):
            kernel.check_dimension(3)
        third = torch.tensor([[1, 2, -2]], dtype=torch.float64) / 3
        directions = torch.cat([torch.eye(3, dtype=torch.float64), third])
        lengths = 2 * self.radius * torch.logspace(-6, 0, 13, dtype=torch.float64)
        with torch.no_grad():
            values = at_lags(kernel, lengths[:, None, None] * directions)
        if not is_isotropic(values):
            raise ValueError(
                f"Chordal: {kernel!r} is not isotropic; on the sphere a kernel must depend on the distance "
                "alone."
            )

    @property
    def variance(self) -> Tensor:
        return self.at_angles(torch.zeros(1, dtype=torch.float64)).squeeze(-1)

    @variance.setter
    def variance(self, value: float | Tensor) -> None:
        with torch.no_grad():
            factor = torch.as_tensor(value, dtype=torch.float64) / self.variance
        scale_variance(self.kernel, factor)

    @property
    def nugget(self) -> Tensor:
        inner: Tensor = getattr(self.kernel, "nugget", torch.zeros((), dtype=torch.float64))
        return inner.expand(self.batch_shape)

    def correlation(self, theta: Tensor) -> Tensor:
        values = paired(self.at_angles, self, theta, self.batch_shape)
        return values / align(self.variance, values)

    def at_angles(self, theta: Tensor) -> Tensor:
        chord = 2 * self.radius * (theta / 2).sin()
        return at_lags(self.kernel, torch.stack([chord, *(torch.zeros_like(chord),) * 2], -1))

    def legendre_coefficients(self, lmax: int) -> Tensor:
        # no node of the quadrature is at 0, where a nugget would sit
        values = legendre_transform(self.at_angles, lmax, self._breaks())
        smallest = float((values.detach() / self.variance.detach().unsqueeze(-1)).min())
        if smallest < -NEGATIVE:
            raise ValueError(
                f"{self!r} is not positive definite on the sphere: smallest Legendre coefficient for unit "
                f"variance {smallest:.3g}."
            )
        return values.clamp_min(0.0)

    def _breaks(self) -> list[float]:
        """Where a kernel of compact support ends, to be found from its values."""
        with torch.no_grad():
            theta = torch.linspace(0, math.pi, 4097, dtype=torch.float64)
            values = self.at_angles(theta).reshape(-1, len(theta))
        breaks = []
        for row in range(len(values)):
            supported = (values[row] != 0).nonzero()
            last = int(supported.max())
            if last == len(theta) - 1:
                continue
            low, high = float(theta[last]), float(theta[last + 1])
            for _ in range(52):
                middle = (low + high) / 2
                with torch.no_grad():
                    value = self.at_angles(torch.tensor([middle], dtype=torch.float64)).reshape(-1)[row]
                low, high = (middle, high) if float(value) != 0 else (low, middle)
            breaks.append(high)
        return breaks

    def __repr__(self) -> str:
        return f"Chordal({self.kernel!r}, radius={self.radius:g})"
