r"""Kernel products by tiles, compiled by numba; imported only where they are used.

Rows of a tile are made in a buffer of the first-level cache and used at once. The exponential is
``exp(-s) = 2^k 2^f`` with ``k`` the integer nearest to ``-s log₂e``, ``|f| ≤ 1/2`` and a polynomial for
``2^f``; without branches and calls, so that the loops vectorise. One or two right-hand sides use the
symmetry of the matrix and make half of it.

Threads are Python's (every function releases the interpreter's lock), not OpenMP's, which do not survive a
fork. Sums over a tile are in the data type of the fields, those over tiles in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from spatialdiff.covariance.points.closed_forms import FAMILIES

Array = np.ndarray[Any, Any]

ROWS, COLUMNS = 64, 1024
_SYMMETRIC = 2  # up to so many right-hand sides
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def _coefficients(degree: int) -> list[float]:
    """Those of ``2^f``, ``|f| ≤ 1/2``: the series ``I_0(a) + 2 Σ I_k(a) T_k(2f)``, ``a = log(2)/2``, cut."""
    a = math.log(2) / 2
    bessel = [
        sum((a / 2) ** (2 * m + k) / (math.factorial(m) * math.factorial(m + k)) for m in range(12))
        for k in range(degree + 1)
    ]
    series = np.polynomial.Chebyshev([bessel[0], *(2 * b for b in bessel[1:])], domain=[-0.5, 0.5])
    return [float(c) for c in series.convert(kind=np.polynomial.Polynomial).coef]


# relative errors 2e-9 and 2e-17
A0, A1, A2, A3, A4, A5, A6 = (np.float32(c) for c in _coefficients(6))
B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11 = _coefficients(11)
LOG2E32, LOG2E64 = np.float32(-math.log2(math.e)), -math.log2(math.e)
# adding and taking away these rounds to the nearest integer, whose bits are the lowest
MAGIC32, MAGIC64 = np.float32(1.5 * 2**23), 1.5 * 2**52
LEAST32, LEAST64 = np.float32(-126.0), -1022.0


def _compiled(function: Any) -> Any:
    return numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)


def _typed_bits(context: Any, x: Any) -> Any:
    """The integer with the bits of ``x``."""
    target = types.int32 if x == types.float32 else types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(target))

    return target(x), generate


def _typed_float(context: Any, bits: Any) -> Any:
    """The number with these bits."""
    target = types.float32 if bits == types.int32 else types.float64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(target))

    return target(bits), generate


_bits: Any = intrinsic(_typed_bits)
_float: Any = intrinsic(_typed_float)


# rounding by a magic number must not be simplified away, so no reassociation here
@numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _decay32(s: Any) -> Any:
    t = max(s * LOG2E32, LEAST32)
    k = t + MAGIC32
    f = t - (k - MAGIC32)
    p = A0 + f * (A1 + f * (A2 + f * (A3 + f * (A4 + f * (A5 + f * A6)))))
    return _float(np.int32(_bits(p) + (_bits(k) << np.int32(23))))


@numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _decay64(s: Any) -> Any:
    t = max(s * LOG2E64, LEAST64)
    k = t + MAGIC64
    f = t - (k - MAGIC64)
    p = B6 + f * (B7 + f * (B8 + f * (B9 + f * (B10 + f * B11))))
    p = B0 + f * (B1 + f * (B2 + f * (B3 + f * (B4 + f * (B5 + f * p)))))
    return _float(_bits(p) + (_bits(k) << np.int64(52)))


def _decay(s: Any) -> Any:
    """``exp(-s)``, ``s ≥ 0``; compiled code takes the overload below."""
    return math.exp(-s)


@overload(_decay, strict=False)
def _decay_of(s: Any) -> Any:
    if s == types.float32:
        return lambda s: _decay32(s)
    return lambda s: _decay64(s)


@_compiled
def _square_distances(c: Array, i: int, begin: int, end: int, out: Array) -> None:
    """``‖u_i - u_j‖²`` for ``begin ≤ j < end``."""
    width = end - begin
    first = c[0, begin:end]
    x = c[0, i]
    if c.shape[0] == 2:
        second = c[1, begin:end]
        y = c[1, i]
        for j in range(width):
            out[j] = (x - first[j]) * (x - first[j]) + (y - second[j]) * (y - second[j])
        return
    for j in range(width):
        out[j] = (x - first[j]) * (x - first[j])
    for a in range(1, c.shape[0]):
        other = c[a, begin:end]
        y = c[a, i]
        for j in range(width):
            out[j] += (y - other[j]) * (y - other[j])


@_compiled
def _profile(family: int, k: Array, one: Any) -> None:
    """``ρ`` of the squared distances in ``k``, in place; ``one`` is 1 in their data type."""
    if family == 0:
        for j in range(k.shape[0]):
            k[j] = _decay(np.sqrt(k[j]))
    elif family == 1:
        for j in range(k.shape[0]):
            s = np.sqrt(k[j])
            k[j] = (one + s) * _decay(s)
    elif family == 2:
        third = one / (one + one + one)
        for j in range(k.shape[0]):
            s = np.sqrt(k[j])
            k[j] = (one + s + k[j] * third) * _decay(s)
    else:
        for j in range(k.shape[0]):
            k[j] = _decay(k[j])


@_compiled
def _slope(family: int, k: Array, one: Any, tiny: Any) -> None:
    """``φ = ρ'(s)/s`` of the squared distances in ``k``, in place."""
    if family == 0:
        for j in range(k.shape[0]):
            s = np.sqrt(k[j])
            k[j] = -_decay(s) / max(s, tiny)
    elif family == 1:
        for j in range(k.shape[0]):
            k[j] = -_decay(np.sqrt(k[j]))
    elif family == 2:
        third = one / (one + one + one)
        for j in range(k.shape[0]):
            s = np.sqrt(k[j])
            k[j] = -(one + s) * _decay(s) * third
    else:
        for j in range(k.shape[0]):
            k[j] = -(one + one) * _decay(k[j])


