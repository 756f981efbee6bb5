"""Γ as a `linear_operator.LinearOperator`, for gpytorch and friends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from linear_operator import LinearOperator
from torch import Tensor

if TYPE_CHECKING:
    from spatialdiff.covariance.base import Covariance


class CovarianceOperator(LinearOperator):
    """``(N, N)`` operator whose products are ``covariance.matmul``; `to_dense` is the covariance's own.

    Args:
        anchor: an empty tensor that carries data type and device (linear_operator wants at least one tensor
            argument).
        covariance: the covariance.
    """

    def __init__(self, anchor: Tensor, covariance: Covariance) -> None:
        super().__init__(anchor, covariance=covariance)
        self.anchor, self.covariance = anchor, covariance

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        return self._columns(self.covariance.matmul(self._rows(rhs)))

    def _rows(self, columns: Tensor) -> Tensor:
        """Columns ``(..., N, m)`` as fields ``(..., m, *event)``."""
        return columns.mT.reshape(*columns.shape[:-2], columns.shape[-1], *self.covariance.event_shape)

    def _columns(self, fields: Tensor) -> Tensor:
        return fields.flatten(-len(self.covariance.event_shape)).mT

    def matmul(self, other: Tensor) -> Tensor:
        # past linear_operator's own autograd function, which knows nothing of the kernel's parameters
        if isinstance(other, LinearOperator):
            other = other.to_dense()
        return self._matmul(other)

    def solve(self, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
        vector = right_tensor.dim() == 1
        columns = right_tensor.unsqueeze(-1) if vector else right_tensor
        solved = self._columns(self.covariance.solve(self._rows(columns)))
        solved = solved.squeeze(-1) if vector else solved
        return solved if left_tensor is None else left_tensor @ solved

    def inv_quad_logdet(
        self, inv_quad_rhs: Tensor | None = None, logdet: bool = False, reduce_inv_quad: bool = True
    ) -> tuple[Tensor, Tensor]:
        # exact, where linear_operator would estimate both from random probes beyond 800 rows
        quad = torch.zeros((), dtype=self.dtype, device=self.device)
        if inv_quad_rhs is not None:
            columns = inv_quad_rhs.unsqueeze(-1) if inv_quad_rhs.dim() == 1 else inv_quad_rhs
            quad = self.covariance.quad_form(self._rows(columns))
            quad = quad.sum(-1) if reduce_inv_quad else quad
        return quad, self.covariance.log_det().to(self.dtype) if logdet else torch.zeros_like(quad)

    def zero_mean_mvn_samples(self, num_samples: int) -> Tensor:
        return self.covariance.sample((num_samples,)).flatten(1)

    def _size(self) -> torch.Size:
        n = self.covariance.event_shape.numel()
        return torch.Size((n, n))

    def _transpose_nonbatch(self) -> CovarianceOperator:
        return self

    def _diagonal(self) -> Tensor:
        return self.covariance.variance().reshape(-1).to(self.anchor)

    def to_dense(self) -> Tensor:
        return self.covariance.to_dense().to(self.anchor)

    @property
    def dtype(self) -> torch.dtype:
        return self.anchor.dtype

    @property
    def device(self) -> torch.device:
        return self.anchor.device
