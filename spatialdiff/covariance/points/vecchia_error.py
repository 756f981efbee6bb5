r"""How far Vecchia's approximation is from the covariance that was asked for.

``x_i - b x_N`` has the variance ``d_i`` under both laws, so that ``tr(Γ⁻¹K) = n`` and the Kullback–Leibler
divergence of the approximation ``N(0, Γ)`` from the law ``N(0, K)`` is

``KL(N(0, K) ‖ N(0, Γ)) = ½ (log det Γ - log det K) = ½ Σ_i log(d_i/d_i*)``,

``d_i*`` the variance of ``x_i`` given all sites before it. More neighbours lower every ``d_i`` and never
below ``d_i*``, so that ``½ Σ_i log(d_i/d_i')`` with ``d_i'`` from more neighbours is a lower bound, which
sites drawn at random estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance.points.conditionals import PairCovariance, conditional_rows
from spatialdiff.covariance.points.triangular import SparsePattern


def site_covariance(covariance: PairCovariance, sites: Tensor, columns: Tensor) -> Tensor:
    """``K`` between all sites and the ``columns``, ``(*batch, n, c)``."""
    every = torch.arange(len(sites), device=sites.device)
    return covariance(sites[:, None], sites[columns][None], every[:, None] != columns)


def kl_divergence(covariance: PairCovariance, sites: Tensor, log_det: Tensor) -> Tensor:
    """``½ (log det Γ - log det K)``, ``(*batch,)``, in ``O(n³)``."""
    matrix = site_covariance(covariance, sites, torch.arange(len(sites), device=sites.device))
    factor = torch.linalg.cholesky(matrix)
    half: Tensor = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * log_det - half


def kl_gains(
    covariance: PairCovariance, sites: Tensor, metric: Tensor, rows: Tensor, chosen: Tensor, neighbors: int
) -> Tensor:
    """``½ log(d_i/d_i')`` of the sites ``chosen``, ``(*batch, s)``, with ``d_i'`` from ``neighbors``
    neighbours.

    Args:
        sites: coordinates ``(n, d)`` in their order.
        metric: the same in the units in which distances are compared.
        rows: ``W``, ``(*batch, n, m + 1)``.
    """
    more = min(neighbors, len(sites) - 1)
    nearest = torch.full((len(chosen), more), -1, dtype=torch.int32, device=sites.device)
    for row, site in zip(nearest, chosen.tolist(), strict=True):
        distance = (metric[:site] - metric[site]).square().sum(-1)
        found = distance.topk(min(more, site), largest=False).indices
        row[: len(found)] = found.to(torch.int32)
    better = conditional_rows(covariance, sites, SparsePattern(nearest, "torch"), chosen)
    return better[..., -1].log() - rows[..., chosen, -1].log()


def largest_error(
    covariance: PairCovariance, sites: Tensor, rows: Tensor, pattern: SparsePattern, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Largest ``|Γ - K|`` over the given columns, and the Frobenius norm of the difference over that of
    ``K``; over the whole batch.

    Args:
        rows: ``W``, ``(H, n, m + 1)``.
    """
    unit = rows.new_zeros(len(rows), len(sites), len(columns))
    unit[:, columns, torch.arange(len(columns), device=sites.device)] = 1.0
    found = pattern.apply("solve", rows, pattern.apply("solve_transposed", rows, unit))
    wanted = site_covariance(covariance, sites, columns).reshape(-1, len(sites), len(columns))
    difference = found - wanted
    relative = difference.flatten(1).norm(dim=-1) / wanted.flatten(1).norm(dim=-1)
    return difference.abs().max(), relative.max()
