"""Loops over pairs from two lists of sites, compiled by numba; imported only where they are used."""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialdiff.covariance.points.tiles_compiled import _compiled, _profile, _square_distances

Array = np.ndarray[Any, Any]


@_compiled
def fill(c: Array, family: int, variance: float, out: Array, begin: int, end: int) -> None:
    """Rows ``begin … end-1`` of ``σ² ρ`` ``(t, n)`` at scaled coordinates ``c`` ``(d, t + n)``, the rows'
    first.
    """
    t = out.shape[0]
    for i in range(begin, end):
        row = out[i]
        _square_distances(c, i, t, c.shape[1], row)
        _profile(family, row, 1.0)
        for j in range(row.shape[0]):
            row[j] *= variance
