r"""The linear model of coregionalisation fitted to cross-variograms [Goulard & Voltz 1992].

.. math:: \min_{B_1, …, B_Q \succeq 0} \sum_k \sum_{ab} w_{kab}
   (\hat\gamma_{kab} - \sum_q (B_q)_{ab}\, g_q(h_k))^2,
   \qquad g_q = k_q(0) - k_q

with channels in units of their standard deviations. One matrix at a time is replaced by the projection of its
least-squares solution onto the positive semi-definite matrices, the others held. For weights that differ
among the pairs of channels the projection takes a step of the length that the largest weight allows, which
lowers the sum as well (majorisation); the problem is convex, and has one minimum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.fitting.variograms.empirical import Variogram
from spatialdiff.kernels import Coregionalization, at_lags, at_pairs

_ROUNDS = 5000


def positive_matrices(
    variogram: Variogram, kernel: Coregionalization, weights: str = "n/h2", tolerance: float = 1e-13
) -> list[Tensor]:
    """``B_1, …, B_Q`` for the kernels as they are, each ``(C, C)`` and positive semi-definite.

    Args:
        variogram: with cross-variograms ``(b, C, C)``.
        kernel: gives the ``k_q``; its own matrices are not used.
        weights: "n/h2", "n" or "equal".
        tolerance: see `goulard_voltz`.
    """
    counts, lags = variogram.counts, variogram.lags.nan_to_num()
    gamma = variogram.gamma.nan_to_num()
    weight = {"n": counts, "equal": (counts > 0).double()}.get(
        weights, counts / lags.square().clamp_min(1e-300)
    )
    weight = torch.where((counts > 0) & (lags > 0), weight, 0.0)
    with torch.no_grad():
        shapes = torch.stack([_semivariance(k, lags, variogram) for k in kernel.kernels])
    scale = gamma.diagonal(dim1=-2, dim2=-1).amax(dim=0).sqrt().clamp_min(1e-300)
    unit = scale[:, None] * scale
    matrices = goulard_voltz(gamma / unit, shapes, weight, tolerance)
    return [matrix * unit for matrix in matrices]


def goulard_voltz(gamma: Tensor, shapes: Tensor, weight: Tensor, tolerance: float = 1e-13) -> Tensor:
    """The minimiser ``(Q, C, C)``.

    Args:
        gamma: ``(b, C, C)``.
        shapes: ``g_q`` at the lags of each pair of channels, ``(Q, b, C, C)``.
        weight: ``(b, C, C)``, not negative.
        tolerance: the sum of squares settles to this share of that of ``gamma``.
    """
    matrices = torch.zeros(shapes.shape[0], *gamma.shape[1:], dtype=torch.float64)
    curvature = torch.einsum("bij,qbij,qbij->qij", weight, shapes, shapes).amax(dim=(-2, -1))
    size = float((weight * gamma.square()).sum())
    last = size
    for _ in range(_ROUNDS):
        for q in range(len(shapes)):
            misfit = gamma - torch.einsum("qij,qbij->bij", matrices, shapes)
            step = (weight * shapes[q] * misfit).sum(dim=0) / curvature[q]
            values, vectors = torch.linalg.eigh(matrices[q] + 0.5 * (step + step.mT))
            matrices[q] = (vectors * values.clamp_min(0.0)) @ vectors.mT
        misfit = gamma - torch.einsum("qij,qbij->bij", matrices, shapes)
        value = float((weight * misfit.square()).sum())
        if last - value <= tolerance * size:
            break
        last = value
    return matrices


def _semivariance(kernel: torch.nn.Module, lags: Tensor, variogram: Variogram) -> Tensor:
    d = variogram.domain.dimension
    if variogram.metric == "great_circle":
        radius = float(variogram.domain.sites()[0].norm())
        angle = lags / radius
        pole = torch.tensor([radius, 0.0, 0.0], dtype=torch.float64)
        sites = radius * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=-1)
        return at_pairs(kernel, pole, pole) - at_pairs(kernel, pole, sites)
    along = variogram.direction
    if along is None:
        along = torch.eye(d, dtype=torch.float64)[0]
    zero = torch.zeros(1, d, dtype=torch.float64)
    return at_lags(kernel, zero)[0] - at_lags(kernel, lags[..., None] * along)
