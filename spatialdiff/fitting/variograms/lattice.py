r"""Variograms on regular grids at all whole-number lags, by fast Fourier transform.

With ``w`` the indicator of the cells that hold a value and ``⋆`` correlation, ``(f⋆g)(h) = Σ_x f(x) g(x+h)``,

.. math:: \sum_x w(x) w(x+h) (z(x)-z(x+h))^2 = (w z^2 ⋆ w)(h) + (w ⋆ w z^2)(h) - 2 (w z ⋆ w z)(h)

over ``(w⋆w)(h)`` pairs, and likewise for the product of the increments of two channels with ``w`` the cells
where both are known [Marcotte 1996]. Open axes are padded with zeros, periodic axes wrap around, where the
lag is that to the nearest image. Every pair occurs at ``h`` and ``-h``: sums over all lags are halved. (A
lag of half a period is its own mirror image; its direction along that axis has both signs, and pairs there
count half in each.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.fitting.variograms.bins import Bins
from spatialdiff.fitting.variograms.estimators import of_values, transform
from spatialdiff.fitting.variograms.pairs import Sums, channel_pairs, check_number


@dataclass(frozen=True)
class LagTable:
    """The lags ``(m, d)`` on the lattice that a variogram's bins hold, in units of length, the
    ``bins`` ``(m,)`` they are in, and ``weights`` ``(c, m)``, the share of each in the pairs of its bin (of
    every pair of channels, or 1 row where they are the same).
    """

    lags: Tensor
    bins: Tensor
    weights: Tensor

    def average(self, values: Tensor, number: int) -> Tensor:
        """Means ``(c, number)`` over the pairs of each bin of a function of the lag, ``(m,)``, ``(c, m)``."""
        terms = self.weights * values
        return terms.new_zeros(len(terms), number).index_add(1, self.bins, terms)


def lag_axes(grid: Grid) -> list[np.ndarray]:
    """Whole-number lags of each axis in increasing order: ``-(n-1) … n-1``, or the nearest images
    ``-⌊(n-1)/2⌋ … ⌊n/2⌋`` on a periodic axis.
    """
    return [
        np.arange(-((n - 1) // 2), n // 2 + 1) if wraps else np.arange(-(n - 1), n)
        for n, wraps in zip(grid.shape, grid.periodic, strict=True)
    ]


def lag_sums(
    values: Tensor, observed: Tensor | None, grid: Grid, cross: bool
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Sums of products of increments and numbers of *ordered* pairs at all lags, field by field: its number,
    ``(pairs of channels, *lags)``, and the same or 1 in place of the pairs of channels.

    Args:
        values: ``(N, C, *grid)``, 0 where not observed.
        observed: bool of the same shape or ``(1, 1, *grid)``, None where all are.
        grid: where they are.
        cross: whether pairs of different channels are wanted.
    """
    import scipy.fft

    axes = tuple(range(-grid.ndim, 0))
    shape = [
        n if wraps else scipy.fft.next_fast_len(2 * n - 1, real=True)
        for n, wraps in zip(grid.shape, grid.periodic, strict=True)
    ]
    lags = [lag % n for lag, n in zip(lag_axes(grid), shape, strict=True)]
    where = np.ix_(*lags)

    def forward(x: np.ndarray) -> np.ndarray:
        return np.asarray(scipy.fft.rfftn(x, shape, axes=axes))

    def correlation(f: np.ndarray, g: np.ndarray) -> np.ndarray:
        return np.asarray(scipy.fft.irfftn(np.conj(f) * g, shape, axes=axes)[where])

    fields, channels = values.shape[:2]
    pairs = channel_pairs(channels, cross)
    shared = observed is None or observed.shape[0] == 1
    counts = np.zeros(0)
    cells = np.ones((1, *grid.shape)) if observed is None else observed[0].double().numpy()
    for number in range(fields):
        if observed is not None and not shared:
            cells = observed[number].double().numpy()
        z = values[number].numpy()
        present = [cells[0 if len(cells) == 1 else a] for a in range(channels)]
        # increments do not see the mean; without it less cancels
        z = np.stack([w * (x - (w * x).sum() / max(w.sum(), 1.0)) for x, w in zip(z, present, strict=True)])
        sums, found = [], []
        for a, b in pairs:
            both = present[a] if a == b else present[a] * present[b]
            w = forward(both)
            if number == 0 or not shared:
                found.append(np.rint(correlation(w, w)))
            za, zb = both * z[a], both * z[b]
            square, first = forward(za * zb), forward(za)
            second = first if a == b else forward(zb)
            crossed = correlation(first, second)
            crossed = 2.0 * crossed if a == b else crossed + correlation(second, first)
            sums.append(correlation(square, w) + correlation(w, square) - crossed)
        if found:
            counts = np.stack(found)
        sums_here = np.where(counts > 0, np.stack(sums), 0.0)
        if not cross or channels == 1:
            # a sum of squares; rounding may leave less than nothing
            sums_here = np.maximum(sums_here, 0.0)
        yield number, sums_here, counts


