r"""Entries of the inverse of a sparse matrix on the pattern of its factor, by Takahashi's recursion.

With ``A = L D Lᵀ`` and ``Z = A⁻¹``, ``Z L = L⁻ᵀ D⁻¹``. For consecutive columns ``J`` of ``L`` with the same
rows ``I`` below them (a supernode), with blocks ``L_J`` and ``L_I``:

``Z_IJ = -Z_II L_I L_J⁻¹``, ``Z_JJ = L_J⁻ᵀ D_J⁻¹ L_J⁻¹ - Z_IJᵀ L_I L_J⁻¹``,

and ``Z_II`` is a part of the block of the supernode's parent in the elimination tree, computed before
(Takahashi, Fagan & Chin 1973; Erisman & Tinney 1975). Exact, at the cost of one more factorisation.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def selected_diagonal(lower: Any, d: Any) -> Any:
    """``diag(A⁻¹)`` from the unit lower factor ``L`` (scipy CSC) and ``d`` of ``A = L diag(d) Lᵀ``."""
    from scipy.linalg import solve_triangular

    n = len(d)
    columns, rows, values = _closed_pattern(lower)
    start = np.searchsorted(columns, np.arange(n + 1))
    count = np.diff(start)
    parent = np.full(n, n)
    parent[count > 0] = rows[start[:-1][count > 0]]
    joined = (parent[:-1] == np.arange(1, n)) & (count[:-1] == count[1:] + 1)
    first = np.append(np.flatnonzero(np.append(True, ~joined)), n)
    node_of = np.repeat(np.arange(len(first) - 1), np.diff(first))
    below = [rows[start[j - 1] : start[j]] for j in first[1:]]
    parent_node = [int(node_of[i[0]]) if len(i) else -1 for i in below]
    waiting = np.bincount([p for p in parent_node if p >= 0], minlength=len(below))

    blocks: dict[int, Any] = {}
    diagonal = np.empty(n)
    for s in range(len(below) - 1, -1, -1):
        a, b, i = first[s], first[s + 1], below[s]
        k, size = b - a, b - a + len(i)
        if k == 1:
            inverse, ratio = np.ones((1, 1)), values[start[a] : start[b]][:, None]
        else:
            block = np.zeros((size, k))
            for c in range(k):
                block[c + 1 :, c] = values[start[a + c] : start[a + c + 1]]
                block[c, c] = 1.0
            inverse = solve_triangular(
                block[:k], np.eye(k), lower=True, unit_diagonal=True, check_finite=False
            )
            ratio = block[k:] @ inverse
        z = np.empty((size, size))
        z[:k, :k] = inverse.T @ (inverse / d[a:b, None])
        if len(i):
            p = parent_node[s]
            where = _positions(i, first[p], first[p + 1], below[p])
            known = blocks[p][np.ix_(where, where)]
            waiting[p] -= 1
            if waiting[p] == 0:
                del blocks[p]
            cross = known @ ratio
            z[:k, :k] += ratio.T @ cross
            z[k:, :k], z[:k, k:], z[k:, k:] = -cross, -cross.T, known
        diagonal[a:b] = z.diagonal()[:k]
        if waiting[s]:
            blocks[s] = z
    return diagonal


def _positions(i: Any, a: int, b: int, below: Any) -> Any:
    """Where the rows ``i`` stand in the rows ``a, …, b - 1, *below`` of a block."""
    own = np.searchsorted(i, b)
    return np.concatenate([i[:own] - a, b - a + np.searchsorted(below, i[own:])])


def _closed_pattern(lower: Any) -> tuple[Any, Any, Any]:
    """Entries below the diagonal by column and row, zeros added where the elimination would fill in.

    A factor that was stored without entries that happen to be 0 need not contain the rows of every child in
    the column of its parent, which the recursion relies on.
    """
    coo = lower.tocoo()
    n = coo.shape[0]
    keep = coo.row > coo.col
    keys = coo.col[keep].astype(np.int64) * n + coo.row[keep]
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], coo.data[keep][order]
    while True:
        columns, rows = keys // n, keys % n
        first = np.append(True, columns[1:] != columns[:-1]) if len(keys) else np.zeros(0, dtype=bool)
        parent = rows[first][np.cumsum(first) - 1]
        wanted = np.unique((parent * n + rows)[~first])
        place = np.searchsorted(keys, wanted)
        found = keys[np.minimum(place, len(keys) - 1)] == wanted if len(wanted) else np.zeros(0, dtype=bool)
        missing = wanted[~found]
        if len(missing) == 0:
            return columns, rows, values
        merged = np.concatenate([keys, missing])
        order = np.argsort(merged, kind="stable")
        keys, values = merged[order], np.concatenate([values, np.zeros(len(missing))])[order]
