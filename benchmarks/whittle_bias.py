r"""The bias of Whittle's likelihood beside the exact one: bias, error and coverage of every variant.

Single Matérn fields on a 32 x 32 grid, complete and with a fifth of the cells missing, are fitted for
variance and length scale with a constant mean. Whatever the likelihood, it is
:math:`-\tfrac12[n\log\sigma^2 + D(\ell) + q(\ell)/\sigma^2]` with a determinant that is the same for all
fields, so that ``D`` and ``q`` are computed with the library's covariances and densities at a ladder of
length scales and interpolated, and a thousand fits cost little more than one. Some fits are repeated with
the library's search and must agree.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import BSpline, make_interp_spline
from scipy.optimize import minimize_scalar
from torch import Tensor

from spatialdiff.covariance import covariance
from spatialdiff.domains import Grid
from spatialdiff.fitting.diagnostics import log_covariance
from spatialdiff.fitting.likelihoods.base import Likelihood, NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.imputation import ImputedWhittle
from spatialdiff.fitting.likelihoods.spectra import periodogram
from spatialdiff.fitting.likelihoods.whittle import SpectralLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.optimise import maximise
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Matern

# the ladder of length scales, as multiples of the true one
SIDE, SHORTEST, LONGEST = 32, 0.35, 6.0
# of the standard normal law
QUANTILE = 1.959964
# steps of the ladder at which the variance of the gradient is computed
EVERY = 2


@dataclass(frozen=True)
class Terms:
    """``n``, ``D`` ``(nodes,)``, ``q`` ``(nodes, fields)`` of unit variance at the logarithms ``ladder`` of
    the length scale, and ``Var ∂ℓ`` ``(·, 2, 2)`` at every other, or None where it is the information."""

    ladder: Tensor
    size: int
    log_det: Tensor
    form: Tensor
    score: Tensor | None


@dataclass(frozen=True)
class Fits:
    """Logarithms of variance and length scale ``(fields, 2)`` with their covariances ``(fields, 2, 2)``."""

    theta: np.ndarray
    covariance: np.ndarray


def nodes(length: float, number: int) -> Tensor:
    ends = math.log(SHORTEST * length), math.log(LONGEST * length)
    return torch.linspace(*ends, number, dtype=torch.float64)


def theta_at(model: KernelParameters, log_length: float) -> Tensor:
    """The vector of unit variance."""
    return torch.tensor([log_length if p.is_lengthscale else 0.0 for p in model.free], dtype=torch.float64)


def ordered(model: KernelParameters, matrix: Tensor) -> Tensor:
    """Rows and columns as variance, length scale."""
    place = [next(i for i, p in enumerate(model.free) if p.is_lengthscale == last) for last in (False, True)]
    return matrix[place][:, place]


def by_matrices(
    likelihood: Likelihood, matrix: Callable[[Tensor], Tensor], fields: Tensor, ladder: Tensor, score: bool
) -> Terms:
    """Of fields ``(N, n)`` with a covariance matrix, the constant mean by generalised least squares."""
    log_dets, forms, scores = [], [], []
    ones = torch.ones(1, fields.shape[1], dtype=torch.float64)
    with torch.no_grad():
        for place, log_length in enumerate(ladder.tolist()):
            theta = theta_at(likelihood.model, log_length)
            factor = torch.linalg.cholesky(matrix(theta))
            white = torch.linalg.solve_triangular(factor, torch.cat((ones, fields)).T, upper=False)
            one, rest = white[:, :1], white[:, 1:]
            best = (one * rest).sum(0) / one.square().sum()
            forms.append((rest - one * best).square().sum(0))
            log_dets.append(2.0 * factor.diagonal().log().sum())
            if score and place % EVERY == 0:
                scores.append(ordered(likelihood.model, likelihood.score_covariance(theta)))
    found = torch.stack(scores) if score else None
    return Terms(ladder, fields.shape[1], torch.stack(log_dets), torch.stack(forms), found)


def by_periodograms(likelihood: SpectralLikelihood, fields: Tensor, ladder: Tensor) -> Terms:
    """Of centred fields ``(N, *grid)`` without the frequency that went into the mean; the ladder ends where
    images of the grid no longer add up to a density."""
    power = periodogram(fields, likelihood.data.grid, likelihood.taper).flatten(1)[:, 1:]
    log_dets, forms, scores = [], [], []
    with torch.no_grad():
        for place, log_length in enumerate(ladder.tolist()):
            theta = theta_at(likelihood.model, log_length)
            try:
                density = likelihood.density_at(theta).reshape(-1)[1:]
            except NotPositiveDefiniteError:
                break
            log_dets.append(density.log().sum())
            forms.append((power / density).sum(1))
            if place % EVERY == 0:
                scores.append(ordered(likelihood.model, likelihood.score_covariance(theta)))
    kept = ladder[: len(forms)]
    return Terms(kept, power.shape[1], torch.stack(log_dets), torch.stack(forms), torch.stack(scores))


def fit_all(terms: Terms) -> Fits:
    """Maximum over both parameters of every field, and the (sandwich) covariance there."""
    t = terms.ladder.numpy()
    d = make_interp_spline(t, terms.log_det.numpy(), k=5)
    score = None if terms.score is None else make_interp_spline(t[::EVERY], terms.score.numpy(), k=3)
    n = terms.size
    theta, covariances = [], []
    for values in terms.form.numpy().T:
        q = make_interp_spline(t, values, k=5)

        def profile(x: float, q: BSpline = q) -> float:
            return float(n * np.log(q(x) / n) + d(x))

        start = t[np.argmin(n * np.log(values / n) + terms.log_det.numpy())]
        step = t[1] - t[0]
        low, high = max(start - step, t[0]), min(start + step, t[-1])
        x = minimize_scalar(profile, bounds=(low, high), method="bounded", options={"xatol": 1e-7}).x
        variance = float(q(x)) / n
        cross = -0.5 * float(q(x, 1)) / variance
        last = 0.5 * (float(d(x, 2)) + float(q(x, 2)) / variance)
        inverse = np.linalg.inv(np.array([[0.5 * n, cross], [cross, last]]))
        covariances.append(inverse if score is None else inverse @ score(x) @ inverse)
        theta.append([math.log(variance), x])
    return Fits(np.array(theta), np.array(covariances))


def summary(name: str, fits: Fits, truth: tuple[float, float], nu: float) -> str:
    """A row: of variance, length scale and ``σ²/ℓ^{2ν}`` the bias, root mean square error and coverage, all
    on the scale of logarithms."""
    cells = []
    for combination in ((1.0, 0.0), (0.0, 1.0), (1.0, -2.0 * nu)):
        c = np.array(combination)
        error = (fits.theta - np.array(truth)) @ c
        deviation = np.sqrt(np.einsum("i,nij,j->n", c, fits.covariance, c).clip(min=0.0))
        covered = np.abs(error) <= QUANTILE * deviation
        cells.append(
            f"{100 * error.mean():+.1f} ± {100 * error.std() / math.sqrt(len(error)):.1f} | "
            f"{100 * np.sqrt(np.square(error).mean()):.1f} | {100 * covered.mean():.1f}"
        )
    return f"| {name} | " + " | ".join(cells) + " |"


def check(likelihood: Likelihood, fits: Fits, place: int) -> float:
    """Largest difference between a fit here and the library's search, in standard errors."""
    found = maximise(likelihood, [likelihood.model.start()])
    errors = ordered(likelihood.model, log_covariance(found, likelihood)).diagonal().sqrt().numpy()
    order = [
        next(i for i, p in enumerate(likelihood.model.free) if p.is_lengthscale == s) for s in (False, True)
    ]
    own = np.sqrt(np.diagonal(fits.covariance[place]))
    moved = np.abs(found.theta[order].numpy() - fits.theta[place]) / own
    return float(max(moved.max(), np.abs(errors / own - 1.0).max()))


