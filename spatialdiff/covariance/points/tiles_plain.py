r"""Kernel products by tiles of the matrix in torch: ``y_i = Σ_j k(x_i, x_j) x_j`` without the matrix.

A tile of 128 × 2000 entries stays in the cache of a core; distances are differences of coordinates. Memory is
that of a few tiles, whatever the number of sites.
"""

from __future__ import annotations

from collections.abc import Iterator

import gpytorch
import torch
from torch import Tensor

from spatialdiff.kernels import at_pairs

ROWS, COLUMNS = 128, 2000
_TINY = 1e-30


def _tiles(n: int) -> Iterator[tuple[slice, slice]]:
    for i in range(0, n, ROWS):
        for j in range(0, n, COLUMNS):
            yield slice(i, min(i + ROWS, n)), slice(j, min(j + COLUMNS, n))


class _Buffers:
    """Three tiles that are used again and again."""

    def __init__(self, like: Tensor) -> None:
        n = like.shape[-1]
        self.parts = [like.new_empty(min(ROWS, n) * min(COLUMNS, n)) for _ in range(3)]

    def views(self, rows: int, columns: int) -> list[Tensor]:
        return [part[: rows * columns].view(rows, columns) for part in self.parts]


def _square_distance(coordinates: Tensor, rows: slice, columns: slice, out: Tensor, spare: Tensor) -> Tensor:
    for a, axis in enumerate(coordinates):
        torch.sub(axis[rows, None], axis[None, columns], out=spare)
        if a == 0:
            torch.mul(spare, spare, out=out)
        else:
            out.addcmul_(spare, spare)
    return out


def _profile(family: str, square: Tensor, spare: Tensor) -> Tensor:
    """``ρ`` of the squared scaled distance, in place."""
    if family == "gaussian":
        return square.neg_().exp_()
    s = square.sqrt_()
    if family == "exponential":
        return s.neg_().exp_()
    decay = torch.neg(s, out=spare).exp_()
    if family == "matern32":
        return s.add_(1.0).mul_(decay)
    # 1 + s + s²/3 by Horner's rule
    return s.mul_(s / 3 + 1).add_(1.0).mul_(decay)


def _slope(family: str, square: Tensor, spare: Tensor) -> Tensor:
    """``φ = ρ'(s)/s``, in place."""
    if family == "gaussian":
        return square.neg_().exp_().mul_(-2.0)
    s = square.sqrt_()
    decay = torch.neg(s, out=spare).exp_()
    if family == "exponential":
        return torch.div(decay, s.clamp_min_(_TINY), out=s).neg_()
    if family == "matern32":
        return torch.neg(decay, out=s)
    return s.add_(1.0).mul_(decay).mul_(-1 / 3)


def multiply(family: str, coordinates: Tensor, x: Tensor) -> Tensor:
    """``y_si = Σ_j ρ(‖u_i - u_j‖) x_sj``.

    Args:
        family: a name of `closed_forms.FAMILIES`.
        coordinates: scaled sites ``u``, ``(d, n)``, in the data type of ``x``.
        x: ``(S, n)``.
    """
    result = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    buffers = _Buffers(x)
    for rows, columns in _tiles(x.shape[-1]):
        square, spare, _ = buffers.views(rows.stop - rows.start, columns.stop - columns.start)
        tile = _profile(family, _square_distance(coordinates, rows, columns, square, spare), spare)
        result[:, rows] += x[:, columns] @ tile.T
    return result.to(x.dtype)


def moments(family: str, coordinates: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ_ij w_ij ρ_ij`` and, per axis, ``Σ_ij w_ij φ_ij (u_i - u_j)_a²`` with ``w_ij = Σ_s g_si x_sj``,
    float64, shapes ``()`` and ``(d,)``; arguments as in `multiply`.
    """
    value = torch.zeros((), dtype=torch.float64, device=x.device)
    slopes = torch.zeros(len(coordinates), dtype=torch.float64, device=x.device)
    buffers = _Buffers(x)
    for rows, columns in _tiles(x.shape[-1]):
        square, spare, weight = buffers.views(rows.stop - rows.start, columns.stop - columns.start)
        torch.mm(g[:, rows].T, x[:, columns], out=weight)
        tile = _profile(family, _square_distance(coordinates, rows, columns, square, spare), spare)
        value += tile.mul_(weight).sum(dtype=torch.float64)
        tile = _slope(family, _square_distance(coordinates, rows, columns, square, spare), spare)
        tile.mul_(weight)
        for a, axis in enumerate(coordinates):
            torch.sub(axis[rows, None], axis[None, columns], out=spare)
            slopes[a] += spare.mul_(spare).mul_(tile).sum(dtype=torch.float64)
    return value, slopes


def multiply_pairs(kernel: gpytorch.kernels.Kernel, sites: Tensor, x: Tensor) -> Tensor:
    """``y = K x`` for any kernel, through its values at pairs.

    Args:
        kernel: any kernel.
        sites: ``(n, d)`` in the data type of ``x``.
        x: ``(*batch, n, S)``.
    """
    result = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for rows, columns in _tiles(x.shape[-2]):
        tile = at_pairs(kernel, sites[rows, None], sites[None, columns])
        result[..., rows, :] += tile @ x[..., columns, :]
    return result.to(x.dtype)


def gradient_pairs(
    kernel: gpytorch.kernels.Kernel, sites: Tensor, g: Tensor, x: Tensor, parameters: list[Tensor]
) -> list[Tensor]:
    """Derivative of ``gᵀ K x`` in the kernel's parameters, tile by tile; arguments as in `multiply_pairs`."""
    total = [torch.zeros_like(p) for p in parameters]
    for rows, columns in _tiles(x.shape[-2]):
        with torch.enable_grad():
            tile = at_pairs(kernel, sites[rows, None], sites[None, columns])
            form = (tile * (g[..., rows, :] @ x[..., columns, :].mT)).sum()
            parts = torch.autograd.grad(form, parameters, allow_unused=True)
        for sum_, part in zip(total, parts, strict=True):
            if part is not None:
                sum_ += part
    return total