def lags_in_bins(grid: Grid, bins: Bins) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Flat places in the array of lags, whole-number lags ``(m, d)``, bins and distances, of all lags but 0
    that are in a bin.
    """
    axes = lag_axes(grid)
    steps = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, grid.ndim)
    h = steps * np.array(grid.spacing)
    distance = np.sqrt((h**2).sum(axis=1))
    place = bins.index(distance)
    kept = (place >= 0) & (place < bins.number) & (distance > 0.0)
    inside = bins.towards(h, distance)
    if inside is not None:
        kept &= inside
    flat = np.flatnonzero(kept)
    return flat, steps[flat], place[flat], distance[flat]


def sums_on_grid(
    values: Tensor, observed: Tensor | None, grid: Grid, bins: Bins, cross: bool
) -> tuple[Sums, LagTable]:
    """Sums over the pairs of cells of fields ``(N, C, *grid)``, by FFT; Matheron's estimator."""
    from scipy.sparse import csr_matrix

    flat, steps, place, distance = lags_in_bins(grid, bins)
    into = csr_matrix((np.full(len(flat), 0.5), (place, np.arange(len(flat)))), (bins.number, len(flat)))
    sums, counts, distances = [], [], []
    total = np.zeros(0)
    shared = observed is None or observed.shape[0] == 1
    for number, here, pairs_here in lag_sums(values, observed, grid, cross):
        sums.append((into @ here.reshape(len(here), -1)[:, flat].T).T)
        if number == 0 or not shared:
            at = pairs_here.reshape(len(pairs_here), -1)[:, flat]
            total = at.copy() if number == 0 else total + at
            counts.append((into @ at.T).T)
            distances.append((into @ (at * distance).T).T)
    table = _table(steps, place, total[:1] if shared else total, grid, bins.number)
    return Sums(np.stack(sums), np.stack(counts), np.stack(distances)), table


def _table(steps: np.ndarray, place: np.ndarray, counts: np.ndarray, grid: Grid, number: int) -> LagTable:
    whole = np.zeros((len(counts), number))
    for row, of in zip(counts, whole, strict=True):
        np.add.at(of, place, row)
    share = counts / np.maximum(whole, 1.0)[:, place]
    lags = torch.from_numpy(steps * np.array(grid.spacing))
    return LagTable(lags, torch.from_numpy(place.astype(np.int64)), torch.from_numpy(share))


def robust_on_grid(
    values: Tensor, observed: Tensor | None, grid: Grid, bins: Bins, estimator: str
) -> tuple[Sums, LagTable]:
    """The same by estimators that need the increments themselves, lag by lag."""
    _, steps, place, distance = lags_in_bins(grid, bins)
    fields, channels = values.shape[:2]
    share = 0.5
    if not any(grid.periodic):
        # one of h and -h
        first = np.array([tuple(step) > (0,) * grid.ndim for step in steps], dtype=bool)
        steps, place, distance, share = steps[first], place[first], distance[first], 1.0
    additive = estimator == "cressie"
    if not additive:
        check_number(len(steps) * grid.size * fields)
    patterns = 1 if observed is None or observed.shape[0] == 1 else fields
    shape = (patterns, channels, bins.number)
    total = Sums(np.zeros((fields, *shape[1:])), np.zeros(shape), np.zeros(shape))
    held: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    at = np.zeros((channels, len(steps)))
    x = values.numpy()
    seen = np.ones((1, 1, *grid.shape), dtype=bool) if observed is None else observed.numpy()
    for m, (step, k) in enumerate(zip(steps, place, strict=True)):
        near, far = _ends(x, step, grid)
        y = far - near
        both = np.logical_and(*_ends(seen, step, grid))
        present = np.broadcast_to(both, (patterns, channels, y.shape[-1]))
        number = share * present.sum(axis=-1)
        total.counts[:, :, k] += number
        total.distances[:, :, k] += number * distance[m]
        at[:, m] = number.sum(axis=0)
        if additive:
            total.sums[:, :, k] += share * (transform(y, estimator) * present).sum(axis=-1)
        else:
            held.setdefault(int(k), []).append((y, present))
    if not additive:
        total.sums[:] = np.nan
        total.pooled = np.full((channels, bins.number), np.nan)
        for k, parts in held.items():
            for c in range(channels):
                rows = [
                    np.concatenate([y[n, c][p[0 if patterns == 1 else n, c]] for y, p in parts])
                    for n in range(fields)
                ]
                total.sums[:, c, k] = [of_values(row, estimator) for row in rows]
                total.pooled[c, k] = of_values(np.concatenate(rows), estimator)
    return total, _table(steps, place, at, grid, bins.number)


def _ends(x: np.ndarray, step: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """``x(s)`` and ``x(s + step)`` of all pairs of cells there are, ``(..., *grid)`` → ``(..., p)``."""
    near = far = x
    for axis, (move, n, wraps) in enumerate(zip(step.tolist(), grid.shape, grid.periodic, strict=True)):
        place = x.ndim - grid.ndim + axis
        if wraps:
            far = np.roll(far, -move, axis=place)
            continue
        size = n - abs(move)
        near, far = (
            np.take(part, np.arange(start, start + size), axis=place)
            for part, start in ((near, max(0, -move)), (far, max(0, move)))
        )
    lead = x.shape[: x.ndim - grid.ndim]
    return near.reshape(*lead, -1), far.reshape(*lead, -1)
