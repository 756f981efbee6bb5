r"""``M = L Lᵀ + δ I ≈ Γ`` by partial pivoted Cholesky, and its powers.

``k`` columns of Γ, each chosen where the remaining variance is largest, give ``L`` ``(n, k)``; ``δ`` is the
nugget plus the mean of the variance that is left. With ``L Lᵀ = U diag(s²) Uᵀ``:
``M^p = δ^p I + U diag((s²+δ)^p - δ^p) Uᵀ``.

Sources: Harbrecht, Peters & Schneider (2012); Gardner et al. (2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from spatialdiff.kernels import at_pairs

_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class LowRankPreconditioner:
    """``M = U diag(s²) Uᵀ + δ I`` for a batch of operators.

    Attributes:
        vectors: ``U``, ``(*batch, n, k)``, orthonormal columns, or 0 where the rank is lower.
        values: ``s²``, ``(*batch, k)``.
        shift: ``δ``, ``(*batch, 1)``.
    """

    vectors: Tensor
    values: Tensor
    shift: Tensor

    def power(self, x: Tensor, p: float) -> Tensor:
        """``M^p x`` of ``(..., *batch, n)``."""
        flat = self.shift.pow(p)
        change = ((self.values + self.shift).pow(p) - flat).unsqueeze(-1)
        low = self.vectors @ (change * (self.vectors.mT @ x.unsqueeze(-1)))
        return flat * x + low.squeeze(-1)

    def log_det(self) -> Tensor:
        """``log det M``, ``(*batch,)``."""
        n, k = self.vectors.shape[-2:]
        inside = (self.values + self.shift).log().sum(-1)
        return inside + (n - k) * self.shift.squeeze(-1).log()


@torch.no_grad()
def pivoted_cholesky(
    kernel: gpytorch.kernels.Kernel, sites: Tensor, nugget: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    """``L`` ``(*batch, n, k)`` and the variance that is left ``(*batch, n)``, of Γ without its nugget.

    All members of a batch have the same pivots: those with the largest share of variance left, on average.
    """
    variance = at_pairs(kernel, sites, sites) - nugget.unsqueeze(-1)
    left = variance.clone()
    columns: list[Tensor] = []
    for _ in range(min(rank, len(sites))):
        share = left / variance
        pivot = int(share.reshape(-1, len(sites)).mean(0).argmax())
        if float(share[..., pivot].max()) <= _NEGLIGIBLE:
            break
        site = sites[pivot : pivot + 1]
        column = at_pairs(kernel, sites, site)
        column = column - nugget.unsqueeze(-1) * (sites == site).all(-1)
        if columns:
            basis = torch.stack(columns, -1)
            column = column - (basis @ basis[..., pivot, :].unsqueeze(-1)).squeeze(-1)
        present = share[..., pivot] > _NEGLIGIBLE
        scale = torch.where(present, left[..., pivot].clamp_min(0.0).rsqrt(), 0.0)
        column = column * scale.unsqueeze(-1)
        columns.append(column)
        left = (left - column.square()).clamp_min(0.0)
        left[..., pivot] = 0.0
    return torch.stack(columns, -1), left


def low_rank_preconditioner(
    kernel: gpytorch.kernels.Kernel, sites: Tensor, nugget: Tensor, rank: int
) -> LowRankPreconditioner:
    """The preconditioner of ``k(sites, sites)``, float64, without graph.

    Args:
        kernel: any kernel.
        sites: ``(n, d)``.
        nugget: ``(*batch,)``.
        rank: number of columns at most.
    """
    with torch.no_grad():
        factor, left = pivoted_cholesky(kernel, sites, nugget, rank)
        values, rotation = torch.linalg.eigh(factor.mT @ factor)
        kept = values > _NEGLIGIBLE * values[..., -1:]
        vectors = (factor @ rotation) * torch.where(kept, values.clamp_min(1e-300).rsqrt(), 0.0).unsqueeze(-2)
        scale = values.sum(-1, keepdim=True) / len(sites)
        shift = (nugget.unsqueeze(-1) + left.mean(-1, keepdim=True)).clamp_min(1e-10 * scale)
        return LowRankPreconditioner(vectors, torch.where(kept, values, 0.0), shift)
