r"""Kriging from all observations together, a chunk of targets at a time.

With ``k`` the covariance of a target, or of the average over a block around it, with the observations, the
equations of `spatialdiff.conditioning.system` give its mean and variance; memory holds the weights of one
chunk, whatever the number of targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatialdiff.conditioning.blocks import block_nodes
from spatialdiff.domains import Domain

if TYPE_CHECKING:
    from spatialdiff.conditioning.kriging import Kriging

# numbers that the covariances of one chunk may be
_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Prediction:
    """Kriging mean and variance, ``targets.shape`` with the batch or the channels of the data in front; NaN
    in masked cells. Unpacks as ``mean, variance``.
    """

    mean: Tensor
    variance: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        yield self.mean
        yield self.variance

    @property
    def standard_deviation(self) -> Tensor:
        """Square root of the variance."""
        return self.variance.sqrt()


def _chunk(kriging: Kriging, nodes: int = 1) -> int:
    return max(1, _ENTRIES // (max(len(kriging.place), nodes) * kriging.law.count * nodes))


def predict_dense(
    kriging: Kriging, sites: Tensor, columns: Tensor, block: float | Sequence[float] | None, nodes: int
) -> tuple[Tensor, Tensor]:
    """Mean ``(..., C, t)`` and variance ``(C, t)``, or without channels ``(..., t)`` and ``(t,)``."""
    shifts, weights = block_nodes(block, nodes, sites.shape[1])
    size = _chunk(kriging, len(weights))
    means, variances = [], []
    for begin in range(0, len(sites), size):
        part, rows = sites[begin : begin + size], columns[begin : begin + size]
        twin = kriging.twins(part)
        if block is None:
            cross, own = kriging.cross(part, twin), kriging.law.variance(part)
        else:
            cross, own, rows = _averaged(kriging, part, rows, shifts, weights)
        count, channels, _ = cross.shape
        spread = kriging.spread(rows)
        system = kriging.dense
        mean = system.mean(cross.flatten(0, 1), spread.flatten(0, 1)) + kriging.drift.mean
        mean = mean.unflatten(-1, (count, channels)).mT
        white, rest = system.project(cross.flatten(0, 1), spread.flatten(0, 1))
        change = (white.square().sum(0) - rest.square().sum(0)).reshape(count, channels)
        variance = (own.diagonal(dim1=-2, dim2=-1) - change).clamp(min=0.0).T
        if block is None:
            # rounding leaves a trace of the variance, and of the weights of others, at a datum
            datum = _known(kriging, twin)
            at = datum >= 0
            mean = torch.where(at, kriging.values[..., datum.clamp(min=0)], mean)
            variance = torch.where(at, 0.0, variance)
        means.append(mean)
        variances.append(variance)
    mean, variance = torch.cat(means, dim=-1), torch.cat(variances, dim=-1)
    return (mean, variance) if kriging.law.channels is not None else (mean.squeeze(-2), variance.squeeze(0))


def _averaged(
    kriging: Kriging, sites: Tensor, columns: Tensor, shifts: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances with the observations ``(t, C, m)``, own ``(t, C, C)`` and drift ``(t, q)`` of blocks."""
    law, drift = kriging.law, kriging.drift
    points = sites.unsqueeze(1) + shifts
    flat = points.flatten(0, 1)
    # an average has no part of a nugget, that of a datum in the block included
    cross = kriging.cross(flat, torch.full((len(flat),), -1))
    cross = torch.einsum("n,tncm->tcm", weights, cross.unflatten(0, (len(sites), -1)))
    between = law.between(points.unsqueeze(2), points.unsqueeze(1))
    own = torch.einsum("a,b,tabcd->tcd", weights, weights, between)
    if drift.function is not None or drift.degree > 1:
        columns = drift.at(flat).unflatten(0, (len(sites), -1))
        columns = torch.einsum("n,tnq->tq", weights, columns)
    return cross, own, columns


def _known(kriging: Kriging, twin: Tensor) -> Tensor:
    """The observation without error of each channel at each target, -1 where there is none, ``(C, t)``."""
    known = torch.full((kriging.law.count, len(kriging.sites) + 1), -1)
    exact = (kriging.noise == 0).nonzero().squeeze(-1)
    known[kriging.channel[exact], kriging.place[exact]] = exact
    return known[:, twin]


def predictor(kriging: Kriging, values: Tensor, domain: Domain, columns: Tensor) -> Tensor:
    """The kriging mean on ``domain`` from other ``values`` ``(..., m)`` at the observations, 0 in masked
    cells; a known mean is not added.
    """
    sites = domain.sites()
    size = _chunk(kriging)
    parts = []
    for begin in range(0, len(sites), size):
        part = sites[begin : begin + size]
        cross = kriging.cross(part, kriging.twins(part))
        spread = kriging.spread(columns[begin : begin + size])
        mean = kriging.dense.mean(cross.flatten(0, 1), spread.flatten(0, 1), values)
        parts.append(mean.unflatten(-1, cross.shape[:2]).mT)
    field = domain.unflatten(torch.cat(parts, dim=-1))
    return field if kriging.law.channels is not None else field.squeeze(-domain.ndim - 1)
