r"""``sd.fit``: the Gaussian law of a set of fields.

Model: :math:`x^{(i)} \sim N(\mu, \Gamma(\theta))`, independent, one grid. What is maximised: :mod:`.dense`,
:mod:`.likelihoods`. See :mod:`.nonparametric` for ``method="spectrum"``, :mod:`.diagnostics` for what the
warnings mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.fitting import diagnostics
from spatialdiff.fitting.likelihoods.base import Likelihood
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.whittle import SpectralLikelihood
from spatialdiff.fitting.nonparametric.spectrum import estimate_spectrum, make_basis
from spatialdiff.fitting.observations import Observations, observe
from spatialdiff.fitting.optimise import maximise, set_bounds, starting_points
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.result import FitResult, MeanShare

METHODS = ("auto", "exact", "whittle", "spectrum")
EXACT_SITES = 1600
DENSE_SITES = 10_000


def fit(
    kernel: Kernel | None,
    fields: Tensor,
    grid: Grid,
    method: str = "auto",
    mean: str | Tensor | None = "constant",
    *,
    fixed: Iterable[str] | Mapping[str, float] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    starts: int = 4,
    max_iterations: int = 200,
    density: str = "expected",
    taper: float = 0.0,
    basis: str | None = None,
    smoothing: float = 0.15,
    isotropic: bool = True,
    dtype: torch.dtype = torch.float64,
) -> FitResult:
    r"""Fit the covariance of Gaussian fields to replicates of them.

    - ``"exact"``: maximum likelihood; from the eigenvalues on a fully periodic grid, otherwise by Cholesky
      factorisation in O(n³).
    - ``"whittle"``: maximum Whittle likelihood in O(n log n), with the expected periodogram (no bias from
      edges or aliasing).
    - ``"spectrum"``: no family; the smoothed radial spectrum of the data in the torus or cosine basis, and
      ``kernel`` may be ``None``.
    - ``"auto"``: exact on fully periodic grids and up to 1600 sites, otherwise Whittle.

    Channels are taken as independent. One kernel is shared by all of them; with ``"spectrum"`` each has its
    own spectrum. Computation is in float64 on the CPU.

    Args:
        kernel: any gpytorch kernel; its present values are one of the starts. It is not modified. Ignored by
            ``"spectrum"``.
        fields: ``(N, *grid)`` or ``(N, C, *grid)``.
        grid: the domain.
        method: see above.
        mean: ``"constant"`` (one number per channel; for ``"exact"`` by generalised least squares),
            ``"field"`` (one number per channel and site, which leaves N - 1 replicates), ``None`` (zero) or a
            tensor that broadcasts to one field.
        fixed: names of parameters to hold, or names and values; parameters that require no gradient are held
            too.
        bounds: natural-scale bounds by parameter name.
        starts: how many starting points; the last is the kernel as given.
        max_iterations: of the optimiser, per start.
        density: ``"expected"`` or ``"lattice"`` (aliased density of the infinite lattice); Whittle only.
        taper: share of the sites of each open axis under a cosine bell, 0 to 1; Whittle only.
        basis: ``"cosine"`` or ``"torus"``, for ``"spectrum"``; by default torus on fully periodic grids, else
            cosine.
        smoothing: bandwidth of ``"spectrum"`` in octaves of wavenumber, see
            :mod:`spatialdiff.fitting.nonparametric.smoothing`.
        isotropic: whether the spectrum depends on ``|k|`` only.
        dtype: of the fitted kernel's parameters and of the mean.

    Returns:
        A :class:`FitResult`; ``print`` it.

    Raises:
        ValueError: for a wrong shape, missing values, no or constant data, unknown names, options of another
            method.
        TypeError: for fields that are not a floating-point tensor, or a kernel that is not one of gpytorch.
        RuntimeError: where no starting point gives a usable covariance.

    Warns:
        FitWarning: for a parameter at a bound or not identified, no convergence, a domain mean that the model
            gets wrong.

    References:
        Whittle 1954; Guinness & Fuentes 2017; Sykulski et al. 2019; Zhang 2004 (what is identified).
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known methods: {', '.join(METHODS)}")
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a spatialdiff.Grid, got {type(grid).__name__}")
    data = observe(fields, grid, mean)
    if method == "spectrum":
        return _fit_spectrum(data, basis, smoothing, isotropic, dtype)
    if basis is not None:
        raise ValueError(f"basis={basis!r} is for method='spectrum'; method={method!r} fits a kernel")
    if kernel is None:
        raise ValueError(
            "kernel may be None only with method='spectrum'; give a kernel such as Matern(nu=1.5) + "
            "Nugget(0.01)"
        )
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    model = KernelParameters(kernel, fixed, bounds)
    set_bounds(model, data)
    chosen, reason = _choose(method, data, model, density, taper)
    torus = all(grid.periodic)
    points = starting_points(model, data, starts)
    evaluations = 0
    likelihood: Likelihood
    if chosen == "whittle":
        likelihood = SpectralLikelihood(model, data, density=density, taper=taper)
    elif torus:
        likelihood = SpectralLikelihood(model, data, exact=True)
    else:
        likelihood = DenseLikelihood(model, data)
        if likelihood.stationary:
            # many cheap starts, one expensive search
            rough = maximise(SpectralLikelihood(model, data), points, max_iterations)
            evaluations, points = rough.evaluations, [rough.theta]
    optimum = maximise(likelihood, points, max_iterations)
    covariance = diagnostics.log_covariance(optimum, likelihood)
    values = model.natural(optimum.theta)
    errors = dict.fromkeys(values, 0.0)
    for i, p in enumerate(model.free):
        variance = float(covariance[i, i])
        error = math.sqrt(variance) if variance >= 0.0 else math.nan
        errors[p.name] = error * values[p.name] if p.log else error
    at_mean, at_site = likelihood.mean_variance(optimum.theta)
    number = len(model.free) + data.mean_parameters
    fitted_mean = likelihood.mean(optimum.theta) if isinstance(likelihood, DenseLikelihood) else data.mean
    result = FitResult(
        method=chosen,
        reason=reason,
        grid=grid,
        channels=data.covariance_channels,
        mean=fitted_mean.to(dtype),
        parameters=values,
        standard_errors=errors,
        log_likelihood=optimum.value,
        aic=2.0 * number - 2.0 * optimum.value,
        bic=number * math.log(data.n_values) - 2.0 * optimum.value,
        converged=optimum.converged,
        message=optimum.message,
        n_evaluations=evaluations + optimum.evaluations,
        n_fields=data.total,
        mean_share=diagnostics.mean_share(data, at_mean / at_site),
        kernel=model.fitted(optimum.theta, dtype),
        derived=diagnostics.derived_quantities(model, optimum.theta, covariance),
        held=tuple(p.name for p in model.all if not p.free),
    )
    for text in diagnostics.complaints(model, data, optimum, covariance):
        result.warn(text)
    _check_variances(result, data)
    return result


