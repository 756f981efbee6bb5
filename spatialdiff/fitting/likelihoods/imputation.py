r"""Whittle's likelihood with missing cells, imputed under a circulant covariance on a larger torus.

The grid is put on a torus of ``m`` cells, some *padding* longer on every open axis, whose field has the
eigenvalues :math:`f_k(\theta)`, the aliased spectral density at the torus's Fourier frequencies. Had every
cell of the torus been seen, the likelihood would be Whittle's,
:math:`-\tfrac12\sum_k[\log 2\pi f_k + P_k/f_k]`.
Cells that were masked, are missing, or are padding, are integrated out: what is maximised is the exact
likelihood of the observed cells under the periodic field,

.. math:: \ell(\theta) = \log N(y;\,0,\, P\,C_\theta P^T), \qquad C_\theta = F^*\operatorname{diag}(f)F,

``P`` the choice of the observed cells. By Fisher's identity its gradient is the complete-data Whittle score
averaged over imputations of everything else,

.. math:: \partial\ell = \operatorname{E}\Big[\tfrac12\sum_k\frac{\partial f_k}{f_k^2}
    (P_k - f_k)\,\Big|\,y\Big],

so that its maximum is where EM over imputations ends; it is computed without drawing them (`impute` does).
All products are FFTs on the torus. Up to ``exact_sites`` observed cells determinants are by Cholesky; beyond,
:mod:`.stochastic`.

The approximation is the periodic field: cells at opposite edges are neighbours across the padding, and their
correlation is off by that at the padding's length. Standard errors are those of the sandwich
:math:`H^{-1}VH^{-1}` with the variance ``V`` of the gradient under the kernel on the open grid.

Sources: Guinness & Fuentes 2017 (circulant embedding with imputation); Guinness 2019 (periodic embeddings);
Fisher's identity: Louis 1982; White 1982 (sandwich).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.covariance.grids.embedding import fast_size
from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.iterative import cells_in, embedding_lags
from spatialdiff.fitting.likelihoods.operators import SpectralOperator, density_jacobian, finite
from spatialdiff.fitting.likelihoods.sandwich import dense_score_covariance, stochastic_score_covariance
from spatialdiff.fitting.likelihoods.spectra import expected_weights, spectral_density
from spatialdiff.fitting.likelihoods.stochastic import StochasticLikelihood
from spatialdiff.fitting.likelihoods.whittle import covariance_table
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters


class ImputedWhittle(StochasticLikelihood):
    """Likelihood of the observed cells of a grid under a periodic field on a padded torus.

    Args:
        model: a stationary kernel.
        data: fields on a `Grid` or a `MaskedGrid`, with any pattern of missing values.
        padding: cells added to each open axis, as a share of its length; the longest range that fits is some
            of it.
        imputations: number of random fields from which the determinant is estimated, of each pattern, where
            it is not exact.
        seed: of those.
        neighbors: of each cell in the preconditioner.
        tolerance: relative residual of solves.
        exact_sites: number of observed cells of a field up to which the determinant is exact.

    Raises:
        ValueError: another domain, a kernel that is not stationary, a negative padding, options of complete
            grids.
    """

    def __init__(
        self,
        model: KernelParameters,
        data: Observations,
        *,
        padding: float = 0.5,
        imputations: int = 16,
        seed: int = 0,
        neighbors: int = 20,
        tolerance: float = 1e-8,
        exact_sites: int = 1600,
        density: str | None = None,
        taper: float = 0.0,
    ) -> None:
        domain = data.domain
        if not isinstance(domain, Grid | MaskedGrid):
            raise ValueError(f"imputation needs a regular grid, masked or not, got {domain}")
        if density is not None or taper:
            raise ValueError(
                "density= and taper= are for complete grids; with missing cells the likelihood has the "
                "aliased density of a torus and padding="
            )
        if not padding >= 0.0:
            raise ValueError(f"padding must be a share of the grid, 0 or more, got {padding}")
        super().__init__(model, data, probes=imputations, tolerance=tolerance, neighbors=neighbors, seed=seed)
        self.padding = padding
        grid = domain.grid if isinstance(domain, MaskedGrid) else domain
        if not model.is_stationary(model.start(), self._sites[:: max(1, len(self._sites) // 1000)]):
            raise ValueError(
                "the kernel is not stationary (k(x, x + h) changes with x), so it has no spectral density: "
                "use method='exact' or 'vecchia'"
            )
        sizes = tuple(
            n if wraps or n == 1 else fast_size(math.ceil(n * (1.0 + padding)))
            for n, wraps in zip(grid.shape, grid.periodic, strict=True)
        )
        self.torus = Grid(sizes, grid.spacing, periodic=True)
        self._grid, self._cells = grid, cells_in(domain, sizes)
        self._closed = model.torus_density(model.start(), self.torus) is not None
        seen = data.flat_observed()
        largest = len(self._sites) if seen is None else int(seen.sum(-1).max())
        self._dense = _PeriodicDense(self) if largest <= exact_sites else None

    def density_at(self, theta: Tensor) -> Tensor:
        """Eigenvalues of the periodic field, ``(*torus)``."""
        if self._closed:
            closed = self.model.torus_density(theta, self.torus)
            assert closed is not None
            return finite(closed)
        table = covariance_table(self.model, theta, self.torus)
        return finite(spectral_density(table, expected_weights(self.torus)))

    def bind(self, theta: Tensor) -> SpectralOperator:
        return SpectralOperator(self.density_at(theta), self._cells)

    def jacobian(self, theta: Tensor) -> Tensor:
        return density_jacobian(self.model, self.density_at, theta)

    def open_operator(self, theta: Tensor) -> SpectralOperator:
        """Γ of the kernel itself, on the open grid."""
        weights = embedding_lags(self._grid)
        table = covariance_table(self.model, theta, self._grid)
        sizes = tuple(lag.shape[-1] for lag in weights.lags)
        domain = self.data.domain
        assert isinstance(domain, Grid | MaskedGrid)
        return SpectralOperator(finite(spectral_density(table, weights)), cells_in(domain, sizes))

    def periodic_error(self, theta: Tensor) -> float:
        """Largest error of a correlation between two cells of the grid that comes from the torus."""
        with torch.no_grad():
            row = torch.fft.ifftn(self.density_at(theta)).real
            lags = [torch.arange(n) for n in self._grid.shape]
            true = self.model.covariance(theta, self._grid, lags)
            for axis, n in enumerate(self._grid.shape):
                row = row.narrow(axis, 0, n)
            return float((row - true).abs().max() / true.reshape(-1)[0])

    # ---- few cells: exact
    def __call__(self, theta: Tensor) -> Tensor:
        return super().__call__(theta) if self._dense is None else self._dense(theta)

    def standard_error(self, theta: Tensor) -> float:
        return super().standard_error(theta) if self._dense is None else 0.0

    def gradient_covariance(self, theta: Tensor) -> Tensor:
        """Monte-Carlo covariance ``(p, p)`` of the gradient; 0 where determinants are exact."""
        if self._dense is None:
            return super().gradient_covariance(theta)
        return torch.zeros(len(theta), len(theta), dtype=torch.float64)

    def coefficients(self, theta: Tensor) -> Tensor | None:
        return super().coefficients(theta) if self._dense is None else self._dense.coefficients(theta)

    def coefficient_covariance(self, theta: Tensor) -> Tensor | None:
        if self._dense is None:
            return super().coefficient_covariance(theta)
        return self._dense.coefficient_covariance(theta)

    def score_covariance(self, theta: Tensor) -> Tensor | None:
        """Variance of the gradient under the kernel on the open grid, and from the probes."""
        theta = theta.detach()
        if self._dense is not None:
            truth = DenseLikelihood(self.model, self.data).covariance(theta)
            return dense_score_covariance(self._dense, truth, theta)
        return stochastic_score_covariance(self, self.open_operator(theta), theta) + self.gradient_covariance(
            theta
        )

    # ---- imputation
    def impute(self, theta: Tensor, number: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the fields' deviations from their mean at every cell of the torus, given those observed:
        ``(number, N, C, *torus)``; the grid is the corner of the torus. Observed cells keep their values.

        By Matheron's rule: ``x + C Pᵀ (P C Pᵀ)⁻¹ (y - P x)``, ``x ~ N(0, C)``.
        """
        theta = theta.detach()
        data, sizes = self.data, self.torus.shape
        axes = tuple(range(-len(sizes), 0))
        with torch.no_grad():
            bound = self.bind(theta)
            root = bound.density.clamp(min=0.0).sqrt()
            flat, seen = data.flat(), data.flat_observed()
            added = self.coefficients(theta)
            if added is not None and data.design is not None:
                flat = flat - (data.design @ added.T).T
            result = torch.empty(number, data.total, data.channels, *sizes, dtype=torch.float64)
            for group in self.groups:
                w = group.near.rows(theta)
                own = torch.zeros(flat.shape[-1], dtype=torch.bool)
                own[group.rows] = True
                for i in range(data.total):
                    for c in range(data.channels):
                        if seen is not None and not bool((seen[i, c] == own).all()):
                            continue
                        white = torch.randn(number, *sizes, generator=generator, dtype=torch.float64)
                        draw: Tensor = torch.fft.ifftn(root * torch.fft.fftn(white, dim=axes), dim=axes).real
                        here = draw.flatten(1)[:, self._cells[group.rows]]
                        solved = self._solve(bound, group, w, flat[i, c, group.rows] - here)
                        result[:, i, c] = draw + bound.everywhere(solved, group.rows)
        return result


class _PeriodicDense(DenseLikelihood):
    """The likelihood of the observed cells by the matrix ``P C Pᵀ``."""

    def __init__(self, owner: ImputedWhittle) -> None:
        super().__init__(owner.model, owner.data)
        self._density_at = owner.density_at
        domain = owner.data.domain
        axes = torch.stack(torch.meshgrid(*(torch.arange(n) for n in domain.shape), indexing="ij"))
        sites = domain.flatten(axes).T
        self._places = torch.zeros(len(sites), len(sites), dtype=torch.long)
        for axis, size in enumerate(owner.torus.shape):
            lag = (sites[:, None, axis] - sites[None, :, axis]) % size
            self._places = self._places * size + lag

    def covariance(self, theta: Tensor) -> Tensor:
        density = self._density_at(theta)
        if float(density.detach().amax()) <= 0.0:
            raise NotPositiveDefiniteError
        row: Tensor = torch.fft.ifftn(density).real
        return row.reshape(-1)[self._places]
