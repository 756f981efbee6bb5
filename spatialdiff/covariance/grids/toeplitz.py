r"""Block-Toeplitz matrices: products by FFT, determinants.

*Products.* ``Γ x`` is a corner of the product with any circulant that has Γ as its corner, a covariance or
not, ``2(n-1)`` sites per axis: padded and cropped axis by axis, so that no transform runs over rows that are
zero or dropped.

*Determinant in one dimension.* Durbin's recursion gives the one-step prediction errors ``σ_j²``:
``log det T = Σ_j log σ_j²`` (Golub & Van Loan 2013, algorithm 4.7.1), ``O(n²)``. With the last predictor
``a`` (``a_0 = 1``, order ``p = n - 1``) the derivative needs sums along diagonals of the inverse,
``Σ_i (T⁻¹)_{i,i+k} = σ_p⁻² Σ_i (n - k - 2i) a_i a_{i+k}`` (Musicus 1988), two correlations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance.grids.cosine import autocorrelation


def toeplitz_multiply(x: Tensor, half: Tensor, sizes: Sequence[int]) -> Tensor:
    """The corner of the product with a circulant.

    Args:
        x: ``(..., *shape)``.
        half: eigenvalues of the circulant as ``rfftn`` lays them out, ``(*batch, *sizes[:-1], m/2+1)``.
        sizes: sites of the circulant.
    """
    ndim = len(sizes)
    shape = x.shape[x.dim() - ndim :]
    y = torch.fft.rfft(x, n=sizes[-1], dim=-1)
    for axis in range(-2, -ndim - 1, -1):
        y = torch.fft.fft(y, n=sizes[axis], dim=axis)
    y = y * half
    for axis in range(-ndim, -1):
        y = torch.fft.ifft(y, dim=axis).narrow(axis, 0, shape[axis])
    result: Tensor = torch.fft.irfft(y, n=sizes[-1], dim=-1).narrow(-1, 0, shape[-1])
    return result


def cosine_projection(table: Tensor, shape: Sequence[int]) -> Tensor:
    """``c_kᵀ T c_k`` in the cosine basis of the matrix with covariances ``table`` at lags ``0 … n-1`` per
    axis, ``(*batch, *shape)``; see `spatialdiff.covariance.grids.cosine`.
    """
    for axis, n in zip(range(-len(shape), 0), shape, strict=True):
        fold = torch.cat([torch.ones(1), torch.full((n - 1,), 2.0)]).to(table)
        weights = autocorrelation(n, table.device) * fold
        table = (table.movedim(axis, -1) @ weights.mT).movedim(-1, axis)
    return table


def durbin(row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log det T``, the predictor ``a`` ``(*batch, n)`` and its error ``σ_p²`` of the symmetric Toeplitz
    matrix with first row ``row`` ``(*batch, n)``.

    Raises:
        ValueError: ``T`` is not positive definite to working precision.
    """
    n = row.shape[-1]
    a = torch.zeros_like(row)
    a[..., 0] = 1.0
    error = row[..., 0].clone()
    total = error.log()
    backward = row.flip(-1).contiguous()
    for k in range(1, n):
        # Σ_i a_i t_{k-i}, i < k
        reflection = -(a[..., :k] * backward[..., n - 1 - k : n - 1]).sum(-1) / error
        error = error * (1 - reflection.square())
        if not bool((error > 0).all()):
            raise ValueError(
                f"log_det: Γ is not positive definite to working precision: the prediction error of site {k} "
                f"of {n} is {float(error.min()):.3g}. Add a Nugget to the kernel."
            )
        a[..., : k + 1] += reflection[..., None] * a[..., : k + 1].flip(-1)
        total = total + error.log()
    return total, a, error


class _ToeplitzLogDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row: Tensor) -> Tensor:
        value, a, error = durbin(row)
        ctx.save_for_backward(a, error)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        a, error = ctx.saved_tensors
        n = a.shape[-1]
        k = torch.arange(n, dtype=a.dtype, device=a.device)
        sums = ((n - k) * _correlate(a, a) - 2 * _correlate(k * a, a)) / error[..., None]
        result: Tensor = grads[0][..., None] * torch.where(k == 0, 1.0, 2.0) * sums
        return result


def _correlate(u: Tensor, v: Tensor) -> Tensor:
    """``Σ_i u_i v_{i+k}``, ``k = 0 … n-1``."""
    n = u.shape[-1]
    m = 2 ** math.ceil(math.log2(max(2, 2 * n)))
    product = torch.fft.rfft(u, n=m).conj() * torch.fft.rfft(v, n=m)
    result: Tensor = torch.fft.irfft(product, n=m)[..., :n]
    return result


def toeplitz_log_det(row: Tensor) -> Tensor:
    """``log det T`` of the symmetric Toeplitz matrices with first rows ``row``, ``(*batch, n)`` →
    ``(*batch,)``; once differentiable.
    """
    result: Tensor = _ToeplitzLogDet.apply(row)
    return result
