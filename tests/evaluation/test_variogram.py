"""The variogram against loops over pairs, and against a covariance that is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import spatialdiff as sd
from spatialdiff.evaluation import variogram
from spatialdiff.evaluation.variogram import VARIOGRAM, lags, relative
from spatialdiff.kernels import Matern

F64 = torch.float64


def pairs_by_hand(field, grid, axis, lag):
    """Half the mean squared difference over all pairs of sites `lag` apart along an axis."""
    squares = []
    for site in torch.cartesian_prod(*(torch.arange(n) for n in grid.shape)).reshape(-1, grid.ndim).tolist():
        other = list(site)
        other[axis] += lag
        if other[axis] >= grid.shape[axis]:
            if not grid.periodic[axis]:
                continue
            other[axis] -= grid.shape[axis]
        squares.append(float(field[tuple(other)] - field[tuple(site)]) ** 2)
    return 0.5 * sum(squares) / len(squares)


@pytest.mark.parametrize(
    "grid",
    [
        sd.Grid(11, spacing=0.3),
        sd.Grid((7, 5), spacing=(0.5, 2.0)),
        sd.Grid((7, 6), spacing=(0.5, 2.0), periodic=(True, False)),
        sd.Grid((1, 8)),
        sd.Grid((4, 3, 5), spacing=(1.0, 2.0, 3.0)),
    ],
    ids=["1d", "2d", "one-axis-periodic", "one-site", "3d"],
)
def test_means_over_pairs(grid):
    fields = torch.randn(2, 2, *grid.shape, dtype=F64)
    axes, distance, found = variogram(fields, grid)
    expected = [(a, lag) for a, n in enumerate(grid.shape) if n > 1 for lag in range(1, max(1, n // 2) + 1)]
    assert axes.tolist() == [a for a, _ in expected]
    assert distance.tolist() == pytest.approx([lag * grid.spacing[a] for a, lag in expected])
    for i in range(2):
        for c in range(2):
            for j, (axis, lag) in enumerate(expected):
                by_hand = pairs_by_hand(fields[i, c], grid, axis, lag)
                assert float(found[i, c, j]) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("size", [2, 3, 8, 64, 301])
def test_lags_grow_to_half_the_extent(size):
    found = lags(size)
    assert found[0] == 1
    assert found[-1] == max(1, size // 2)
    assert len(found) <= 16
    assert all(b > a for a, b in pairwise(found))
    assert lags(1) == []


def test_closed_form_of_a_matern_covariance():
    lengthscale, variance, number = 1.8, 1.4, 600
    grid = sd.Grid((16, 12), spacing=(0.5, 1.0))
    law = sd.covariance(Matern(nu=1.5, lengthscale=lengthscale, variance=variance), grid).double()
    fields = law.sample((number,), generator=torch.Generator().manual_seed(3)).unsqueeze(1).detach()
    _, distance, found = variogram(fields, grid)
    scaled = math.sqrt(3) * distance / lengthscale
    exact = variance * (1 - (1 + scaled) * torch.exp(-scaled))
    error = found[:, 0].std(0) / math.sqrt(number)
    assert float(error.max() / variance) < 0.1  # the bound says something
    assert ((found[:, 0].mean(0) - exact).abs() < 5 * error).all()


def test_error_is_relative():
    one, other = torch.rand(2, 3, 5, dtype=F64) + 0.1
    squares = [
        (a / b - 1) ** 2 for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)
    ]
    assert relative(one, other) == pytest.approx(math.sqrt(sum(squares) / 15), rel=1e-12)
    assert relative(other, other) == 0
    assert relative(1.5 * other, other) == pytest.approx(0.5, rel=1e-12)


def test_a_nugget_shows():
    grid = sd.Grid((16, 16))
    law = sd.covariance(Matern(nu=2.5, lengthscale=4.0), grid).double()
    smooth, other = law.sample((2, 30), generator=torch.Generator().manual_seed(0)).unsqueeze(2).detach()
    rough = smooth + 0.3 * torch.randn(smooth.shape, dtype=F64)

    def error(x):
        return VARIOGRAM.distance(*(VARIOGRAM.summary(VARIOGRAM.statistics(f, grid)) for f in (x, other)))

    assert error(rough) > 2 * error(smooth)