def _choose(
    method: str, data: Observations, model: KernelParameters, density: str, taper: float
) -> tuple[str, str]:
    grid = data.grid
    torus = all(grid.periodic)
    whittle = f"{density} periodogram" if density == "expected" else "aliased density of the infinite lattice"
    if taper:
        whittle += f", {taper:g} cosine taper"
    if method == "whittle":
        return "whittle", whittle
    if density != "expected" or taper:
        raise ValueError(f"density= and taper= are options of method='whittle', not of {method!r}")
    if torus:
        return "exact", "eigenvalues of the periodic grid"
    if method == "auto" and grid.size > EXACT_SITES and model.kernel.is_stationary:
        return "whittle", f"{grid.size} sites are more than {EXACT_SITES}; {whittle}"
    if grid.size > DENSE_SITES:
        raise ValueError(
            f"the exact likelihood on a grid that is not periodic factorises a dense {grid.size} x "
            f"{grid.size} matrix; the limit is "
            f"{DENSE_SITES} sites: use method='whittle'"
        )
    return "exact", f"Cholesky factorisation of {grid.size} sites"


def _check_variances(result: FitResult, data: Observations) -> None:
    share = result.mean_share
    if share.suspicious:
        result.warn(
            f"the model puts {share.model:.0%} of the variance into the mean over the domain where the data "
            f"have {share.data:.0%} (the model "
            f"expects {share.low:.0%} to {share.high:.0%} in these data): the family does not fit the "
            "largest scales; add a component, "
            "or use method='spectrum'",
            stacklevel=3,
        )
    variances = data.variance()
    if result.kernel is not None and data.channels > 1 and float(variances.max() / variances.min()) > 2.0:
        shown = ", ".join(f"{v:.3g}" for v in variances.tolist())
        result.warn(
            f"one kernel was fitted to channels of variances {shown}: standardise the channels, fit each "
            "alone, or use method='spectrum'",
            stacklevel=3,
        )


def _fit_spectrum(
    data: Observations, basis: str | None, smoothing: float, isotropic: bool, dtype: torch.dtype
) -> FitResult:
    grid = data.grid
    chosen = basis or ("torus" if all(grid.periodic) else "cosine")
    estimate = estimate_spectrum(data, make_basis(chosen, grid), smoothing, isotropic)
    number = estimate.parameters + data.mean_parameters
    shape = "isotropic" if isotropic else "not isotropic"
    share = diagnostics.mean_share(data, estimate.share)
    result = FitResult(
        method="spectrum",
        reason=f"{chosen} basis, {shape}, smoothed over {smoothing:g} octaves",
        grid=grid,
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
            "its variance was taken from the "
            "longest waves; give more fields, or a known mean",
            stacklevel=3,
        )
    elif estimate.at_floor:
        result.warn(
            "the fields have no variance in the mean over the domain (was it taken off every field?): it "
            "was set to a "
            "millionth of that of the longest waves, so that Γ can be inverted",
            stacklevel=3,
        )
    elif estimate.share_error > diagnostics.POOR * estimate.share:
        result.warn(
            f"the share of variance in the mean over the domain, {estimate.share:.2g}, is poorly "
            "identified: its "
            f"standard error is {estimate.share_error / estimate.share:.0%} of it; give more fields",
            stacklevel=3,
        )
    return result
