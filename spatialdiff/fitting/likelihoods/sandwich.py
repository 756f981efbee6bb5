r"""The variance of a Gaussian score whose covariance is not that of the data.

The gradient of :math:`\log N(y; 0, K_\theta)` is a quadratic form with the matrices
:math:`A_i = \tfrac12 K^{-1}\partial_i K\,K^{-1}`. Where ``y`` has the covariance Γ,

.. math:: V_{ij} = \operatorname{Cov}(y^TA_iy,\, y^TA_jy) = 2\operatorname{tr}(A_i\Gamma A_j\Gamma),

which is the Fisher information where Γ is ``K``. With :math:`K^{-1} \approx W^TW`,
:math:`\tilde A = W^{-T}AW^{-1}` and :math:`\tilde\Gamma = W\Gamma W^T` it is estimated from probes as
:math:`2\operatorname{E}[(\tilde A_iz)^T\tilde\Gamma\tilde A_j\tilde\Gamma z]`, in which everything is well
conditioned.

Source: White 1982.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.operators import SpectralOperator, density_jacobian
from spatialdiff.fitting.likelihoods.probes import ProbedGroup

if TYPE_CHECKING:
    from spatialdiff.fitting.likelihoods.imputation import ImputedWhittle

# probes of few and of many cells: the relative error of an estimate is about √(2/(S n))
_MOST, _FEWEST, _CELLS = 16, 2, 200_000


def dense_score_covariance(likelihood: DenseLikelihood, truth: Tensor, theta: Tensor) -> Tensor:
    """``V`` ``(p, p)`` of all fields together, where they have the covariance ``truth`` ``(n, n)``."""
    with torch.no_grad():
        covariance = likelihood.covariance(theta)
        slopes = density_jacobian(likelihood.model, likelihood.covariance, theta)
        total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
        for group in likelihood._groups:
            rows = slice(None) if group.rows is None else group.rows
            factor = torch.linalg.cholesky(covariance[rows][:, rows])
            gamma = torch.cholesky_solve(truth[rows][:, rows], factor)
            products = [torch.cholesky_solve(slope[rows][:, rows], factor) @ gamma for slope in slopes]
            for i, first in enumerate(products):
                for j, second in enumerate(products):
                    total[i, j] += 0.5 * group.number * (first * second.T).sum()
    return 0.5 * (total + total.T)


def stochastic_score_covariance(likelihood: ImputedWhittle, truth: SpectralOperator, theta: Tensor) -> Tensor:
    """``V`` ``(p, p)`` of all fields together from some random vectors for each pattern."""
    p = len(theta)
    total = torch.zeros(p, p, dtype=torch.float64)
    with torch.no_grad():
        bound = likelihood.bind(theta)
        slopes = [SpectralOperator(change, bound.cells) for change in likelihood.jacobian(theta)]
        for group in likelihood.groups:
            forms = _Forms(likelihood, truth, slopes, bound, group, group.near.rows(theta))
            generator = torch.Generator().manual_seed(group.seed + 1)
            probes = max(_FEWEST, min(_MOST, _CELLS // len(group.rows)))
            z = torch.randint(0, 2, (probes, len(group.rows)), generator=generator).double() * 2.0 - 1.0
            left, right = forms.score(z), forms.score(forms.gamma(z))
            moved = forms.gamma(right.flatten(0, 1)).reshape(right.shape)
            total += 2.0 * group.number / probes * torch.einsum("isn,jsn->ij", left, moved)
    return 0.5 * (total + total.T)


@dataclass(frozen=True)
class _Forms:
    """``Ã_i`` and ``Γ̃`` of one pattern of observed cells."""

    likelihood: ImputedWhittle
    truth: SpectralOperator
    slopes: list[SpectralOperator]
    bound: SpectralOperator
    group: ProbedGroup
    w: Tensor

    def score(self, z: Tensor) -> Tensor:
        """``Ã_i z`` of ``(S, n)`` for every parameter, ``(p, S, n)``."""
        near, rows = self.group.near, self.group.rows
        solved = self.likelihood._solve(self.bound, self.group, self.w, near.apply(self.w, z, "solve"))
        moved = torch.cat([slope.matmul(solved, rows) for slope in self.slopes])
        back = self.likelihood._solve(self.bound, self.group, self.w, moved)
        return 0.5 * near.apply(self.w, back, "solve_transposed").reshape(-1, *z.shape)

    def gamma(self, z: Tensor) -> Tensor:
        """``Γ̃ z``."""
        near = self.group.near
        product = self.truth.matmul(near.apply(self.w, z, "product_transposed"), self.group.rows)
        return near.apply(self.w, product, "product")
