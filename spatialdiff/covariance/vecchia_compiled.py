"""Loops of Vecchia's approximation, compiled by numba; imported only where they are used.

Eight sites are worked on at once, one per lane of the innermost loops, so that the small Cholesky factors
vectorise whatever their size. Every function releases the interpreter's lock and works on a range of sites
(or of fields), so that plain threads share the work: a compiled parallel loop would hold OpenMP, which does
not survive a fork.

A block has the neighbours of a site first and the site last; with ``A = L Lᵀ`` its row of ``W`` is
``w = L⁻ᵀ e_m``. Slots without a neighbour (index -1) are decoupled and get 0.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numba
import numpy as np

Array = np.ndarray[Any, Any]

LANES = 8
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def _compiled(function: Any) -> Any:
    return numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)


@_compiled
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


@_compiled
def _forward(a: Array, b: Array, p: int) -> None:
    """``L⁻¹ b`` in place in every lane."""
    for j in range(p):
        for k in range(j):
            for v in range(LANES):
                b[j, v] -= a[j, k, v] * b[k, v]
        for v in range(LANES):
            b[j, v] /= a[j, j, v]


@_compiled
def _backward(a: Array, b: Array, p: int) -> None:
    """``L⁻ᵀ b`` in place in every lane."""
    for j in range(p - 1, -1, -1):
        for k in range(j + 1, p):
            for v in range(LANES):
                b[j, v] -= a[k, j, v] * b[k, v]
        for v in range(LANES):
            b[j, v] /= a[j, j, v]


@_compiled
def _last_row(a: Array, w: Array, p: int) -> None:
    """``w = L⁻ᵀ e_m``."""
    for j in range(p):
        for v in range(LANES):
            w[j, v] = 0.0
    for v in range(LANES):
        w[p - 1, v] = 1.0
    _backward(a, w, p)


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
def _square_distance(c: Array, j: int, k: int, s: Array) -> None:
    for v in range(LANES):
        s[v] = 0.0
    for axis in range(c.shape[1]):
        for v in range(LANES):
            h = c[j, axis, v] - c[k, axis, v]
            s[v] += h * h


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
def _unpack(packed: Array, begin: int, end: int, a: Array, p: int) -> None:
    for v in range(LANES):
        i = min(begin + v, end - 1)
        entry = 0
        for j in range(p):
            for k in range(j + 1):
                a[j, k, v] = packed[i, entry]
                entry += 1


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
def _highest(word: Any) -> int:
    bit = 0
    for step in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(step):
            word >>= np.uint64(step)
            bit += step
    return bit


@_compiled
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


@_compiled
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


@_compiled
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


@numba.njit(nogil=True, cache=True)
def maximin(points: Array, order: Array, brute: int) -> None:
    """The maximin order of ``points`` ``(n, d)``, ``d ≤ 3``; the first ``brute`` steps look at all sites.

    Range searches go through square cells at least as wide as the distance of the step, made anew whenever
    that has halved; a row of cells is one range of the sites sorted by cell.
    """
    n, d = points.shape
    low, extent = np.empty(d), np.empty(d)
    first, best = 0, np.inf
    for axis in range(d):
        low[axis] = points[:, axis].min()
        extent[axis] = points[:, axis].max() - low[axis]
    square = np.zeros(n)
    mean = np.array([points[:, axis].mean() for axis in range(d)])
    for i in range(n):
        for axis in range(d):
            square[i] += (points[i, axis] - mean[axis]) ** 2
        if square[i] < best:
            first, best = i, square[i]
    order[0] = first
    for i in range(n):
        square[i] = 0.0
        for axis in range(d):
            square[i] += (points[i, axis] - points[first, axis]) ** 2
    square[first] = -1.0
    heap = [(-square[i], i) for i in range(n) if i != first]
    heapq.heapify(heap)
    count, reach = 1, -1.0
    cell, cells = np.ones(3), np.ones(3, dtype=np.int64)
    keys, sorted_keys, by_cell = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), np.arange(n)
    at = np.zeros(3, dtype=np.int64)
    while len(heap) > 0:
        key, index = heap[0]
        now = square[index]
        if -key != now:
            heapq.heapreplace(heap, (-now, index))
            continue
        heapq.heappop(heap)
        order[count] = index
        square[index] = -1.0
        count += 1
        if now == 0.0:
            continue
        if count <= brute:
            for i in range(n):
                distance = 0.0
                for axis in range(d):
                    distance += (points[i, axis] - points[index, axis]) ** 2
                square[i] = min(square[i], distance)
            continue
        radius = math.sqrt(now)
        if reach < 0.0 or 2.0 * radius < reach:
            reach = radius
            for axis in range(d):
                cell[axis] = max(radius * (1.0 + 1e-12), extent[axis] * 1e-5)
                cells[axis] = int(extent[axis] / cell[axis]) + 1
            for i in range(n):
                keys[i] = 0
                for axis in range(d):
                    keys[i] = keys[i] * cells[axis] + int((points[i, axis] - low[axis]) / cell[axis])
            by_cell = np.argsort(keys)
            sorted_keys = keys[by_cell]
        # the last axis is one range of keys, the others take up to three places each
        for axis in range(d):
            at[axis] = int((points[index, axis] - low[axis]) / cell[axis])
        last = d - 1
        from_last, to_last = max(at[last] - 1, 0), min(at[last] + 1, cells[last] - 1)
        for row in range(3**last):
            base, rest, inside = 0, row, True
            for axis in range(last):
                place = at[axis] + rest % 3 - 1
                rest //= 3
                inside = inside and 0 <= place < cells[axis]
                base = base * cells[axis] + place
            if not inside:
                continue
            base *= cells[last]
            begin = np.searchsorted(sorted_keys, base + from_last)
            end = np.searchsorted(sorted_keys, base + to_last, side="right")
            for i in by_cell[begin:end]:
                distance = 0.0
                for axis in range(d):
                    distance += (points[i, axis] - points[index, axis]) ** 2
                square[i] = min(square[i], distance)
