r"""Γ by Vecchia's approximation: each site given its nearest neighbours among those before it.

In an order of the sites, ``p(x) = ∏ p(x_i | x_1 … x_{i-1}) ≈ ∏ p(x_i | x_N(i))`` with at most ``m`` sites
in ``N(i)`` (Vecchia 1988). That is the density of a Gaussian vector with ``Γ⁻¹ = Wᵀ W``, ``W`` sparse and
lower triangular in that
order: ``R = W⁻¹`` is a square root, ``log det Γ = -2 Σ log W_ii``, and every operation costs ``O(n m)``
once the rows are there, which costs ``O(n m³)``. All of it is exact for the approximation, which is the
covariance itself where ``m ≥ n - 1`` (Guinness 2018; Katzfuss and Guinness 2021).
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.points.conditionals import as_isotropic, conditional_rows, isotropic_rows
from spatialdiff.covariance.points.metric import neighbour_metric
from spatialdiff.covariance.points.neighbours import previous_neighbours
from spatialdiff.covariance.points.ordering import order_sites
from spatialdiff.covariance.points.triangular import SparsePattern, choose_engine
from spatialdiff.covariance.points.vecchia_error import kl_divergence, kl_gains, largest_error
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain
from spatialdiff.kernels import at_pairs
from spatialdiff.kernels.base import align

# sites up to which the covariance itself is factorised, and up to which a report does so
_DENSE = 5000
_REPORTED = 2000
_COLUMNS = 16


class VecchiaCovariance(Covariance):
    """Γ_s with ``Γ_s⁻¹ = Wᵀ W``, for any kernel on any domain with coordinates.

    Order and neighbours are fixed when Γ is made, by distances in which the kernel then falls off alike in
    all directions (`spatialdiff.covariance.points.metric`): after a fit that changed anisotropy a new Γ
    has better neighbours.

    The approximation is good where neighbours screen off the rest of the field: for smooth kernels with a
    large nugget, and where the length scale is many times the distance that ``m`` neighbours reach, take
    more neighbours and look at `report` or `kl_divergence`. The marginal variance is not exactly that of
    the kernel; `variance` computes what it is, in seconds for 10,000 sites and a minute for 100,000. Where
    the nugget is measurement error, Γ of the field without it, plus a nugget of its own, approximates
    better (Katzfuss and Guinness 2021).

    Args:
        kernel: any gpytorch kernel, stationary or not; a nugget belongs to the field.
        domain: points, a mesh, a sphere without poles, or a grid that is not periodic, masked or not.
        channels: see `Covariance`.
        neighbors: ``m``.
        ordering: ``"maximin"``, ``"coordinate"``, ``"random"`` (a fixed seed), or a permutation of the
            sites; see `spatialdiff.covariance.points.ordering`.
        engine: ``"numba"``, ``"torch"``, or ``"auto"``: compiled loops where numba is installed and Γ
            is on the CPU.

    Raises:
        ValueError: a periodic grid, a sphere with poles, sites that coincide without a nugget, a kernel
            that is not valid in the dimension, a number of neighbours below 1, a permutation that is none;
            Γ is not positive definite (at the first use).
        ImportError: ``engine="numba"`` without numba.
    """

    method = "vecchia"
    metric: Tensor
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
        self.neighbors, self.engine = neighbors, choose_engine(engine)
        self.ordering = ordering if isinstance(ordering, str) else "given"
        sites = domain.sites()
        if len(sites) != domain.size:
            raise ValueError(
                f"VecchiaCovariance: {domain} writes {domain.size} sites {len(sites)} times, a pole along "
                "its row; use Sphere(..., poles=False) or a Gauss-Legendre grid."
            )
        with torch.no_grad():
            at_pairs(kernel, sites[:1], sites[:1])  # refuses a dimension in which the kernel is not valid
        metric = neighbour_metric(kernel, sites)
        order = order_sites(ordering, sites @ metric, self.engine)
        neighbours = previous_neighbours((sites @ metric)[order], neighbors)
        self._repeated = _check_distinct(sites[order], neighbours, order, kernel)
        self.register_buffer("metric", metric, persistent=False)
        self.register_buffer("sites", sites[order], persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("neighbours", neighbours, persistent=False)
        self._pattern: SparsePattern | None = None
        self._held: Tensor | None = None

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
    def _covariance(self, x1: Tensor, x2: Tensor, different: Tensor) -> Tensor:
        """``k`` of coordinates ``(..., d)`` → ``(*batch, ...)``, without the nugget for ``different`` sites
        at one place.
        """
        assert self.kernel is not None
        values = at_pairs(self.kernel, x1, x2).to(torch.float64)
        if self._repeated:
            same = different & (x1 == x2).all(-1)
            values = values - align(_nugget(self.kernel).to(values), values) * same
        return values

    def _compute_rows(self) -> Tensor:
        """``W``, ``(*batch, n, m + 1)``."""
        assert self.kernel is not None
        closed = as_isotropic(self.kernel, self.domain.dimension) if self.pattern.compiled else None
        if closed is not None:
            rows = isotropic_rows(closed, self.sites, self.pattern)
        else:
            rows = conditional_rows(self._covariance, self.sites, self.pattern)
            rows = rows.expand(*self.batch_shape, -1, -1)
        return rows.reshape(*self.batch_shape, *rows.shape[-2:])

    def _current_rows(self) -> Tensor:
        return self._factor("rows") if self._held is None else self._held

    def _rows(self) -> Tensor:
        rows = self._current_rows()
        return rows.reshape(-1, *rows.shape[-2:])

    # ---- operations
    def _apply_each(self, x: Tensor, *operations: str) -> Tensor:
        """The operations with ``W``, one after the other, on fields ``(..., *batch, *shape)``."""
        rows, domain = self._rows(), self.domain
        flat = domain.flatten(x)[..., self.order].double()
        fields = flat.reshape(-1, len(rows), domain.size).permute(1, 2, 0)
        for operation in operations:
            fields = self.pattern.apply(operation, rows, fields)
        flat = fields.permute(2, 0, 1).reshape(flat.shape)
        return domain.unflatten(flat[..., self._inverse_order()].to(x.dtype))

    def _inverse_order(self) -> Tensor:
        return torch.empty_like(self.order).index_copy(
            0, self.order, torch.arange(len(self.order), device=self.device)
        )

    def _color(self, z: Tensor) -> Tensor:
        return self._apply_each(z, "solve")

    def _whiten(self, x: Tensor) -> Tensor:
        return self._apply_each(x, "product")

    def _matmul(self, x: Tensor) -> Tensor:
        return self._apply_each(x, "solve_transposed", "solve")

    def _solve(self, x: Tensor) -> Tensor:
        return self._apply_each(x, "product", "product_transposed")

    def _log_det(self) -> Tensor:
        return -2 * self._current_rows()[..., -1].log().sum(-1)

    def quad_form(self, x: Tensor) -> Tensor:
        return self.whiten(x).square().sum(self._event_axes())

    def log_prob(self, x: Tensor) -> Tensor:
        # where a gradient is wanted, the determinant and the quadratic form would each make the rows
        self._held = self._factor("rows")
        try:
            return super().log_prob(x)
        finally:
            self._held = None

    def _compute_variance(self) -> Tensor:
        if self._exact:
            # no need to go through W where Γ is the kernel's own covariance
            itself = torch.zeros((), dtype=torch.bool, device=self.device)
            values = self._covariance(self.sites, self.sites, itself)
        else:
            values = self.pattern.square_norms(self._rows()).reshape(*self.batch_shape, -1)
        return self.domain.unflatten(values[..., self._inverse_order()])

    def _variance(self) -> Tensor:
        return self._factor("variance")

    # ---- what it says about itself
    def kl_divergence(self) -> Tensor:
        """``KL(N(0, K) ‖ N(0, Γ_s)) = ½ (log det Γ_s - log det K)`` of the approximation from the law that
        was asked for, nats, ``(*batch_shape,)``; ``O(n³)``.

        Raises:
            ValueError: more than 5000 sites; use `kl_estimate`.
        """
        if len(self.sites) > _DENSE:
            raise ValueError(
                f"kl_divergence factorises the covariance of all {len(self.sites)} sites; beyond {_DENSE} "
                "use kl_estimate, a lower bound from some of them."
            )
        with torch.no_grad():
            return kl_divergence(self._covariance, self.sites, self._log_det())

    def kl_estimate(self, sites: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
        """An estimate of a lower bound of `kl_divergence`, and its standard error, ``(*batch_shape,)``
        each: what eight times the neighbours would gain, from ``sites`` sites drawn at random.

        ``KL ≥ ½ Σ_i log(d_i/d_i')``, see `spatialdiff.covariance.points.vecchia_error`.
        """
        n = len(self.sites)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(n, (sites,), generator=generator).to(self.device)
        with torch.no_grad():
            gains = kl_gains(
                self._covariance,
                self.sites,
                self.sites @ self.metric,
                self._factor("rows"),
                chosen,
                8 * self.neighbors,
            )
        return n * gains.mean(-1), n * gains.std(-1) / sites**0.5

    def _compute_diagnostics(self) -> Tensor:
        """Largest error of an entry, relative error, divergence per site and its standard error."""
        n = len(self.sites)
        if n <= _REPORTED:
            columns = torch.arange(n)
            divergence, error = self.kl_divergence(), torch.zeros(())
        else:
            columns = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_COLUMNS]
            divergence, error = self.kl_estimate()
        worst, relative = largest_error(
            self._covariance, self.sites, self._rows(), self.pattern, columns.to(self.device)
        )
        return torch.stack([worst, relative, divergence.max() / n, error.max() / n])

    def _report(self) -> CovarianceReport:
        """Up to 2000 sites the errors are computed, beyond they are estimated and said to be so."""
        n = len(self.sites)
        how = f"{self.ordering} order, {'compiled' if self.pattern.compiled else 'plain'} loops"
        if self._exact:
            reason = f"every site given all before it ({how})"
            return CovarianceReport(self.method, exact=True, error_bound=0.0, reason=reason)
        worst, relative, divergence, error = self._factor("diagnostics").tolist()
        reason = f"each site given {self.neighbors} of the {n - 1} others at most ({how}); "
        if n <= _REPORTED:
            reason += f"KL divergence {divergence:.3g} nats per site"
            return CovarianceReport(
                self.method, exact=False, error_bound=worst, relative_error=relative, reason=reason
            )
        reason += (
            f"estimates: largest error in {_COLUMNS} columns of Γ {worst:.3g} (relative error "
            f"{relative:.3g}), KL divergence at least {divergence:.3g} ± {error:.1g} nats per site"
        )
        return CovarianceReport(self.method, exact=False, reason=reason)


def _nugget(kernel: gpytorch.kernels.Kernel) -> Tensor:
    nugget: Tensor = getattr(kernel, "nugget", torch.zeros((), dtype=torch.float64))
    return nugget


def _check_distinct(
    sites: Tensor, neighbours: Tensor, order: Tensor, kernel: gpytorch.kernels.Kernel
) -> bool:
    """Whether sites coincide; raises where they do and there is no nugget."""
    if len(sites) == 1:
        return False
    # a site that repeats an earlier one has it for its nearest
    nearest = neighbours[1:, 0].long()
    same = (sites[1:] == sites[nearest]).all(-1)
    if not bool(same.any()):
        return False
    if bool((_nugget(kernel) > 0).all()):
        return True
    later = int(same.nonzero()[0]) + 1
    pair = sorted((int(order[nearest[later - 1]]), int(order[later])))
    raise ValueError(
        f"VecchiaCovariance: {int(same.sum())} of {len(sites)} sites repeat an earlier one (such as sites "
        f"{pair[0]} and {pair[1]}), so that Γ is singular. Keep one of each, average their values, or add a "
        "Nugget to the kernel, which then is drawn for every site on its own."
    )
