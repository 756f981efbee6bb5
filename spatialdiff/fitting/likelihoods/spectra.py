r"""Spectral densities of a lattice process, as the discrete Fourier transform of its weighted covariance.

On a grid of shape :math:`(n_1, \dots, n_d)`, at the Fourier frequencies :math:`\omega_k`,

.. math:: f_w(\omega_k) = \sum_{h \in \mathbb{Z}^d} w(h)\, c(h)\, e^{-i \omega_k \cdot h}

- :math:`w = 1` gives the *aliased* spectral density of the infinite lattice, which is the set of eigenvalues
  of the periodised covariance: exact on a torus;
- :math:`w(h) = \sum_s g_s g_{s+h} / \sum_s g_s^2`, the autocorrelation of the taper :math:`g`, gives the
  *expectation of the periodogram* :math:`|\sum_s g_s x_s e^{-i\omega_k s}|^2 / \sum_s g_s^2` with no
  approximation at all; without a taper it is the triangle :math:`\prod_i (1 - |h_i|/n_i)`.

All weights here are products over the axes, so lags are held per axis as ``(m_i, n_i)``: residue modulo
``n_i`` in the columns, and the lags that alias onto it in the rows.

Sources: Whittle 1954; Guinness & Fuentes 2017; Sykulski, Olhede, Guillaumin, Lilly & Early 2019 (debiased
Whittle).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.domains import Grid

CovarianceTable = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class LagWeights:
    """Integer lags and their weights, one ``(m_i, n_i)`` pair per axis; see the module's text."""

    lags: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    @property
    def evaluations(self) -> int:
        """How many lags the covariance is evaluated at."""
        total = 1
        for lag in self.lags:
            total *= lag.numel()
        return total


def cosine_taper(size: int, share: float) -> Tensor:
    """Split cosine bell of ``size`` points with a ``share`` in [0, 1] of them tapered, half at either end (0:
    all ones)."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"taper must be the share of tapered sites, between 0 and 1, got {share}")
    position = torch.arange(size, dtype=torch.float64) + 0.5
    edge = torch.minimum(position, size - position) / max(0.5 * share * size, 1e-300)
    return torch.where(
        edge < 1.0, 0.5 - 0.5 * torch.cos(torch.pi * edge.clamp(max=1.0)), torch.ones_like(edge)
    )


def axis_tapers(grid: Grid, share: float) -> tuple[Tensor, ...]:
    """One taper per axis; periodic axes have no edge and get ones."""
    return tuple(
        cosine_taper(n, 0.0 if periodic else share)
        for n, periodic in zip(grid.shape, grid.periodic, strict=True)
    )


def outer(factors: tuple[Tensor, ...]) -> Tensor:
    """Tensor (outer) product of one vector per axis, shape ``(n_1, ..., n_d)``."""
    product = torch.ones((), dtype=torch.float64)
    for factor in factors:
        product = product.unsqueeze(-1) * factor
    return product


def expected_weights(grid: Grid, taper: float = 0.0) -> LagWeights:
    """Weights of the expected periodogram; on a periodic axis, whose covariance is periodised already, every
    lag counts fully."""
    lags, weights = [], []
    for n, periodic, g in zip(grid.shape, grid.periodic, axis_tapers(grid, taper), strict=True):
        if periodic:
            lag = torch.arange(n).unsqueeze(0)
            weight = torch.ones_like(lag, dtype=torch.float64)
        else:
            lag = torch.stack((torch.arange(n), torch.arange(n) - n))
            spectrum = torch.fft.rfft(g, 2 * n)
            weight = torch.fft.irfft(spectrum.abs().square(), 2 * n).reshape(2, n) / g.square().sum()
            weight[1, 0] = 0.0
        lags.append(lag)
        weights.append(weight)
    return LagWeights(tuple(lags), tuple(weights))


def lattice_weights(grid: Grid, images: int) -> LagWeights:
    """Weights one at every lag, cut after ``images`` periods on either side: the aliased density of the
    infinite lattice."""
    lags = tuple(
        torch.stack([torch.arange(n) + j * n for j in range(-images - 1, images + 1)])
        if not periodic
        else torch.arange(n).unsqueeze(0)
        for n, periodic in zip(grid.shape, grid.periodic, strict=True)
    )
    return LagWeights(lags, tuple(torch.ones_like(lag, dtype=torch.float64) for lag in lags))


def embedding_weights(grid: Grid) -> LagWeights:
    """The circulant of twice the size on every axis that is not periodic: its product with a padded field is
    Γ's, exactly."""
    lags = tuple(
        torch.arange(n).unsqueeze(0)
        if periodic
        else torch.cat((torch.arange(n + 1), torch.arange(1 - n, 0))).unsqueeze(0)
        for n, periodic in zip(grid.shape, grid.periodic, strict=True)
    )
    return LagWeights(lags, tuple(torch.ones_like(lag, dtype=torch.float64) for lag in lags))