@_compiled
def _dot(k: Array, x: Array, zero: Any) -> Any:
    total = zero
    for j in range(k.shape[0]):
        total += k[j] * x[j]
    return total


@_compiled
def _add(k: Array, factor: Any, out: Array) -> None:
    for j in range(k.shape[0]):
        out[j] += k[j] * factor


@_compiled
def _add_product(k: Array, out: Array) -> None:
    for j in range(k.shape[0]):
        out[j] += k[j]


@_compiled
def _multiply_full(family: int, c: Array, x: Array, y: Array, one: Any, begin: int, end: int) -> None:
    """Rows ``begin … end-1`` of the product, added to ``y``."""
    n = c.shape[1]
    buffer = np.empty(COLUMNS, c.dtype)
    for start in range(0, n, COLUMNS):
        stop = min(start + COLUMNS, n)
        k = buffer[: stop - start]
        for i in range(begin, end):
            _square_distances(c, i, start, stop, k)
            _profile(family, k, one)
            for s in range(x.shape[0]):
                y[s, i] += _dot(k, x[s, start:stop], one - one)


@_compiled
def _multiply_half(family: int, c: Array, x: Array, y: Array, one: Any, begin: int, end: int) -> None:
    """What pairs ``i < j`` with ``begin ≤ i < end`` add to ``y``, at ``i`` and at ``j``."""
    n = c.shape[1]
    buffer = np.empty(COLUMNS, c.dtype)
    partial = np.empty((x.shape[0], COLUMNS), c.dtype)
    for start in range(begin, n, COLUMNS):
        stop = min(start + COLUMNS, n)
        partial[:] = 0
        for i in range(begin, end):
            first = max(start, i + 1)
            if first < stop:
                k = buffer[: stop - first]
                _square_distances(c, i, first, stop, k)
                _profile(family, k, one)
                for s in range(x.shape[0]):
                    y[s, i] += _dot(k, x[s, first:stop], one - one)
                    _add(k, x[s, i], partial[s, first - start : stop - start])
        for s in range(x.shape[0]):
            _add_product(partial[s, : stop - start], y[s, start:stop])


