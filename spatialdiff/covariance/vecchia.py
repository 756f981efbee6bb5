r"""Γ by Vecchia's approximation: each site given its nearest neighbours among those before it.

In an order of the sites, ``p(x) = ∏ p(x_i | x_1 … x_{i-1}) ≈ ∏ p(x_i | x_N(i))`` with at most ``m`` sites in ``N(i)``
(Vecchia 1988). That is the density of a Gaussian vector with ``Γ⁻¹ = Wᵀ W``, ``W`` sparse and lower triangular in that
order: ``R = W⁻¹`` is a square root, ``log det Γ = -2 Σ log W_ii``, and every operation costs ``O(n m)`` once the rows are
there, which costs ``O(n m³)``. All of it is exact for the approximation, which is the covariance itself where
``m ≥ n - 1`` (Guinness 2018; Katzfuss and Guinness 2021).
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.conditionals import as_isotropic, conditional_rows, isotropic_rows
from spatialdiff.covariance.neighbours import previous_neighbours
from spatialdiff.covariance.ordering import order_sites
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.covariance.triangular import SparsePattern, choose_engine
from spatialdiff.domains import Domain, MaskedGrid
from spatialdiff.kernels import StationaryKernel, at_pairs


class VecchiaCovariance(Covariance):
    """Γ_s with ``Γ_s⁻¹ = Wᵀ W``, for any kernel on any domain with coordinates.

    Order and neighbours are fixed when Γ is made, by distances in which each axis is divided by the length scale that
    the kernel then has along it, where it has one per axis.

    The approximation is good where neighbours screen off the rest of the field: for smooth kernels with a large nugget,
    and where the length scale is many times the distance that ``m`` neighbours reach, take more neighbours and look at
    `report` or `kl_divergence`. The marginal variance is not exactly that of the kernel; `variance` computes what it is.

    Args:
        kernel: any gpytorch kernel, stationary or not; a nugget belongs to the field.
        domain: points, a mesh, a sphere, or a grid that is not periodic, masked or not.
        channels: see `Covariance`.
        neighbors: ``m``.
        ordering: ``"maximin"``, ``"coordinate"``, ``"random"`` (a fixed seed), or a permutation of the sites; see
            `spatialdiff.covariance.ordering`.
        engine: ``"numba"``, ``"torch"``, or ``"auto"``: compiled loops where numba is installed and Γ is on the CPU.

    Raises:
        ValueError: a periodic grid, sites that coincide, a kernel that is not valid in the dimension, a number of
            neighbours below 1, a permutation that is none; Γ is not positive definite (at the first use).
        ImportError: ``engine="numba"`` without numba.
    """

    method = "vecchia"
    sites: Tensor
    order: Tensor
    neighbours: Tensor

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        domain: Domain,
        channels: Channels = None,
        *,
        neighbors: int = 30,
        ordering: str | Tensor = "maximin",
        engine: str = "auto",
    ) -> None:
        super().__init__(domain, channels, kernel)
        if not isinstance(kernel, gpytorch.kernels.Kernel):
            raise TypeError(f"VecchiaCovariance needs a gpytorch kernel, got {type(kernel).__name__}.")
        if isinstance(neighbors, bool) or not isinstance(neighbors, int) or neighbors < 1:
            raise ValueError(
                f"VecchiaCovariance: neighbors must be a whole number from 1, got {neighbors!r}."
            )
        if any(domain.periodic):
            raise ValueError(
                'VecchiaCovariance: distances do not wrap around; use method="torus" on a periodic grid.'
            )
        _check_dimension(kernel, domain.dimension)
        self.neighbors, self.engine = neighbors, choose_engine(engine)
        self.ordering = ordering if isinstance(ordering, str) else "given"
        sites = _valid_sites(domain)
        metric = sites / axis_scales(kernel, domain.dimension)
        order = order_sites(ordering, metric)
        neighbours = previous_neighbours(metric[order], neighbors)
        _check_distinct(sites[order], neighbours, order)
        self.register_buffer("sites", sites[order], persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("neighbours", neighbours, persistent=False)
        self._pattern: SparsePattern | None = None

    @property
    def pattern(self) -> SparsePattern:
        """Where ``W`` has entries."""
        if self._pattern is None or self._pattern.neighbours is not self.neighbours:
            self._pattern = SparsePattern(self.neighbours, self.engine)
        return self._pattern

    @property
    def _exact(self) -> bool:
        return self.neighbors >= len(self.sites) - 1

    # ---- factors
    def _compute_rows(self) -> Tensor:
        """``W``, ``(*batch, n, m + 1)``."""
        assert self.kernel is not None
        kernel = self.kernel
        closed = as_isotropic(kernel, self.domain.dimension) if self.pattern.compiled else None
        if closed is not None:
            rows = isotropic_rows(closed, self.sites, self.pattern)
        else:
            rows = conditional_rows(lambda a, b: at_pairs(kernel, a, b), self.sites, self.pattern)
        return rows.reshape(*self.batch_shape, *rows.shape[-2:])

    def _rows(self) -> Tensor:
        rows = self._factor("rows")
        return rows.reshape(-1, *rows.shape[-2:])

    # ---- operations
    def _apply_each(self, x: Tensor, *operations: str) -> Tensor:
        """The operations with ``W``, one after the other, on fields ``(..., *batch, *shape)``."""
        rows, ndim = self._rows(), self.domain.ndim
        lead = torch.broadcast_shapes(x.shape[:-ndim], self.batch_shape)
        fields = x.expand(*lead, *x.shape[-ndim:]).reshape(-1, len(rows), x.shape[-ndim:].numel())
        ordered = fields[..., self._places()].permute(1, 2, 0).double()
        for operation in operations:
            ordered = self.pattern.apply(operation, rows, ordered)
        return self._on_domain(ordered.permute(2, 0, 1)).to(x.dtype).reshape(*lead, *x.shape[-ndim:])

    def _places(self) -> Tensor:
        """Index of each site, in order, in a flat field."""
        if isinstance(self.domain, MaskedGrid):
            valid = self.domain.valid.reshape(-1).nonzero().squeeze(-1)
            return valid.to(self.order.device)[self.order]
        return self.order

    def _on_domain(self, ordered: Tensor) -> Tensor:
        """``(..., n)`` in order as flat fields, 0 where the domain carries no value."""
        size = torch.Size(self.domain.shape).numel()
        flat = ordered.new_zeros(*ordered.shape[:-1], size)
        return flat.index_copy(-1, self._places(), ordered)

    def _color(self, z: Tensor) -> Tensor:
        return self._apply_each(z, "solve")

    def _whiten(self, x: Tensor) -> Tensor:
        return self._apply_each(x, "product")

    def _matmul(self, x: Tensor) -> Tensor:
        return self._apply_each(x, "solve_transposed", "solve")

    def _solve(self, x: Tensor) -> Tensor:
        return self._apply_each(x, "product", "product_transposed")

    def _log_det(self) -> Tensor:
        return -2 * self._factor("rows")[..., -1].log().sum(-1)

    def _compute_variance(self) -> Tensor:
        assert self.kernel is not None
        if self._exact:
            # no need to go through W where Γ is the kernel's own covariance
            values = at_pairs(self.kernel, self.sites, self.sites).double()
        else:
            values = self.pattern.square_norms(self._rows())
        return self._on_domain(values).reshape(*self.batch_shape, *self.domain.shape)

    def _variance(self) -> Tensor:
        return self._factor("variance")

    # ---- what it says about itself
    @property
    def report(self) -> CovarianceReport:
        order = f"{self.ordering} order"
        if self._exact:
            reason = f"every site given all before it ({order})"
            return CovarianceReport(self.method, exact=True, error_bound=0.0, reason=reason)
        return CovarianceReport(
            self.method, exact=False, reason=f"{self.neighbors} nearest previous neighbours, {order}"
        )


def axis_scales(kernel: gpytorch.kernels.Kernel, d: int) -> Tensor:
    """What each axis is divided by for distances between sites: the geometric mean over the batch of the first
    length scales that are given per axis, else 1; ``(d,)``.
    """
    for part in kernel.modules():
        if isinstance(part, StationaryKernel) and part.has_lengthscale:
            ell = part.lengthscale.detach().cpu().double()
            if ell.shape[-1] == d:
                return ell.reshape(-1, d).log().mean(0).exp()
    return torch.ones(d, dtype=torch.float64)


def _check_dimension(kernel: gpytorch.kernels.Kernel, d: int) -> None:
    if isinstance(kernel, gpytorch.kernels.AdditiveKernel | gpytorch.kernels.ProductKernel):
        for part in kernel.kernels:
            _check_dimension(part, d)
    elif hasattr(kernel, "check_dimension"):
        kernel.check_dimension(d)


def _valid_sites(domain: Domain) -> Tensor:
    sites = domain.coordinates().reshape(-1, domain.dimension).to(device="cpu", dtype=torch.float64)
    return sites[domain.valid.reshape(-1)] if isinstance(domain, MaskedGrid) else sites


def _check_distinct(sites: Tensor, neighbours: Tensor, order: Tensor) -> None:
    """Raise where the nearest previous neighbour of a site is at its own place."""
    if len(sites) == 1:
        return
    nearest = neighbours[1:, 0].long()
    same = (sites[1:] == sites[nearest]).all(-1)
    if bool(same.any()):
        later = int(same.nonzero()[0]) + 1
        pair = sorted((int(order[nearest[later - 1]]), int(order[later])))
        raise ValueError(
            f"VecchiaCovariance: {int(same.sum())} of {len(sites)} sites coincide with another (the first: sites {pair[0]} "
            f"and {pair[1]}), so that Γ is singular, a Nugget included: equal sites share it. Merge them (average their "
            "values), or move them apart."
        )
