"""Loops of Vecchia's approximation, compiled by numba; imported only where they are used.

Eight sites are worked on at once, one per lane of the innermost loops, so that the small Cholesky factors
vectorise whatever their size. Every function releases the interpreter's lock and works on a range of sites
(or of fields), so that plain threads share the work: a compiled parallel loop would hold OpenMP, which does
not survive a fork.

A block has the neighbours of a site first and the site last; with ``A = L Lᵀ`` its row of ``W`` is
``w = L⁻ᵀ e_m``. Slots without a neighbour (index -1) are decoupled and get 0.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

Array = np.ndarray[Any, Any]

LANES = 8
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def compiled(function: Any) -> Any:
    return numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)


@compiled
def _factorise(a: Array, p: int, acc: Array) -> None:
    """``A = L Lᵀ`` in the lower triangle of every lane; a pivot that is not positive becomes NaN."""
    for j in range(p):
        for v in range(LANES):
            acc[v] = a[j, j, v]
        for k in range(j):
            for v in range(LANES):
                acc[v] -= a[j, k, v] * a[j, k, v]
        for v in range(LANES):
            acc[v] = math.sqrt(acc[v]) if acc[v] > 0 else np.nan
            a[j, j, v] = acc[v]
            acc[v] = 1.0 / acc[v]
        for i in range(j + 1, p):
            for k in range(j):
                for v in range(LANES):
                    a[i, j, v] -= a[i, k, v] * a[j, k, v]
            for v in range(LANES):
                a[i, j, v] *= acc[v]


@compiled
def _forward(a: Array, b: Array, p: int) -> None:
    """``L⁻¹ b`` in place in every lane."""
    for j in range(p):
        for k in range(j):
            for v in range(LANES):
                b[j, v] -= a[j, k, v] * b[k, v]
        for v in range(LANES):
            b[j, v] /= a[j, j, v]


@compiled
def _backward(a: Array, b: Array, p: int) -> None:
    """``L⁻ᵀ b`` in place in every lane."""
    for j in range(p - 1, -1, -1):
        for k in range(j + 1, p):
            for v in range(LANES):
                b[j, v] -= a[k, j, v] * b[k, v]
        for v in range(LANES):
            b[j, v] /= a[j, j, v]


@compiled
def _last_row(a: Array, w: Array, p: int) -> None:
    """``w = L⁻ᵀ e_m``."""
    for j in range(p):
        for v in range(LANES):
            w[j, v] = 0.0
    for v in range(LANES):
        w[p - 1, v] = 1.0
    _backward(a, w, p)


@compiled
def _adjoint(a: Array, w: Array, g: Array, p: int) -> None:
    """From ``g = ∂/∂w`` the vectors ``s`` (in place of ``g``) and ``q`` (in place of ``w``) with
    ``∂/∂A = -s qᵀ``: ``w = q/√q_m`` with ``q = A⁻¹ e_m`` and ``dq = -A⁻¹ dA q``.
    """
    m = p - 1
    for v in range(LANES):
        last = w[m, v]
        product = 0.0
        for j in range(p):
            product += g[j, v] * w[j, v]
        for j in range(p):
            g[j, v] /= last
            w[j, v] *= last
        g[m, v] -= 0.5 * product / (last * last)
    _forward(a, g, p)
    _backward(a, g, p)


@compiled
def _decouple(a: Array, neighbours: Array, begin: int, end: int, p: int) -> None:
    for v in range(LANES):
        i = min(begin + v, end - 1)
        for j in range(p - 1):
            if neighbours[i, j] < 0:
                for k in range(j):
                    a[j, k, v] = 0.0
                a[j, j, v] = 1.0
                for k in range(j + 1, p):
                    a[k, j, v] = 0.0


@compiled
def _gather(points: Array, neighbours: Array, begin: int, end: int, c: Array) -> None:
    """Coordinates of a block in every lane; a lane beyond ``end`` repeats the last site."""
    m, d = neighbours.shape[1], points.shape[1]
    for v in range(LANES):
        i = min(begin + v, end - 1)
        for j in range(m):
            q = max(neighbours[i, j], 0)
            for axis in range(d):
                c[j, axis, v] = points[q, axis]
        for axis in range(d):
            c[m, axis, v] = points[i, axis]


@compiled
def _correlation(s: Array, family: int) -> None:
    """``ρ`` of squared scaled distances, in place."""
    if family == 0:
        for v in range(LANES):
            s[v] = math.exp(-math.sqrt(s[v]))
    elif family == 1:
        for v in range(LANES):
            t = math.sqrt(3.0 * s[v])
            s[v] = (1.0 + t) * math.exp(-t)
    elif family == 2:
        for v in range(LANES):
            t = math.sqrt(5.0 * s[v])
            s[v] = (1.0 + t + t * t / 3.0) * math.exp(-t)
    else:
        for v in range(LANES):
            s[v] = math.exp(-0.5 * s[v])


@compiled
def _slope(s: Array, family: int) -> None:
    """``-ρ'(r)/(r ρ(r))`` of squared scaled distances, in place."""
    if family == 0:
        for v in range(LANES):
            s[v] = 1.0 / max(math.sqrt(s[v]), 1e-100)
    elif family == 1:
        for v in range(LANES):
            s[v] = 3.0 / (1.0 + math.sqrt(3.0 * s[v]))
    elif family == 2:
        for v in range(LANES):
            t = math.sqrt(5.0 * s[v])
            s[v] = 5.0 * (1.0 + t) / (3.0 + 3.0 * t + t * t)
    else:
        for v in range(LANES):
            s[v] = 1.0


