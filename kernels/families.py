r"""Gaussian ``ρ(r) = exp(-r²/2)`` with ``s_d(w²) = (2π)^{d/2} exp(-w²/2)``, and the nugget ``ρ(r) = 1{r=0}``.

`Matern` and `Exponential` are given here too, as the families whose parameters other modules read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.kernels.base import StationaryKernel, gaussian_constant
from spatialdiff.kernels.matern import Exponential, Matern

__all__ = ["Exponential", "Gaussian", "Matern", "Nugget"]


class Gaussian(StationaryKernel):
    """``k(h) = σ² exp(-‖h/ℓ‖²/2)``, the squared exponential. Very smooth: on a fine grid Γ is numerically
    singular without a nugget.
    """

    def correlation(self, r: Tensor) -> Tensor:
        return torch.exp(-r.square() / 2)

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        return gaussian_constant(d) * torch.exp(-w2 / 2)


class Nugget(StationaryKernel):
    """``k(h) = σ² 1{h=0}``: variance without correlation (measurement error, variation below the grid
    spacing).

    Two points with exactly equal coordinates share the nugget. It has no spectral density on the continuum,
    so `spectral_density` is 0 and `nugget` is ``σ²``; on a lattice its spectral density is the constant
    ``σ²`` × cell volume.

    Args:
        variance: ``σ²``.
    """

    has_lengthscale = False

    def __init__(self, variance: float | Tensor = 1.0, *, batch_shape: Sequence[int] = ()) -> None:
        super(StationaryKernel, self).__init__(batch_shape=torch.Size(batch_shape))
        self._register_positive("variance", variance)
        self.double()

    @property
    def nugget(self) -> Tensor:
        return self.variance

    @property
    def effective_range(self) -> Tensor:
        return torch.zeros(*self.batch_shape, 1, 1, dtype=torch.float64)

    def scaled_distance(self, h: Tensor) -> Tensor:
        return h.abs().amax(-1).expand(*self.batch_shape, *h.shape[:-1])

    def correlation(self, r: Tensor) -> Tensor:
        return (r == 0).to(r.dtype)

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        return torch.zeros_like(w2)

    def spectral_density(self, omega: Tensor) -> Tensor:
        return torch.zeros_like(omega[..., 0]).expand(*self.batch_shape, *omega.shape[:-1])

    def __repr__(self) -> str:
        values = [round(v, 6) for v in self.variance.detach().reshape(-1).tolist()]
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"Nugget(variance={values if self.batch_shape else format(values[0], 'g')}{batch})"
