r"""The scales of a data set: spacing and extent of its sites, and how far its values are correlated.

On a whole regular grid the correlation along an axis is the average of products of values at a lag, by FFT.
Elsewhere it is the average of products :math:`e_i e_j` over pairs of at most 1500 sites, in bins of distance;
for some of the coordinates only (the axes of a space, a time) over pairs that differ little in the others.
The correlation length is where it has fallen to 1/e of its value at the shortest lag. These are starting
values and bounds only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains import Graph, Grid
from spatialdiff.fitting.observations import Observations

_SITES = 1500
_FIELDS = 64
_PAIRS_PER_BIN = 100
_FALL = math.exp(-1.0)


class Scales:
    """Spacing, extent and correlation length of ``data`` in all or some of its coordinates."""

    def __init__(self, data: Observations) -> None:
        self.data, self.domain = data, data.domain
        self.graph = isinstance(self.domain, Graph)
        self.dimension = 1 if self.graph else self.domain.dimension
        self._sites = None if self.graph else self.domain.sites()
        self._cache: dict[tuple[int, ...], tuple[float, float, float]] = {}

    @property
    def every(self) -> tuple[int, ...]:
        """All axes."""
        return tuple(range(self.dimension))

    @property
    def radius(self) -> float:
        """Root-mean-square distance of the sites from the origin: the radius of a sphere."""
        return 1.0 if self._sites is None else float(self._sites.square().sum(-1).mean().sqrt())

    def spacing(self, axes: Sequence[int]) -> float:
        """Distance between neighbouring sites (on a grid the smallest, elsewhere the median)."""
        return self._of(axes)[0]

    def extent(self, axes: Sequence[int]) -> float:
        """The longest side of the box around the sites."""
        return self._of(axes)[1]

    def length(self, axes: Sequence[int]) -> float:
        """Correlation length, at least half a spacing, at most half the extent."""
        return self._of(axes)[2]

    def _of(self, axes: Sequence[int]) -> tuple[float, float, float]:
        key = tuple(a % self.dimension for a in axes)
        if key not in self._cache:
            self._cache[key] = self._compute(key)
        return self._cache[key]

    def _compute(self, axes: tuple[int, ...]) -> tuple[float, float, float]:
        if isinstance(self.domain, Graph):
            return _of_graph(self.data, self.domain)
        if isinstance(self.domain, Grid):
            spacing = min(self.domain.spacing[a] for a in axes)
            extent = max(self.domain.extent[a] for a in axes)
            if self.data.observed is None:
                lengths = [_along_axis(self.data, self.domain, a) for a in axes]
                return spacing, extent, math.exp(sum(map(math.log, lengths)) / len(lengths))
        else:
            assert self._sites is not None
            part = self._sites[:, axes]
            extent = float((part.amax(0) - part.amin(0)).amax())
            spacing = _neighbour_distance(part)
        length = self._from_pairs(axes, spacing, extent)
        return spacing, extent, min(max(length, spacing / 2.0), max(extent / 2.0, spacing / 2.0))

    def _from_pairs(self, axes: tuple[int, ...], spacing: float, extent: float) -> float:
        """Where the mean product of pairs has fallen to 1/e."""
        assert self._sites is not None
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(self._sites), generator=generator)[:_SITES]
        sites = self._sites[rows]
        products, counts = _products(self.data, rows)
        distance = torch.cdist(sites[:, axes], sites[:, axes])
        pairs = torch.ones_like(distance, dtype=torch.bool).triu(1) & (counts > 0)
        other = [a for a in self.every if a not in axes]
        if other:
            sides = sites[:, other].amax(0) - sites[:, other].amin(0)
            scaled = sites[:, other] / sides.clamp_min(1e-300)
            apart = torch.cdist(scaled, scaled)
            near = float(apart[pairs].quantile(0.1)) if int(pairs.sum()) < 2**24 else 0.1
            pairs &= apart <= near
        pairs &= distance > 0.0
        order = distance[pairs].argsort()
        distances, values = distance[pairs][order], (products / counts.clamp_min(1))[pairs][order]
        if len(distances) == 0:
            return extent / 4.0
        edges = _edges(len(distances))
        bins = [(distances[a:b].mean(), values[a:b].mean()) for a, b in itertools.pairwise(edges)]
        first = float(bins[0][1])
        at_site = float(products.diagonal().sum() / counts.diagonal().sum().clamp_min(1))
        if first <= 0.05 * at_site:
            return max(float(bins[0][0]), spacing)
        for (before, above), (after, below) in itertools.pairwise(bins):
            if float(below) < _FALL * first:
                share = (float(above) - _FALL * first) / (float(above) - float(below))
                return float(before) + min(max(share, 0.0), 1.0) * float(after - before)
        return extent / 2.0


def _products(data: Observations, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of products of the values at pairs of sites, and how many there are."""
    values = data.flat()[:_FIELDS][..., rows].flatten(0, 1)
    seen = data.flat_observed()
    if seen is None:
        return values.T @ values, torch.full((len(rows), len(rows)), len(values), dtype=torch.float64)
    present = seen[:_FIELDS][..., rows].flatten(0, 1).double()
    return values.T @ values, present.T @ present


