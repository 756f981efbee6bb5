"""Channels: ``Γ = B ⊗ Γ_s`` with a symmetric positive definite ``(C, C)`` matrix ``B``, or ``I_C``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channel_covariance(
    channels: int | Tensor | Sequence[Sequence[float]] | None,
) -> tuple[int | None, Tensor | None]:
    """Number of channels and ``B`` (None where the channels are independent and alike).

    Raises:
        ValueError: fewer than one channel; a matrix that is not square, symmetric and positive definite.
    """
    if channels is None:
        return None, None
    if isinstance(channels, int):
        if channels < 1:
            raise ValueError(f"channels must be None, a positive int or a (C, C) matrix, got {channels}.")
        return channels, None
    matrix = torch.as_tensor(channels, dtype=torch.float64).clone()
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 1:
        raise ValueError(
            f"channels must be None, a positive int or a (C, C) matrix, got shape {tuple(matrix.shape)}."
        )
    if not torch.allclose(matrix, matrix.T, rtol=1e-10, atol=0) or not bool(torch.isfinite(matrix).all()):
        raise ValueError("channels: the channel covariance must be finite and symmetric.")
    smallest = float(torch.linalg.eigvalsh(matrix)[0])
    if smallest <= 0:
        raise ValueError(
            "channels: the channel covariance must be positive definite, its smallest eigenvalue is "
            f"{smallest:.3g}."
        )
    return matrix.shape[0], matrix


def channel_apply(matrix: Tensor, x: Tensor, ndim: int) -> Tensor:
    """``matrix`` on the channel axis of ``x``, shape ``(..., C, *grid)`` with ``ndim`` grid axes."""
    flat = x.flatten(-ndim)
    return (matrix @ flat).reshape(x.shape)
