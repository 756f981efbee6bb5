r"""``sd.fit``: the Gaussian law of a set of fields.

Model: :math:`x^{(i)} \sim N(\mu, \Gamma(\theta))`, independent, on one domain. What is maximised: see
:mod:`.methods`; :mod:`.nonparametric` for methods without a family, :mod:`.diagnostics` for what the warnings
mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.domains import Domain, Points
from spatialdiff.fitting import diagnostics
from spatialdiff.fitting.by_variogram import VARIOGRAM_OPTIONS, fit_by_variogram
from spatialdiff.fitting.checks import looks_like_degrees
from spatialdiff.fitting.derived import derived_quantities
from spatialdiff.fitting.familyless import FAMILYLESS, familyless
from spatialdiff.fitting.likelihoods.base import Likelihood
from spatialdiff.fitting.likelihoods.monte_carlo import require_precision
from spatialdiff.fitting.likelihoods.stochastic import StochasticLikelihood
from spatialdiff.fitting.mean import Mean
from spatialdiff.fitting.methods import LIKELIHOODS, OPTIONS, STRUCTURES, check_options, choose
from spatialdiff.fitting.observations import Observations, observe
from spatialdiff.fitting.optimise import Optimum, maximise
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.result import FitResult, Search
from spatialdiff.fitting.starts import set_bounds, starting_points
from spatialdiff.kernels import Chordal, Coregionalization, Nugget, SphericalKernel

METHODS = ("auto", *LIKELIHOODS, *STRUCTURES, "variogram", *FAMILYLESS)
ALL_OPTIONS = {**OPTIONS, "variogram": VARIOGRAM_OPTIONS, **FAMILYLESS}


def fit(
    kernel: Kernel | Coregionalization | None,
    fields: Tensor,
    domain: Domain,
    method: str = "auto",
    mean: Mean = "constant",
    *,
    fixed: Iterable[str] | Mapping[str, float] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    ties: Mapping[str, str] | Iterable[Iterable[str]] = (),
    starts: int = 4,
    max_iterations: int = 200,
    missing: str = "raise",
    restricted: bool = False,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> FitResult:
    r"""Fit the covariance of Gaussian fields to replicates of them.

    - ``"exact"``: maximum likelihood; from the eigenvalues on a fully periodic grid, through the sparse
      precision on a mesh or a graph, harmonics on a sphere, Kronecker factors of a separable kernel,
      otherwise by Cholesky factorisation in O(n³).
    - ``"whittle"``: maximum Whittle likelihood on a regular grid in O(n log n), with the expected
      periodogram (no bias from edges or aliasing); missing cells are imputed. Options ``density``
      ("expected" or "lattice"), ``taper`` (share of each open axis under a cosine bell); with missing cells
      ``imputations``, ``padding``, ``seed``.
    - ``"vecchia"``: each site given its nearest neighbours, by Fisher scoring in O(n m³), for scattered
      points by the million. Options ``neighbors``, ``ordering``, ``engine``.
    - ``"iterative"``: conjugate gradients and stochastic Lanczos, with a standard error. Options ``probes``,
      ``tolerance``, ``neighbors`` (of the preconditioner), ``seed``.
    - the name of a structure ("kronecker", "spde", "sphere", "graph", "torus", "reflection", "dense"): the
      exact likelihood through it.
    - ``"variogram"``: weighted least squares to the empirical variogram. Options ``weights``, ``bins``,
      ``estimator``, ``directions``, ``tolerance``, ``bandwidth``, ``max_distance``, ``metric``; see
      :func:`~spatialdiff.variogram`.
    - ``"spectrum"``: no family; the smoothed radial spectrum of the data in the torus or cosine basis, or the
      angular one on a sphere; ``kernel`` may be ``None``. Options ``basis``, ``smoothing`` (octaves),
      ``isotropic``.
    - ``"shrinkage"``: the empirical covariance shrunk towards the fit of ``kernel`` (or of the spectrum).
      Options ``weight``, ``block``.
    - ``"eof"``: empirical orthogonal functions and a diagonal. Options ``rank``, ``weights``, ``folds``.
    - ``"auto"``: exact where there is a fast exact way and for few sites, otherwise Whittle on grids and
      Vecchia elsewhere.

    Channels are taken as independent, and one kernel is shared by all of them; a `Coregionalization` is
    fitted to all channels jointly. Computation is in float64 on the CPU.

    Args:
        kernel: any gpytorch kernel, or a `Coregionalization`; its present values are one of the starts. It is
            not modified. Not used by methods without a family.
        fields: ``(N, *domain.shape)``, ``(N, C, *domain.shape)``, or one field.
        domain: where they are.
        method: see above.
        mean: ``"constant"`` (one number per channel; by generalised least squares), ``"linear"`` (also in the
            coordinates), covariates ``(*domain.shape, q)`` or a function of the coordinates ``(n, d) → (n,
            q)`` (coefficients are estimated; an intercept is added unless they span one), ``"field"`` (one
            number per channel and site, which leaves N - 1 replicates), ``None`` (zero) or a tensor that
            broadcasts to one field (known).
        fixed: names of parameters to hold, or names and values; parameters that require no gradient are held
            too.
        bounds: natural-scale bounds by parameter name.
        ties: names that take the value of another, or groups of names with one value.
        starts: how many starting points; the last is the kernel as given.
        max_iterations: of the optimiser, per start.
        missing: ``"raise"``, or ``"omit"``: NaN is a value that was not observed.
        restricted: maximise the likelihood of contrasts free of the mean (REML): less biased variances where
            the mean has several coefficients.
        dtype: of the fitted kernel's parameters and of the mean.
        options: of the method.

    Returns:
        A :class:`FitResult`; ``print`` it.

    Raises:
        ValueError: for a wrong shape, missing values, no or constant data, fewer data than parameters,
            coinciding sites without a nugget, unknown names, options of another method.
        TypeError: for fields that are not a floating-point tensor, a kernel that is not one of gpytorch, an
            unknown option.
        RuntimeError: where no starting point gives a usable covariance; where the random error of a
            likelihood would show in the estimates (``MonteCarloError``).

    Warns:
        FitWarning: for a parameter at a bound or not identified, no convergence, a domain mean that the model
            gets wrong, coordinates that look like degrees.

    References:
        Whittle 1954; Vecchia 1988; Harville 1974; Guinness & Fuentes 2017; Sykulski et al. 2019; Guinness
        2021; Zhang 2004 (what is identified).
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known methods: {', '.join(METHODS)}")
    if isinstance(kernel, list | tuple):
        raise TypeError(
            "fit takes one kernel; spatialdiff.fitting.compare fits several and ranks them, and k1 + k2 is "
            "their sum"
        )
    data = observe(fields, domain, mean, missing)
    check_options(_named(method, options), options, ALL_OPTIONS)
    if isinstance(kernel, Coregionalization):
        if kernel.channels != data.channels:
            raise ValueError(
                f"the Coregionalization has {kernel.channels} channels and the fields have {data.channels}: "
                f"give fields (N, {kernel.channels}, *domain.shape)"
            )
        if method == "vecchia":
            raise ValueError(
                "method='vecchia' does not take a Coregionalization: use method='exact' or 'variogram'"
            )
    if method in FAMILYLESS:
        _check_familyless(method, restricted, fixed, bounds, ties)
        target = None
        if method == "shrinkage":
            way = "spectrum" if kernel is None else "auto"
            target = fit(
                kernel,
                fields,
                domain,
                way,
                mean,
                fixed=fixed,
                bounds=bounds,
                ties=ties,
                starts=starts,
                max_iterations=max_iterations,
                missing=missing,
            )
        return familyless(method, data, dtype, options, target)
    if kernel is None:
        raise ValueError(
            f"kernel may be None only with {' or '.join(f'method={m!r}' for m in FAMILYLESS)}; give a kernel "
            "such as Matern(nu=1.5) + Nugget(0.01)"
        )
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    if restricted and data.mean_model not in ("constant", "linear", "covariates", "function"):
        raise ValueError(f"restricted=True needs a mean with coefficients, got mean={mean!r}")
    _check_sites(kernel, data)
    model = KernelParameters(kernel, fixed, bounds, ties)
    diagnostics.check_counts(model, data)
    if method == "variogram":
        if restricted:
            raise ValueError("restricted=True is for likelihoods; method='variogram' has none")
        found = fit_by_variogram(model, data, starts, options, dtype)
        _check_coordinates(found, kernel, domain)
        return found
    set_bounds(model, data)
    chosen = choose(method, model, data, restricted, options)
    points = starting_points(model, data, starts)
    evaluations = 0
    if chosen.screen is not None:
        rough = maximise(chosen.screen, points, max_iterations)
        evaluations, points = rough.evaluations, [rough.theta]
    optimum = maximise(chosen.likelihood, points, max_iterations)
    if isinstance(chosen.likelihood, StochasticLikelihood):
        require_precision(chosen.likelihood, optimum.theta, optimum.information, optimum.interior)
    result = _result(model, data, chosen.likelihood, optimum, evaluations, dtype)
    result.method, result.reason, result.restricted = chosen.method, chosen.reason, restricted
    _check_coordinates(result, kernel, domain)
    assert result.search is not None
    for text in diagnostics.complaints(model, data, optimum, result.search.covariance, chosen.likelihood):
        result.warn(text)
    _check_variances(result, data)
    return result


