"""Nearest sites among those that come before.

For the sites of one block ``b ≤ i < e`` a k-d tree over ``0 … e-1`` is asked for ``2m + 1`` neighbours, of
which about half come before ``i`` at the start of the block and all at its end; the few sites that find
fewer than ``m`` ask again for twice as many. Blocks grow by a fixed factor, so that there are ``O(log n)``
trees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_GROWTH = 1.5
_FIRST = 256
_CHUNK = 50_000


def previous_neighbours(sites: Tensor, neighbors: int) -> Tensor:
    """The ``min(i, m)`` nearest of the sites ``0 … i-1``, nearest first, for every site ``i``.

    Args:
        sites: coordinates ``(n, d)`` in their order, on the CPU.
        neighbors: ``m``.

    Returns:
        int32 ``(n, m)``, filled up with -1; of equally distant sites an arbitrary but fixed choice.
    """
    from scipy.spatial import cKDTree

    points = sites.detach().numpy()
    n, m = len(points), min(neighbors, len(points) - 1)
    found = np.full((n, m), -1, dtype=np.int32)
    begin, end = 0, min(n, max(2 * m, _FIRST))
    threads = torch.get_num_threads()
    while begin < n and m > 0:
        tree = cKDTree(points[:end])
        todo, ask = np.arange(begin, end), 2 * m + 1
        while len(todo):
            short = []
            for part in np.array_split(todo, -(-len(todo) // _CHUNK)):
                index = np.asarray(tree.query(points[part], range(1, min(ask, end) + 1), workers=threads)[1])
                earlier = index < part[:, None]
                done = earlier.sum(1) >= np.minimum(m, part)
                found[part[done]] = _first(index[done], earlier[done], m)
                short.append(part[~done])
            todo, ask = np.concatenate(short), 2 * ask
        begin, end = end, min(n, int(_GROWTH * end) + 1)
    return torch.from_numpy(found)


def _first(index: np.ndarray[Any, Any], keep: np.ndarray[Any, Any], m: int) -> np.ndarray[Any, Any]:
    """The first ``m`` kept entries of each row, filled up with -1."""
    chosen = np.argsort(~keep, axis=1, kind="stable")[:, :m]
    entries = np.where(np.take_along_axis(keep, chosen, 1), np.take_along_axis(index, chosen, 1), -1)
    return np.pad(entries, ((0, 0), (0, m - entries.shape[1])), constant_values=-1)