@compiled
def _square_distance(c: Array, j: int, k: int, s: Array) -> None:
    for v in range(LANES):
        s[v] = 0.0
    for axis in range(c.shape[1]):
        for v in range(LANES):
            h = c[j, axis, v] - c[k, axis, v]
            s[v] += h * h


@compiled
def _fill(a: Array, c: Array, p: int, variance: float, nugget: float, family: int, s: Array) -> None:
    for j in range(p):
        for k in range(j):
            _square_distance(c, j, k, s)
            _correlation(s, family)
            for v in range(LANES):
                a[j, k, v] = variance * s[v]
                a[k, j, v] = s[v]
        for v in range(LANES):
            a[j, j, v] = variance + nugget


@compiled
def isotropic_rows(
    points: Array,
    neighbours: Array,
    variance: float,
    nugget: float,
    family: int,
    rows: Array,
    begin: int,
    end: int,
) -> None:
    """Rows ``begin … end-1`` of ``W`` for ``σ² ρ(‖s - s'‖) + nugget`` at scaled sites ``points``."""
    p, d = neighbours.shape[1] + 1, points.shape[1]
    a, c = np.empty((p, p, LANES)), np.empty((p, d, LANES))
    w, s = np.empty((p, LANES)), np.empty(LANES)
    for b in range(begin, end, LANES):
        _gather(points, neighbours, b, end, c)
        _fill(a, c, p, variance, nugget, family, s)
        _decouple(a, neighbours, b, end, p)
        _factorise(a, p, s)
        _last_row(a, w, p)
        for v in range(min(LANES, end - b)):
            for j in range(p):
                rows[b + v, j] = w[j, v]


@compiled
def isotropic_gradient(
    points: Array,
    neighbours: Array,
    variance: float,
    nugget: float,
    family: int,
    grad: Array,
    begin: int,
    end: int,
    total: Array,
) -> None:
    """Adds to ``total`` ``(2 + d², LANES)`` the derivatives in variance and nugget, and ``Σ ∂/∂k σ² (-ρ'/r)
    s sᵀ`` (lower triangle) over pairs of sites with scaled difference ``s``.
    """
    m, d = neighbours.shape[1], points.shape[1]
    p = m + 1
    a, c = np.empty((p, p, LANES)), np.empty((p, d, LANES))
    w, g, s, t = np.empty((p, LANES)), np.empty((p, LANES)), np.empty(LANES), np.empty(LANES)
    for b in range(begin, end, LANES):
        _gather(points, neighbours, b, end, c)
        _fill(a, c, p, variance, nugget, family, s)
        _decouple(a, neighbours, b, end, p)
        _factorise(a, p, s)
        _last_row(a, w, p)
        for v in range(LANES):
            i = min(b + v, end - 1)
            used = 1.0 if b + v < end else 0.0
            for j in range(m):
                g[j, v] = used * grad[i, j] if neighbours[i, j] >= 0 else 0.0
            g[m, v] = used * grad[i, m]
        _adjoint(a, w, g, p)
        for j in range(p):
            for v in range(LANES):
                total[0, v] -= g[j, v] * w[j, v]
                total[1, v] -= g[j, v] * w[j, v]
            for k in range(j):
                # _fill left the correlations above the diagonal
                for v in range(LANES):
                    t[v] = -(g[j, v] * w[k, v] + g[k, v] * w[j, v]) * a[k, j, v]
                    total[0, v] += t[v]
                _square_distance(c, j, k, s)
                _slope(s, family)
                for v in range(LANES):
                    t[v] *= s[v] * variance
                for x in range(d):
                    for y in range(x + 1):
                        for v in range(LANES):
                            h = (c[j, x, v] - c[k, x, v]) * (c[j, y, v] - c[k, y, v])
                            total[2 + x * d + y, v] += t[v] * h


@compiled
def _unpack(packed: Array, begin: int, end: int, a: Array, p: int) -> None:
    for v in range(LANES):
        i = min(begin + v, end - 1)
        entry = 0
        for j in range(p):
            for k in range(j + 1):
                a[j, k, v] = packed[i, entry]
                entry += 1


@compiled
def packed_rows(packed: Array, rows: Array, begin: int, end: int) -> None:
    """Rows from blocks given by their lower triangles, row after row."""
    p = rows.shape[1]
    a, w, s = np.empty((p, p, LANES)), np.empty((p, LANES)), np.empty(LANES)
    for b in range(begin, end, LANES):
        _unpack(packed, b, end, a, p)
        _factorise(a, p, s)
        _last_row(a, w, p)
        for v in range(min(LANES, end - b)):
            for j in range(p):
                rows[b + v, j] = w[j, v]


@compiled
def packed_gradient(packed: Array, grad: Array, out: Array, begin: int, end: int) -> None:
    """Derivative to the lower triangles, each entry standing for both places of the symmetric block."""
    p = grad.shape[1]
    a, s = np.empty((p, p, LANES)), np.empty(LANES)
    w, g = np.empty((p, LANES)), np.empty((p, LANES))
    for b in range(begin, end, LANES):
        _unpack(packed, b, end, a, p)
        _factorise(a, p, s)
        _last_row(a, w, p)
        for v in range(LANES):
            for j in range(p):
                g[j, v] = grad[min(b + v, end - 1), j]
        _adjoint(a, w, g, p)
        for v in range(min(LANES, end - b)):
            entry = 0
            for j in range(p):
                for k in range(j):
                    out[b + v, entry] = -(g[j, v] * w[k, v] + g[k, v] * w[j, v])
                    entry += 1
                out[b + v, entry] = -g[j, v] * w[j, v]
                entry += 1