def _edges(pairs: int) -> list[int]:
    """Ends of bins of sorted pairs whose sizes grow by a half, from 100 pairs on."""
    edges, size = [0], float(_PAIRS_PER_BIN)
    while edges[-1] + 1.5 * size < pairs:
        edges.append(edges[-1] + int(size))
        size *= 1.5
    return [*edges, pairs]


def _neighbour_distance(sites: Tensor) -> float:
    """Median distance from a site to the nearest other one; of equal sites one counts."""
    from scipy.spatial import cKDTree

    places = np.unique(sites.numpy(), axis=0)
    if len(places) < 2:
        return 1.0
    chosen = places[np.random.default_rng(0).permutation(len(places))[:_SITES]]
    distances, _ = cKDTree(places).query(chosen, k=2)
    return float(np.median(np.asarray(distances)[:, 1]))


def _along_axis(data: Observations, grid: Grid, axis: int) -> float:
    """Correlation length along one axis of a whole grid, by FFT."""
    n, h = grid.shape[axis], grid.spacing[axis]
    values = data.values.movedim(axis + 2, -1)
    spectrum = torch.fft.rfft(values, 2 * n, dim=-1).abs().square().flatten(0, -2).mean(0)
    lags = torch.arange(1, n + 1)
    correlation = torch.fft.irfft(spectrum, 2 * n)[:n] / (n + 1 - lags)
    correlation = correlation / correlation[0]
    below = (correlation < _FALL).nonzero()
    if len(below) == 0 or n == 1:
        return max(grid.extent[axis] / 2.0, h / 2.0)
    first = int(below[0, 0])
    c0, c1 = float(correlation[first - 1]), float(correlation[first])
    return max(h * (first - 1 + (c0 - _FALL) / (c0 - c1)), h / 2.0)


def _of_graph(data: Observations, graph: Graph) -> tuple[float, float, float]:
    """An edge of weight ``w`` is ``1/√w`` long; correlation length from the correlation along edges."""
    extent = float(graph.size)
    if len(graph.edges) == 0:
        return 1.0, extent, 1.0
    edge = float(graph.weights.clamp_min(1e-300).rsqrt().median())
    values = data.flat()
    one, other = (values[..., graph.edges[:, side]] for side in (0, 1))
    products, seen = one * other, data.flat_observed()
    if seen is None:
        mean = float(products.mean())
    else:
        both = seen[..., graph.edges[:, 0]] & seen[..., graph.edges[:, 1]]
        mean = float(products.sum() / both.sum().clamp_min(1))
    correlation = min(max(mean / float(data.variance().mean()), 0.05), 0.99)
    return edge, extent * edge, min(-edge / math.log(correlation), extent * edge / 2.0)
