"""Loops over all pairs of sites, compiled by numba; imported only where they are used.

Rows are made where they stand, so that nothing of the size of the matrix is made beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialdiff.covariance.points.tiles_compiled import _compiled, _profile, _slope, _square_distances

Array = np.ndarray[Any, Any]


@_compiled
def fill(c: Array, family: int, variance: float, nugget: float, out: Array, begin: int, end: int) -> None:
    """Rows ``begin … end-1`` of ``σ² ρ + σ₀² I`` at scaled coordinates ``c`` ``(d, n)``."""
    n = c.shape[1]
    for i in range(begin, end):
        row = out[i]
        _square_distances(c, i, 0, n, row)
        _profile(family, row, 1.0)
        for j in range(n):
            row[j] *= variance
        row[i] += nugget


@_compiled
def contract(
    c: Array, family: int, variance: float, gradient: Array, total: Array, begin: int, end: int
) -> None:
    """Adds ``Σ G ρ``, ``tr G`` and ``Σ G σ² φ u uᵀ`` (lower triangle) over rows ``begin … end-1`` to
    ``total`` ``(2 + d²,)``, ``u`` the scaled differences and ``φ = ρ'(s)/s``.
    """
    d, n = c.shape
    squares, profile = np.empty(n), np.empty(n)
    for i in range(begin, end):
        g = gradient[i]
        _square_distances(c, i, 0, n, squares)
        profile[:] = squares
        _profile(family, profile, 1.0)
        value = 0.0
        for j in range(n):
            value += g[j] * profile[j]
        total[0] += value
        total[1] += g[i]
        _slope(family, squares, 1.0, 1e-100)
        for j in range(n):
            squares[j] *= g[j] * variance
        for x in range(d):
            for y in range(x + 1):
                a, b, p, q = c[x, i], c[y, i], c[x], c[y]
                value = 0.0
                for j in range(n):
                    value += squares[j] * (a - p[j]) * (b - q[j])
                total[2 + x * d + y] += value
