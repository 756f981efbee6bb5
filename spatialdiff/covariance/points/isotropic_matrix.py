r"""The matrix of an isotropic closed form at all pairs of sites, ``σ² ρ(‖T(s_i - s_j)‖) + σ₀² 1{i=j}``.

With ``u = f T s`` the coordinates in which ``ρ`` has scale 1 (`closed_forms`), and ``G`` the derivative of
something in Γ, the derivatives in the parameters are sums over pairs,
``Σ G ρ``, ``tr G`` and ``Σ G σ² φ u uᵀ T⁻ᵀ`` with ``φ = ρ'(s)/s``, ``u = u_i - u_j``: two passes without any
other array of the size of Γ, where differentiating the formula makes a dozen.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spatialdiff.covariance.points.closed_forms import _FACTOR, FAMILIES
from spatialdiff.covariance.points.conditionals import Isotropic
from spatialdiff.covariance.points.triangular import shared


def isotropic_matrix(kernel: Isotropic, sites: Tensor) -> Tensor:
    """Γ of one set of hyperparameters at ``sites`` ``(n, d)``, float64 on the CPU, compiled; differentiable
    once.
    """
    matrix: Tensor = _IsotropicMatrix.apply(
        kernel.variance[0], kernel.nugget[0], kernel.transform[0], kernel.family, sites
    )
    return matrix


class _IsotropicMatrix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, variance: Tensor, nugget: Tensor, transform: Tensor, family: int, sites: Tensor
    ) -> Tensor:
        from spatialdiff.covariance.points import isotropic_matrix_compiled as compiled

        scaled = (_FACTOR[FAMILIES[family]] * transform @ sites.T).contiguous().numpy()
        out = np.empty((len(sites), len(sites)))
        shared(compiled.fill, len(sites), scaled, family, float(variance), float(nugget), out)
        ctx.save_for_backward(variance, transform)
        ctx.scaled, ctx.family = scaled, family
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from spatialdiff.covariance.points import isotropic_matrix_compiled as compiled

        variance, transform = ctx.saved_tensors
        d, n = ctx.scaled.shape
        function = functools.partial(_collect, compiled.contract, 2 + d * d)
        parts = shared(function, n, ctx.scaled, ctx.family, float(variance), gradient.contiguous().numpy())
        total = torch.from_numpy(sum(parts))
        lower = total[2:].reshape(d, d)
        square = lower + lower.tril(-1).T
        to_transform = torch.linalg.solve(transform.T, square, left=False)
        return total[0], total[1], to_transform, None, None


def _collect(function: Any, size: int, *arguments: Any) -> np.ndarray[Any, Any]:
    *given, begin, end = arguments
    total = np.zeros(size)
    function(*given, total, begin, end)
    return total
