r"""A sparse triangular factor of nearly the inverse: ``Γ⁻¹ ≈ WᵀW``, ``W(θ)`` by Vecchia's approximation.

``W Γ Wᵀ`` is close to the identity, so that conjugate gradients and Lanczos need some ten steps, and the
random part of ``log det Γ = -2 Σ log W_ii + tr log(W Γ Wᵀ)`` is small: its variance is ``2 ‖log(WΓWᵀ)‖²`` off
the diagonal. ``W`` follows θ; order and neighbours are those of the start.

Source: Vecchia 1988; Guinness & Fuentes 2017 and Kündig & Sigrist 2025 (as a preconditioner).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spatialdiff.covariance.points.vecchia import VecchiaCovariance
from spatialdiff.domains import Points
from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.own_kernel import OwnKernel
from spatialdiff.fitting.parameters import KernelParameters


class _Rows(torch.autograd.Function):
    """Rows at θ; made once more, there, for the derivative."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, own: OwnKernel, gamma: VecchiaCovariance) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.own, ctx.gamma = own, gamma
        own.set(theta)
        with torch.no_grad():
            return gamma._factor("rows")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (theta,) = ctx.saved_tensors
        ctx.own.set(theta)
        with torch.enable_grad():
            rows = ctx.gamma._factor("rows")
        return ctx.own.slope(rows, theta, gradient), None, None


class NearInverse:
    """``W(θ)`` for a kernel at sites ``(n, d)``; vectors are ``(S, n)`` in its own ``order`` of the sites.

    Periodic axes are taken as open: the seam is left to the iterations.
    """

    def __init__(self, model: KernelParameters, sites: Tensor, neighbors: int) -> None:
        neighbors = min(neighbors, max(1, len(sites) - 1))
        self._own = OwnKernel(model)
        self.gamma = VecchiaCovariance(self._own.kernel, Points(sites), neighbors=neighbors)
        self.order: Tensor = self.gamma.order

    def rows(self, theta: Tensor) -> Tensor:
        """``W``, ``(n, m + 1)``, differentiable in θ.

        Raises:
            NotPositiveDefiniteError: Γ of a site and its neighbours is singular.
        """
        try:
            rows: Tensor = _Rows.apply(theta, self._own, self.gamma)
        except ValueError as error:
            if "positive definite" not in str(error):
                raise
            raise NotPositiveDefiniteError from error
        return rows.reshape(rows.shape[-2:])

    def apply(self, rows: Tensor, x: Tensor, *operations: str) -> Tensor:
        """``"product"`` ``W x`` and ``"product_transposed"`` ``Wᵀ x``, one after the other."""
        fields = x.T.unsqueeze(0).contiguous()
        for operation in operations:
            fields = self.gamma.pattern.apply(operation, rows.unsqueeze(0), fields)
        return fields[0].T.contiguous()

    def outer(self, x: Tensor, y: Tensor) -> Tensor:
        """``Σ_s x_si y_sj`` at the entries of ``W``, ``(n, m + 1)``."""
        return self.gamma.pattern.outer(x.T.unsqueeze(0).contiguous(), y.T.unsqueeze(0).contiguous())[0]