def _named(method: str, options: Mapping[str, Any]) -> str:
    """The method that options were given for, where ``"auto"`` leaves it open."""
    if method == "auto" and options:
        raise ValueError(
            f"{', '.join(f'{name}=' for name in options)}: an option of a method needs the method named as "
            "well, instead of 'auto'"
        )
    return method


def _check_familyless(method: str, restricted: bool, fixed: Any, bounds: Any, ties: Any) -> None:
    """Raise for what is asked of a likelihood or a kernel, where there is none."""
    if restricted:
        raise ValueError(f"restricted=True is for likelihoods of a kernel; method={method!r} has none")
    named = {"fixed": fixed, "bounds": bounds, "ties": ties}
    given = [name for name, value in named.items() if value]
    if given and method != "shrinkage":
        raise ValueError(f"{given[0]}= names parameters of a kernel; method={method!r} fits none")


def _result(
    model: KernelParameters,
    data: Observations,
    likelihood: Likelihood,
    optimum: Optimum,
    evaluations: int,
    dtype: torch.dtype,
) -> FitResult:
    theta = optimum.theta
    covariance = diagnostics.log_covariance(optimum, likelihood)
    values = model.natural(theta)
    at_mean, at_site = likelihood.mean_variance(theta)
    number = len(model.free) + data.mean_parameters
    added = likelihood.coefficients(theta)
    return FitResult(
        method="",
        reason="",
        domain=data.given,
        channels=None if isinstance(model.kernel, Coregionalization) else data.covariance_channels,
        mean=data.mean_field(added).to(dtype),
        parameters=values,
        standard_errors=model.standard_errors(theta, covariance),
        log_likelihood=optimum.value,
        log_likelihood_error=likelihood.standard_error(theta),
        aic=2.0 * number - 2.0 * optimum.value,
        bic=number * math.log(data.n_values) - 2.0 * optimum.value,
        converged=optimum.converged,
        message=optimum.message,
        n_evaluations=evaluations + optimum.evaluations,
        n_fields=data.total,
        mean_share=diagnostics.mean_share(data, at_mean / at_site),
        kernel=model.fitted(theta, dtype),
        derived=derived_quantities(model, theta, covariance, data.domain.dimension),
        coefficients=_coefficients(data, added, likelihood.coefficient_covariance(theta)),
        held=tuple(model.held),
        search=Search(likelihood, optimum, covariance),
    )


