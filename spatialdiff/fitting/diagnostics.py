r"""Is the fit to be trusted? Bounds, identification, and where the variance went.

The share of the variance in the mean over the domain,
:math:`\operatorname{Var}(\bar x)/\overline{\operatorname{Var}(x)}`, is the number that a family with too few
parameters gets wrong first: it is set by the largest scale, while the likelihood is dominated by the many
small ones. Under the model :math:`\nu\,\overline{x}^2/\operatorname{Var}(\bar x) \sim \chi^2_\nu`, which
gives the interval the data's share is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import scipy.special
import torch
from torch import Tensor

from spatialdiff.fitting.likelihoods.base import Likelihood
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.optimise import Optimum
from spatialdiff.fitting.parameters import KernelParameters, Parameter
from spatialdiff.fitting.result import MeanShare
from spatialdiff.kernels import StationaryKernel

FLAT = 1e-7
POOR = 0.5


def data_share(data: Observations) -> float:
    """Share of the data's variance in the domain mean; NaN where no replicate is left to estimate it."""
    if data.count_at_zero == 0:
        return math.nan
    at_mean = float(data.domain_means().square().sum()) / (data.count_at_zero * data.channels)
    return at_mean / float(data.variance().mean())


def mean_share(data: Observations, model: float) -> MeanShare:
    """Compare the data's share with the model's; ``low`` and ``high`` hold 99.9 % of what the model gives for
    such data."""
    nu = data.count_at_zero * data.channels
    if nu == 0:
        return MeanShare(math.nan, model, math.nan, math.nan)
    low, high = (2.0 * float(scipy.special.gammaincinv(nu / 2.0, p)) / nu for p in (0.0005, 0.9995))
    # the variance in the denominator holds the domain mean as well
    return MeanShare(data_share(data), model, *(model * q / (1.0 - model + model * q) for q in (low, high)))


def log_covariance(optimum: Optimum, likelihood: Likelihood) -> Tensor:
    """Covariance of θ from the observed information of the parameters off their bounds (NaN rows at bounds
    and where flat).

    Where the likelihood is Whittle's, the sandwich ``H⁻¹ V H⁻¹`` with ``V`` the variance of its gradient
    under the model.
    """
    p = len(optimum.theta)
    full = torch.full((p, p), math.nan, dtype=torch.float64)
    inside = optimum.interior
    if len(inside) == 0:
        return full
    information = optimum.information[inside][:, inside]
    if not bool(torch.isfinite(information).all()):
        return full
    eigenvalues = torch.linalg.eigvalsh(information)
    if float(eigenvalues[0]) <= FLAT * float(eigenvalues[-1]) * 1e-3:
        return full
    inverse = torch.linalg.inv(information)
    variance = likelihood.score_covariance(optimum.theta)
    if variance is not None:
        inverse = inverse @ variance[inside][:, inside] @ inverse
    full[inside[:, None], inside[None, :]] = 0.5 * (inverse + inverse.T)
    return full


def complaints(
    model: KernelParameters, data: Observations, optimum: Optimum, covariance: Tensor
) -> Iterator[str]:
    """Everything that is wrong with the estimates, one sentence each."""
    grid = data.grid
    values = model.natural(optimum.theta)
    if not optimum.converged and optimum.hit_singular:
        yield (
            "not converged: the search ran into covariances that are numerically singular, or finer than "
            "the rounding of the "
            "data: the kernel is too smooth on its own, add a Nugget"
        )
    elif not optimum.converged:
        yield (
            f"not converged: {optimum.message}; a Newton step would still move the estimate by "
            f"{math.sqrt(max(optimum.decrement, 0.0)):.2g} "
            "standard errors: raise max_iterations, or give better start values"
        )
    for i, p in enumerate(model.free):
        value = values[p.name]
        if optimum.at_lower[i] or optimum.at_upper[i]:
            side, bound = ("lower", p.lower) if optimum.at_lower[i] else ("upper", p.upper)
            yield (
                f"{p.name} stopped at its {side} bound {bound:.3g}: the data do not determine it"
                + _bound_hint(p, side)
            )
        elif p.is_lengthscale and value < min(grid.spacing):
            yield (
                f"{p.name} = {value:.3g} is below the grid spacing {min(grid.spacing):.3g}: the grid does "
                "not resolve it"
            )
        elif p.is_lengthscale and value > max(grid.extent):
            yield (
                f"{p.name} = {value:.3g} is beyond the domain's extent {max(grid.extent):.3g}: it trades "
                "off against the variance, "
                "and only variance/lengthscale^(2 nu) is identified"
            )
    yield from _identification(model, optimum, covariance, values)


