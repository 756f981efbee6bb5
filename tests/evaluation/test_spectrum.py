"""The radially averaged spectrum against transforms and rings written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtri

import spatialdiff as sd
from spatialdiff.evaluation import spectrum
from spatialdiff.evaluation.spectrum import SPECTRUM, log_ratio, rings

F64 = torch.float64
NUMBER = 5
GRIDS = [
    pytest.param(sd.Grid(13, spacing=0.7), id="1d"),
    pytest.param(sd.Grid((6, 9), spacing=(0.5, 1.3)), id="2d"),
    pytest.param(sd.Grid((4, 5, 3), spacing=(1.0, 0.6, 2.1)), id="3d"),
    pytest.param(sd.Grid((6, 9), spacing=(0.5, 1.3), periodic=True), id="periodic"),
    pytest.param(sd.Grid((6, 9), spacing=(0.5, 1.3), periodic=(True, False)), id="one-axis-periodic"),
]


def cosine_matrix(n):
    """Orthonormal DCT-II: row k is the k-th basis vector."""
    matrix = np.array([[math.cos(math.pi * k * (2 * i + 1) / (2 * n)) for i in range(n)] for k in range(n)])
    matrix *= math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def fourier_matrix(n):
    return np.array([[np.exp(-2j * math.pi * k * i / n) for i in range(n)] for k in range(n)]) / math.sqrt(n)


def modes_by_hand(fields, grid):
    """Power `(N, C, n)` and wavenumber `(n,)` of every mode, one matrix product per axis."""
    fourier = all(grid.periodic)
    power = fields.numpy()
    squares = np.zeros(grid.shape)
    for axis, (n, h) in enumerate(zip(grid.shape, grid.spacing, strict=True)):
        matrix = fourier_matrix(n) if fourier else cosine_matrix(n)
        power = np.moveaxis(np.tensordot(matrix, power, axes=(1, 2 + axis)), 0, 2 + axis)
        k = np.array([min(j, n - j) / (n * h) if fourier else j / (2 * n * h) for j in range(n)])
        squares = squares + (k**2).reshape([-1 if a == axis else 1 for a in range(grid.ndim)])
    flat = np.abs(power) ** 2
    return flat.reshape(*flat.shape[:2], -1), np.sqrt(squares).ravel()


def rings_by_hand(k, number):
    """Modes of each ring: the mean, then rings equally wide in log |k|, empty ones left out."""
    low, high = math.log(k[k > 0].min()), math.log(k.max())
    edges = [math.exp(low + (high - low) * j / number) for j in range(1, number)]
    ring = np.array([0 if v == 0 else 1 + sum(v > e * (1 + 1e-12) for e in edges) for v in k])
    return [np.flatnonzero(ring == r) for r in range(number + 1) if (ring == r).any()]


@pytest.mark.parametrize("grid", GRIDS)
def test_rings_of_an_orthonormal_transform(grid):
    fields = torch.randn(3, 2, *grid.shape, dtype=F64)
    place, power = spectrum(fields, grid, NUMBER)
    modes, k = modes_by_hand(fields, grid)
    members = rings_by_hand(k, NUMBER)
    assert place.shape == (len(members),)
    assert power.shape == (3, 2, len(members))
    for r, inside in enumerate(members):
        assert float(place[r]) == pytest.approx(k[inside].mean(), rel=1e-12, abs=1e-15)
        np.testing.assert_allclose(power[:, :, r], modes[:, :, inside].mean(-1), rtol=1e-11)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_first_ring_is_the_domain_mean(grid):
    fields = torch.randn(4, 1, *grid.shape, dtype=F64)
    place, power = spectrum(fields, grid)
    assert place[0] == 0
    torch.testing.assert_close(power[..., 0], grid.size * fields.flatten(2).mean(-1).square())


@pytest.mark.parametrize("periodic", [False, True])
def test_white_noise_is_flat_at_its_variance(periodic):
    grid, variance, number = sd.Grid((12, 10), spacing=(1.0, 0.4), periodic=periodic), 2.3, 400
    fields = math.sqrt(variance) * torch.randn(number, 1, *grid.shape, dtype=F64)
    place, power = spectrum(fields, grid)
    # sum of squares of as many normal variables as there are modes in the ring
    _, k = modes_by_hand(fields[:1], grid)
    count = np.array([len(inside) for inside in rings_by_hand(k, 16)])
    assert len(count) == len(place)
    error = variance * np.sqrt(2.0 / (number * count))
    bound = -ndtri(1e-6 / len(count))
    assert (np.abs(power.mean((0, 1)).numpy() - variance) < bound * error).all()


def test_periodic_grids_see_a_wave_through_the_edge_as_one_mode():
    """A Fourier mode is one line; in the cosine basis its power spreads over rings."""
    n = 32
    wave = torch.sin(2 * math.pi * 5 * torch.arange(n, dtype=F64) / n + 0.3)[None, None]
    share = {}
    for periodic in (True, False):
        grid = sd.Grid(n, periodic=periodic)
        ring, _ = rings(grid)
        power = spectrum(wave, grid)[1][0, 0]
        total = power * torch.bincount(ring.flatten())
        share[periodic] = float(total.max() / total.sum())
    assert share[True] == pytest.approx(1.0, abs=1e-12)
    assert share[False] < 0.99


def test_error_is_the_root_mean_square_of_the_log_ratio():
    one = torch.rand(2, 7, dtype=F64) + 0.1
    other = torch.rand(2, 7, dtype=F64) + 0.1
    squares = [
        math.log(a / b) ** 2 for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)
    ]
    assert log_ratio(one, other) == pytest.approx(math.sqrt(sum(squares) / 14), rel=1e-12)
    assert log_ratio(one, one) == 0
    assert log_ratio(3.0 * one, one) == pytest.approx(math.log(3.0), rel=1e-12)


def test_the_metric_averages_power_before_the_logarithm():
    grid = sd.Grid((8, 8))
    x, y = torch.randn(2, 6, 1, 8, 8, dtype=F64)
    distance = SPECTRUM.distance(*(SPECTRUM.summary(SPECTRUM.statistics(f, grid)) for f in (x, y)))
    ratio = spectrum(x, grid)[1].mean(0).log() - spectrum(y, grid)[1].mean(0).log()
    assert distance == pytest.approx(float(ratio.square().mean().sqrt()), rel=1e-12)


def test_a_ring_without_power_costs_a_finite_amount():
    power = torch.ones(1, 4, dtype=F64)
    empty = power.clone()
    empty[0, 2] = 0.0
    assert log_ratio(empty, power) == pytest.approx(math.log(1e12) / 2, rel=1e-9)
