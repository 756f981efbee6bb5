r"""Residuals without their correlation: :math:`z = R^{-1} e` with :math:`\Gamma = R R^T`, standard normal and
independent where the model is right.

On the whole domain where ``R`` has an inverse and nothing is missing. Otherwise at the sites nearest to one
of them, by the symmetric root of their covariance, which is exact for any part of the domain and, unlike a
Cholesky factor, does not depend on the order of the sites. The mean is the one of generalised least squares,
whose residuals have no part along the decorrelated design.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.domains import Graph, Sphere
from spatialdiff.fitting.inference.checks import law_on
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.result import FitResult

MOST_SITES = 800
_MOST_PATTERNS = 20
MOST_VALUES = 200_000


def decorrelated(result: FitResult, data: Observations, seed: int = 0) -> Tensor:
    """Decorrelated residuals of the fields, in one list ``(m,)``.

    Args:
        result: the fit.
        data: the observations that it was fitted to.
        seed: of the fields that are looked at where there are more than 200,000 values, and of the site whose
            neighbours are.
    """
    gamma = law_on(result, data).double()
    # what a mean of each site takes from every residual
    scale = math.sqrt(data.total / data.count)
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(data.values.shape[1:])
    rows = torch.arange(data.total)
    if data.total * size > MOST_VALUES:
        number = max(1, MOST_VALUES // size)
        rows = torch.randperm(data.total, generator=generator)[:number].sort().values
    values = data.values[rows] * scale
    few = gamma.method == "dense" and data.domain.size <= MOST_SITES
    whole = data.observed is None and gamma.domain == data.domain and not few
    if whole:
        found = _whitened(gamma, data, values)
        if found is not None:
            return found
    return _at_some_sites(gamma, data, values, rows, generator)


def _whitened(gamma: Covariance, data: Observations, values: Tensor) -> Tensor | None:
    """``R⁻¹ e`` of all values, ``None`` where the structure says that ``R`` has no inverse."""
    if gamma.factor_shape != gamma.event_shape or (isinstance(gamma.domain, Sphere) and gamma.domain.poles):
        return None
    domain, channels = data.domain, gamma.channels is not None
    try:
        with torch.no_grad():
            z = gamma.whiten(values if channels else values.flatten(0, 1))
    except ValueError as error:
        if "whiten:" in str(error):
            return None
        raise
    flat = domain.flatten(z).reshape(len(z), -1)
    if data.design is None:
        return flat.reshape(-1)
    columns = domain.unflatten(data.design.T.contiguous())
    if channels:
        eye = torch.eye(data.channels, dtype=torch.float64)
        eye = eye.reshape(-1, 1, data.channels, *(1,) * domain.ndim)
        columns = (eye * columns.unsqueeze(1)).flatten(0, 1)
    with torch.no_grad():
        along = domain.flatten(gamma.whiten(columns)).reshape(len(columns), -1)
    if channels:
        return _free_of(flat, along.T).reshape(-1)
    # a coefficient of its own for every channel, in common to its fields
    each = flat.reshape(len(values), -1, flat.shape[1]).unbind(1)
    return torch.cat([_free_of(rows, along.T) for rows in each]).reshape(-1)


def _free_of(z: Tensor, columns: Tensor) -> Tensor:
    """Rows ``z`` ``(N, m)`` less the least-squares fit of the columns ``(m, q)`` to all of them together."""
    if not columns.shape[1]:
        return z
    fitted: Tensor = torch.linalg.lstsq(columns, z.mean(dim=0).unsqueeze(1)).solution.T @ columns.T
    return z - fitted


def _at_some_sites(
    gamma: Covariance, data: Observations, values: Tensor, rows: Tensor, generator: torch.Generator
) -> Tensor:
    domain = data.domain
    places = torch.arange(math.prod(domain.shape)).reshape(domain.shape)
    distinct = torch.ones(domain.shape, dtype=torch.bool)
    if isinstance(domain, Sphere) and domain.poles:
        distinct[[0, -1], 1:] = False
    kept = domain.flatten(distinct)
    index = kept.nonzero().squeeze(-1)
    if len(index) > MOST_SITES:
        if isinstance(domain, Graph):
            index = index[torch.randperm(len(index), generator=generator)[:MOST_SITES]]
        else:
            sites = domain.sites()[index]
            centre = sites[int(torch.randint(len(index), (1,), generator=generator))]
            index = index[(sites - centre).square().sum(-1).topk(MOST_SITES, largest=False).indices]
    position = domain.flatten(places)[index]
    seen = data.flat_observed()
    seen = None if seen is None else seen[rows][..., index]
    flat = domain.flatten(values)[..., index]
    design = torch.zeros(len(index), 0, dtype=torch.float64) if data.design is None else data.design[index]
    parts = []
    for c in range(data.channels):
        matrix = _block(gamma, position, c if gamma.channels is not None else 0)
        parts.append(_solved(matrix, flat[:, c], design, None if seen is None else seen[:, c]))
    return torch.cat(parts)


def _block(gamma: Covariance, position: Tensor, channel: int) -> Tensor:
    """Covariance of a channel at some places of the domain, ``(k, k)``."""
    size = math.prod(gamma.domain.shape)
    count = gamma.channels or 1
    found = []
    with torch.no_grad():
        for part in position.split(max(1, 20_000_000 // (size * count))):
            unit = torch.zeros(len(part), count, size, dtype=torch.float64)
            unit[torch.arange(len(part)), channel, part] = 1.0
            product = gamma.matmul(unit.reshape(len(part), *gamma.event_shape))
            found.append(product.reshape(len(part), count, size)[:, channel, position])
    matrix = torch.cat(found)
    return 0.5 * (matrix + matrix.T)


def _solved(matrix: Tensor, values: Tensor, design: Tensor, seen: Tensor | None) -> Tensor:
    """``L⁻¹`` of the observed values of every row, free of the design, in one list."""
    if seen is None:
        seen = torch.ones(values.shape, dtype=torch.bool)
    patterns, which = torch.unique(seen, dim=0, return_inverse=True)
    white: list[Tensor] = []
    columns: list[Tensor] = []
    for number, pattern in enumerate(patterns[:_MOST_PATTERNS]):
        lengths, vectors = torch.linalg.eigh(matrix[pattern][:, pattern])
        root = (vectors * lengths.rsqrt()) @ vectors.T
        rows = values[which == number][:, pattern]
        white.append((rows @ root).reshape(-1))
        columns.append((root @ design[pattern]).repeat(len(rows), 1))
    return _free_of(torch.cat(white).unsqueeze(0), torch.cat(columns))[0]
