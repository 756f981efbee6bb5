"""The maximin order, compiled by numba; see `spatialdiff.covariance.points.ordering`."""

from __future__ import annotations

import heapq
import math

import numba
import numpy as np

from spatialdiff.covariance.points.vecchia_compiled import Array


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
