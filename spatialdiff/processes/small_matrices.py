"""Factors of very many small matrices at once, by elementwise operations: a library call each costs more."""

from __future__ import annotations

import torch
from torch import Tensor


def updated(root: Tensor, vector: Tensor) -> Tensor:
    """Lower L with ``L Lᵀ = F Fᵀ + v vᵀ`` for lower F ``(…, K, K)`` and v ``(…, K)``, by Givens rotations."""
    shape = torch.broadcast_shapes(root.shape[:-1], vector.shape)
    rest = vector.expand(shape)
    columns = []
    for j in range(shape[-1]):
        column = root[..., j].expand(shape)
        size = torch.hypot(column[..., j], rest[..., j])[..., None]
        none = size == 0
        safe = torch.where(none, 1.0, size)
        cosine = torch.where(none, 1.0, column[..., j, None] / safe)
        sine = rest[..., j, None] / safe
        columns.append(cosine * column + sine * rest)
        rest = cosine * rest - sine * column
    return torch.stack(columns, dim=-1).tril()


def forward_solve(lower: Tensor, value: Tensor) -> Tensor:
    """``L⁻¹ B`` for B ``(…, K, m)`` row by row: for many small matrices faster than a library call each."""
    rows: list[Tensor] = []
    for i in range(lower.shape[-1]):
        row = value[..., i, :]
        for j, before in enumerate(rows):
            row = row - lower[..., i, j, None] * before
        rows.append(row / lower[..., i, i, None])
    return torch.stack(torch.broadcast_tensors(*rows), dim=-2)
