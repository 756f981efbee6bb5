r"""A stationary Γ on the valid cells of a grid: ``Γ_s = P Γ_g Pᵀ``, exactly.

``P`` keeps the valid cells and ``Γ_g = R_g R_gᵀ`` is the covariance of the whole grid, for which there are
fast transforms: ``R = P R_g`` (a sample is a sample on the whole grid, cut), ``Γ x = P Γ_g Pᵀ x``. Inverses
do not follow: ``Γ⁻¹ b`` is by conjugate gradients, preconditioned with the inverse of a nearby matrix that is
cut in the same way, see `spatialdiff.covariance.grids.cut_inverse`; ``log det Γ`` by Cholesky where cells
are few, and beyond by stochastic quadrature relative to that nearby matrix,
`spatialdiff.covariance.grids.near_log_det`.
"""

from __future__ import annotations

from typing import Any, Literal

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.checks import check_stationary
from spatialdiff.covariance.dense import DenseCovariance, kernel_matrix
from spatialdiff.covariance.grids.circulant import CirculantCovariance
from spatialdiff.covariance.grids.cut_inverse import (
    FLOOR,
    MOST_CELLS,
    inverse_entries,
    mixed_eigenvalues,
    mixed_multiply,
    mixed_weights,
    nearest_masked,
)
from spatialdiff.covariance.grids.near_log_det import near_log_det
from spatialdiff.covariance.grids.torus import TorusCovariance
from spatialdiff.covariance.numerics.conjugate import attach_solve, conjugate_gradients
from spatialdiff.covariance.numerics.lanczos import lanczos_log_det
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain, MaskedGrid

# up to this many valid cells "auto" is dense, and up to LOG_DET_SITES the determinant is exact
DENSE_SITES, LOG_DET_SITES = 1024, 4096

Inner = Literal["auto", "dense", "torus", "circulant"]