def folded_covariance(covariance: CovarianceTable, weights: LagWeights) -> Tensor:
    """Sum of ``w(h) c(h)`` over the lags that alias onto each residue; its shape is the number of columns of
    each axis.

    Args:
        covariance: maps whole-number lags, one vector per axis, to the covariance on their outer grid.
        weights: which lags, and their weights.
    """
    values = covariance([lag.reshape(-1) for lag in weights.lags])
    values = values.reshape([size for lag in weights.lags for size in lag.shape])
    for axis, weight in enumerate(weights.weights):
        trailing = values.ndim - axis - 2
        values = (values * weight.reshape(*weight.shape, *[1] * trailing)).sum(dim=axis)
    return values


def spectral_density(covariance: CovarianceTable, weights: LagWeights) -> Tensor:
    r"""The density :math:`f_w` at the Fourier frequencies, shape ``(*grid)``, in the order of ``fftn``.

    It is on the scale of the periodogram ``|fftn(x)|² / n``, so it averages to the process variance.
    """
    density: Tensor = torch.fft.fftn(folded_covariance(covariance, weights)).real
    return density


def periodogram(values: Tensor, grid: Grid, taper: float = 0.0) -> Tensor:
    """Tapered periodogram ``|Σ g_s x_s exp(-iω·s)|² / Σ g_s²`` of fields ``(..., *grid)``."""
    window = outer(axis_tapers(grid, taper))
    axes = tuple(range(-grid.ndim, 0))
    power: Tensor = torch.fft.fftn(values * window, dim=axes).abs().square() / window.square().sum()
    return power


def full_spectrum(half: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The full even spectrum ``(..., *shape)`` (``fftn`` layout) from its stored half (``rfftn`` layout)."""
    index = [(-torch.arange(n)) % n for n in shape]
    last = torch.arange(shape[-1])
    mirrored = half[torch.meshgrid(*index[:-1], torch.arange(half.shape[-1]), indexing="ij")]
    source = torch.where(last < half.shape[-1], last, shape[-1] - last)
    return torch.where(last < half.shape[-1], half[..., source], mirrored[..., source])


def images_needed(covariance: CovarianceTable, grid: Grid, tolerance: float = 1e-10) -> int | None:
    """Periods along the axes that do not wrap after which the covariance is below ``tolerance`` of that at 0;
    ``None`` over 256."""
    needed = 0
    for axis in (i for i in range(grid.ndim) if not grid.periodic[i]):
        lags = [torch.zeros(1, dtype=torch.long)] * grid.ndim
        lags[axis] = torch.arange(257) * grid.shape[axis]
        values = covariance(lags).detach().reshape(-1).abs()
        small = (values[1:] <= tolerance * values[0]).nonzero()
        if len(small) == 0:
            return None
        needed = max(needed, int(small[0, 0]) + 1)
    return needed
