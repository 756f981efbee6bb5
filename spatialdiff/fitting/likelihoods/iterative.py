r"""The exact Gaussian likelihood without a matrix, at the price of a Monte-Carlo error that is reported.

``log det Γ`` and its derivative are estimated from random probes, everything else is exact to ``tolerance``;
see :mod:`.stochastic`. Products with Γ are by FFT through a circulant matrix on a grid, masked or not, and by
tiles on scattered points.

============================  ====================  =======================
domain                        a product costs       Γ
============================  ====================  =======================
grid, masked grid             O(n log n)            any stationary kernel
anything with coordinates     O(n²), memory O(n)    any kernel
============================  ====================  =======================

Sources: Gardner et al. 2018; Ubaru, Chen & Saad 2017; Dietrich & Newsam 1997 (products by circulants).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance.grids.embedding import fast_size
from spatialdiff.domains import Graph, Grid, MaskedGrid, Sphere
from spatialdiff.fitting.likelihoods.operators import (
    BoundOperator,
    KernelProduct,
    SpectralOperator,
    TileOperator,
    density_jacobian,
    finite,
)
from spatialdiff.fitting.likelihoods.spectra import LagWeights, spectral_density
from spatialdiff.fitting.likelihoods.stochastic import StochasticLikelihood
from spatialdiff.fitting.likelihoods.whittle import covariance_table
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters


class IterativeLikelihood(StochasticLikelihood):
    """The likelihood by conjugate gradients and stochastic Lanczos quadrature, on grids, masked grids, points
    and other domains with coordinates; any pattern of missing values.

    Args:
        model: the kernel; on a grid with a periodic axis it has to be stationary.
        data: the fields.
        restricted: the likelihood of the contrasts that are free of the mean.
        probes: the standard error falls with their square root.
        tolerance: relative residual of solves.
        neighbors: of the sparse factor that Γ is preconditioned with; more of them lower the error, too.
        max_iterations: of conjugate gradients.
        seed: of the probes.

    Raises:
        ValueError: a `Coregionalization`, a domain without coordinates, a kernel that is not stationary on a
            periodic axis.
    """

    def __init__(
        self,
        model: KernelParameters,
        data: Observations,
        restricted: bool = False,
        *,
        probes: int = 16,
        tolerance: float = 1e-8,
        neighbors: int = 20,
        max_iterations: int = 1000,
        seed: int = 0,
    ) -> None:
        domain = data.domain
        if isinstance(domain, Graph) or (isinstance(domain, Sphere) and domain.poles):
            raise ValueError(
                f"method='iterative' needs sites with coordinates, each once, got {domain}: use "
                "method='exact'"
            )
        super().__init__(
            model,
            data,
            restricted,
            probes=probes,
            tolerance=tolerance,
            neighbors=neighbors,
            max_iterations=max_iterations,
            seed=seed,
        )
        self._grid: Grid | None = None
        if isinstance(domain, Grid | MaskedGrid):
            grid = domain.grid if isinstance(domain, MaskedGrid) else domain
            if model.is_stationary(model.start(), self._sites[:: max(1, len(self._sites) // 1000)]):
                self._grid, self._weights = grid, embedding_lags(grid)
                sizes = tuple(lag.shape[-1] for lag in self._weights.lags)
                self._cells = cells_in(domain, sizes)
            elif any(grid.periodic):
                raise ValueError(
                    "on a grid with a periodic axis the likelihood needs a stationary kernel: k(x, x') a "
                    "function of x - x'"
                )
        if self._grid is None:
            self._product = KernelProduct(model, self._sites)

    def _density_at(self, theta: Tensor) -> Tensor:
        assert self._grid is not None
        table = covariance_table(self.model, theta, self._grid)
        return finite(spectral_density(table, self._weights))

    def bind(self, theta: Tensor) -> BoundOperator:
        if self._grid is None:
            return TileOperator(self.model, self._product, theta)
        return SpectralOperator(self._density_at(theta), self._cells)

    def jacobian(self, theta: Tensor) -> Tensor | None:
        return None if self._grid is None else density_jacobian(self.model, self._density_at, theta)


def embedding_lags(grid: Grid) -> LagWeights:
    """The lags of a circulant with Γ as its corner: ``m ≥ 2n - 1`` on open axes, ``n`` on periodic ones."""
    lags = []
    for n, periodic in zip(grid.shape, grid.periodic, strict=True):
        m = n if periodic else fast_size(2 * n - 1)
        lag = torch.arange(m)
        lags.append((lag if periodic else torch.where(lag <= m // 2, lag, lag - m)).unsqueeze(0))
    return LagWeights(tuple(lags), tuple(torch.ones_like(lag, dtype=torch.float64) for lag in lags))


def cells_in(domain: Grid | MaskedGrid, sizes: tuple[int, ...]) -> Tensor:
    """Flat indices of the domain's sites in a torus of ``sizes`` cells."""
    axes = torch.stack(torch.meshgrid(*(torch.arange(n) for n in domain.shape), indexing="ij"))
    index = torch.zeros(domain.shape, dtype=torch.long)
    for axis, size in zip(axes, sizes, strict=True):
        index = index * size + axis
    found: Tensor = domain.flatten(index)
    return found