def _coefficients(
    data: Observations, added: Tensor | None, covariance: Tensor | None
) -> dict[str, tuple[float, float]]:
    """Coefficients of a linear mean, of the columns as given, with standard errors."""
    values = data.natural_coefficients(added)
    if values is None or data.linear is None:
        return {}
    channels, q = values.shape
    errors = torch.full((channels, q), math.nan, dtype=torch.float64)
    if covariance is not None:
        transform = data.linear.transform
        natural = transform @ covariance @ transform.T
        errors = natural.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt().expand(channels, q)
    return {
        name + (f"[{c}]" if channels > 1 else ""): (float(values[c, i]), float(errors[c, i]))
        for c in range(channels)
        for i, name in enumerate(data.design_names)
    }


def _check_coordinates(result: FitResult, kernel: Kernel | Coregionalization, domain: Domain) -> None:
    if isinstance(domain, Points) and _planar(kernel) and looks_like_degrees(domain.sites()):
        result.warn(
            "the coordinates look like longitudes and latitudes in degrees, but the kernel takes them for a "
            "plane: project them, or use points on a sphere (coordinates in R³ and kernels.Chordal)",
            stacklevel=3,
        )


def _planar(kernel: Kernel | Coregionalization) -> bool:
    """Whether no part of the kernel lives on a sphere."""
    return not any(isinstance(part, Chordal | SphericalKernel) for part in kernel.modules())


def _check_sites(kernel: Kernel | Coregionalization, data: Observations) -> None:
    """Raise where sites coincide and nothing tells their values apart."""
    domain = data.domain
    if not isinstance(domain, Points):
        return
    pairs = domain.duplicates()
    if len(pairs) == 0:
        return
    parts = [part for part in kernel.modules() if isinstance(part, Kernel)]
    if not any(isinstance(part, Nugget) for part in parts):
        first, second = pairs[0].tolist()
        raise ValueError(
            f"{len(pairs)} of {domain.size} sites repeat an earlier one (such as sites {first} and "
            f"{second}), so that Γ is singular without a nugget: add a Nugget to the kernel, "
            "average their values, or keep one of each"
        )


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
    if (
        isinstance(result.kernel, Kernel)
        and data.channels > 1
        and float(variances.max() / variances.min()) > 2.0
    ):
        shown = ", ".join(f"{v:.3g}" for v in variances.tolist())
        result.warn(
            f"one kernel was fitted to channels of variances {shown}: standardise the channels, fit each "
            "alone, or use method='spectrum'",
            stacklevel=3,
        )
