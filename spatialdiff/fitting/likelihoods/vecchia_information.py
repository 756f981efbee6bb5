r"""Expected information of Vecchia's approximation for any kernel.

``½ Σ_i [tr(S_k S_l) of block i - the same without its last site] = Σ_i (s_k·s_l - ½ s_kp s_lp)`` with ``s_k =
L⁻¹ ∂A_k w`` (see `vecchia`), blocks made a chunk of sites at a time and ``∂A_k`` by central differences in θ,
whose error, 1e-9 of the derivative, matters to no search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance.points.vecchia import VecchiaCovariance
from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.structured import StructuredLikelihood

_STEP = 1e-5
_ENTRIES = 2_000_000


def vecchia_information(likelihood: StructuredLikelihood, theta: Tensor) -> Tensor:
    """Information of one field ``(p, p)`` at ``theta``, of a likelihood through the vecchia structure."""
    gamma = likelihood.gamma
    assert isinstance(gamma, VecchiaCovariance)
    number = len(theta)

    def at(point: Tensor, block: Tensor) -> Tensor:
        likelihood.own.set(point)
        different = ~torch.eye(block.shape[1], dtype=torch.bool)
        return gamma._covariance(block.unsqueeze(-2), block.unsqueeze(-3), different)

    total = torch.zeros(number, number, dtype=torch.float64)
    sites, neighbours = gamma.sites, gamma.neighbours.long()
    size = max(1, _ENTRIES // (neighbours.shape[1] + 1) ** 2)
    steps = torch.eye(number, dtype=torch.float64) * _STEP
    with torch.no_grad():
        for begin in range(0, len(sites), size):
            near = neighbours[begin : begin + size]
            own = torch.arange(begin, begin + len(near)).unsqueeze(-1)
            block = sites[torch.cat((near.clamp(min=0), own), dim=-1)]
            used = torch.nn.functional.pad(near >= 0, (0, 1), value=True)
            both = used.unsqueeze(-1) & used.unsqueeze(-2)
            eye = torch.eye(block.shape[1], dtype=torch.float64)
            matrix = torch.where(both, at(theta, block), eye)
            factor, info = torch.linalg.cholesky_ex(matrix)
            if bool((info != 0).any()):
                raise NotPositiveDefiniteError
            unit = eye[:, -1:].expand(len(block), -1, 1)
            w = torch.linalg.solve_triangular(factor.mT, unit, upper=True)
            rows = []
            for step in steps:
                slope = (at(theta + step, block) - at(theta - step, block)) / (2.0 * _STEP)
                product = torch.where(both, slope, 0.0) @ w
                rows.append(torch.linalg.solve_triangular(factor, product, upper=False).squeeze(-1))
            s = torch.stack(rows)
            total += torch.einsum("kip,lip->kl", s, s) - 0.5 * s[..., -1] @ s[..., -1].T
    return total
