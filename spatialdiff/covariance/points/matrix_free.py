r"""Γ on scattered sites without the matrix: every operation goes through products ``Γ x``, made tile by tile.

``R = Γ^{1/2}``, the symmetric root, by contour-integral quadrature; ``Γ⁻¹ x`` by conjugate gradients
preconditioned with a partial Cholesky factor; ``log det Γ`` by stochastic Lanczos quadrature. Memory is
``O(n)``, time ``O(n²)`` per product. The number of products grows with the square root of the condition
number, so that a nugget makes everything fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.checks import check_lengthscale
from spatialdiff.covariance.dense import kernel_matrix
from spatialdiff.covariance.numerics.conjugate import attach_solve, conjugate_gradients
from spatialdiff.covariance.numerics.contour import ContourRoot, rational_inverse_root
from spatialdiff.covariance.numerics.lanczos import Preconditioner, eigenvalue_bounds, lanczos_log_det
from spatialdiff.covariance.points.closed_forms import closed_form
from spatialdiff.covariance.points.low_rank_preconditioner import (
    LowRankPreconditioner,
    low_rank_preconditioner,
)
from spatialdiff.covariance.points.tile_product import choose_backend, kernel_product
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain, Grid, MaskedGrid, Points
from spatialdiff.kernels import at_pairs

# below the interval the quadrature is less than a fifth of √lower off: a tenth of the tolerance, as on it
_BELOW, _QUADRATURE = 0.5, 0.1
_MEMORY = 4e8  # bytes of the systems of the quadrature
_EXACT_SITES = 4096


class MatrixFreeCovariance(Covariance):
    """Γ_s of any kernel on any sites, in memory ``O(n)``; ``R = Γ^{1/2}`` is symmetric.

    Products are exact to rounding in the data type of the field; roots and solves are computed in float64
    to a relative tolerance, and raise where it is not reached. ``log_det`` is exact (dense) up to 4,096
    sites and has `log_det_standard_error` beyond.

    Args:
        kernel: any gpytorch kernel; compiled tiles and KeOps have sums of Matérn 1/2, 3/2 and 5/2, Gaussian
            and Nugget.
        domain: Points, or any domain whose sites have coordinates; no periodic axes.
        channels: see `Covariance`.
        backend: ``"plain"`` (torch), ``"numba"`` (CPU), ``"keops"``, or ``"auto"``: numba on the CPU, KeOps
            on CUDA where they are installed and have the kernel, plain otherwise; `report` says which.
        tolerance: largest relative error of ``R z`` and ``R⁻¹ x``, and relative residual of a solve.
        max_iterations: limit on the products of one solve or root.
        rank: columns of the preconditioner.
        log_det_tolerance: largest standard error of ``log_det`` per site.
        log_det_probes: limit on the number of probes.
        exact_log_det_sites: number of sites up to which the determinant is that of the dense matrix.

    Raises:
        ValueError: equal sites without a nugget, a kernel that is not valid in the dimension, a periodic
            axis, a backend that does not have the kernel; on `whiten` and `log_det`, a singular Γ.
        RuntimeError: a tolerance that is not reached within the limits.
        ImportError: a backend that is not installed.
    """

    method = "matrix_free"
    kernel: gpytorch.kernels.Kernel
    sites: Tensor

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        domain: Domain,
        channels: Channels = None,
        *,
        backend: str = "auto",
        tolerance: float = 1e-6,
        max_iterations: int = 2000,
        rank: int = 100,
        log_det_tolerance: float = 1e-3,
        log_det_probes: int = 1024,
        exact_log_det_sites: int = _EXACT_SITES,
    ) -> None:
        if not isinstance(kernel, gpytorch.kernels.Kernel):
            raise TypeError(f"MatrixFreeCovariance needs a gpytorch kernel, got {type(kernel).__name__}.")
        super().__init__(domain, channels, kernel)
        if not 0 < tolerance < 1:
            raise ValueError(f"MatrixFreeCovariance: tolerance must be between 0 and 1, got {tolerance!r}.")
        sites = domain.sites()
        with torch.no_grad():
            at_pairs(kernel, sites[:1], sites[:1])  # refuses a dimension in which the kernel is not valid
        self._check_sites(sites)
        self.register_buffer("sites", sites, persistent=False)
        self.backend = backend
        self._backends: dict[str, tuple[str, str]] = {}
        self._chosen()
        self.tolerance, self.max_iterations, self.rank = tolerance, max_iterations, rank
        self.log_det_tolerance, self.log_det_probes = log_det_tolerance, log_det_probes
        self.exact_log_det_sites = exact_log_det_sites

    def _check_sites(self, sites: Tensor) -> None:
        grid = self.domain.grid if isinstance(self.domain, MaskedGrid) else self.domain
        if isinstance(grid, Grid):
            if any(grid.periodic):
                raise ValueError(
                    "MatrixFreeCovariance: distances on a periodic axis wrap around, which products by "
                    'tiles do not; use method="torus" or "dense".'
                )
            check_lengthscale(self.kernel, grid)
            return
        pairs = Points(sites).duplicates()
        if len(pairs) and not bool((self._nugget() > 0).all()):
            shown = ", ".join(f"{int(i)} and {int(j)}" for i, j in pairs[:5])
            raise ValueError(
                f"MatrixFreeCovariance: {len(pairs)} of {len(sites)} sites repeat an earlier one (sites "
                f"{shown}{', …' if len(pairs) > 5 else ''}), so that Γ is singular. Keep one of each, "
                "average their values, or add a Nugget to the kernel, which then is drawn for every site on "
                "its own."
            )

    def _nugget(self) -> Tensor:
        with torch.no_grad():
            nugget = getattr(self.kernel, "nugget", torch.zeros((), dtype=torch.float64))
            return nugget.to(self.device).expand(self.batch_shape)

    # ---- products
    def _product(self, x: Tensor) -> Tensor:
        """``Γ x`` of values at the sites, ``(..., *batch, n)``."""
        return kernel_product(self.kernel, self.sites, x, self._chosen()[0])

    def _chosen(self) -> tuple[str, str]:
        """The backend on this device, and why."""
        device = self.device
        if device.type not in self._backends:
            self._backends[device.type] = choose_backend(
                self.backend, self.kernel, self.sites.shape[-1], device
            )
        return self._backends[device.type]

    def _matmul(self, x: Tensor) -> Tensor:
        return self.domain.unflatten(self._product(self.domain.flatten(x)))

    def _variance(self) -> Tensor:
        return self.domain.unflatten(
            at_pairs(self.kernel, self.sites, self.sites).expand(*self.batch_shape, len(self.sites))
        )

    # ---- roots
    def _compute_upper(self) -> Tensor:
        """A bound on the largest eigenvalue, ``(*batch,)``."""
        n = len(self.sites)
        if closed_form(self.kernel, self.sites.shape[-1]) is not None:
            # entries are positive: the largest sum of a row
            ones = torch.ones(*self.batch_shape, n, dtype=torch.float64, device=self.device)
            return self._product(ones).amax(-1)
        _, upper = eigenvalue_bounds(
            self._product, (n,), batch=self.batch_shape, steps=min(30, n), device=self.device
        )
        return 1.1 * upper

    def _compute_lower(self) -> Tensor:
        """A bound on the smallest eigenvalue, ``(*batch,)``: the nugget, or what Lanczos finds less its
        residual.
        """
        nugget = self._nugget()
        if bool((nugget > 0).all()):
            return nugget
        n = len(self.sites)
        steps = max(10, min(n, self.max_iterations, int(_MEMORY / (8 * n * math.prod(self.batch_shape)))))
        lower, upper = eigenvalue_bounds(
            self._product, (n,), batch=self.batch_shape, steps=steps, residual=0.5, device=self.device
        )
        if bool((lower <= 1e-13 * upper).any()):
            raise ValueError(
                f"whiten: {steps} Lanczos steps find no positive bound on the smallest eigenvalue of Γ, the "
                f"largest being {float(upper.max()):.3g}: Γ is singular or nearly so. Add a Nugget to the "
                'kernel, or use method="vecchia" or "dense".'
            )
        return torch.maximum(0.9 * lower, nugget)

    def _contour(self, *, inverse: bool) -> ContourRoot:
        with torch.no_grad():
            upper = self._constant("upper")
            nugget = self._nugget()
            if inverse:
                floor = self._constant("lower")
                lower = floor
            else:
                # eigenvalues below the interval need not be known
                mean = at_pairs(self.kernel, self.sites, self.sites).mean(-1).expand(self.batch_shape)
                floor = nugget
                lower = torch.maximum(nugget, (_BELOW * self.tolerance) ** 2 * mean)
                if bool((lower < 64 * torch.finfo(torch.float64).eps * mean).any()):
                    lower = floor = self._constant("lower")
        rational = rational_inverse_root(float(lower.min()), float(upper.max()), _QUADRATURE * self.tolerance)
        return ContourRoot(
            self._product,
            ndim=1,
            rational=rational,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            floor=float(floor.min()),
        )

    def _constant(self, name: str) -> Tensor:
        """What enters no derivative, computed once until a parameter changes."""
        with torch.no_grad():
            return self._factor(name)

    def _by_parts(self, operation: Callable[[Tensor], Tensor], x: Tensor, systems: int) -> Tensor:
        """``operation`` on values at the sites, in float64, some fields at a time."""
        values = self.domain.flatten(x).double()
        fields = values.reshape(-1, *self.batch_shape, len(self.sites))
        each = 16 * systems * fields[:1].numel()
        parts = [operation(part) for part in fields.split(max(1, int(_MEMORY / max(each, 1))))]
        joined = torch.cat(parts) if parts else fields
        return self.domain.unflatten(joined.reshape(values.shape).to(x.dtype))

    def _color(self, z: Tensor) -> Tensor:
        contour = self._contour(inverse=False)
        return self._by_parts(contour.root, z, len(contour.rational.shifts))

    def _whiten(self, x: Tensor) -> Tensor:
        contour = self._contour(inverse=True)
        return self._by_parts(contour.inverse_root, x, len(contour.rational.shifts))

    # ---- inverse and determinant
    def _preconditioner(self) -> LowRankPreconditioner:
        self._forget_if_changed()
        names = ("vectors", "values", "shift")
        if "vectors" not in self._cache:
            with torch.inference_mode(False), torch.no_grad():
                made = low_rank_preconditioner(self.kernel, self.sites, self._nugget(), self.rank)
            self._cache.update({name: getattr(made, name) for name in names})
        return LowRankPreconditioner(*(self._cache[name] for name in names))

    def _solve(self, x: Tensor) -> Tensor:
        near = self._preconditioner()

        def run(b: Tensor) -> Tensor:
            with torch.no_grad():
                return conjugate_gradients(
                    self._product,
                    b,
                    lambda r: near.power(r, -1.0),
                    ndim=1,
                    tolerance=self.tolerance,
                    max_iterations=self.max_iterations,
                )

        b = self.domain.flatten(x).double()
        solution = run(b.detach())
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            solution = attach_solve(b - self._product(solution), solution, run)
        return self.domain.unflatten(solution.to(x.dtype))

    def _exact_log_det(self) -> bool:
        return self.domain.size <= self.exact_log_det_sites

    def _compute_log_det_pair(self) -> Tensor:
        """``log det Γ_s`` and its standard error, ``(2, *batch)``."""
        if self._exact_log_det():
            factor, info = torch.linalg.cholesky_ex(kernel_matrix(self.kernel, self.domain, self.device))
            if bool((info != 0).any()):
                raise ValueError(
                    "log_det: Γ is not positive definite to working precision; add a Nugget to the kernel."
                )
            value = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(self.batch_shape)
            return torch.stack([value, torch.zeros_like(value)])
        near = self._preconditioner()
        value, error = lanczos_log_det(
            self._product,
            (len(self.sites),),
            batch=self.batch_shape,
            preconditioner=Preconditioner(lambda x: near.power(x, -0.5), near.log_det()),
            tolerance=self.log_det_tolerance,
            max_probes=self.log_det_probes,
            steps=self.max_iterations,
            device=self.device,
        )
        return torch.stack([value, error])

    def _log_det(self) -> Tensor:
        return self._factor("log_det_pair")[0]

    def _log_det_standard_error(self) -> Tensor:
        return self._constant("log_det_pair")[1]

    def _report(self) -> CovarianceReport:
        backend, why = self._chosen()
        determinant = (
            ""
            if self._exact_log_det()
            else (
                f"stochastic Lanczos quadrature, standard error at most {self.log_det_tolerance:g} per site"
            )
        )
        return CovarianceReport(
            self.method,
            exact=False,
            reason=f"products by tiles, exact to rounding; backend {backend} ({why}); roots and solves to a "
            f"relative {self.tolerance:g}, by contour quadrature and conjugate gradients",
            relative_error=2 * self.tolerance,
            log_det=determinant,
        )
