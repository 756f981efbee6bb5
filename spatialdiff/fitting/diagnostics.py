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

from spatialdiff.domains import Grid
from spatialdiff.fitting.likelihoods.base import Likelihood
from spatialdiff.fitting.naming import Parameter
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.optimise import Optimum
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.result import MeanShare
from spatialdiff.fitting.scales import Scales
from spatialdiff.fitting.starts import coordinates_of

FLAT = 1e-7
ENDLESS = 10.0
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


def check_counts(model: KernelParameters, data: Observations) -> None:
    """Raise ValueError where there are not more values than parameters of kernel and mean."""
    mean = data.mean_parameters
    if data.mean_model == "field":
        mean = data.n_values // data.total
    number = len(model.free) + mean
    if data.n_values <= number:
        raise ValueError(
            f"{data.n_values} observed values are too few for {number} parameters ({len(model.free)} of the "
            f"kernel, {mean} of the mean): hold some with fixed=, tie them with ties=, take a simpler kernel "
            "or mean, or give more data"
        )


def complaints(
    model: KernelParameters,
    data: Observations,
    optimum: Optimum,
    covariance: Tensor,
    likelihood: Likelihood | None = None,
) -> Iterator[str]:
    """Everything that is wrong with the estimates, one sentence each."""
    scales = Scales(data)
    values = model.natural(optimum.theta)
    if not optimum.converged and optimum.hit_singular:
        yield (
            "not converged: the search ran into covariances that are numerically singular, or finer than "
            "the rounding of the data: the kernel is too smooth on its own, add a Nugget"
        )
    elif not optimum.converged:
        yield (
            f"not converged: {optimum.message}; a Newton step would still move the estimate by "
            f"{math.sqrt(max(optimum.decrement, 0.0)):.2g} "
            "standard errors: raise max_iterations, or give better start values"
        )
    noise = 0.0 if likelihood is None else likelihood.standard_error(optimum.theta)
    if noise > 1.0:
        yield (
            f"the log-likelihood has a Monte-Carlo standard error of {noise:.2g}: differences below "
            f"{3.0 * noise:.2g} between fits mean nothing; use more probes"
        )
    for i, p in enumerate(model.free):
        value = values[p.name]
        if optimum.at_lower[i] or optimum.at_upper[i]:
            side, bound = ("lower", p.lower) if optimum.at_lower[i] else ("upper", p.upper)
            yield (
                f"{p.name} stopped at its {side} bound {bound:.3g}: the data do not determine it"
                + _bound_hint(p, side)
            )
        elif p.is_lengthscale:
            yield from _scale_complaints(p, value, scales)
    yield from _identification(model, optimum, covariance, values)


def _scale_complaints(p: Parameter, value: float, scales: Scales) -> Iterator[str]:
    axes = coordinates_of(p, scales.dimension)
    spacing, extent = (size / p.unit for size in (scales.spacing(axes), scales.extent(axes)))
    if value < spacing:
        whole = isinstance(scales.domain, Grid)
        what = "grid spacing" if whole else "distance between neighbouring sites"
        who = "grid does" if whole else "sites do"
        yield f"{p.name} = {value:.3g} is below the {what} {spacing:.3g}: the {who} not resolve it"
    elif value > extent:
        yield (
            f"{p.name} = {value:.3g} is beyond the domain's extent {extent:.3g}: it trades off against the "
            "variance, and only their micro-ergodic combination, variance/lengthscale^(2 nu) for Matérn, is "
            "identified"
        )


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
    involved = [
        name for name, weight in zip(names, vectors[:, 0].abs().tolist(), strict=True) if weight > 0.1
    ]
    # how far the flattest direction can be followed, in logarithms
    reach = float((vectors[:, 0].abs() * scale).amax() / eigenvalues[0].clamp(min=1e-300).sqrt())
    if float(eigenvalues[0]) < FLAT or (reach > ENDLESS and len(involved) > 1):
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
        p = model.free[i]
        if p.kind == "angle":
            # half of what angles that say nothing have, uniform on a half turn
            if error > POOR * math.pi / math.sqrt(12.0):
                yield (
                    f"{name} = {values[name]:.3g} is poorly identified: its standard error is {error:.2g} "
                    "radians; the field is hardly anisotropic"
                )
            continue
        relative = error if p.log else error * p.step / max(_magnitude(p, model, values), 1e-300)
        if relative > POOR:
            of = "it" if p.kind != "root" or p.log else "the channel's"
            yield (
                f"{name} = {values[name]:.3g} is poorly identified: its standard error is {relative:.0%} of "
                + of
            )


def _magnitude(p: Parameter, model: KernelParameters, values: Mapping[str, float]) -> float:
    """What an error is compared with: the value; for a matrix's root, whose entries may be 0, its row."""
    if p.kind != "root":
        return abs(values[p.name])
    row = p.name.partition(",")[0]
    others = (q.name for q in model.all if q.path == p.path and q.name.partition(",")[0] == row)
    return math.sqrt(sum(values[name] ** 2 for name in others))
