r"""Any grid, fast and exactly invertible: Γ diagonal in the orthonormal discrete cosine basis ``c_k``.

Given a stationary kernel with matrix ``K``, the closest such Γ in Frobenius norm has ``γ_k = c_kᵀ K c_k ≥
0``; its trace is that of ``K``. With ``K_{xy} = k(x - y)`` this is a contraction per axis, ``γ_k = Σ_h k(h)
∏_a A_a(k_a, h_a)``, ``A(k, h) = Σ_x c_k(x) c_k(x + h)`` over the sites for which both are on the grid: ``O(n
Σ n_a)``.
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels
from spatialdiff.covariance.basis import CosineBasis
from spatialdiff.covariance.checks import check_lengthscale, check_stationary
from spatialdiff.covariance.dense import kernel_matrix
from spatialdiff.covariance.grids.spectral import SpectralCovariance, check_grid
from spatialdiff.covariance.numerics.dct import cosine_matrix
from spatialdiff.covariance.periodic import reflection_symmetric, stationary_at
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Grid

# the covariance error is computed entry by entry up to this many sites
_ERROR_LIMIT = 4096


def autocorrelation(n: int, device: torch.device | None = None) -> Tensor:
    """``A(k, h) = Σ_x c_k(x) c_k(x + h)``, shape ``(n, n)``, ``h = 0 … n-1``, of the cosine basis."""
    modes = cosine_matrix(n, torch.float64, torch.device("cpu"))
    padded = torch.fft.rfft(modes, n=2 * n)
    table = torch.fft.irfft(padded.abs().square(), n=2 * n)[:, :n]
    result: Tensor = table.to(device)
    return result


def cosine_eigenvalues(
    kernel: gpytorch.kernels.Kernel, grid: Grid, device: torch.device | None = None
) -> Tensor:
    """``γ_k = c_kᵀ K c_k`` of a stationary kernel, shape ``(*batch, *grid.shape)``."""
    axes = range(-grid.ndim, 0)
    if reflection_symmetric(kernel):
        values, _ = stationary_at(kernel, grid, [torch.arange(n) for n in grid.shape], device)
        fold = [torch.cat([torch.ones(1), torch.full((n - 1,), 2.0)]) for n in grid.shape]
    else:
        values, _ = stationary_at(kernel, grid, [torch.arange(-n + 1, n) for n in grid.shape], device)
        for axis, n in zip(axes, grid.shape, strict=True):
            # A(k, -h) = A(k, h)
            front = values.narrow(axis, 0, n - 1).flip(axis)
            back = values.narrow(axis, n - 1, n)
            values = back + torch.cat([torch.zeros_like(back.narrow(axis, 0, 1)), front], dim=axis)
        fold = [torch.ones(n) for n in grid.shape]
    for axis, n, weight in zip(axes, grid.shape, fold, strict=True):
        table = autocorrelation(n, values.device) * weight.to(values)
        values = (values.movedim(axis, -1) @ table.mT).movedim(-1, axis)
    return values


class CosineCovariance(SpectralCovariance):
    """Γ diagonal in the cosine basis: non-stationary near the boundary, as fast as the torus, without
    wrapping around.

    Args:
        kernel: any stationary gpytorch kernel; on periodic axes it is periodised.
        domain: the grid.
        channels: see `Covariance`.

    Raises:
        ValueError: a kernel that is not stationary.
    """

    method = "cosine"

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel | None,
        domain: Grid,
        channels: Channels = None,
        *,
        spectrum: Tensor | None = None,
    ) -> None:
        check_grid(domain, "CosineCovariance")
        super().__init__(domain, CosineBasis(domain), channels, kernel, spectrum)
        if kernel is not None:
            check_stationary(kernel, domain, "CosineCovariance")
            check_lengthscale(kernel, domain)
        elif spectrum is None:
            raise ValueError("CosineCovariance needs a kernel or a spectrum.")

    @classmethod
    def from_spectrum(cls, domain: Grid, spectrum: Tensor, channels: Channels = None) -> CosineCovariance:
        """Γ with given eigenvalues, shape ``grid.shape``, or ``(C, *grid.shape)`` for one spectrum per
        channel.
        """
        return cls(None, domain, channels, spectrum=spectrum)

    def _kernel_eigenvalues(self) -> Tensor:
        assert self.kernel is not None
        return cosine_eigenvalues(self.kernel, self.domain, self.device)

    def _variance(self) -> Tensor:
        values = self._factor("eigenvalues")
        for axis, n in zip(range(-self.domain.ndim, 0), self.domain.shape, strict=True):
            squares = cosine_matrix(n, torch.float64, values.device).square()
            values = (values.movedim(axis, -1) @ squares).movedim(-1, axis)
        return values

    def _report(self) -> CovarianceReport:
        condition = self._condition_number()
        if self.kernel is None:
            return CovarianceReport(
                self.method,
                exact=True,
                condition_number=condition,
                error_bound=0.0,
                reason="given eigenvalues in the cosine basis",
            )
        largest = relative = None
        if self.domain.size <= _ERROR_LIMIT:
            with torch.no_grad():
                target = kernel_matrix(self.kernel, self.domain, self.device)
                rows = torch.eye(self.domain.size, dtype=torch.float64, device=self.device)
                rows = rows.reshape(-1, *(1,) * len(self.batch_shape), *self.domain.shape)
                own = self._matmul(rows).flatten(-self.domain.ndim).movedim(0, -1)
                largest = float((own - target).abs().max())
                # with a batch, the largest of its members
                norms = torch.linalg.matrix_norm(own - target) / torch.linalg.matrix_norm(target)
                relative = float(norms.max())
        return CovarianceReport(
            self.method,
            exact=False,
            error_bound=largest,
            relative_error=relative,
            condition_number=condition,
            reason="closest covariance (Frobenius) that is diagonal in the cosine basis; it differs most "
            "near the boundary",
        )
