r"""The spectrum of fields with gaps, by conditional simulation of what is missing.

With ``M`` the observed cells and :math:`\Gamma` diagonal in the basis, a field that agrees with the data
and has the right law in the gaps is

.. math:: x = u + \Gamma M^T (M \Gamma M^T)^{-1} (y - M u), \qquad u \sim N(0, \Gamma).

Estimating the spectrum of such fields and drawing the gaps again from the estimate has the spectrum that
explains the *observed* values as its fixed point (stochastic expectation–maximisation); the power of the
last draws is averaged. The periodogram of the data with zeros in the gaps, by contrast, is the spectrum
convolved with that of the mask: power of the strong long waves leaks into the weak short ones, and dividing
its transform by the mask's autocorrelation gives negative powers.

Degrees of freedom are taken in proportion to the observed share of the cells. What smoothing
does to the spectrum enters the draws and comes back: where the gaps hold the share ``f`` of the cells, a
bias by a factor ``s`` grows to ``s (1 - f)/(1 - s f)``. Keep the bandwidth small where many cells are
missing, and ``isotropic=False`` for grids that have many modes along every axis.

Sources: Guinness 2019 (periodic embedding, imputation); Stein, Chen & Anitescu 2013; theory.md section 8.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from spatialdiff.covariance.basis import Basis
from spatialdiff.covariance.numerics.conjugate import conjugate_gradients
from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.fitting.nonparametric.spectrum import SpectrumEstimate, estimate_spectrum, make_basis
from spatialdiff.fitting.observations import Observations

# rounds on a part of the fields until the spectrum no longer moves in one direction, then on all of them
_WINDOW, _MOST_WINDOWS = 6, 16
_STILL = 0.02
_PART = 40
_SETTLE, _KEPT = 6, 16
# the weakest waves are a thousandth of a field
_TOLERANCE = 1e-6
# of the factorisations that the likelihood takes
_MOST_OPERATIONS = 2e12


def estimate_spectrum_with_gaps(
    data: Observations,
    basis: str,
    smoothing: float,
    isotropic: bool,
    anisotropic_modes: float = 2.0,
    *,
    seed: int = 0,
) -> SpectrumEstimate:
    """`estimate_spectrum` of fields on a masked grid, or with missing values.

    Args:
        data: centred fields; the spectrum is that of the whole grid.
        basis: "cosine" or "torus".
        smoothing, isotropic, anisotropic_modes: see `estimate_spectrum`.
        seed: of the conditional simulations.

    Returns:
        the estimate; its log-likelihood is that of the observed values, NaN where that would take too many
        factorisations.

    Raises:
        TypeError: fields that are not on a grid.
        ValueError: less than a tenth of the cells observed, and what `estimate_spectrum` refuses.
    """
    domain = data.domain
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    if not isinstance(grid, Grid):
        raise TypeError(f"a spectrum with gaps needs fields on a grid, whole or masked, got {domain}")
    seen = torch.ones(data.values.shape, dtype=torch.bool) if data.observed is None else data.observed
    if isinstance(domain, MaskedGrid):
        seen = seen & domain.valid
    whole = dataclasses.replace(data, domain=grid, observed=None, linear=None)
    chosen = make_basis(basis, grid)
    share = float(seen.double().mean())
    if share == 1.0:
        return estimate_spectrum(whole, chosen, smoothing, isotropic, anisotropic_modes)
    if share < 0.1:
        raise ValueError(
            f"{share:.1%} of the cells are observed, too few to draw the others from: use the "
            "observed cells as sd.Points and fit a kernel"
        )

    def estimate(power: Tensor) -> SpectrumEstimate:
        return estimate_spectrum(
            whole, chosen, smoothing, isotropic, anisotropic_modes, power=power, seen=share
        )

    def power_of(fields: Tensor) -> Tensor:
        return chosen.analyze(fields).abs().square().sum(dim=0)

    generator = torch.Generator().manual_seed(seed)
    current = estimate(power_of(torch.where(seen, data.values, 0.0)) / share).spectrum
    part = torch.arange(0, data.total, -(-data.total // _PART))
    moves = [math.inf, math.inf]
    for _ in range(_MOST_WINDOWS):
        before = current
        for turn in range(_WINDOW):
            power = power_of(impute(data.values[part], seen[part], current, chosen, generator))
            following = estimate(power * (data.total / len(part))).spectrum
            # steps of three between plain ones go faster where a step changes little, and nowhere too far
            current = following if turn % 2 else current * (following / current).clamp(0.2, 5.0).pow(3.0)
        moves.append(float((current / before).log().abs().mean()))
        # once the steps do not shrink, twice in a row, they are the noise of the draws
        if moves[-1] < _STILL or min(moves[-2:]) > 0.9 * min(moves[:-2]):
            break
    total = torch.zeros(data.channels, *chosen.modes, dtype=torch.float64)
    for turn in range(_SETTLE + _KEPT):
        power = power_of(impute(data.values, seen, current, chosen, generator))
        if turn >= _SETTLE:
            total += power / _KEPT
        current = estimate(power).spectrum
    found = estimate(total)
    value = _log_likelihood(data.values, seen, found.spectrum, chosen)
    return dataclasses.replace(found, log_likelihood=value * data.count / data.total)


def impute(
    values: Tensor, seen: Tensor, spectrum: Tensor, basis: Basis, generator: torch.Generator
) -> Tensor:
    """Fields that are ``values`` where ``seen`` and drawn given those elsewhere, ``(N, C, *shape)``.

    Args:
        values: centred fields.
        seen: bool, of the same shape.
        spectrum: eigenvalues ``(C, *modes)``.
        basis: where Γ is diagonal.
        generator: of the draws.
    """
    mask = seen.double()
    white = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    free = basis.multiply(white, spectrum.sqrt())
    weights = conjugate_gradients(
        lambda v: mask * basis.multiply(mask * v, spectrum),
        mask * (values - free),
        lambda r: mask * basis.multiply(mask * r, 1.0 / spectrum),
        ndim=basis.grid.ndim,
        tolerance=_TOLERANCE,
        max_iterations=2000,
    )
    return torch.where(seen, values, free + basis.multiply(mask * weights, spectrum))


def _log_likelihood(values: Tensor, seen: Tensor, spectrum: Tensor, basis: Basis) -> float:
    """Of the observed values, one factorisation per pattern of gaps and channel."""
    size = values[0, 0].numel()
    groups = []
    for channel in range(values.shape[1]):
        patterns, which = torch.unique(seen[:, channel].flatten(1), dim=0, return_inverse=True)
        groups.append((patterns, which))
    operations = sum(float(patterns.double().sum(1).pow(3).sum()) for patterns, _ in groups) / 3.0
    if operations > _MOST_OPERATIONS or size > 10_000:
        return math.nan
    total = 0.0
    eye = torch.eye(size, dtype=torch.float64).reshape(size, *values.shape[2:])
    for channel, (patterns, which) in enumerate(groups):
        dense = basis.multiply(eye, spectrum[channel]).reshape(size, size)
        for number, pattern in enumerate(patterns):
            matrix = dense[pattern][:, pattern]
            factor = torch.linalg.cholesky(0.5 * (matrix + matrix.T))
            rows = values[which == number, channel].flatten(1)[:, pattern]
            white = torch.linalg.solve_triangular(factor, rows.T, upper=False)
            log_det = 2.0 * float(factor.diagonal().log().sum())
            total -= 0.5 * float(white.square().sum())
            total -= 0.5 * len(rows) * (log_det + len(matrix) * math.log(2.0 * math.pi))
    return total