class MaskedCovariance(Covariance):
    """Γ of a kernel restricted to the valid cells of a `MaskedGrid`.

    Masked cells are 0 in every result and ignored in every input. The white noise that `color` takes has the
    shape of the inner structure's.

    Args:
        kernel: a stationary gpytorch kernel; with ``inner="dense"``, any.
        domain: a `MaskedGrid`; periodic axes are periodised as in `TorusCovariance`.
        channels: see `Covariance`.
        inner: the structure of the whole grid: "torus" where every axis is periodic, "circulant" elsewhere,
            or "dense", which holds the valid cells only and whitens besides; "auto" is dense up to 1024
            valid cells.
        tolerance: relative residual ``‖Γx - b‖/‖b‖`` that `solve` reaches, or raises.
        max_iterations: of `solve`.
        log_det_tolerance: standard error per valid cell of `log_det` beyond 4096 valid cells.
        options: of the inner structure, such as ``on_negative`` of `CirculantCovariance`.

    Raises:
        TypeError: a domain without a mask.
        ValueError: an unknown or unfit ``inner``; what the inner structure refuses.
        EmbeddingError: see `CirculantCovariance`.
    """

    method = "masked"
    domain: MaskedGrid

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        domain: Domain,
        channels: Channels = None,
        *,
        inner: Inner = "auto",
        tolerance: float = 1e-10,
        max_iterations: int = 1000,
        log_det_tolerance: float = 1e-3,
        **options: Any,
    ) -> None:
        if not isinstance(domain, MaskedGrid):
            raise TypeError(
                f"MaskedCovariance needs a MaskedGrid, got {type(domain).__name__}; make one with "
                "Grid(...).masked(mask), mask True where a cell is valid."
            )
        super().__init__(domain, channels, kernel)
        wraps = all(domain.periodic)
        if inner == "auto":
            inner = "dense" if domain.size <= DENSE_SITES else "torus" if wraps else "circulant"
        if inner not in ("dense", "torus", "circulant"):
            raise ValueError(
                f'MaskedCovariance: inner must be "auto", "dense", "torus" or "circulant", got {inner!r}.'
            )
        self.inner: Covariance
        if inner == "dense":
            self.inner = DenseCovariance(kernel, domain, **options)
        else:
            check_stationary(kernel, domain.grid, "MaskedCovariance")
            structure = TorusCovariance if inner == "torus" else CirculantCovariance
            self.inner = structure(kernel, domain.grid, **options)
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.log_det_tolerance = log_det_tolerance
        self._outside = nearest_masked(domain)

    @property
    def _is_dense(self) -> bool:
        return isinstance(self.inner, DenseCovariance)

    def _factor_grid(self) -> tuple[int, ...]:
        return self.inner._factor_grid()

    def _color(self, z: Tensor) -> Tensor:
        return self.domain.fill(self.inner._color(z), 0.0)

    def _matmul(self, x: Tensor) -> Tensor:
        return self.domain.fill(self.inner._matmul(x), 0.0)

    def _whiten(self, x: Tensor) -> Tensor:
        if self._is_dense:
            return self.inner._whiten(x)
        raise ValueError(
            f"whiten: fields on the {self.domain.size} valid cells are cut from a field on the whole grid "
            f"({self.inner.method}), a map without an inverse. Use solve() and quad_form() for Γ⁻¹, "
            'method="vecchia", or, for few cells, inner="dense".'
        )

    # ---- an approximate inverse, see `spatialdiff.covariance.grids.cut_inverse`
    def _compute_near(self) -> Tensor:
        """Eigenvalues of ``G``, kept from 0, which a covariance on the whole grid may come close to."""
        assert self.kernel is not None
        with torch.no_grad():
            values = mixed_eigenvalues(self.kernel, self.domain.grid, self.device)
        return values.clamp_min(FLOOR * values.amax(tuple(range(-self.domain.ndim, 0)), keepdim=True))

    def _compute_inverse_modes(self) -> Tensor:
        with torch.no_grad():
            return 1 / self._factor("near")

    def _compute_boundary(self) -> Tensor:
        with torch.no_grad():
            modes = self._factor("inverse_modes")
        factor: Tensor = torch.linalg.cholesky(inverse_entries(modes, self.domain.grid, self._outside))
        return factor

    def _compute_boundary_inverse(self) -> Tensor:
        # a product with the inverse takes a tenth of the time of two triangular solves of few columns
        with torch.no_grad():
            inverse: Tensor = torch.cholesky_inverse(self._factor("boundary"))
        return inverse

    def _precondition(self, r: Tensor) -> Tensor:
        grid = self.domain.grid
        with torch.no_grad():
            modes, outside = self._factor("inverse_modes"), self._factor("boundary_inverse")
        product = mixed_multiply(r, grid, modes)
        if len(self._outside):
            where = self._outside.to(r.device)
            columns = product.flatten(-grid.ndim).index_select(-1, where)
            lead, batch = columns.shape[:-1], self.batch_shape
            columns = columns.reshape(-1, *batch, len(where)).movedim(0, -1)
            columns = (outside @ columns).movedim(-1, 0).reshape(*lead, len(where))
            spread = torch.zeros_like(product.flatten(-grid.ndim)).index_copy(-1, where, columns)
            product = product - mixed_multiply(spread.reshape(product.shape), grid, modes)
        return self.domain.fill(product, 0.0)

    def _solve(self, x: Tensor) -> Tensor:
        if self._is_dense:
            return self.inner._solve(x)

        def run(b: Tensor) -> Tensor:
            with torch.no_grad():
                return conjugate_gradients(
                    self._matmul,
                    b,
                    self._precondition,
                    ndim=self.domain.ndim,
                    tolerance=self.tolerance,
                    max_iterations=self.max_iterations,
                )

        b = x.double()
        solution = run(b)
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            solution = attach_solve(b - self._matmul(solution), solution, run)
        return solution.to(x.dtype)

    def _dense(self) -> Tensor:
        """The matrix on the valid cells."""
        assert self.kernel is not None
        if not getattr(self.inner, "clipped", False):
            return kernel_matrix(self.kernel, self.domain, self.device)
        # clipped eigenvalues make another covariance than the kernel's: ask the inner structure for it
        eye = torch.eye(self.domain.size, dtype=torch.float64, device=self.device)
        columns = self.domain.unflatten(eye.reshape(-1, *(1,) * len(self.batch_shape), self.domain.size))
        return self.domain.flatten(self._matmul(columns)).movedim(0, -1)

    def _log_det(self) -> Tensor:
        if self._is_dense:
            return self.inner._log_det()
        if self.domain.size <= LOG_DET_SITES:
            return self._factor("exact_log_det")
        return self._factor("stochastic_log_det")[0]

    def _compute_exact_log_det(self) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(self._dense())
        if bool((info != 0).any()):
            raise ValueError(
                "log_det: Γ is not positive definite to working precision; add a Nugget to the kernel."
            )
        exact: Tensor = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return exact

    def _compute_stochastic_log_det(self) -> Tensor:
        return torch.stack(self._stochastic_log_det())

    def _stochastic_log_det(self) -> tuple[Tensor, Tensor]:
        if self.domain.grid.size - self.domain.size > MOST_CELLS:
            return lanczos_log_det(
                self._matmul,
                self.domain.shape,
                batch=self.batch_shape,
                tolerance=self.log_det_tolerance,
                size=self.domain.size,
                mask=self.domain.valid.to(self.device),
                device=self.device,
            )
        grid = self.domain.grid
        with torch.no_grad():
            near = self._factor("near")
            axes = tuple(range(-grid.ndim, 0))
            weights = mixed_weights(grid, self.device)
            known = (weights * near.log()).expand(*self.batch_shape, *near.shape[-grid.ndim :]).sum(axes)
            known = known + 2 * self._factor("boundary").diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return near_log_det(
            self._matmul,
            self._precondition,
            lambda z: self.domain.fill(mixed_multiply(z, grid, near.sqrt()), 0.0),
            known,
            grid.shape,
            size=self.domain.size,
            batch=self.batch_shape,
            tolerance=self.log_det_tolerance,
            max_iterations=self.max_iterations,
            device=self.device,
        )

    def _log_det_standard_error(self) -> Tensor:
        if self._is_dense or self.domain.size <= LOG_DET_SITES:
            return super()._log_det_standard_error()
        with torch.no_grad():
            return self._factor("stochastic_log_det")[1]

    def _variance(self) -> Tensor:
        values = self.inner._variance()
        return values if self._is_dense else values * self.domain.valid.to(self.device)

    def _report(self) -> CovarianceReport:
        inner = self.inner.report
        share = self.domain.size / self.domain.grid.size
        few = self._is_dense or self.domain.size <= LOG_DET_SITES
        return CovarianceReport(
            self.method,
            exact=inner.exact,
            error_bound=inner.error_bound,
            padding=inner.padding,
            clipped_mass=inner.clipped_mass,
            condition_number=inner.condition_number if self._is_dense else None,
            variance_factor=inner.variance_factor,
            reason=f"{self.domain.size} valid cells, {share:.0%} of the grid, cut from {inner.method}: "
            f"{inner.reason}",
            log_det=""
            if few
            else f"stochastic Lanczos quadrature, standard error at most {self.log_det_tolerance:g} per cell",
        )
