"""Dense Γ by Cholesky in float64: ``R = L``, lower triangular. Exact for any kernel; the reference for all
other structures.
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.checks import check_lengthscale, check_stationary
from spatialdiff.covariance.periodic import difference_table, stationary_at
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain, Grid, MaskedGrid, Points
from spatialdiff.kernels import at_pairs

# pairs of sites that are evaluated at a time
_CHUNK = 4_000_000


# 13 GB for a matrix, and as much for its factor
MOST_SITES = 40_000


class DenseCovariance(Covariance):
    """Γ_s as a matrix ``(n, n)``; ``O(n³)`` once, ``O(n²)`` per field.

    On periodic axes a stationary kernel is periodised as in `TorusCovariance`. Collinear sites are no
    obstacle: a kernel that is valid in ``d`` dimensions is so on every line in them.

    Args:
        kernel: any gpytorch kernel, stationary or not; or a symmetric positive definite matrix ``(n, n)``.
        domain: any domain whose sites have coordinates; for a matrix, any domain.
        channels: see `Covariance`.

    Raises:
        ValueError: Γ is not positive definite (at the first use that needs a factor); equal sites and no
            nugget (with one, every site has a draw of its own); a kernel that is not stationary on a periodic
            axis, or not valid in the dimension of the sites.
    """

    method = "dense"
    matrix_: Tensor | None

    def __init__(
        self, kernel: gpytorch.kernels.Kernel | Tensor, domain: Domain, channels: Channels = None
    ) -> None:
        given = kernel if isinstance(kernel, Tensor) else None
        super().__init__(domain, channels, None if isinstance(kernel, Tensor) else kernel)
        if domain.size > MOST_SITES:
            raise ValueError(
                f"DenseCovariance: {domain.size} sites are more than the {MOST_SITES} that a matrix is for "
                f'(it would take {8e-9 * domain.size**2:.3g} GB, twice); use method="auto", or "vecchia".'
            )
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
            _check_kernel(kernel, domain)
        else:
            raise TypeError(
                f"DenseCovariance needs a gpytorch kernel or a matrix, got {type(kernel).__name__}."
            )
        self.register_buffer("matrix_", given)

    def _compute_matrix(self) -> Tensor:
        if self.kernel is None:
            assert self.matrix_ is not None
            return self.matrix_
        return kernel_matrix(self.kernel, self.domain, self.device).expand(*self.batch_shape, -1, -1)

    def _compute_cholesky(self) -> Tensor:
        matrix = self._factor("matrix")
        factor, info = torch.linalg.cholesky_ex(matrix)
        if bool((info != 0).any()) or not bool(torch.isfinite(factor.detach()).all()):
            smallest = float(torch.linalg.eigvalsh(matrix.detach())[..., 0].min())
            raise ValueError(
                f"Γ is not positive definite: smallest eigenvalue {smallest:.3g}, largest diagonal entry "
                f"{float(matrix.detach().diagonal(dim1=-2, dim2=-1).max()):.3g}. Add a Nugget to the kernel, "
                "or use a rougher or shorter one."
            )
        result: Tensor = factor
        return result

    # ---- fields as columns
    def _columns(self, x: Tensor) -> Tensor:
        """``(..., *batch, *shape)`` → ``(*batch, n, fields)``."""
        return self.domain.flatten(x).reshape(-1, *self.batch_shape, self.domain.size).movedim(0, -1)

    def _fields(self, columns: Tensor, like: Tensor) -> Tensor:
        """Inverse of `_columns`."""
        lead = like.shape[: like.dim() - self.domain.ndim]
        return self.domain.unflatten(columns.movedim(-1, 0).reshape(*lead, self.domain.size))

    def _color(self, z: Tensor) -> Tensor:
        return self._fields(self._factor("cholesky", z.dtype) @ self._columns(z), z)

    def _whiten(self, x: Tensor) -> Tensor:
        factor = self._factor("cholesky", x.dtype)
        return self._fields(torch.linalg.solve_triangular(factor, self._columns(x), upper=False), x)

    def _matmul(self, x: Tensor) -> Tensor:
        return self._fields(self._factor("matrix", x.dtype) @ self._columns(x), x)

    def _solve(self, x: Tensor) -> Tensor:
        return self._fields(torch.cholesky_solve(self._columns(x), self._factor("cholesky", x.dtype)), x)

    def _log_det(self) -> Tensor:
        return 2 * self._factor("cholesky").diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _variance(self) -> Tensor:
        return self.domain.unflatten(self._factor("matrix").diagonal(dim1=-2, dim2=-1))

    def _report(self) -> CovarianceReport:
        values = torch.linalg.eigvalsh(self._factor("matrix").detach())
        ratio = values[..., -1] / values[..., 0]
        condition = float(ratio.max()) if bool((values[..., 0] > 0).all()) else float("inf")
        reason = "a given matrix" if self.kernel is None else "every pair of sites, Cholesky in float64"
        return CovarianceReport(
            self.method, exact=True, error_bound=0.0, condition_number=condition, reason=reason
        )


def _check_kernel(kernel: gpytorch.kernels.Kernel, domain: Domain) -> None:
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    if isinstance(grid, Grid):
        check_lengthscale(kernel, grid)
        if any(grid.periodic):
            check_stationary(kernel, grid, "a periodic axis")
    sites = domain.sites()
    with torch.no_grad():
        at_pairs(kernel, sites[:1], sites[:1])  # refuses a dimension in which the kernel is not valid
    if isinstance(grid, Grid):
        return
    pairs = Points(sites).duplicates()
    if len(pairs) and not bool((_nugget(kernel) > 0).all()):
        shown = ", ".join(f"{int(i)} and {int(j)}" for i, j in pairs[:5])
        raise ValueError(
            f"DenseCovariance: {len(pairs)} of {len(sites)} sites repeat an earlier one (sites {shown}"
            f"{', …' if len(pairs) > 5 else ''}), so that Γ is singular. Keep one of each, average their "
            "values, or add a Nugget to the kernel, which then is drawn for every site on its own."
        )


def _nugget(kernel: gpytorch.kernels.Kernel) -> Tensor:
    nugget: Tensor = getattr(kernel, "nugget", torch.zeros((), dtype=torch.float64))
    return nugget


def kernel_matrix(
    kernel: gpytorch.kernels.Kernel, domain: Domain, device: torch.device | None = None
) -> Tensor:
    """``k(x_i, x_j)`` for all sites that carry a value, ``(*batch, n, n)`` float64; periodised on periodic
    axes.

    Equal sites of a scattered domain share all of ``k`` but the nugget.
    """
    grid, valid = (domain.grid, domain.valid.flatten()) if isinstance(domain, MaskedGrid) else (domain, None)
    if isinstance(grid, Grid) and any(grid.periodic):
        check_stationary(kernel, grid, "a periodic axis")
        return difference_table(lambda indices: stationary_at(kernel, grid, indices, device)[0], grid, valid)
    sites = domain.sites().to(device)
    rows = sites.split(max(1, _CHUNK // len(sites)))
    matrix = torch.cat([at_pairs(kernel, some[:, None], sites[None]) for some in rows], dim=-2)
    matrix = matrix.to(torch.float64)
    if not isinstance(grid, Grid) and len(Points(sites).duplicates()):
        _, group = torch.unique(sites, dim=0, return_inverse=True)
        repeated = (group[:, None] == group).fill_diagonal_(False).to(matrix)
        matrix = matrix - _nugget(kernel).to(matrix)[..., None, None] * repeated
    return matrix
