"""Dense Γ by Cholesky in float64: ``R = L``, lower triangular. Exact for any kernel; the reference for all
other structures.
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.checks import check_lengthscale
from spatialdiff.covariance.periodic import difference_table
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Grid
from spatialdiff.kernels import at_lags


class DenseCovariance(Covariance):
    """Γ_s as a matrix ``(n, n)``; ``O(n³)`` once, ``O(n²)`` per field.

    On periodic axes a stationary kernel is periodised as in `TorusCovariance`.

    Args:
        kernel: any gpytorch kernel, stationary or not; or a symmetric positive definite matrix ``(n, n)``.
        domain: the grid.
        channels: see `Covariance`.

    Raises:
        ValueError: Γ is not positive definite (at the first use that needs a factor); a kernel that is not
            stationary on a periodic axis.
    """

    method = "dense"
    matrix_: Tensor | None

    def __init__(
        self, kernel: gpytorch.kernels.Kernel | Tensor, domain: Grid, channels: Channels = None
    ) -> None:
        given = kernel if isinstance(kernel, Tensor) else None
        super().__init__(domain, channels, None if isinstance(kernel, Tensor) else kernel)
        if given is not None:
            if given.shape != (domain.size, domain.size):
                raise ValueError(
                    f"DenseCovariance: needs a ({domain.size}, {domain.size}) matrix, got "
                    f"{tuple(given.shape)}."
                )
            if not torch.allclose(given, given.T):
                raise ValueError("DenseCovariance: the matrix is not symmetric.")
            given = given.detach().to(torch.float64).clone()
        elif isinstance(kernel, gpytorch.kernels.Kernel):
            check_lengthscale(kernel, domain)
        else:
            raise TypeError(
                f"DenseCovariance needs a gpytorch kernel or a matrix, got {type(kernel).__name__}."
            )
        self.register_buffer("matrix_", given)

    def _compute_matrix(self) -> Tensor:
        if self.kernel is None:
            assert self.matrix_ is not None
            return self.matrix_
        return kernel_matrix(self.kernel, self.domain, self.device)

    def _compute_cholesky(self) -> Tensor:
        matrix = self._factor("matrix")
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) != 0 or not bool(torch.isfinite(factor.detach()).all()):
            smallest = float(torch.linalg.eigvalsh(matrix.detach())[0])
            raise ValueError(
                f"Γ is not positive definite: smallest eigenvalue {smallest:.3g}, largest diagonal entry "
                f"{float(matrix.detach().diagonal().max()):.3g}. Add a Nugget to the kernel, or use a "
                "rougher or shorter one."
            )
        result: Tensor = factor
        return result

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.dim() - self.domain.ndim], self.domain.size)

    def _color(self, z: Tensor) -> Tensor:
        return (self._flat(z) @ self._factor("cholesky", z.dtype).T).reshape(z.shape)

    def _whiten(self, x: Tensor) -> Tensor:
        factor = self._factor("cholesky", x.dtype)
        flat = self._flat(x)
        rows = flat.reshape(-1, self.domain.size)
        result: Tensor = torch.linalg.solve_triangular(factor, rows.T, upper=False).T.reshape(x.shape)
        return result

    def _matmul(self, x: Tensor) -> Tensor:
        return (self._flat(x) @ self._factor("matrix", x.dtype).T).reshape(x.shape)

    def _solve(self, x: Tensor) -> Tensor:
        rows = self._flat(x).reshape(-1, self.domain.size)
        return torch.cholesky_solve(rows.T, self._factor("cholesky", x.dtype)).T.reshape(x.shape)

    def _log_det(self) -> Tensor:
        return 2 * self._factor("cholesky").diagonal().log().sum()

    def _variance(self) -> Tensor:
        return self._factor("matrix").diagonal().reshape(self.domain.shape)

    @property
    def report(self) -> CovarianceReport:
        values = torch.linalg.eigvalsh(self._factor("matrix").detach())
        condition = float(values[-1] / values[0]) if values[0] > 0 else float("inf")
        reason = "a given matrix" if self.kernel is None else "every pair of sites, Cholesky in float64"
        return CovarianceReport(
            self.method, exact=True, error_bound=0.0, condition_number=condition, reason=reason
        )


def kernel_matrix(kernel: gpytorch.kernels.Kernel, grid: Grid, device: torch.device | None = None) -> Tensor:
    """``k(x_i, x_j)`` for all sites, ``(n, n)`` float64; periodised on periodic axes."""
    sites = grid.coordinates().reshape(-1, grid.ndim).to(device)
    if any(grid.periodic):
        return difference_table(kernel, grid, device)
    if kernel.is_stationary:
        return at_lags(kernel, sites[:, None] - sites[None])
    with gpytorch.settings.lazily_evaluate_kernels(False):
        matrix: Tensor = kernel(sites).to_dense().to(torch.float64)
    return matrix
