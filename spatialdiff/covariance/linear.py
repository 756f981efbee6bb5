"""Γ as a `linear_operator.LinearOperator`, for gpytorch and friends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from linear_operator import LinearOperator
from torch import Tensor

if TYPE_CHECKING:
    from spatialdiff.covariance.base import Covariance


class CovarianceOperator(LinearOperator):  # type: ignore[misc]
    """``(N, N)`` operator whose products are ``covariance.matmul``; `to_dense` is the covariance's own.

    Args:
        anchor: an empty tensor that carries data type and device (linear_operator wants at least one tensor argument).
        covariance: the covariance.
    """

    def __init__(self, anchor: Tensor, covariance: Covariance) -> None:
        super().__init__(anchor, covariance=covariance)
        self.anchor, self.covariance = anchor, covariance

    def _matmul(self, rhs: Tensor) -> Tensor:
        columns = rhs if rhs.dim() > 1 else rhs.unsqueeze(-1)
        rows = columns.mT.reshape(*columns.shape[:-2], columns.shape[-1], *self.covariance.event_shape)
        product = self.covariance.matmul(rows).reshape(*columns.shape[:-2], columns.shape[-1], columns.shape[-2]).mT
        return product if rhs.dim() > 1 else product.squeeze(-1)

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
