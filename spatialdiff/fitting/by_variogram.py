"""A weighted least-squares fit to the variogram of observations, as a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from spatialdiff.fitting import diagnostics
from spatialdiff.fitting.derived import derived_quantities
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.result import FitResult
from spatialdiff.fitting.variograms.least_squares import fit_observations
from spatialdiff.kernels import Coregionalization

VARIOGRAM_OPTIONS = (
    "weights",
    "bins",
    "estimator",
    "directions",
    "tolerance",
    "bandwidth",
    "max_distance",
    "metric",
)
_SITES = 2000


def fit_by_variogram(
    model: KernelParameters, data: Observations, starts: int, options: Mapping[str, Any], dtype: torch.dtype
) -> FitResult:
    """Variogram of the residuals of ordinary least squares, and the kernel that fits it best.

    There is no likelihood, so that ``log_likelihood``, ``aic`` and ``bic`` are NaN.
    """
    found = fit_observations(model, data, starts=starts, **options)
    some = data.some(_SITES) if data.flat().shape[-1] > _SITES and data.observed is None else data
    at_mean, at_site = _moments(model, some, found.theta)
    return FitResult(
        method="variogram",
        reason=f"{found.variograms[0].estimator} estimator, weights {found.weights}; standard errors from "
        f"{found.source}",
        domain=data.given,
        channels=None if isinstance(model.kernel, Coregionalization) else data.covariance_channels,
        mean=data.mean.to(dtype),
        parameters=found.parameters,
        standard_errors=found.standard_errors,
        log_likelihood=math.nan,
        aic=math.nan,
        bic=math.nan,
        converged=found.converged,
        message=found.message,
        n_evaluations=found.n_evaluations,
        n_fields=data.total,
        mean_share=diagnostics.mean_share(data, at_mean / at_site),
        kernel=model.fitted(found.theta, dtype),
        derived={
            "weighted_squares": (found.objective, math.nan),
            **derived_quantities(model, found.theta, found.covariance),
        },
        held=tuple(model.held),
        warnings=list(found.warnings),
    )


def _moments(model: KernelParameters, data: Observations, theta: torch.Tensor) -> tuple[float, float]:
    """Model variance of the domain mean and of a site.

    NaN where some, but not all, axes are periodic, or gaps stand on periodic ones.
    """
    if any(data.domain.periodic):
        from spatialdiff.fitting.likelihoods.whittle import SpectralLikelihood

        if all(data.domain.periodic) and data.observed is None:
            return SpectralLikelihood(model, data).mean_variance(theta)
        return math.nan, 1.0
    return DenseLikelihood(model, data).mean_variance(theta)
