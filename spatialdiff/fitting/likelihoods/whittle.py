r"""Gaussian log-likelihoods of replicated fields in the Fourier basis, as functions of a kernel's parameters.

With periodogram sums :math:`P_k`, counts :math:`\nu_k` and a density :math:`f` (see :mod:`.spectra`):

.. math:: \ell = -\tfrac12 \sum_k \left[\nu_k \log 2\pi f_k + P_k / f_k\right]

This is the exact likelihood on a torus (`f` the eigenvalues) and Whittle's elsewhere. With a mean per site it
is the restricted likelihood of the :math:`N - 1` contrasts that are free of the mean.

Sources: Whittle 1954; Guinness & Fuentes 2017; Sykulski et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.fitting.likelihoods.base import Likelihood, NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.spectra import (
    CovarianceTable,
    axis_tapers,
    embedding_weights,
    expected_weights,
    folded_covariance,
    images_needed,
    lattice_weights,
    outer,
    periodogram,
    spectral_density,
)
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters

_MAX_LAGS = 6_000_000
_PROBES = 32


class SpectralLikelihood(Likelihood):
    """Likelihood of the Fourier coefficients: exact on a torus (``density="lattice"``, no taper), Whittle's
    elsewhere.

    Args:
        model: the kernel.
        data: the fields.
        density: ``"expected"`` (expectation of the periodogram) or ``"lattice"`` (aliased density of the
            infinite lattice).
        taper: share of the sites of each non-periodic axis under a cosine bell.
        exact: count every replicate at the domain mean, as the likelihood with a profiled mean does (torus);
            otherwise the domain mean loses the replicate that went into the mean.
    """

    def __init__(
        self,
        model: KernelParameters,
        data: Observations,
        density: str = "expected",
        taper: float = 0.0,
        exact: bool = False,
    ) -> None:
        self.model, self.data, self.density, self.taper, self.exact = model, data, density, taper, exact
        if density not in ("expected", "lattice"):
            raise ValueError(f"density must be 'expected' or 'lattice', got {density!r}")
        points = data.grid.coordinates().reshape(data.grid.size, -1)
        if not model.is_stationary(model.start(), points):
            raise ValueError(
                "the kernel is not stationary (k(x, x + h) changes with x), so it has no spectral density: "
                "use method='exact' "
                "on a grid without periodic axes"
            )
        self.power = periodogram(data.values, data.grid, taper).sum(dim=(0, 1))
        self.count = torch.full(data.grid.shape, float(data.count * data.channels), dtype=torch.float64)
        if not exact:
            self.count.reshape(-1)[0] = float(data.count_at_zero * data.channels)
        self.used = self.count > 0
        self.closed = all(data.grid.periodic) and model.torus_density(model.start(), data.grid) is not None

    def density_at(self, theta: Tensor) -> Tensor:
        """The model's spectral density at the Fourier frequencies, shape ``(*grid)``."""
        grid = self.data.grid
        if self.closed:
            closed = self.model.torus_density(theta, grid)
            assert closed is not None
            return closed
        table = covariance_table(self.model, theta, grid)
        if self.density == "expected":
            return spectral_density(table, expected_weights(grid, self.taper))
        images = images_needed(table, grid)
        if images is None or grid.size * (2 * images + 2) ** grid.periodic.count(False) > _MAX_LAGS:
            raise NotPositiveDefiniteError
        return spectral_density(table, lattice_weights(grid, images))

    def __call__(self, theta: Tensor) -> Tensor:
        density = self.density_at(theta)
        smallest, largest = float(density.detach().amin()), float(density.detach().amax())
        # an FFT leaves rounding of the size of the largest value; a closed form does not, but the data are
        # rounded too, and a density below their rounding would be fitted to it
        rounding = 100.0 * self.data.resolution**2 * float(density.detach().mean())
        floor = rounding if self.closed else max(rounding, 1e-13 * largest)
        if not math.isfinite(largest) or smallest <= floor:
            raise NotPositiveDefiniteError
        used = self.used
        count, power, f = self.count[used], self.power[used], density[used]
        return -0.5 * (count * (2.0 * math.pi * f).log() + power / f).sum()

    def mean_variance(self, theta: Tensor) -> tuple[float, float]:
        grid = self.data.grid
        if all(grid.periodic):
            with torch.no_grad():
                density = self.density_at(theta)
            return float(density.reshape(-1)[0]) / grid.size, float(density.mean())
        with torch.no_grad():
            folded = folded_covariance(covariance_table(self.model, theta, grid), expected_weights(grid))
        return float(folded.sum()) / grid.size, float(folded.reshape(-1)[0])

    def score_covariance(self, theta: Tensor) -> Tensor | None:
        r"""``Var ∂ℓ/∂θ`` under the model, by Hutchinson's estimator of ``2 tr(A_i Γ A_j Γ)`` with exact
        products with Γ.

        The score is a sum of quadratic forms :math:`x^T A_j x`, :math:`A_j = G F^* \mathrm{diag}(a_j) F G /
        \sum g^2`, :math:`a_j = \partial_j f / 2f^2`. Periodogram ordinates are correlated off the torus, more
        so with a taper, and the observed information alone then gives standard errors that are too small.
        """
        data = self.data
        if all(data.grid.periodic):
            return None
        grid = data.grid
        axes = tuple(range(-grid.ndim, 0))
        window = outer(axis_tapers(grid, self.taper))
        with torch.no_grad():
            density = self.density_at(theta)
            slopes = []
            for j in range(len(theta)):
                low, high = self.model.free[j].theta_bounds
                below, above = theta.clone(), theta.clone()
                below[j], above[j] = max(float(theta[j]) - 1e-4, low), min(float(theta[j]) + 1e-4, high)
                width = float(above[j] - below[j])
                slopes.append((self.density_at(above) - self.density_at(below)) / width)
            scale = grid.size / float(window.square().sum())
            forms = torch.stack(slopes) / (2.0 * density.square()) * self.used * scale
            weights = embedding_weights(grid)
            padded = [lag.shape[-1] for lag in weights.lags]
            embedded = spectral_density(covariance_table(self.model, theta, grid), weights)

            def gamma(x: Tensor) -> Tensor:
                product: Tensor = torch.fft.ifftn(
                    embedded * torch.fft.fftn(x, s=padded, dim=axes), dim=axes
                ).real
                for axis, n in zip(axes, grid.shape, strict=True):
                    product = product.narrow(axis, 0, n)
                return product

            def form(x: Tensor) -> Tensor:
                filtered: Tensor = torch.fft.ifftn(
                    forms * torch.fft.fftn(window * x, dim=axes), dim=axes
                ).real
                return window * filtered

            generator = torch.Generator().manual_seed(0)
            total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
            for _ in range(_PROBES):
                probe = torch.randint(0, 2, grid.shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0
                left, right = form(probe), gamma(form(gamma(probe)))
                total += torch.einsum("ik,jk->ij", left.flatten(1), right.flatten(1))
        variance = 2.0 * data.count * data.channels * total / _PROBES
        return 0.5 * (variance + variance.T)


def covariance_table(model: KernelParameters, theta: Tensor, grid: Grid) -> CovarianceTable:
    def table(lags: Sequence[Tensor]) -> Tensor:
        try:
            return model.covariance(theta, grid, lags)
        except ValueError as error:
            if "periodic images" not in str(error):
                raise
            raise NotPositiveDefiniteError from error

    return table
