r"""Pairs of scattered sites, in blocks of bounded memory, and sums over them.

Where only near pairs are wanted a k-d tree finds them (`scipy.spatial.cKDTree`); otherwise all pairs are
formed block by block. Distances are Euclidean, or along great circles, ``R θ`` with the angle ``θ`` between
two sites at distance ``R`` from the origin of R³.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains import Domain, Sphere
from spatialdiff.fitting.variograms.bins import Bins
from spatialdiff.fitting.variograms.estimators import MOST_VALUES, of_values, transform

_BLOCK = 2_000_000
# a share of all pairs above which a tree costs more than it saves
_DENSE = 0.1


@dataclass
class Sums:
    """Per field (1 where the fields share a pattern), channel pair and bin: ``sums`` of what an additive
    estimator sums, ``counts`` of pairs, ``distances`` summed; or ``values``, the semivariances of an
    estimator that is not additive, with those of single fields.
    """

    sums: np.ndarray
    counts: np.ndarray
    distances: np.ndarray
    pooled: np.ndarray | None = None


def channel_pairs(channels: int, cross: bool) -> list[tuple[int, int]]:
    """Pairs ``a ≤ b`` of channels, or each with itself."""
    if not cross:
        return [(a, a) for a in range(channels)]
    return [(a, b) for a in range(channels) for b in range(a, channels)]


def distinct_sites(domain: Domain) -> Tensor:
    """Places in ``domain.sites()`` of the different sites: a pole of a sphere is written along its row."""
    places = torch.arange(len(domain.sites()))
    if isinstance(domain, Sphere) and domain.poles:
        columns = domain.shape[1]
        places = torch.cat([places[:1], places[columns:-columns], places[-1:]])
    return places


def blocks(sites: np.ndarray, bins: Bins, great_circle: bool) -> Iterator[tuple[np.ndarray, ...]]:
    """``i, j, bin, distance`` of the pairs ``i < j`` that are in a bin, block by block."""
    for i, j in _near_pairs(sites, bins.farthest, great_circle):
        difference = sites[j] - sites[i]
        distance = np.sqrt((difference**2).sum(axis=1))
        if great_circle:
            radius = np.sqrt((sites[0] ** 2).sum())
            sums = np.sqrt(((sites[j] + sites[i]) ** 2).sum(axis=1))
            distance = 2.0 * radius * np.arctan2(distance, sums)
        place = bins.index(distance)
        kept = (place >= 0) & (place < bins.number)
        inside = bins.towards(difference, distance)
        if inside is not None:
            kept &= inside
        if kept.any():
            yield i[kept], j[kept], place[kept], distance[kept]


def sums_on_points(
    values: np.ndarray,
    observed: np.ndarray | None,
    sites: np.ndarray,
    bins: Bins,
    estimator: str,
    cross: bool,
    great_circle: bool,
) -> Sums:
    """Sums over the pairs of sites ``(n, d)`` of fields ``(N, C, n)``."""
    from scipy.sparse import csr_matrix

    channels = channel_pairs(values.shape[1], cross)
    fields = values.shape[0]
    patterns = 1 if observed is None else fields
    total = Sums(
        np.zeros((fields, len(channels), bins.number)),
        np.zeros((patterns, len(channels), bins.number)),
        np.zeros((patterns, len(channels), bins.number)),
    )
    most = max(1, 4 * _BLOCK // fields)
    for i, j, place, distance in blocks(sites, bins, great_circle):
        for some in np.array_split(np.arange(len(i)), -(-len(i) // most)):
            p, q, number = i[some], j[some], len(some)
            into = csr_matrix((np.ones(number), (place[some], np.arange(number))), (bins.number, number))
            for place_of, (a, b) in enumerate(channels):
                y = values[:, a, q] - values[:, a, p]
                other = y if a == b else values[:, b, q] - values[:, b, p]
                terms = transform(y, estimator) if a == b else y * other
                present = np.ones((1, number))
                if observed is not None:
                    both = observed[:, a] if a == b else observed[:, a] & observed[:, b]
                    present = (both[:, p] & both[:, q]).astype(float)
                    terms = terms * present
                total.sums[:, place_of] += (into @ terms.T).T
                total.counts[:, place_of] += (into @ present.T).T
                total.distances[:, place_of] += (into @ (present * distance[some]).T).T
    return total


def values_on_points(
    values: np.ndarray,
    observed: np.ndarray | None,
    sites: np.ndarray,
    bins: Bins,
    estimator: str,
    great_circle: bool,
) -> Sums:
    """Semivariances by estimators that need all increments of a bin at once.

    Raises:
        ValueError: more increments than fit into memory.
    """
    fields, channels = values.shape[:2]
    found = [(i, j, place, distance) for i, j, place, distance in _counted(sites, bins, great_circle, fields)]
    if found:
        i, j, place, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    else:
        i = j = place = np.zeros(0, dtype=np.int64)
        distance = np.zeros(0)
    patterns = 1 if observed is None else fields
    shape = (patterns, channels, bins.number)
    total = Sums(
        np.full((fields, channels, bins.number), np.nan),
        np.zeros(shape),
        np.zeros(shape),
        np.full((channels, bins.number), np.nan),
    )
    assert total.pooled is not None
    for k in range(bins.number):
        here = place == k
        p, q = i[here], j[here]
        for c in range(channels):
            y = values[:, c, q] - values[:, c, p]
            present = np.ones((1, len(p)), dtype=bool)
            if observed is not None:
                present = observed[:, c, p] & observed[:, c, q]
            total.counts[:, c, k] = present.sum(axis=1)
            total.distances[:, c, k] = (present * distance[here]).sum(axis=1)
            each = np.broadcast_to(present, y.shape)
            total.pooled[c, k] = of_values(y[each], estimator)
            total.sums[:, c, k] = [of_values(y[n, each[n]], estimator) for n in range(fields)]
    return total


def _counted(
    sites: np.ndarray, bins: Bins, great_circle: bool, fields: int
) -> Iterator[tuple[np.ndarray, ...]]:
    number = 0
    for block in blocks(sites, bins, great_circle):
        number += len(block[0])
        check_number(number * fields)
        yield block


def check_number(increments: int) -> None:
    """Raise ValueError for more increments than a median should sort."""
    if increments > MOST_VALUES:
        raise ValueError(
            f"more than {MOST_VALUES} increments are within the bins, which an order statistic needs all at "
            "once: lower max_distance, thin the sites, or use estimator='cressie' or 'matheron'"
        )


def _near_pairs(
    sites: np.ndarray, farthest: float, great_circle: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from scipy.spatial import cKDTree

    n = len(sites)
    reach = farthest
    if great_circle:
        radius = float(np.sqrt((sites[0] ** 2).sum()))
        reach = 2.0 * radius * np.sin(min(farthest / (2.0 * radius), np.pi / 2.0)) * (1.0 + 1e-12)
    if n <= 1000:
        yield np.triu_indices(n, 1)
        return
    tree = cKDTree(sites)
    near = int(tree.count_neighbors(tree, reach))
    if near > _DENSE * n**2:
        rows = max(1, _BLOCK // n)
        for start in range(0, n, rows):
            first, second = np.triu_indices(min(rows, n - start), 1, n - start)
            yield first + start, second + start
        return
    # neighbours in the list are neighbours in space, so that the blocks' trees are small
    order = tree.indices
    for some in np.array_split(order, max(1, -(-near // _BLOCK))):
        found = cKDTree(sites[some]).sparse_distance_matrix(tree, reach, output_type="ndarray")
        first, second = some[found["i"]], found["j"]
        later = second > first
        yield first[later], second[later]
