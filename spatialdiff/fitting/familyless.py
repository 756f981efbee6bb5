"""Fits without a family of kernels as results: a smoothed spectrum, a shrunk covariance, functions and a
diagonal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.domains import Domain, Grid, MaskedGrid, Sphere
from spatialdiff.fitting import diagnostics
from spatialdiff.fitting.nonparametric.angular import estimate_angular_spectrum
from spatialdiff.fitting.nonparametric.eof import estimate_eof
from spatialdiff.fitting.nonparametric.gaps import estimate_spectrum_with_gaps
from spatialdiff.fitting.nonparametric.shrinkage import estimate_shrinkage
from spatialdiff.fitting.nonparametric.spectrum import estimate_spectrum, make_basis
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.result import FitResult, MeanShare

# methods and their options
FAMILYLESS: Mapping[str, tuple[str, ...]] = {
    "spectrum": ("basis", "smoothing", "isotropic"),
    "shrinkage": ("weight", "block"),
    "eof": ("rank", "weights", "folds"),
}


def fit_spectrum(
    data: Observations,
    dtype: torch.dtype,
    basis: str | None = None,
    smoothing: float = 0.15,
    isotropic: bool = True,
) -> FitResult:
    """The smoothed spectrum of fields on a grid, whole or with missing cells, or on a sphere."""
    if isinstance(data.domain, Sphere):
        if basis not in (None, "sphere") or not isotropic:
            raise ValueError("on a sphere the spectrum is the angular one: leave basis= and isotropic= out")
        return _angular(data, smoothing, dtype)
    grid = data.domain.grid if isinstance(data.domain, MaskedGrid) else data.domain
    if not isinstance(grid, Grid):
        raise TypeError(
            f"method='spectrum' needs fields on a regular Grid or a Sphere, got {data.domain}: use 'eof' or "
            "'shrinkage', or fit a kernel"
        )
    chosen = basis or ("torus" if all(grid.periodic) else "cosine")
    gaps = data.observed is not None or grid is not data.domain
    if gaps:
        estimate = estimate_spectrum_with_gaps(data, chosen, smoothing, isotropic)
    else:
        estimate = estimate_spectrum(data, make_basis(chosen, grid), smoothing, isotropic)
    number = estimate.parameters + data.mean_parameters
    shape = "isotropic" if isotropic else "not isotropic"
    share = diagnostics.mean_share(data, estimate.share)
    filled = ", missing cells imputed" if gaps else ""
    result = FitResult(
        method="spectrum",
        reason=f"{chosen} basis, {shape}, smoothed over {smoothing:g} octaves{filled}",
        domain=grid,
        channels=data.covariance_channels,
        mean=data.mean.to(dtype),
        parameters={"variance": estimate.variance, "mean_share": estimate.share},
        standard_errors={"variance": estimate.variance_error, "mean_share": estimate.share_error},
        log_likelihood=estimate.log_likelihood,
        aic=2.0 * number - 2.0 * estimate.log_likelihood,
        bic=number * math.log(data.n_values) - 2.0 * estimate.log_likelihood,
        converged=True,
        message="closed form",
        n_evaluations=1,
        n_fields=data.total,
        mean_share=MeanShare(share.data, share.model, share.low, share.high),
        spectrum=estimate.spectrum if data.channels > 1 else estimate.spectrum[0],
        basis=chosen,
        bins=estimate.bins,
        derived={
            "effective_range": (estimate.effective_range, math.nan),
            "effective_parameters": (estimate.parameters, math.nan),
        },
    )
    if data.count_at_zero == 0:
        result.warn(
            "the mean over the domain cannot be told from the mean that was estimated from a single field: "
            "its variance was taken from the longest waves; give more fields, or a known mean",
            stacklevel=4,
        )
    elif estimate.at_floor:
        result.warn(
            "the fields have no variance in the mean over the domain (was it taken off every field?): it "
            "was set to a millionth of that of the longest waves, so that Γ can be inverted",
            stacklevel=4,
        )
    elif estimate.share_error > diagnostics.POOR * estimate.share:
        result.warn(
            f"the share of variance in the mean over the domain, {estimate.share:.2g}, is poorly "
            f"identified: its standard error is {estimate.share_error / estimate.share:.0%} of it; give more "
            "fields",
            stacklevel=4,
        )
    return result


def _angular(data: Observations, smoothing: float, dtype: torch.dtype) -> FitResult:
    if data.channels > 1:
        raise ValueError(
            f"the angular spectrum of one channel at a time: the fields have {data.channels}, fit each alone"
        )
    estimate = estimate_angular_spectrum(data, smoothing)
    degree = estimate.spectrum.shape[1] - 1
    result = FitResult(
        method="spectrum",
        reason=f"angular power spectrum to degree {degree}, smoothed over {smoothing:g} octaves",
        domain=data.domain,
        channels=None,
        mean=data.mean.to(dtype),
        parameters={"variance": estimate.variance, "mean_share": estimate.share},
        standard_errors={"variance": estimate.variance_error, "mean_share": estimate.share_error},
        log_likelihood=math.nan,
        aic=math.nan,
        bic=math.nan,
        converged=True,
        message="closed form",
        n_evaluations=1,
        n_fields=data.total,
        mean_share=diagnostics.mean_share(data, estimate.share),
        kernel=estimate.kernel().requires_grad_(False),
        bins=estimate.bins,
        derived={
            "nugget": (float(estimate.nugget[0]), math.nan),
            "effective_parameters": (estimate.parameters, math.nan),
        },
    )
    if estimate.at_floor:
        result.warn(
            "the fields have no variance in the mean over the sphere (was it taken off every field?): C_0 "
            "was set to a millionth of C_1",
            stacklevel=4,
        )
    return result


def fit_eof(
    data: Observations,
    dtype: torch.dtype,
    rank: int | None = None,
    weights: Tensor | None = None,
    folds: int = 5,
) -> FitResult:
    """Empirical orthogonal functions and a diagonal."""
    estimate = estimate_eof(data, rank, weights, folds)
    number = estimate.parameters + data.mean_parameters
    how = "given" if rank is not None else "by cross-validated likelihood"
    gamma = estimate.covariance
    variance, share = _moments(gamma, data.domain)
    return FitResult(
        method="eof",
        reason=f"rank {estimate.rank} ({how}) and a diagonal; {estimate.separated} functions are told apart",
        domain=data.domain,
        channels=data.covariance_channels,
        mean=data.mean.to(dtype),
        parameters={"rank": float(estimate.rank), "share_of_functions": estimate.share, "variance": variance},
        standard_errors={"rank": math.nan, "share_of_functions": math.nan, "variance": math.nan},
        log_likelihood=estimate.log_likelihood,
        aic=2.0 * number - 2.0 * estimate.log_likelihood,
        bic=number * math.log(data.n_values) - 2.0 * estimate.log_likelihood,
        converged=True,
        message="closed form",
        n_evaluations=len(estimate.ranks),
        n_fields=data.total,
        mean_share=diagnostics.mean_share(data, share),
        factors=gamma.factors,
        diagonal=gamma.diagonal,
    )


def fit_shrinkage(
    data: Observations,
    target: FitResult,
    dtype: torch.dtype,
    weight: float | None = None,
    block: int | None = None,
) -> FitResult:
    """The empirical covariance shrunk towards a fitted one."""
    estimate = estimate_shrinkage(data, target.covariance, weight, block)
    how = "given" if weight is not None else "by leave-out likelihood"
    variance, share = _moments(estimate.covariance, data.domain)
    return FitResult(
        method="shrinkage",
        reason=f"the empirical covariance and {estimate.weight:.3g} ({how}) of a fit by {target.method}",
        domain=data.domain,
        channels=data.covariance_channels,
        mean=data.mean.to(dtype),
        parameters={"weight": estimate.weight, "variance": variance},
        standard_errors={"weight": math.nan, "variance": math.nan},
        # the fields have contributed to Γ: no value that other fits could be compared by
        log_likelihood=estimate.log_likelihood,
        aic=math.nan,
        bic=math.nan,
        converged=target.converged,
        message=target.message,
        n_evaluations=target.n_evaluations,
        n_fields=data.total,
        mean_share=diagnostics.mean_share(data, share),
        factors=estimate.factors,
        target=target,
        derived={"gain_per_field": (estimate.gain, math.nan)},
    )


def _moments(gamma: Covariance, domain: Domain) -> tuple[float, float]:
    """Variance of a site averaged over the domain and channels, and the share in the domain mean."""
    n = domain.size
    with torch.no_grad():
        variance = float(domain.flatten(gamma.variance()).mean())
        ones = torch.ones(tuple(gamma.event_shape), dtype=torch.float64)
        if gamma.channels is None:
            at_mean = float(domain.flatten(gamma.double().matmul(ones)).sum()) / n**2
        else:
            means = []
            for channel in range(gamma.channels):
                one = torch.zeros_like(ones)
                one[channel] = 1.0
                means.append(float(domain.flatten(gamma.double().matmul(one)[channel]).sum()) / n**2)
            at_mean = sum(means) / gamma.channels
    return variance, at_mean / variance


def familyless(
    method: str, data: Observations, dtype: torch.dtype, options: Mapping[str, Any], target: FitResult | None
) -> FitResult:
    """The result of a method of `FAMILYLESS`."""
    if method == "spectrum":
        return fit_spectrum(data, dtype, **options)
    if method == "eof":
        return fit_eof(data, dtype, **options)
    assert target is not None
    return fit_shrinkage(data, target, dtype, **options)
