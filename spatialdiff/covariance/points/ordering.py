"""Orders in which Vecchia's approximation conditions one site on those before it.

*Maximin*: ``i_1`` is the site nearest to the mean, and ``i_k`` the site farthest from all chosen before,
``i_k = argmax_i min_{l<k} ‖x_i - x_{i_l}‖`` (Guinness 2018; ties go to the lower index). Let
``δ_k`` be that largest distance. Choosing ``i_k`` changes the distance of sites nearer than ``δ_k`` to it
and of no others, some ``n/k`` of them where sites are spread evenly, so that the exact order costs ``O(n
log n)`` range searches' output. Distances only fall, so that a heap may hold old ones: the top is brought
up to date until it is true (compare Schäfer, Katzfuss and Owhadi 2021).
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import torch
from torch import Tensor

# below this many chosen sites a search radius covers so much that all sites are as fast
_ALL = 300

NAMES = ("maximin", "coordinate", "random")


def order_sites(ordering: str | Tensor, sites: Tensor, engine: str = "torch") -> Tensor:
    """The permutation that ``ordering`` names, int64 ``(n,)``: its entry ``k`` is the index of the ``k``-th
    site.

    Args:
        ordering: ``"maximin"``; ``"coordinate"`` (along the axis of the largest extent, ties by the next);
            ``"random"`` (a fixed seed); or the permutation itself.
        sites: coordinates ``(n, d)`` on the CPU, in the units in which distances are to be compared.
        engine: ``"numba"``: the compiled loop, for ``d ≤ 3``; the order is the same.

    Raises:
        ValueError: another name, or a tensor that is not a permutation of ``0 … n-1``.
    """
    n = len(sites)
    if isinstance(ordering, str):
        points = sites.detach().numpy()
        if ordering == "maximin":
            return torch.from_numpy(maximin(points, engine))
        if ordering == "coordinate":
            axes = np.argsort(np.ptp(points, axis=0), kind="stable")
            return torch.from_numpy(np.lexsort(points[:, axes].T).astype(np.int64))
        if ordering == "random":
            return torch.randperm(n, generator=torch.Generator().manual_seed(0))
        raise ValueError(
            f"ordering must be one of {', '.join(map(repr, NAMES))} or a permutation of the {n} sites, got "
            f"{ordering!r}."
        )
    given = torch.as_tensor(ordering).detach().cpu()
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"ordering: a permutation must hold integers, got {given.dtype}.")
    given = given.to(torch.int64)
    if given.shape != (n,):
        raise ValueError(
            f"ordering: a permutation of the {n} sites has shape ({n},), got {tuple(given.shape)}."
        )
    if not torch.equal(given.sort().values, torch.arange(n)):
        counts = torch.bincount(given[(given >= 0) & (given < n)], minlength=n)
        raise ValueError(
            f"ordering: not a permutation of 0 … {n - 1}: {int((counts == 0).sum())} sites are missing and "
            f"{int((counts > 1).sum())} appear more than once."
        )
    return given.clone()


def maximin(
    points: np.ndarray[Any, np.dtype[np.float64]], engine: str = "torch"
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The exact maximin order of ``points`` ``(n, d)``; see the module. Equal points come last."""
    n = len(points)
    if engine == "numba" and points.shape[1] <= 3:
        from spatialdiff.covariance.points import ordering_compiled

        found = np.empty(n, dtype=np.int64)
        ordering_compiled.maximin(np.ascontiguousarray(points), found, _ALL)
        return found
    from scipy.spatial import cKDTree

    tree = cKDTree(points)
    order = np.empty(n, dtype=np.int64)
    order[0] = np.argmin(np.square(points - points.mean(0)).sum(1))
    square = np.square(points - points[order[0]]).sum(1)
    square[order[0]] = -1.0
    heap = [(-value, index) for index, value in enumerate(square.tolist()) if index != order[0]]
    heapq.heapify(heap)
    count = 1
    while heap:
        key, index = heap[0]
        now = float(square[index])
        if -key != now:
            heapq.heapreplace(heap, (-now, index))
            continue
        heapq.heappop(heap)
        order[count] = index
        square[index] = -1.0
        if count < _ALL:
            np.minimum(square, np.square(points - points[index]).sum(1), out=square)
        else:
            near = tree.query_ball_point(points[index], now**0.5)
            square[near] = np.minimum(square[near], np.square(points[near] - points[index]).sum(1))
        count += 1
    return order