@_compiled
def _moments(
    family: int, c: Array, g: Array, x: Array, out: Array, one: Any, tiny: Any, begin: int, end: int
) -> None:
    """Rows ``begin … end-1`` of the sums of `moments`, added to ``out`` ``(1 + d,)``."""
    n = c.shape[1]
    buffer, weights = np.empty(COLUMNS, c.dtype), np.empty(COLUMNS, c.dtype)
    for start in range(0, n, COLUMNS):
        stop = min(start + COLUMNS, n)
        k, w = buffer[: stop - start], weights[: stop - start]
        for i in range(begin, end):
            w[:] = 0
            for s in range(x.shape[0]):
                _add(x[s, start:stop], g[s, i], w)
            _square_distances(c, i, start, stop, k)
            _profile(family, k, one)
            out[0] += _dot(k, w, one - one)
            _square_distances(c, i, start, stop, k)
            _slope(family, k, one, tiny)
            for j in range(stop - start):
                k[j] *= w[j]
            for a in range(c.shape[0]):
                axis = c[a, start:stop]
                u = c[a, i]
                for j in range(stop - start):
                    w[j] = (u - axis[j]) * (u - axis[j])
                out[1 + a] += _dot(k, w, one - one)


def _share(work: Callable[[int], None], workers: int) -> None:
    if workers == 1:
        work(0)
        return
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work, t) for t in range(workers)]:
            done.result()


def _arrays(coordinates: Tensor, *fields: Tensor) -> list[Any]:
    return [t.detach().contiguous().numpy() for t in (coordinates, *fields)]


def multiply(family: str, coordinates: Tensor, x: Tensor) -> Tensor:
    """``y_si = Σ_j ρ(‖u_i - u_j‖) x_sj``; as `tiles_plain.multiply`, on the CPU."""
    c, fields = _arrays(coordinates, x)
    n, code, one = c.shape[1], FAMILIES.index(family), c.dtype.type(1)
    blocks = math.ceil(n / ROWS)
    workers = max(1, min(torch.get_num_threads(), blocks))
    half = len(fields) <= _SYMMETRIC
    run = _multiply_half if half else _multiply_full
    totals = [np.zeros(fields.shape) for _ in range(workers if half else 1)]

    # every worker has blocks of its own, always the same: sums are the same in every call
    def work(worker: int) -> None:
        for block in range(worker, blocks, workers):
            total = totals[worker if half else 0]
            run(code, c, fields, total, one, block * ROWS, min((block + 1) * ROWS, n))

    _share(work, workers)
    result = sum(totals[1:], totals[0])
    if half:
        result += fields
    return torch.from_numpy(result).to(x.dtype)


def moments(family: str, coordinates: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of `tiles_plain.moments`, on the CPU."""
    c, left, right = _arrays(coordinates, g, x)
    n, code, one = c.shape[1], FAMILIES.index(family), c.dtype.type(1)
    blocks = math.ceil(n / ROWS)
    workers = max(1, min(torch.get_num_threads(), blocks))
    totals = [np.zeros(1 + len(c)) for _ in range(workers)]
    tiny = c.dtype.type(1e-30)

    def work(worker: int) -> None:
        for block in range(worker, blocks, workers):
            _moments(
                code, c, left, right, totals[worker], one, tiny, block * ROWS, min((block + 1) * ROWS, n)
            )

    _share(work, workers)
    result = torch.from_numpy(sum(totals[1:], totals[0]))
    return result[0], result[1:]
