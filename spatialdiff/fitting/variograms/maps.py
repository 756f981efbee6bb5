r"""The variogram map: semivariances at every lag of a grid, ``γ̂(h)`` for ``h = (i_1 h_1, …, i_d h_d)``.

It is symmetric, ``γ̂(h) = γ̂(-h)``, and shows anisotropy at a glance: ellipses of equal semivariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.fitting.mean import Mean
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.variograms.estimators import finish
from spatialdiff.fitting.variograms.lattice import lag_axes, lag_sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class VariogramMap:
    """Semivariances at the lags of a grid; returned by :func:`variogram_map`.

    Attributes:
        lags: per axis, increasing, in units of length; those of a periodic axis are nearest images.
        gamma: ``(*lags)``, or ``(C, *lags)`` for fields with a channel axis; 0 at lag 0, NaN without pairs.
        counts: pairs at each lag, all fields together; each pair is at ``h`` and at ``-h``.
    """

    lags: tuple[Tensor, ...]
    gamma: Tensor
    counts: Tensor

    def plot(self, channel: int = 0) -> Figure:
        """The map of one channel as a picture, in two dimensions."""
        from spatialdiff.fitting.variograms.pictures import plot_map

        return plot_map(self, channel)


def variogram_map(
    fields: Tensor,
    grid: Grid | MaskedGrid,
    *,
    max_distance: float | None = None,
    mean: Mean = None,
    missing: str = "raise",
) -> VariogramMap:
    r"""Semivariances ``γ̂(h) = ½ mean (x(s+h) - x(s))²`` at all lags of a grid, by FFT.

    Args:
        fields: ``(N, *grid.shape)``, ``(N, C, *grid.shape)``, or one field.
        grid: where they are.
        max_distance: longest lag along any axis, in units of length. Default: half the extent.
        mean: what is taken off first, as in :func:`fit`.
        missing: "raise", or "omit": NaN is a value that was not observed.

    Raises:
        TypeError: a domain that is not a regular grid.
        ValueError: a wrong shape, missing or constant data.

    References:
        Marcotte 1996; Isaaks & Srivastava 1989, chapter 7.
    """
    if not isinstance(grid, Grid | MaskedGrid):
        raise TypeError(f"variogram_map needs a Grid or a MaskedGrid, got {grid!r}: use variogram")
    data = observe(fields, grid, mean, missing)
    domain = data.domain
    regular, observed = grid, data.observed
    if isinstance(domain, MaskedGrid):
        regular = domain.grid
        observed = domain.valid[None, None] if observed is None else observed & domain.valid
    assert isinstance(regular, Grid)
    sums = counts = np.zeros(())
    for _, here, pairs in lag_sums(data.values, observed, regular, cross=False):
        sums, counts = sums + here, counts + pairs
    gamma = finish(sums, counts, "matheron") * (data.total / data.count)
    lags, kept = [], []
    for axis, (steps, h) in enumerate(zip(lag_axes(regular), regular.spacing, strict=True)):
        most = regular.extent[axis] / 2.0 if max_distance is None else max_distance
        near = np.flatnonzero(np.abs(steps) * h <= most * (1.0 + 1e-9))
        lags.append(torch.from_numpy(steps[near] * h))
        kept.append(near)
    for axis, near in enumerate(kept):
        gamma, counts = (np.take(x, near, axis=axis + 1) for x in (gamma, counts))
    shown = [torch.from_numpy(x) for x in (gamma, counts)]
    if not data.has_channels:
        shown = [x[0] for x in shown]
    return VariogramMap(tuple(lags), shown[0], shown[1])