def study(nu: float, length: float, replications: int, number: int, missing: bool, checks: int) -> None:
    grid = Grid((SIDE, SIDE))
    kernel = Matern(nu=nu, lengthscale=length, variance=1.0)
    ladder = nodes(length, number)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        gamma = covariance(kernel, grid, method="circulant").double()
        fields = gamma.sample((replications,), generator=generator)
    model = KernelParameters(kernel)
    mask = torch.ones(grid.shape, dtype=torch.bool)
    if missing:
        mask = torch.rand(grid.shape, generator=generator) >= 0.15
        mask[8:16, 18:26] = False
    domain = grid.masked(mask) if missing else grid

    def likelihoods(field: Tensor) -> dict[str, Likelihood]:
        data = observe(field, domain, "constant")
        if missing:
            centred = torch.where(mask, field - field[mask].mean(), 0.0)
            filled = observe(centred, grid, "constant")
            return {
                "exact": DenseLikelihood(model, data),
                "imputed, padding 0.5": ImputedWhittle(model, data, padding=0.5),
                "imputed, padding 0.2": ImputedWhittle(model, data, padding=0.2),
                "zeros for missing cells": SpectralLikelihood(model, filled),
            }
        return {
            "exact": DenseLikelihood(model, data),
            "expected periodogram": SpectralLikelihood(model, data),
            "expected, taper 0.2": SpectralLikelihood(model, data, taper=0.2),
            "aliased density": SpectralLikelihood(model, data, density="lattice"),
            "aliased, taper 0.2": SpectralLikelihood(model, data, density="lattice", taper=0.2),
            "imputed, padding 0.5": ImputedWhittle(model, data, padding=0.5),
        }

    share = f"{100.0 - 100.0 * float(mask.double().mean()):.0f} % missing" if missing else "complete"
    print(f"\nMatérn {nu:g}, length scale {length:g}, {share}, {replications} fields\n")
    print("| likelihood | σ² bias | rmse | cover | ℓ bias | rmse | cover | σ²/ℓ^2ν bias | rmse | cover |")
    print("|---" * 10 + "|", flush=True)
    worst = 0.0
    for name, likelihood in likelihoods(fields[0]).items():
        start = time.perf_counter()
        if isinstance(likelihood, SpectralLikelihood):
            centred = fields - fields[:, mask].mean(-1)[:, None, None]
            terms = by_periodograms(likelihood, torch.where(mask, centred, 0.0), ladder)
        else:
            exact = isinstance(likelihood, DenseLikelihood)
            dense = likelihood if exact else likelihood._dense
            terms = by_matrices(likelihood, dense.covariance, fields[:, mask], ladder, not exact)
        fits = fit_all(terms)
        print(summary(name, fits, (0.0, math.log(length)), nu), flush=True)
        place = fits.theta[:, 1]
        ends = int(((place < float(ladder[0]) + 1e-3) | (place > float(terms.ladder[-1]) - 1e-3)).sum())
        # the library's search has no ladder that ends
        if checks and not ends:
            worst = max(worst, *(check(likelihoods(fields[i])[name], fits, i) for i in range(checks)))
        print(f"<!-- {name}: {time.perf_counter() - start:.0f} s, {ends} at an end -->", flush=True)
    if checks:
        print(f"\nlargest difference from the library's search: {worst:.1e} standard errors", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 fields, one kernel")
    parser.add_argument("--replications", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        for missing in (False, True):
            study(0.5, 3.0, 40, 25, missing, 1)
        return
    for nu in (0.5, 1.5):
        for length in (2.0, 5.0):
            for missing in (False, True):
                study(nu, length, arguments.replications, 41, missing, 1)


if __name__ == "__main__":
    main()