def _bound_hint(p: Parameter, side: str) -> str:
    if p.is_nugget and side == "lower":
        return " (no nugget is needed: drop it, or hold it with fixed=)"
    if side == "lower" and p.lower == p.valid_from:
        return ", or would have it where the kernel is not positive definite"
    return ""


def _identification(
    model: KernelParameters, optimum: Optimum, covariance: Tensor, values: dict[str, float]
) -> Iterator[str]:
    inside = optimum.interior
    if len(inside) == 0:
        return
    information = optimum.information[inside][:, inside]
    names = [model.free[int(i)].name for i in inside]
    diagonal = information.diagonal()
    if not bool(torch.isfinite(information).all()):
        yield (
            f"the information matrix of {', '.join(names)} cannot be computed at the estimate (Γ is nearly "
            "singular there): add a Nugget"
        )
        return
    flat = [names[i] for i in range(len(names)) if float(diagonal[i]) <= 0.0]
    if flat:
        yield (
            f"the likelihood has no maximum in {', '.join(flat)} (its curvature there has the wrong sign): "
            "not identified"
        )
        return
    scale = diagonal.rsqrt()
    eigenvalues, vectors = torch.linalg.eigh(information * scale[:, None] * scale[None, :])
    if float(eigenvalues[0]) < FLAT:
        involved = [
            name for name, weight in zip(names, vectors[:, 0].abs().tolist(), strict=True) if weight > 0.1
        ]
        yield (
            f"{', '.join(involved)} are not identified separately (flat or ill-conditioned information "
            "matrix): hold one of them "
            "with fixed="
        )
        return
    for i, name in zip(inside.tolist(), names, strict=True):
        error = (
            math.sqrt(max(float(covariance[i, i]), 0.0))
            if not math.isnan(float(covariance[i, i]))
            else math.nan
        )
        relative = error if model.free[i].log else error / max(abs(values[name]), 1e-300)
        if relative > POOR:
            yield (
                f"{name} = {values[name]:.3g} is poorly identified: its standard error is {relative:.0%} of "
                "it"
            )


def derived_quantities(
    model: KernelParameters, theta: Tensor, covariance: Tensor
) -> dict[str, tuple[float, float]]:
    r"""Effective ranges (where the correlation is 0.05) and, for Matérn, the micro-ergodic
    :math:`\sigma^2/\ell^{2\nu}`.

    The latter is what infill determines where ν is known (Zhang 2004, theorem 2). Standard errors follow from
    those of the logarithms, shape parameters included.
    """
    found: dict[str, tuple[float, float]] = {}
    free = {p.name: i for i, p in enumerate(model.free)}
    values = model.natural(theta)

    def with_error(value: float, exponents: Mapping[str, float]) -> tuple[float, float]:
        slope = torch.zeros(len(theta), dtype=torch.float64)
        for name, exponent in exponents.items():
            if name in free:
                slope[free[name]] = exponent
        used = slope != 0
        variance = float(slope[used] @ covariance[used][:, used] @ slope[used])
        return value, value * math.sqrt(variance) if variance >= 0.0 else math.nan

    def range_factor(path: str, at: Tensor) -> float:
        kernel = model.fitted(at, torch.float64).get_submodule(path)
        return float((kernel.effective_range / kernel.lengthscale).reshape(-1)[0])

    for path, kernel in model.kernel.named_modules():
        if not isinstance(kernel, StationaryKernel):
            continue
        own = [p for p in model.all if p.path.rpartition(".")[0] == path]
        for p in (p for p in own if p.is_lengthscale):
            prefix, _, name = p.name.rpartition(".")
            prefix = f"{prefix}." if prefix else ""
            suffix = name.removeprefix("lengthscale")
            length = values[p.name]
            factor = range_factor(path, theta)
            exponents = {p.name: 1.0}
            for shape in (q.name for q in own if q.free and not (q.is_lengthscale or q.is_variance)):
                low, high = model.free[free[shape]].theta_bounds
                below, above = theta.clone(), theta.clone()
                below[free[shape]] = max(float(theta[free[shape]]) - 1e-4, low)
                above[free[shape]] = min(float(theta[free[shape]]) + 1e-4, high)
                change = math.log(range_factor(path, above) / range_factor(path, below))
                exponents[shape] = change / float(above[free[shape]] - below[free[shape]])
            found[f"{prefix}effective_range{suffix}"] = with_error(factor * length, exponents)
            for q in (q for q in own if q.is_variance):
                nu = getattr(kernel, "nu", None)
                if not isinstance(nu, float):
                    continue
                power = 2.0 * nu
                label = f"variance/lengthscale{suffix}" + ("" if power == 1.0 else f"^{power:g}")
                ratio = values[q.name] / length**power
                found[f"{prefix}{label}"] = with_error(ratio, {q.name: 1.0, p.name: -power})
    return found
