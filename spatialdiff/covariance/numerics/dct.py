r"""Orthonormal DCT-II over trailing axes: ``X_k = √((2-δ_{k0})/n) Σ_x x_x cos(π k (x + ½)/n)``.

Two forms of the same map: a product with the ``n × n`` cosine matrix on short axes, and one FFT of the
even-odd reordered input on long ones (Makhoul 1980). Both are differentiable by autograd.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

# up to this length a matrix product is as fast as the FFT form or faster on a CPU, see
# benchmarks/coloured_noise.py --forms
MATRIX_LIMIT = 128


@lru_cache(maxsize=64)
def cosine_matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II as a matrix ``(n, n)``: row ``k`` is mode ``k``."""
    with torch.inference_mode(False), torch.no_grad():
        k = torch.arange(n, dtype=torch.float64)
        # the angle's multiple of π/(2n) is a whole number, reduced exactly before the cosine
        whole = (2 * k + 1)[None, :] * k[:, None] % (4 * n)
        matrix = torch.cos(math.pi / (2 * n) * whole) * math.sqrt(2 / n)
        matrix[0] /= math.sqrt(2)
        return matrix.to(dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _twiddle(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        k = torch.arange(n, dtype=torch.float64)
        scale = torch.full((n,), math.sqrt(2 / n), dtype=torch.float64)
        scale[0] = math.sqrt(1 / n)
        complex_type = torch.complex64 if dtype == torch.float32 else torch.complex128
        return (torch.polar(scale, -math.pi * k / (2 * n))).to(dtype=complex_type, device=device)


def fourier_dct(x: Tensor) -> Tensor:
    """DCT-II over the last axis by one real FFT."""
    n = x.shape[-1]
    order = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    half = torch.fft.rfft(order)
    # the other half of the spectrum is the conjugate of this one
    twiddle = _twiddle(n, x.dtype, x.device)
    m = half.shape[-1]
    low = (half * twiddle[:m]).real
    high = (half[..., 1 : n - m + 1].flip(-1).conj() * twiddle[m:]).real
    return torch.cat([low, high], dim=-1)


def fourier_idct(c: Tensor) -> Tensor:
    """Inverse of `fourier_dct`."""
    n = c.shape[-1]
    m = n // 2 + 1
    # the spectrum of the reordered field, rotated, has real part X_k and imaginary part -X_{n-k}
    reflected = torch.nn.functional.pad(c[..., 1:].flip(-1), (1, 0))[..., :m]
    spectrum = torch.complex(c[..., :m], -reflected) / _twiddle(n, c.dtype, c.device)[:m]
    order = torch.fft.irfft(spectrum, n=n)
    front = (n + 1) // 2
    odd = torch.nn.functional.pad(order[..., front:].flip(-1), (0, 2 * front - n))
    return torch.stack([order[..., :front], odd], dim=-1).flatten(-2)[..., :n]


def along(x: Tensor, axis: int, *, inverse: bool) -> Tensor:
    """DCT-II, or its inverse, over one axis."""
    n = x.shape[axis]
    if n <= MATRIX_LIMIT or x.dtype not in (torch.float32, torch.float64):
        matrix = cosine_matrix(n, x.dtype, x.device)
        if axis == -1:
            return x @ (matrix if inverse else matrix.T)
        flat = x.flatten(axis + 1)
        return ((matrix.T if inverse else matrix) @ flat).reshape(x.shape)
    moved = x.movedim(axis, -1)
    return (fourier_idct(moved) if inverse else fourier_dct(moved)).movedim(-1, axis)


def dct(x: Tensor, ndim: int) -> Tensor:
    """DCT-II over the last ``ndim`` axes, orthonormal; shape kept."""
    for axis in range(-1, -ndim - 1, -1):
        x = along(x, axis, inverse=False)
    return x


def idct(c: Tensor, ndim: int) -> Tensor:
    """Inverse (and transpose) of `dct`."""
    for axis in range(-1, -ndim - 1, -1):
        c = along(c, axis, inverse=True)
    return c
