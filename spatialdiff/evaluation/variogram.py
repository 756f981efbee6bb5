r"""Variogram along the axes: half the mean squared difference at each lag,

.. math:: \hat\gamma_a(h) = \tfrac12 \operatorname{mean}_i (x_{i + h e_a} - x_i)^2, \qquad
   \text{error} = \sqrt{\operatorname{mean}_{a,h} (\hat\gamma_a(h) / \hat\gamma_a^{\text{real}}(h) - 1)^2},

over all pairs of sites (Matheron's estimator, exact pair counts; periodic axes wrap around) and lags up to
half the extent, about equally spaced in :math:`\log h`. It holds the same information as the spectrum,
weighted otherwise: short lags show roughness and nugget.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.evaluation.metric import Metric, average

LAGS = 16


def lags(size: int, number: int = LAGS) -> list[int]:
    """Whole lags from 1 to half of `size`, at most `number`, about equally spaced in their logarithm."""
    if size < 2:
        return []
    last = max(1, size // 2)
    spaced = torch.logspace(0, float(torch.tensor(float(last)).log10()), number, dtype=torch.float64)
    return sorted({round(lag) for lag in spaced.tolist()})


def increments(fields: Tensor, grid: Grid, axis: int, lag: int) -> Tensor:
    """`x_{i + lag} - x_i` along an axis of the grid, over all pairs there are."""
    place = fields.ndim - grid.ndim + axis
    if grid.periodic[axis]:
        return fields.roll(-lag, place) - fields
    size = grid.shape[axis]
    return fields.narrow(place, lag, size - lag) - fields.narrow(place, 0, size - lag)


def variogram(fields: Tensor, grid: Grid, number: int = LAGS) -> tuple[Tensor, Tensor, Tensor]:
    r"""Empirical variogram :math:`\hat\gamma_a(h)` of each field along every axis.

    Args:
        fields: `(N, C, *grid)`.
        grid: where they live.
        number: lags per axis, at most.

    Returns:
        axis `(L,)` of each lag, distance `(L,)` in units of length, semivariance `(N, C, L)`.
    """
    which = [(axis, lag) for axis, size in enumerate(grid.shape) for lag in lags(size, number)]
    values = [0.5 * increments(fields, grid, axis, lag).square().flatten(2).mean(-1) for axis, lag in which]
    return (
        torch.tensor([axis for axis, _ in which]),
        torch.tensor([lag * grid.spacing[axis] for axis, lag in which], dtype=torch.float64),
        torch.stack(values, -1),
    )


def relative(generated: Tensor, real: Tensor) -> float:
    """Root mean square relative error of two mean variograms `(C, L)`."""
    least = torch.finfo(torch.float64).eps * real.amax(-1, keepdim=True)
    return float(((generated - real) / real.maximum(least)).square().mean().sqrt())


VARIOGRAM = Metric(
    "variogram",
    lambda fields, grid: variogram(fields, grid)[2],
    average,
    relative,
    "relative error at lags up to half the extent, root mean square",
)
