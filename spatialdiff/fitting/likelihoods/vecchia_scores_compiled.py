"""Likelihood, score and information of Vecchia's approximation, compiled by numba; imported only where used.

Eight sites are worked on at once, one per lane of the innermost loops, as in
`spatialdiff.covariance.points.vecchia_compiled`, whose small factorisations these are. Nothing of the size
of the blocks of all sites is made.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from spatialdiff.covariance.points.vecchia_compiled import (
    LANES,
    _decouple,
    _factorise,
    _fill,
    _forward,
    _gather,
    _last_row,
    _slope,
    _square_distance,
    compiled,
)

Array = np.ndarray[Any, Any]


@compiled
def _products(
    a: Array,
    c: Array,
    w: Array,
    p: int,
    family: int,
    variance: float,
    of_variance: Array,
    of_nugget: Array,
    of_metric: Array,
    v: Array,
    s: Array,
    t: Array,
) -> None:
    """``v_k = ∂A_k w`` in every lane, of correlations above the diagonal of ``a``."""
    d = c.shape[1]
    for k in range(len(of_variance)):
        both = of_variance[k] + of_nugget[k]
        for j in range(p):
            for lane in range(LANES):
                v[k, j, lane] = both * w[j, lane]
    for j in range(p):
        for i in range(j):
            _square_distance(c, j, i, s)
            _slope(s, family)
            for k in range(len(of_variance)):
                for lane in range(LANES):
                    t[lane] = 0.0
                for x in range(d):
                    for y in range(d):
                        if of_metric[k, x, y] != 0.0:
                            for lane in range(LANES):
                                t[lane] += (
                                    of_metric[k, x, y]
                                    * (c[j, x, lane] - c[i, x, lane])
                                    * (c[j, y, lane] - c[i, y, lane])
                                )
                for lane in range(LANES):
                    entry = a[i, j, lane] * (of_variance[k] - 0.5 * variance * s[lane] * t[lane])
                    v[k, j, lane] += entry * w[i, lane]
                    v[k, i, lane] += entry * w[j, lane]


@compiled
def isotropic_scores(
    points: Array,
    neighbours: Array,
    variance: float,
    nugget: float,
    family: int,
    of_variance: Array,
    of_nugget: Array,
    of_metric: Array,
    columns: Array,
    vectors: int,
    total: Array,
    begin: int,
    end: int,
) -> None:
    """Adds the sums over sites ``begin … end-1`` to ``total``; see `vecchia` for what they are.

    ``total`` holds, in rows of lanes: log-determinant, trace over the first ``vectors`` columns, products of
    the other columns; for each parameter the derivatives of these; the information.
    """
    m, d = neighbours.shape[1], points.shape[1]
    p, number, width = m + 1, len(of_variance), columns.shape[1]
    extra = width - vectors
    a, c = np.empty((p, p, LANES)), np.empty((p, d, LANES))
    w, s, t = np.empty((p, LANES)), np.empty(LANES), np.empty(LANES)
    v, z = np.empty((number, p, LANES)), np.empty((width, p, LANES))
    part = np.empty((width, LANES))
    size = 2 + extra * extra
    information = size * (1 + number)
    for b in range(begin, end, LANES):
        _gather(points, neighbours, b, end, c)
        _fill(a, c, p, variance, nugget, family, s)
        _decouple(a, neighbours, b, end, p)
        _factorise(a, p, s)
        _last_row(a, w, p)
        _products(a, c, w, p, family, variance, of_variance, of_nugget, of_metric, v, s, t)
        for lane in range(LANES):
            i = min(b + lane, end - 1)
            for j in range(m):
                q = neighbours[i, j]
                for k in range(number):
                    if q < 0:
                        v[k, j, lane] = 0.0
                for column in range(width):
                    z[column, j, lane] = columns[max(q, 0), column] if q >= 0 else 0.0
            for column in range(width):
                z[column, m, lane] = columns[i, column]
        for k in range(number):
            _forward(a, v[k], p)
        for column in range(width):
            _forward(a, z[column], p)
        for lane in range(LANES):
            s[lane] = 1.0 if b + lane < end else 0.0
        for lane in range(LANES):
            total[0, lane] += s[lane] * 2.0 * math.log(a[m, m, lane])
        for column in range(vectors):
            for lane in range(LANES):
                total[1, lane] += s[lane] * z[column, m, lane] * z[column, m, lane]
        for x in range(extra):
            for y in range(extra):
                for lane in range(LANES):
                    total[2 + x * extra + y, lane] += (
                        s[lane] * z[vectors + x, m, lane] * z[vectors + y, m, lane]
                    )
        for k in range(number):
            first = size * (1 + k)
            for lane in range(LANES):
                total[first, lane] += s[lane] * v[k, m, lane]
            # s_k without its last entry, times z without its last
            for column in range(width):
                for lane in range(LANES):
                    part[column, lane] = 0.5 * v[k, m, lane] * z[column, m, lane]
                for j in range(m):
                    for lane in range(LANES):
                        part[column, lane] += v[k, j, lane] * z[column, j, lane]
            for column in range(vectors):
                for lane in range(LANES):
                    total[first + 1, lane] -= s[lane] * 2.0 * z[column, m, lane] * part[column, lane]
            for x in range(extra):
                for y in range(extra):
                    for lane in range(LANES):
                        total[first + 2 + x * extra + y, lane] -= s[lane] * (
                            z[vectors + x, m, lane] * part[vectors + y, lane]
                            + z[vectors + y, m, lane] * part[vectors + x, lane]
                        )
            for other in range(k + 1):
                for lane in range(LANES):
                    t[lane] = 0.5 * v[k, m, lane] * v[other, m, lane]
                for j in range(m):
                    for lane in range(LANES):
                        t[lane] += v[k, j, lane] * v[other, j, lane]
                for lane in range(LANES):
                    total[information + k * number + other, lane] += s[lane] * t[lane]
