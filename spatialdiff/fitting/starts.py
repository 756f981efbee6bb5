r"""Bounds and starting points of a search, from the scales of the data.

Length scales start at the data's correlation length times 1, 1/4, 4, 1/16, ..., variances so that
:math:`k(0)` is the variance of the data, matrices of a coregionalisation at the covariance of the channels,
and directions of anisotropy at several angles, since the likelihood has more than one maximum in them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spatialdiff.domains import Graph, Grid, MaskedGrid
from spatialdiff.fitting.naming import Parameter, triangular
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.scales import Scales
from spatialdiff.fitting.validity import keep_valid
from spatialdiff.kernels import Anisotropic, Coregionalization, Nugget

# the share of the variance that a nugget starts with
_NUGGET = 0.1


def set_bounds(model: KernelParameters, data: Observations) -> None:
    """Narrow each free parameter to what sites and data can tell anything about; bounds given are kept.

    - length scales: a twentieth of the spacing to a hundred times the extent, or to the shortest period where
      images must be summed, since that takes ever longer;
    - variances: 1e-8 to 1e6 times that of the data; standard deviations: the roots of these; entries of the
      root of a coregionalisation: of the channel of their row, whose deviation is also the unit of a step;
    - other positive parameters: a millionth to a million times their start;
    - all: to where the kernel is positive definite in the dimension of the domain.
    """
    domain = data.domain
    scales = Scales(data)
    variance = float(data.variance().mean())
    if not isinstance(domain, Graph):
        keep_valid(model, domain.dimension)
    periods: list[float] = []
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    if isinstance(grid, Grid) and any(grid.periodic):
        closed = all(grid.periodic) and model.torus_density(model.start(), grid) is not None
        periods = [e for e, wraps in zip(grid.extent, grid.periodic, strict=True) if wraps and not closed]
    for p in model.free:
        if p.attribute == "angle":
            p.unit = scales.radius
        deviation = math.sqrt(variance)
        if p.kind == "root" and isinstance(model.kernel, Coregionalization):
            rank = model.kernel.get_parameter(p.path).shape[1]
            deviation = math.sqrt(float(data.variance()[p.index // rank]))
            p.step = 1.0 if p.log else deviation
        if p.bounded_by_user or not p.log:
            continue
        if p.is_lengthscale:
            axes = coordinates_of(p, scales.dimension)
            low = scales.spacing(axes) / 20.0 / p.unit
            high = (min(periods) if periods else scales.extent(axes) * 100.0) / p.unit
        elif p.is_variance:
            low, high = variance * 1e-8, variance * 1e6
        elif p.kind in ("deviation", "root"):
            low, high = deviation * 1e-4 / p.unit, deviation * 1e3 / p.unit
        else:
            low, high = p.start * 1e-6, p.start * 1e6
        p.lower, p.upper = max(p.lower, low), min(p.upper, high)


def coordinates_of(p: Parameter, d: int) -> tuple[int, ...]:
    """The coordinates, of ``d``, that a length scale is measured along."""
    axes = tuple(range(d)) if p.axes is None else tuple(a % d for a in p.axes)
    if p.excluded is not None:
        axes = tuple(a for a in axes if a != p.excluded % d)
    if p.axis is not None and p.axis < len(axes):
        return (axes[p.axis],)
    return axes


def starting_points(model: KernelParameters, data: Observations, number: int) -> list[Tensor]:
    """``number`` starts: length scales from the data's correlation length times 1, 1/4, 4, 1/16, ..., then
    the kernel's own values.

    Several components get length scales a factor 4 apart. Variances are shared out equally, a tenth to
    nuggets, and scaled so that ``k(0)`` is the variance of the data.
    """
    scales = Scales(data)
    free = model.free
    base = model.start()
    components = list(dict.fromkeys(_component(p) for p in free if p.is_lengthscale))
    variance = float(data.variance().mean())
    angles = sum(p.kind == "angle" for p in free) > 0
    own = [_clip(model, base)]
    starts = []
    for k in range(number - 1 if number > 1 else number):
        factor = 4.0 ** ((k + 1) // 2 * (-1) ** k)
        theta = base.clone()
        for i, p in enumerate(free):
            if p.is_lengthscale:
                length = scales.length(coordinates_of(p, scales.dimension)) / p.unit
                spread = 4.0 ** (components.index(_component(p)) - (len(components) - 1) / 2.0)
                # directions need a search of their own
                value = length * (spread if angles else factor * spread)
                theta[i] = p.to_theta(min(max(value, p.lower), p.upper))
            elif p.is_variance:
                theta[i] = p.to_theta(variance * (_NUGGET if p.is_nugget and len(free) > 1 else 1.0))
            elif p.kind == "deviation":
                theta[i] = p.to_theta(math.sqrt(variance) / p.unit)
            elif p.kind == "angle" and p.period is not None:
                theta[i] = p.start + k * p.period / max(number - 1, 1)
            elif angles and p.owner == Anisotropic.__name__ and abs(math.log(p.start)) < 0.05:
                # at equal scales no direction is better than another
                theta[i] = p.to_theta(0.5)
        _set_roots(model, theta, data)
        starts.append(_clip(model, _match_variance(model, theta, variance, data)))
    return starts + own if number > 1 else starts


def channel_covariance(data: Observations) -> Tensor:
    """Covariance of the channels at a site, ``(C, C)``, over the values where both are observed; negative
    eigenvalues, which missing values can cause, are set to 0."""
    values, seen = data.flat(), data.flat_observed()
    products = torch.einsum("ics,ids->cd", values, values)
    if seen is None:
        counts = torch.full_like(products, float(values.shape[0] * values.shape[2]))
    else:
        present = seen.double()
        counts = torch.einsum("ics,ids->cd", present, present)
    covariance = products / counts.clamp_min(1.0)
    # of the correlations, so that units of the channels do not matter
    deviations = covariance.diagonal().sqrt()
    scale = deviations[:, None] * deviations
    eigenvalues, vectors = torch.linalg.eigh(covariance / scale)
    floor = 1e-6 * eigenvalues[-1]
    found: Tensor = (vectors * eigenvalues.clamp_min(floor)) @ vectors.T * scale
    return found


def _set_roots(model: KernelParameters, theta: Tensor, data: Observations) -> None:
    """Matrices of a coregionalisation: equal shares of the covariance of the channels, a tenth to nuggets."""
    kernel = model.kernel
    if not isinstance(kernel, Coregionalization):
        return
    total = channel_covariance(data)
    smooth = sum(not isinstance(part, Nugget) for part in kernel.kernels)
    positions = {(p.path, p.index): i for i, p in enumerate(model.free)}
    for number, root in enumerate(kernel.roots):
        part: Any = kernel.kernels[number]
        share = 1.0
        if smooth and smooth < len(kernel.kernels):
            nugget = isinstance(part, Nugget)
            share = _NUGGET / (len(kernel.kernels) - smooth) if nugget else (1.0 - _NUGGET) / smooth
        elif smooth:
            share = 1.0 / smooth
        eigenvalues, vectors = torch.linalg.eigh(total * share / float(part.variance.detach()))
        rank = root.shape[1]
        factor = triangular(vectors[:, -rank:] * eigenvalues[-rank:].clamp_min(0.0).sqrt())
        for row in range(root.shape[0]):
            for column in range(min(row + 1, rank)):
                i = positions.get((f"roots.{number}", row * rank + column))
                if i is not None:
                    theta[i] = model.free[i].to_theta(float(factor[row, column]))


def _component(p: Parameter) -> tuple[str, tuple[int, ...] | None, int | None]:
    """What tells components of a sum apart: in a space–time kernel the scales of space and time do not
    compete."""
    whole = p.axes is None and p.excluded is None
    return (p.path if whole else "", p.axes, p.excluded)


def _clip(model: KernelParameters, theta: Tensor) -> Tensor:
    pairs = [p.theta_bounds for p in model.free]
    low, high = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    return torch.minimum(torch.maximum(theta, low), high)


def _match_variance(model: KernelParameters, theta: Tensor, variance: float, data: Observations) -> Tensor:
    """Scale all free variances by one factor so that the mean of ``k(x, x)`` is ``variance`` (a product of m
    variances takes the m-th root)."""
    mask = torch.tensor([p.is_variance and p.log for p in model.free])
    if not bool(mask.any()) or isinstance(model.kernel, Coregionalization):
        return theta
    domain = data.domain
    if isinstance(domain, Graph):
        sites = torch.zeros(1, 1, dtype=torch.float64)
    else:
        sites = domain.sites()
        sites = sites[:: max(1, len(sites) // 8)]
    with torch.no_grad():
        doubled = theta + mask * math.log(2.0)
        at, above = (float(model.matrix(t, sites).diagonal().mean()) for t in (theta, doubled))
    degree = math.log2(above / at) if at > 0.0 and above > 0.0 else 0.0
    if degree < 0.1:
        return theta
    shift = math.log(variance / at) / degree
    return theta + mask * shift
