r"""Periodic grids: Γ is diagonal in the Fourier basis, ``γ_k = Σ_h k_P(h) exp(-2πi k·h/n)``, exactly.

``k_P`` is the periodised covariance, see `spatialdiff.covariance.periodic`: the first row of Γ is ``σ²
Σρ(h+mL)/Σρ(mL)``. For the kernels here its eigenvalues come from `spatialdiff.covariance.grids.lattice`
with full relative accuracy, for any other from the sum over images.
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels
from spatialdiff.covariance.basis import FourierBasis
from spatialdiff.covariance.checks import check_lengthscale, check_stationary
from spatialdiff.covariance.grids.lattice import torus_eigenvalues
from spatialdiff.covariance.grids.spectral import SpectralCovariance, check_grid
from spatialdiff.covariance.periodic import stationary_at
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Grid


class TorusCovariance(SpectralCovariance):
    """Stationary Γ on a grid whose axes are all periodic; everything exact in ``O(n log n)``.

    Args:
        kernel: any stationary gpytorch kernel.
        domain: the grid.
        channels: see `Covariance`.

    Raises:
        ValueError: an axis that is not periodic; a kernel that is not stationary.
    """

    method = "torus"

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel | None,
        domain: Grid,
        channels: Channels = None,
        *,
        spectrum: Tensor | None = None,
    ) -> None:
        check_grid(domain, "TorusCovariance")
        if not all(domain.periodic):
            raise ValueError(
                "TorusCovariance needs a grid that is periodic on every axis, got "
                f"periodic={domain.periodic}; "
                'use method="circulant", "cosine" or "dense", or Grid(..., periodic=True).'
            )
        super().__init__(domain, FourierBasis(domain), channels, kernel, spectrum)
        self._variance_factor: tuple[float, ...] | None = None
        if kernel is not None:
            check_stationary(kernel, domain, "TorusCovariance")
            check_lengthscale(kernel, domain)
        elif self.spectrum is not None:
            reflected = self.spectrum.flip(list(range(-domain.ndim, -1))).roll(
                [1] * (domain.ndim - 1), list(range(-domain.ndim, -1))
            )
            ends = [0] if domain.shape[-1] % 2 else [0, -1]
            if not torch.allclose(self.spectrum[..., ends], reflected[..., ends], rtol=1e-9):
                raise ValueError(
                    "TorusCovariance: the spectrum of a real field is even, γ(k) = γ(-k); it is not where "
                    "the last index is 0 (or n/2)."
                )
        else:
            raise ValueError("TorusCovariance needs a kernel or a spectrum.")

    @classmethod
    def from_spectrum(cls, domain: Grid, spectrum: Tensor, channels: Channels = None) -> TorusCovariance:
        """Γ with given eigenvalues, shape ``(n_1, …, n_d//2+1)`` (half spectrum), or one such per channel."""
        return cls(None, domain, channels, spectrum=spectrum)

    def _kernel_eigenvalues(self) -> Tensor:
        assert self.kernel is not None
        closed = torus_eigenvalues(self.kernel, self.domain, self.device)
        if closed is not None:
            values, self._variance_factor = closed
            return values
        indices = [torch.arange(n) for n in self.domain.shape]
        row, factors = stationary_at(self.kernel, self.domain, indices, self.device)
        self._variance_factor = factors
        axes = tuple(range(-self.domain.ndim, 0))
        result: Tensor = torch.fft.rfftn(row, dim=axes).real
        return result

    def _variance(self) -> Tensor:
        axes = tuple(range(-self.domain.ndim, 0))
        mean = (self.weights_ * self._factor("eigenvalues")).sum(axes) / self.domain.size
        return mean.reshape(*mean.shape, *(1,) * self.domain.ndim)

    def _report(self) -> CovarianceReport:
        condition = self._condition_number()
        if self.kernel is None:
            reason = "given eigenvalues in the Fourier basis"
        else:
            reason = "periodic grid: the periodised kernel is diagonal in the Fourier basis"
        return CovarianceReport(
            self.method,
            exact=True,
            error_bound=0.0,
            condition_number=condition,
            reason=reason,
            variance_factor=self._variance_factor,
        )
