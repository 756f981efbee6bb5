"""Loops over the rows of a sparse triangular matrix, compiled by numba; see `triangular`."""

from __future__ import annotations

import numpy as np

from spatialdiff.covariance.points.vecchia_compiled import Array, compiled


@compiled
def solve(rows: Array, neighbours: Array, x: Array, begin: int, end: int) -> None:
    """``W⁻¹ x`` in place, ``x`` of shape ``(n, fields)``, for the fields ``begin … end-1``."""
    n, m = neighbours.shape
    for i in range(n):
        for j in range(m):
            q = neighbours[i, j]
            if q < 0:
                break
            weight = rows[i, j]
            for f in range(begin, end):
                x[i, f] -= weight * x[q, f]
        inverse = 1.0 / rows[i, m]
        for f in range(begin, end):
            x[i, f] *= inverse


@compiled
def solve_transposed(rows: Array, neighbours: Array, x: Array, begin: int, end: int) -> None:
    """``W⁻ᵀ x`` in place."""
    n, m = neighbours.shape
    for i in range(n - 1, -1, -1):
        inverse = 1.0 / rows[i, m]
        for f in range(begin, end):
            x[i, f] *= inverse
        for j in range(m):
            q = neighbours[i, j]
            if q < 0:
                break
            weight = rows[i, j]
            for f in range(begin, end):
                x[q, f] -= weight * x[i, f]


@compiled
def product(rows: Array, neighbours: Array, x: Array, out: Array, begin: int, end: int) -> None:
    """``W x``."""
    n, m = neighbours.shape
    for i in range(n):
        for f in range(begin, end):
            out[i, f] = rows[i, m] * x[i, f]
        for j in range(m):
            q = neighbours[i, j]
            if q < 0:
                break
            weight = rows[i, j]
            for f in range(begin, end):
                out[i, f] += weight * x[q, f]


@compiled
def product_transposed(rows: Array, neighbours: Array, x: Array, out: Array, begin: int, end: int) -> None:
    """``Wᵀ x``; ``out`` holds zeros."""
    n, m = neighbours.shape
    for i in range(n):
        for f in range(begin, end):
            out[i, f] += rows[i, m] * x[i, f]
        for j in range(m):
            q = neighbours[i, j]
            if q < 0:
                break
            weight = rows[i, j]
            for f in range(begin, end):
                out[q, f] += weight * x[i, f]


@compiled
def outer(neighbours: Array, x: Array, y: Array, out: Array, begin: int, end: int) -> None:
    """``Σ_f x_if y_qf`` for every entry ``(i, q)`` of ``W``, sites ``begin … end-1``; ``out`` holds zeros."""
    m = neighbours.shape[1]
    fields = x.shape[1]
    for i in range(begin, end):
        for j in range(m):
            q = neighbours[i, j]
            if q < 0:
                break
            total = 0.0
            for f in range(fields):
                total += x[i, f] * y[q, f]
            out[i, j] = total
        total = 0.0
        for f in range(fields):
            total += x[i, f] * y[i, f]
        out[i, m] = total


@compiled
def _highest(word: np.uint64) -> int:
    bit = 0
    for step in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(step):
            word >>= np.uint64(step)
            bit += step
    return bit


@compiled
def _ancestors(rows: Array, neighbours: Array, i: int, v: Array, marks: Array, found: Array) -> int:
    """``W⁻ᵀ e_i`` in ``v`` at the sites ``found`` (descending), and how many there are; the other entries of
    ``v`` are 0.
    """
    m = neighbours.shape[1]
    v[i] = 1.0
    word = i >> 6
    marks[word] |= np.uint64(1) << np.uint64(i & 63)
    count = 0
    while word >= 0:
        if marks[word] == 0:
            word -= 1
            continue
        bit = _highest(marks[word])
        marks[word] ^= np.uint64(1) << np.uint64(bit)
        site = (word << 6) + bit
        found[count] = site
        count += 1
        v[site] /= rows[site, m]
        for j in range(m):
            q = neighbours[site, j]
            if q < 0:
                break
            v[q] -= rows[site, j] * v[site]
            marks[q >> 6] |= np.uint64(1) << np.uint64(q & 63)
    return count


@compiled
def variances(rows: Array, neighbours: Array, out: Array, begin: int, end: int) -> None:
    """``Γ_ii = ‖W⁻ᵀ e_i‖²``, where only ancestors of ``i`` are not 0."""
    n = len(rows)
    v, found = np.zeros(n), np.empty(n, dtype=np.int64)
    marks = np.zeros((n >> 6) + 1, dtype=np.uint64)
    for i in range(begin, end):
        count = _ancestors(rows, neighbours, i, v, marks, found)
        total = 0.0
        for a in range(count):
            total += v[found[a]] * v[found[a]]
            v[found[a]] = 0.0
        out[i] = total


@compiled
def variances_gradient(rows: Array, neighbours: Array, grad: Array, out: Array, begin: int, end: int) -> None:
    """Adds ``-2 Σ_i g_i (W⁻ᵀ e_i)_j (Γ e_i)_k`` to ``out`` at every entry ``(j, k)`` of ``W``."""
    n, m = neighbours.shape
    v, u, found = np.zeros(n), np.zeros(n), np.empty(n, dtype=np.int64)
    marks = np.zeros((n >> 6) + 1, dtype=np.uint64)
    for i in range(begin, end):
        count = _ancestors(rows, neighbours, i, v, marks, found)
        for a in range(count - 1, -1, -1):
            site = found[a]
            total = v[site]
            for j in range(m):
                q = neighbours[site, j]
                if q < 0:
                    break
                total -= rows[site, j] * u[q]
            u[site] = total / rows[site, m]
        for a in range(count):
            site = found[a]
            factor = -2.0 * grad[i] * v[site]
            for j in range(m):
                q = neighbours[site, j]
                if q < 0:
                    break
                out[site, j] += factor * u[q]
            out[site, m] += factor * u[site]
            v[site] = 0.0
