r"""Γ from data without a family: the smoothed spectrum of the fields in a basis where Γ shall be diagonal.

With :math:`c^{(i)}_k` the coefficients of the :math:`i`-th centred field in an orthonormal Fourier or cosine
basis,

.. math::
    \hat\gamma_k = \operatorname{smooth}_{|k|}\Big(\tfrac1N \sum_i |c^{(i)}_k|^2\Big)\ (k \ne 0), \qquad
    \hat\gamma_0 = \tfrac{1}{N_0} \sum_i |c^{(i)}_0|^2 .

The zero mode, which is the domain mean, is estimated by itself, and neither a family nor a neighbour decides
what share of the variance it gets. Standard errors are those of :math:`\chi^2` with the number of replicates
as degrees of freedom, :math:`\sqrt{2/\nu}` relative. Fields that depend on one another (consecutive days,
overlapping patches) are worth fewer than they are, and the errors are then too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.covariance.basis import Basis, CosineBasis, FourierBasis
from spatialdiff.covariance.grids.cosine import autocorrelation
from spatialdiff.domains import Grid
from spatialdiff.fitting.likelihoods.spectra import full_spectrum
from spatialdiff.fitting.nonparametric.smoothing import SpectrumBins, bin_index, smooth_radial, smooth_ratio
from spatialdiff.fitting.observations import Observations

BASES = ("cosine", "torus")
FLOOR = 1e-6


@dataclass(frozen=True)
class SpectrumEstimate:
    """A non-parametric spectrum: ``(C, *modes)``, its bins, total log-likelihood, and what was counted."""

    spectrum: Tensor
    bins: SpectrumBins
    log_likelihood: float
    parameters: float
    variance: float
    variance_error: float
    share: float
    share_error: float
    effective_range: float
    at_floor: bool


def make_basis(name: str, grid: Grid) -> Basis:
    """The basis called ``"cosine"`` (any grid) or ``"torus"`` (Fourier; needs a grid that is periodic along
    every axis)."""
    if name == "cosine":
        return CosineBasis(grid)
    if name == "torus":
        if not all(grid.periodic):
            raise ValueError(
                f"basis='torus' needs a grid that is periodic along every axis, got {grid}: use "
                "basis='cosine'"
            )
        return FourierBasis(grid)
    raise ValueError(f"basis must be one of {', '.join(BASES)}, got {name!r}")


def estimate_spectrum(
    data: Observations,
    basis: Basis,
    smoothing: float,
    isotropic: bool,
    anisotropic_modes: float = 2.0,
    *,
    power: Tensor | None = None,
    seen: float = 1.0,
) -> SpectrumEstimate:
    """Smooth the mean power of each mode; see the module's text and :mod:`.smoothing`.

    Args:
        data: centred replicates.
        basis: Fourier or cosine.
        smoothing: bandwidth in octaves of wavenumber.
        isotropic: whether the spectrum depends on ``|k|`` only.
        anisotropic_modes: with ``isotropic=False``, the bandwidth across neighbouring modes, in mode numbers.
        power: sums over the fields of the power of each mode, ``(C, *modes)``, instead of those of ``data``.
        seen: share of the values that was observed, and so of the degrees of freedom that they are worth.

    Raises:
        ValueError: for a bandwidth that is not positive, or a single site.
    """
    if not (smoothing > 0.0 and math.isfinite(smoothing)):
        raise ValueError(f"smoothing is a bandwidth in octaves and must be positive, got {smoothing}")
    if data.grid.size < 4:
        raise ValueError(f"a spectrum needs a grid of at least 4 sites, got {data.grid}")
    weights = basis.weights.reshape(-1)
    wavenumbers = basis.wavenumbers.reshape(-1)
    sums = basis.analyze(data.values).abs().square().sum(dim=0) if power is None else power
    power = sums.reshape(data.channels, -1) / data.count
    zero = int(wavenumbers.argmin())
    other = torch.arange(len(wavenumbers)) != zero
    if data.count_at_zero:
        power[:, zero] *= data.count / data.count_at_zero
    spectra, relative, parameters, at_floor = [], [], 0.0, False
    for channel in range(data.channels):
        dof = weights[other] * (data.count * seen)
        smooth = smooth_radial(power[channel, other], wavenumbers[other], dof, smoothing)
        shape = smooth.spectrum
        if not isotropic:
            shape = shape * _directional(power[channel], shape, other, basis, anisotropic_modes)
        shape = shape * (weights[other] * power[channel, other]).sum() / (weights[other] * shape).sum()
        full = power[channel].clone()
        full[other] = shape
        longest = float(shape[int(wavenumbers[other].argmin())])
        if not data.count_at_zero:
            full[zero] = longest
        # a mean that was taken off every field leaves nothing, and Γ must stay invertible
        if float(full[zero]) < FLOOR * longest:
            full[zero], at_floor = FLOOR * longest, True
        spectra.append(full)
        relative.append(smooth.relative_error)
        parameters += smooth.parameters + 1.0
    spectrum = torch.stack(spectra)
    bins = _bins(power, spectrum, torch.stack(relative), weights, wavenumbers, data, smoothing, zero, seen)
    count = weights * data.count
    count[zero] = float(data.count_at_zero)
    terms = count * ((2.0 * math.pi * spectrum).log() + power / spectrum)
    log_likelihood = -0.5 * float(terms.sum())
    moments = _moments(spectrum, weights, data, zero, seen)
    return SpectrumEstimate(
        spectrum.reshape(data.channels, *basis.modes),
        bins,
        log_likelihood,
        parameters,
        *moments,
        effective_range=_effective_range(spectrum.mean(dim=0).reshape(basis.modes), basis),
        at_floor=at_floor,
    )


def _directional(power: Tensor, shape: Tensor, other: Tensor, basis: Basis, modes: float) -> Tensor:
    """Directional factor at each non-zero mode: the smoothed ratio of the power to the isotropic spectrum."""
    ratio = torch.ones_like(power)
    ratio[other] = power[other] / shape
    weight = other.double()
    if isinstance(basis, CosineBasis):
        smooth = smooth_ratio(
            ratio.reshape(basis.modes), weight.reshape(basis.modes), modes, [False] * basis.grid.ndim
        )
        return smooth.reshape(-1)[other]
    shape_full = basis.grid.shape
    full_ratio, full_weight = (full_spectrum(v.reshape(basis.modes), shape_full) for v in (ratio, weight))
    smooth = smooth_ratio(full_ratio, full_weight, modes, [True] * basis.grid.ndim)
    return smooth[..., : basis.modes[-1]].reshape(-1)[other]


def _bins(
    power: Tensor,
    spectrum: Tensor,
    relative: Tensor,
    weights: Tensor,
    wavenumbers: Tensor,
    data: Observations,
    smoothing: float,
    zero: int,
    seen: float,
) -> SpectrumBins:
    other = torch.arange(len(wavenumbers)) != zero
    index, number = bin_index(wavenumbers[other], smoothing / 2.0)

    def averaged(values: Tensor) -> Tensor:
        total = torch.zeros(len(values), number, dtype=torch.float64)
        return total.index_add_(1, index, values * weights[other])

    size = torch.zeros(number, dtype=torch.float64).index_add_(0, index, weights[other])
    mean_power = torch.cat((power[:, zero : zero + 1], averaged(power[:, other]) / size), dim=1)
    mean_smooth = torch.cat((spectrum[:, zero : zero + 1], averaged(spectrum[:, other]) / size), dim=1)
    dof = torch.cat(
        (torch.tensor([float(data.count_at_zero)], dtype=torch.float64), size * data.count * seen)
    )
    squares = averaged(spectrum[:, other].square()) / size
    spread = torch.cat((spectrum[:, zero : zero + 1].square(), squares), dim=1)
    error = torch.where(dof > 0, (2.0 * spread / dof.clamp(min=1.0)).sqrt(), torch.nan)
    smooth_error = torch.cat((error[:, :1], averaged(spectrum[:, other] * relative) / size), dim=1)
    centre = (
        torch.zeros(number, dtype=torch.float64).index_add_(0, index, wavenumbers[other] * weights[other])
        / size
    )
    return SpectrumBins(
        torch.cat((torch.zeros(1, dtype=torch.float64), centre)),
        mean_power,
        dof,
        error,
        mean_smooth,
        smooth_error,
    )


def _moments(
    spectrum: Tensor, weights: Tensor, data: Observations, zero: int, seen: float
) -> tuple[float, float, float, float]:
    """Variance and share of the domain mean, averaged over channels, with standard errors from chi-square of
    each mode."""
    n, channels = data.grid.size, data.channels
    count = torch.full_like(weights, data.count * seen)
    count[zero] = float(data.count_at_zero)
    variance = float((weights * spectrum).sum()) / (n * channels)
    each = torch.where(count > 0, 2.0 * weights * spectrum.square() / count.clamp(min=1e-300), torch.nan)
    total_error = math.sqrt(float(each.sum())) / (n * channels)
    at_zero = float(spectrum[:, zero].sum()) / (n * channels)
    share = at_zero / variance
    rest = each.sum() - each[:, zero].sum()
    # share = a / (a + b), a and b independent
    slope_a, slope_b = (1.0 - share) / variance, share / variance
    share_error = math.sqrt(slope_a**2 * float(each[:, zero].sum()) + slope_b**2 * float(rest)) / (
        n * channels
    )
    return variance, total_error, share, share_error


def _effective_range(spectrum: Tensor, basis: Basis) -> float:
    """Distance at which the implied correlation first falls to 0.05, averaged over axes; infinite if it does
    not on some axis.

    The covariance at lag ``h`` along an axis is averaged over all pairs of sites that far apart.
    """
    assert isinstance(basis, FourierBasis | CosineBasis)
    grid = basis.grid
    cosine = isinstance(basis, CosineBasis)
    full = spectrum if cosine else full_spectrum(spectrum, grid.shape)
    found = []
    for axis, (n, h) in enumerate(zip(grid.shape, grid.spacing, strict=True)):
        along = full.movedim(axis, 0).reshape(n, -1).sum(dim=1)
        if cosine:
            line = along @ autocorrelation(n) / (n - torch.arange(n))
        else:
            line = torch.fft.fft(along).real[: n // 2 + 1] / n
        below = (line < 0.05 * line[0]).nonzero()
        if len(below):
            first = int(below[0, 0])
            before, after = (float(line[i] / line[0]) for i in (first - 1, first))
            found.append(h * (first - 1 + (before - 0.05) / (before - after)))
    return sum(found) / len(found) if len(found) == grid.ndim else math.inf
